"""Writing, changing and removing notes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from django.db.models.functions import Now

from trainer.text import storable
from webapp.accounts.models import User
from webapp.errors import RequestError, bad_field
from webapp.notes.models import Note
from webapp.projects.access import Role, may, require
from webapp.trees.models import StoredTree
from webapp.trees.nodes import find_node
from webapp.trees.opened import open_tree

MAX_LETTERS = 4000
MAX_TAGS = 10
MAX_NOTES = 200  # of one tree
_TAG = re.compile(r"[^\W_][\w.-]{0,39}")


def read_tags(typed: str | Sequence[str]) -> list[str]:
    """Tags between spaces or commas, in lower case, each once. Raises RequestError."""
    parts = re.split(r"[\s,]+", typed) if isinstance(typed, str) else list(typed)
    tags = list(dict.fromkeys(part.lstrip("#").lower() for part in parts if part.strip("#")))
    wrong = next((tag for tag in tags if not _TAG.fullmatch(tag)), None)
    if wrong is not None:
        raise bad_field(
            "tags",
            f"{wrong[:60]!r} is no tag. A tag is up to 40 letters, digits, points and dashes, no spaces.",
        )
    if len(tags) > MAX_TAGS:
        raise bad_field("tags", f"A note has at most {MAX_TAGS} tags, not {len(tags)}.")
    return tags


def _read(text: str, tags: str | Sequence[str]) -> tuple[str, list[str]]:
    text = storable(text).replace("\r\n", "\n").strip()
    if len(text) > MAX_LETTERS:
        raise bad_field(
            "text", f"This note has {len(text):,} letters; at most {MAX_LETTERS:,} are kept. Shorten it."
        )
    found = read_tags(tags)
    if not text and not found:
        raise bad_field("text", "A note needs a text, or a tag.")
    return text, found


def add_note(tree: StoredTree, author: User, path: str, text: str, tags: str | Sequence[str]) -> Note:
    """Editors and admins of the project write notes. Raises RequestError, PermissionDenied."""
    project = tree.run.project
    require(author, project, Role.EDITOR)
    text, found = _read(text, tags)
    opened = open_tree(tree)
    name = opened.name(find_node(opened.tree, path))
    if Note.objects.filter(tree=tree).count() >= MAX_NOTES:
        raise RequestError(409, f"There are {MAX_NOTES} notes on this tree already. Remove one first.")
    return Note.objects.create(project=project, tree=tree, path=name, text=text, tags=found, author=author)


def edit_note(note: Note, user: User, text: str, tags: str | Sequence[str]) -> None:
    """Only who wrote it, while they may still write here."""
    require(user, note.project, Role.EDITOR)
    if note.author_id != user.id:
        raise RequestError(403, f"This note is {note.author.get_username()}'s. Only they can change it.")
    note.text, note.tags = _read(text, tags)
    Note.objects.filter(id=note.id).update(text=note.text, tags=note.tags, edited_at=Now())


def remove_note(note: Note, user: User) -> None:
    """Who wrote it, or an admin."""
    role = require(user, note.project, Role.EDITOR)
    if note.author_id != user.id and not may(role, Role.ADMIN):
        raise RequestError(
            403,
            f"This note is {note.author.get_username()}'s. They can remove it, or an admin of the project.",
        )
    note.delete()
