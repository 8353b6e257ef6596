from __future__ import annotations

from django.urls import path

from webapp.saved import views

urlpatterns = [
    path("p/<slug:slug>/views/", views.view_list, name="view-list"),
    path("p/<slug:slug>/views/new", views.view_save, name="view-save"),
    path("p/<slug:slug>/views/<int:view_id>/alert", views.view_alert, name="view-alert"),
    path("p/<slug:slug>/views/<int:view_id>/remove", views.view_remove, name="view-remove"),
]
