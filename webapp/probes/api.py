"""API operations on probes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from django.http import Http404, HttpRequest
from ninja import Router, Schema
from pydantic import ConfigDict, Field

from webapp.probes import services
from webapp.probes.models import Probe
from webapp.probes.querysets import compare, continuations, probe_states, probes_of_node
from webapp.projects.access import Role, get_probe, get_tree, require, user_of
from webapp.runs.api import Id
from webapp.trees.nodes import find_node
from webapp.trees.opened import read_tree

router = Router(tags=["probes"])

Number = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class NewProbe(Schema):
    """What to sample from a node. Without `policy_version`: the policy that sampled the tree; without
    `prefix`: the node's exact tokens; without `seed`: one that was not used at this node yet.
    """

    model_config = ConfigDict(extra="forbid")

    n: Number
    max_tokens: Number
    temperature: float = 1.0
    verify: bool = True
    policy_version: Number | None = None
    prefix: str | None = None
    seed: Number | None = None
    idempotency_key: str | None = None


def probe_json(probe: Probe, *, after: int = -1) -> dict[str, Any]:
    """PROBE with its continuations from number `after` + 1 on."""
    (state,) = probe_states([probe])
    return {**state, "continuations": continuations([probe.id], after=after).get(probe.id, [])}


@router.post(
    "/trees/{int:tree_id}/nodes/{str:name}/branch", summary="Sample from a node", response={201: Any}
)
def branch(request: HttpRequest, tree_id: int, name: str, payload: NewProbe) -> Any:
    from ninja.responses import Status

    stored = get_tree(request, tree_id)
    require(request.user, stored.run.project, Role.EDITOR)
    ask = services.Ask(**payload.dict())
    probe = services.request_probe(stored, read_tree(stored), name, user_of(request), ask)
    return Status(201, probe_json(probe))


@router.get("/trees/{int:tree_id}/nodes/{str:name}/probes", summary="Probes of a node, newest first")
def list_probes(request: HttpRequest, tree_id: int, name: str, before: Id | None = None) -> Any:
    stored = get_tree(request, tree_id)
    tree = read_tree(stored)
    node = tree.name(find_node(tree, name))
    probes, following = probes_of_node(stored.id, node, before=before)
    return {
        "probes": probes,
        "next": following,
        "comparison": [asdict(one) for one in compare(stored.id, node)],
    }


@router.get("/probes/{int:probe_id}", summary="One probe, with its continuations after a number")
def read_probe(
    request: HttpRequest, probe_id: int, after: Annotated[int, Field(ge=-1, le=2**31 - 1)] = -1
) -> Any:
    return probe_json(get_probe(request, probe_id), after=after)


@router.get("/probes/{int:probe_id}/continuations/{int:number}", summary="One continuation, token by token")
def read_continuation(request: HttpRequest, probe_id: int, number: int) -> Any:
    row = get_probe(request, probe_id).continuations.filter(number=min(number, 2**15 - 1)).first()
    if row is None:
        raise Http404
    return {
        "number": row.number,
        "tokens": row.tokens,
        "logprobs": row.logprobs,
        "entropies": row.entropies,
        "text": row.text,
        "finish": row.finish,
        "verdict": row.verdict,
        "answer": row.answer,
        "reward": row.reward,
    }


@router.post("/probes/{int:probe_id}/cancel", summary="Cancel a probe")
def cancel(request: HttpRequest, probe_id: int) -> Any:
    probe = get_probe(request, probe_id)
    require(request.user, probe.tree.run.project, Role.EDITOR)
    return probe_json(services.request_cancel(probe, user_of(request)))
