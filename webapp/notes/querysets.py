"""Notes as pages and API show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from django.db.models import Q, QuerySet
from django.urls import reverse

from webapp.filters import Equals, Field, Filter, Language, Test, to_q
from webapp.notes.models import Note
from webapp.projects.models import Project

MAX_TAGS_SHOWN = 40
TAGS_READ = 5000  # newest notes whose tags are counted


def _tagged(tests: Iterable[Test]) -> Q:
    return Q(tags__overlap=[test.value.lower().lstrip("#") for test in tests if isinstance(test, Equals)])


LANGUAGE = Language(
    (
        Field("tag", "text", "a tag, whole", make=_tagged, aliases=("tags",)),
        Field("author", "text", "who wrote it", column="author__username", lookup="iexact"),
        Field("run", "text", "a run's name", column="tree__run__name", lookup="iexact"),
        Field("problem", "text", "a problem's name, whole", column="tree__problem_id", lookup="exact"),
        Field("step", "number", "step of training", column="tree__step", whole=True),
        Field("edited", "flag", "was changed after it was written", make=lambda tests: _edited(tests)),
    )
)


def _edited(tests: Iterable[Test]) -> Q:
    wanted = {test.value for test in tests if isinstance(test, Equals)}
    return Q(edited_at__isnull="yes" not in wanted) if len(wanted) == 1 else Q()


def _with_places(notes: QuerySet[Note]) -> QuerySet[Note]:
    return notes.select_related("author", "tree__run").defer(
        "tree__payload", "tree__prompt", "tree__run__config"
    )


def notes_of(tree_id: int, path: str | None = None) -> list[dict[str, Any]]:
    """Of a tree, or of one node, the oldest first. One query."""
    found = _with_places(Note.objects.filter(tree_id=tree_id)).order_by("id")
    if path is not None:
        found = found.filter(path=path)
    return [note_json(note) for note in found[:200]]


def notes_page(
    project: Project, wanted: Filter, before: int | None, limit: int
) -> tuple[list[dict[str, Any]], int | None]:
    """Newest first; words are looked for in texts and tags. One query."""
    found = _with_places(Note.objects.filter(to_q(wanted, LANGUAGE), project=project, tree__superseded=False))
    for words in wanted.words:
        holds = Q(text__icontains=words.value) | Q(tags__contains=[words.value.lower()])
        found = found.filter(~holds if words.negated else holds)
    if before is not None:
        found = found.filter(id__lt=before)
    notes = list(found.order_by("-id")[: limit + 1])
    return [note_json(note) for note in notes[:limit]], notes[limit - 1].id if len(notes) > limit else None


def tags_of(project: Project) -> list[tuple[str, int]]:
    """The tags used most, each with how many notes. One query."""
    newest = Note.objects.filter(project=project).exclude(tags=[]).order_by("-id")
    counts = Counter(tag for tags in newest.values_list("tags", flat=True)[:TAGS_READ] for tag in tags)
    return sorted(counts.most_common(MAX_TAGS_SHOWN), key=lambda one: (-one[1], one[0]))


def note_json(note: Note) -> dict[str, Any]:
    return {
        "id": note.id,
        "tree": note.tree_id,
        "node": note.path,
        "run": note.tree.run_id,
        "run_name": note.tree.run.name,
        "colour": note.tree.run.colour,
        "step": note.tree.step,
        "problem_id": note.tree.problem_id,
        "text": note.text,
        "tags": note.tags,
        "author": note.author.get_username(),
        "author_id": note.author_id,
        "created_at": note.created_at,
        "edited_at": note.edited_at,
        "url": f"{reverse('tree-detail', args=[note.tree_id])}?n={note.path}",
    }
