"""Pages of probes: what was sampled from a node by hand, and the form that asks for more."""

from __future__ import annotations

import secrets
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import urlencode
from django.views.decorators.http import require_http_methods, require_POST

from trainer.config import RunConfig
from trainer.tree import ROOT, RolloutTree
from webapp.errors import RequestError
from webapp.limits import PROBE_CONTINUATIONS, PROBE_TOKENS, PROBE_TOKENS_IN_ALL
from webapp.probes import services
from webapp.probes.checkpoints import BASE, KeptPolicy, kept_policies, nearest, not_kept, without_model
from webapp.probes.forms import BranchForm, by_field
from webapp.probes.querysets import node_probes
from webapp.projects.access import Role, admins_of, get_probe, require, user_of
from webapp.runs.origin import config_of
from webapp.runs.views import page_cursor
from webapp.trees.models import StoredTree
from webapp.trees.views import damaged, find_or_404, tells_damage, tree_context

USUAL_N = 16
LEAST_TOKENS = 16  # proposed, also where the path has used up the run's answer length


@require_http_methods(["GET", "HEAD", "POST"])
@tells_damage
def branch(request: HttpRequest, tree_id: int) -> HttpResponseBase:
    """What was sampled from the node `n`, and the form; a POST asks for a probe."""
    stored, opened, context = tree_context(request, tree_id)
    if opened is None:
        return damaged(request, context)
    tree = opened.tree
    node = find_or_404(tree, request.GET.get("n", "0"))
    name = tree.name(node)
    config = config_of(stored.run)
    values: dict[str, Any] = {}
    errors: dict[str, str] = {}
    if request.method == "POST":
        require(request.user, stored.run.project, Role.EDITOR)
        form = BranchForm(request.POST)
        if form.is_valid():
            try:
                probe = services.request_probe(stored, tree, name, user_of(request), form.ask())
            except RequestError as refused:
                errors = by_field(refused.errors) or {"": refused.detail}
            else:
                return redirect(f"{page_of(stored.id, name)}#probe-{probe.id}")
        else:
            errors = {field: " ".join(map(str, told)) for field, told in form.errors.items()}
        values = request.POST.dict()
        values.setdefault("verify", "")
    elif config is not None:
        values = _proposed(stored, tree, node, config)
    context |= {
        "node_name": name,
        "depth": len(tree.path(node)) - 1,
        "prompt": tree.texts[ROOT],
        "form": _form(stored, tree, config, values, errors) if config and context["can_control"] else None,
        "reason": without_model(stored.run),
        "admins": admins_of(stored.run.project),
        **node_probes(stored.id, name, before=page_cursor(request, "before")),
    }
    return render(request, "probes/branch.html", context, status=400 if errors else 200)


@require_POST
def probe_cancel(request: HttpRequest, probe_id: int) -> HttpResponseBase:
    probe = get_probe(request, probe_id)
    require(request.user, probe.tree.run.project, Role.EDITOR)
    try:
        services.request_cancel(probe, user_of(request))
    except RequestError as refused:
        messages.warning(request, refused.detail)
    return redirect(f"{page_of(probe.tree_id, probe.node)}#probe-{probe.id}")


def page_of(tree_id: int, node: str) -> str:
    return f"{reverse('branch', args=[tree_id])}?{urlencode({'n': node})}"


def _proposed(stored: StoredTree, tree: RolloutTree, node: int, config: RunConfig) -> dict[str, Any]:
    """What the form holds at first."""
    policies = kept_policies(stored.run)
    used = int(sum(tree.token_counts()[part] for part in tree.path(node) if part != ROOT))
    left = max(config.sampler.bounds.answer_tokens - used, LEAST_TOKENS)
    return {
        "policy_version": str(
            min(
                nearest(policies, tree.policy_version),
                key=lambda kept: abs(kept.version - tree.policy_version),
            ).version
        ),
        "beginning": services.answer_so_far(tree, node),
        "n": str(USUAL_N),
        "temperature": f"{config.sampler.temperature:g}",
        "max_tokens": str(min(left, PROBE_TOKENS, PROBE_TOKENS_IN_ALL // USUAL_N)),
        "verify": "on",
        "seed": "",
        "idempotency_key": secrets.token_urlsafe(16),
    }


def _form(
    stored: StoredTree, tree: RolloutTree, config: RunConfig, values: dict[str, Any], errors: dict[str, str]
) -> dict[str, Any]:
    policies = kept_policies(stored.run)
    own = tree.policy_version
    return {
        "values": values,
        "errors": errors,
        "told": "" if own in {kept.version for kept in policies} else not_kept(policies, own),
        "policies": [
            {
                "value": str(kept.version),
                "label": _label(kept, own, policies[0].version),
            }
            for kept in policies
        ],
        "verifier": config.verifier.kind,
        "most": PROBE_CONTINUATIONS,
        "most_tokens": PROBE_TOKENS,
    }


def _label(kept: KeptPolicy, own: int, latest: int) -> str:
    words = [
        word
        for word, holds in (
            ("this policy", kept.version == own),
            ("latest", kept.version == latest and latest != BASE),
            ("base model", kept.version == BASE),
        )
        if holds
    ]
    return f"{kept.name} · {', '.join(words)}" if words else kept.name
