"""Pages of notes. Every form works without scripts, and keeps what was typed when it is refused."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from webapp.errors import RequestError
from webapp.filters import MAX_LETTERS, FilterError, parse
from webapp.limits import PAGE_SIZE
from webapp.notes import services
from webapp.notes.models import Note
from webapp.notes.querysets import LANGUAGE, note_json, notes_page, tags_of
from webapp.projects.access import Role, get_project, get_tree, may, user_of
from webapp.runs.views import page_cursor


@require_GET
def note_list(request: HttpRequest, slug: str) -> HttpResponse:
    project = get_project(request, slug)
    text = request.GET.get("q", "")
    context: dict[str, Any] = {
        "project": project,
        "role": project.role,
        "q": text[: MAX_LETTERS + 1],
        "keys": LANGUAGE.fields,
        "tags": tags_of(project),
        "user_id": user_of(request).id,
        "may_write": may(project.role, Role.EDITOR),
        "may_remove_any": may(project.role, Role.ADMIN),
    }
    try:
        wanted = parse(text, LANGUAGE)
        context["notes"], context["next_before"] = notes_page(
            project, wanted, page_cursor(request, "before"), PAGE_SIZE
        )
    except FilterError as error:
        context["error"] = error
    return render(request, "notes/list.html", context, status=400 if "error" in context else 200)


@require_http_methods(["GET", "HEAD", "POST"])
def note_new(request: HttpRequest, tree_id: int) -> HttpResponseBase:
    """On a node of a tree; `n` names it."""
    tree = get_tree(request, tree_id)
    path = request.POST.get("n", request.GET.get("n", "0"))[:2000]
    context: dict[str, Any] = {
        "project": tree.run.project,
        "role": tree.role,
        "tree": tree,
        "node_name": path,
        "text": request.POST.get("text", ""),
        "tags": request.POST.get("tags", ""),
        "may_write": may(tree.role, Role.EDITOR),
    }
    if request.method == "POST":
        try:
            note = services.add_note(tree, user_of(request), path, context["text"], context["tags"])
        except RequestError as refused:
            context["problem"] = refused.detail
            return render(request, "notes/form.html", context, status=refused.status)
        return redirect(note_json(_found(request, note.id))["url"] + f"#note-{note.id}")
    return render(request, "notes/form.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def note_edit(request: HttpRequest, note_id: int) -> HttpResponseBase:
    note = _found(request, note_id)
    context: dict[str, Any] = {
        "project": note.project,
        "note": note,
        "tree": note.tree,
        "node_name": note.path,
        "text": request.POST.get("text", note.text),
        "tags": request.POST.get("tags", " ".join(note.tags)),
        "may_write": note.author_id == user_of(request).id,
    }
    if request.method == "POST":
        try:
            services.edit_note(note, user_of(request), context["text"], context["tags"])
        except RequestError as refused:
            context["problem"] = refused.detail
            return render(request, "notes/form.html", context, status=refused.status)
        return redirect(note_json(note)["url"] + f"#note-{note.id}")
    return render(request, "notes/form.html", context)


@require_POST
def note_remove(request: HttpRequest, note_id: int) -> HttpResponseBase:
    note = _found(request, note_id)
    back = note_json(note)["url"]
    try:
        services.remove_note(note, user_of(request))
    except RequestError as refused:
        raise PermissionDenied(refused.detail) from refused
    messages.success(request, "The note is removed.")
    to_list = request.POST.get("back") == "list"
    return redirect(reverse("note-list", args=[note.project.slug]) if to_list else back)


def _found(request: HttpRequest, note_id: int) -> Note:
    """The note, of a tree that the user may see, or Http404."""
    note = Note.objects.select_related("project", "author", "tree__run").filter(id=note_id).first()
    if note is None:
        raise Http404
    get_tree(request, note.tree_id)
    return note
