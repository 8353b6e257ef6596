from __future__ import annotations

from django.urls import include, path

from webapp.runs import views

project_urls = [
    path("", views.run_list, name="run-list"),
    path("new", views.run_new, name="run-new"),
]

run_urls = [
    path("", views.run_detail, name="run-detail"),
    path("config", views.run_config, name="run-config"),
    path("events", views.run_events, name="run-events"),
    path("stop", views.run_stop, name="run-stop"),
]

urlpatterns = [
    path("p/<slug:slug>/", include(project_urls)),
    path("r/<int:run_id>/", include(run_urls)),
]
