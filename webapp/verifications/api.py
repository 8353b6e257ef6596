"""API operations on verifications."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from ninja import Router, Schema
from ninja.responses import Status
from pydantic import ConfigDict

from webapp.projects.access import Role, get_tree, get_verification, require, user_of
from webapp.runs.origin import config_of
from webapp.trees.nodes import find_node
from webapp.trees.opened import open_tree
from webapp.verifications import services
from webapp.verifications.models import Verification
from webapp.verifications.querysets import node_verifications, recorded_verdict, verification_json

router = Router(tags=["verifications"])


class NewVerification(Schema):
    """`verifier` as in a run's config, such as {"kind": "numeric", "tolerance": 0.01}; without: the run's."""

    model_config = ConfigDict(extra="forbid")

    verifier: dict[str, Any] | None = None


@router.post(
    "/trees/{int:tree_id}/nodes/{str:name}/verifications",
    summary="Judge an answer again, beside its recorded verdict",
    response={201: Any},
)
def ask(request: HttpRequest, tree_id: int, name: str, payload: NewVerification) -> Any:
    stored = get_tree(request, tree_id)
    require(request.user, stored.run.project, Role.EDITOR)
    opened = open_tree(stored)
    asked = services.request_verification(stored, opened, name, user_of(request), payload.verifier)
    return Status(201, verification_json(asked, recorded_verdict(opened, find_node(opened.tree, name))))


@router.get(
    "/trees/{int:tree_id}/nodes/{str:name}/verifications", summary="Verifications of an answer, newest first"
)
def list_verifications(request: HttpRequest, tree_id: int, name: str) -> Any:
    stored = get_tree(request, tree_id)
    opened = open_tree(stored)
    found = node_verifications(stored, opened, find_node(opened.tree, name), config_of(stored.run))
    return {"verifications": found["items"] if found else []}


@router.get("/verifications/{int:verification_id}", summary="One verification")
def read_verification(request: HttpRequest, verification_id: int) -> Any:
    asked: Verification = get_verification(request, verification_id)
    opened = open_tree(get_tree(request, asked.tree_id))
    return verification_json(asked, recorded_verdict(opened, opened.tree.find(asked.node)))
