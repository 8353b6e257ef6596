from __future__ import annotations

from django.urls import path

from webapp.search import views

urlpatterns = [
    path("p/<slug:slug>/search", views.search, name="search"),
]
