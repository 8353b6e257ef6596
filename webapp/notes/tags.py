"""The notes of a node in a template: `{% load notes %}{% notes_of_node tree.id node.node %}`."""

from __future__ import annotations

from typing import Any

from django import template
from django.template.context import RequestContext

from webapp.notes.querysets import notes_of
from webapp.projects.access import Role, may

register = template.Library()

MAX_OTHERS = 12


@register.inclusion_tag("notes/_of_node.html", takes_context=True)
def notes_of_node(context: RequestContext, tree_id: int, name: str) -> dict[str, Any]:
    """One query. `role` comes from the page."""
    role = context.get("role")
    every = notes_of(tree_id)
    others = dict.fromkeys(note["node"] for note in every if note["node"] != name)
    return {
        "tree_id": tree_id,
        "name": name,
        "notes": [note for note in every if note["node"] == name],
        "others": list(others)[:MAX_OTHERS],
        "n_others": len(others),
        "user_id": context["request"].user.id,
        "may_write": may(role, Role.EDITOR),
        "may_remove_any": may(role, Role.ADMIN),
    }
