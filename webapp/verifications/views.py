"""The forms of the inspector's verifier part."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_POST

from webapp.errors import RequestError
from webapp.projects.access import Role, get_tree, require, user_of
from webapp.trees.opened import open_tree
from webapp.verifications import services


@require_POST
def verify(request: HttpRequest, tree_id: int, name: str) -> HttpResponseBase:
    """Judge the answer again: with the run's verifier, or with the one that the form says."""
    stored = get_tree(request, tree_id)
    require(request.user, stored.run.project, Role.EDITOR)
    kind = request.POST.get("kind")
    verifier = None
    if kind is not None:
        # Every kind's knobs are in the form; of them only the chosen one's are meant.
        own = [(key, value) for key, value in request.POST.items() if key.startswith(f"{kind}.")]
        verifier = {"kind": kind} | {key.partition(".")[2]: str(value) for key, value in own}
    try:
        asked = services.request_verification(stored, open_tree(stored), name, user_of(request), verifier)
    except RequestError as refused:
        if refused.status == 404:
            raise
        messages.warning(request, refused.detail)
        return redirect("node-page", tree_id, name)
    return redirect(f"{reverse('node-page', args=[tree_id, asked.node])}#verifier-part")
