from __future__ import annotations

from django.urls import path

from webapp.notes import views

urlpatterns = [
    path("p/<slug:slug>/notes/", views.note_list, name="note-list"),
    path("t/<int:tree_id>/notes/new", views.note_new, name="note-new"),
    path("notes/<int:note_id>/edit", views.note_edit, name="note-edit"),
    path("notes/<int:note_id>/remove", views.note_remove, name="note-remove"),
]
