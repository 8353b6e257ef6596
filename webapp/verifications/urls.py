from __future__ import annotations

from django.urls import path

from webapp.verifications import views

urlpatterns = [path("t/<int:tree_id>/n/<str:name>/verify", views.verify, name="node-verify")]
