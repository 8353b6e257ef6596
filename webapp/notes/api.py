"""API operations on notes."""

from __future__ import annotations

from typing import Any

from django.http import Http404, HttpRequest
from ninja import Router, Schema
from ninja.responses import Status
from pydantic import ConfigDict

from trainer.text import storable
from webapp.filters import FilterError, parse
from webapp.limits import PAGE_SIZE
from webapp.notes import services
from webapp.notes.models import Note
from webapp.notes.querysets import LANGUAGE, note_json, notes_of, notes_page
from webapp.projects.access import get_project, get_tree, user_of
from webapp.runs.api import Id, Limit
from webapp.search.api import refused

router = Router(tags=["notes"])


class NewNote(Schema):
    """`node` is its name, `2.1.3`; 0 is the whole tree."""

    model_config = ConfigDict(extra="forbid")

    node: str = "0"
    text: str = ""
    tags: tuple[str, ...] = ()


class ChangedNote(Schema):
    model_config = ConfigDict(extra="forbid")

    text: str
    tags: list[str]


@router.get("/projects/{slug:slug}/notes", summary="Notes of a project, newest first")
def list_notes(
    request: HttpRequest, slug: str, q: str = "", before: Id | None = None, limit: Limit = PAGE_SIZE
) -> Any:
    project = get_project(request, slug)
    try:
        notes, next_before = notes_page(project, parse(q, LANGUAGE), before, limit)
    except FilterError as error:
        raise refused(error) from error
    return {"notes": notes, "next_before": next_before}


@router.get("/trees/{int:tree_id}/notes", summary="Notes of a tree, the oldest first")
def list_notes_of_tree(request: HttpRequest, tree_id: int, node: str | None = None) -> Any:
    # No node's name holds what the database cannot; so nothing is found, and nothing fails.
    return notes_of(get_tree(request, tree_id).id, None if node is None else storable(node))


@router.post("/trees/{int:tree_id}/notes", summary="Write a note", response={201: Any})
def create_note(request: HttpRequest, tree_id: int, payload: NewNote) -> Any:
    tree = get_tree(request, tree_id)
    note = services.add_note(tree, user_of(request), payload.node, payload.text, payload.tags)
    return Status(201, note_json(_found(request, note.id)))


@router.patch("/notes/{int:note_id}", summary="Change a note of yours")
def change_note(request: HttpRequest, note_id: int, payload: ChangedNote) -> Any:
    services.edit_note(_found(request, note_id), user_of(request), payload.text, payload.tags)
    return note_json(_found(request, note_id))


@router.delete("/notes/{int:note_id}", summary="Remove a note", response={204: None})
def delete_note(request: HttpRequest, note_id: int) -> Any:
    services.remove_note(_found(request, note_id), user_of(request))
    return Status(204, None)


def _found(request: HttpRequest, note_id: int) -> Note:
    note = Note.objects.select_related("project", "author", "tree__run").filter(id=note_id).first()
    if note is None:
        raise Http404
    get_tree(request, note.tree_id)
    return note
