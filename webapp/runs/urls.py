from __future__ import annotations

from django.urls import include, path

from webapp.runs import form_views, views

project_urls = [
    path("", views.run_list, name="run-list"),
    path("new", form_views.run_new, name="run-new"),
]

run_urls = [
    path("", views.run_detail, name="run-detail"),
    path("config", views.run_config, name="run-config"),
    path("config.yaml", views.run_config_file, name="run-config-file"),
    path("events", views.run_events, name="run-events"),
    path("attempts", views.run_attempts, name="run-attempts"),
    path("control", views.run_control, name="run-control"),
    path("fork", form_views.run_fork, name="run-fork"),
]

urlpatterns = [
    path("p/<slug:slug>/", include(project_urls)),
    path("r/<int:run_id>/", include(run_urls)),
]
