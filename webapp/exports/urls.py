from __future__ import annotations

from django.urls import include, path

from webapp.exports import views

export_urls = [
    path("file", views.export_file, name="export-file"),
    path("cancel", views.export_cancel, name="export-cancel"),
    path("delete", views.export_delete, name="export-delete"),
]

urlpatterns = [
    path("p/<slug:slug>/export", views.export_new, name="export-new"),
    path("exports/", views.export_list, name="export-list"),
    path("exports/<int:export_id>/", include(export_urls)),
]
