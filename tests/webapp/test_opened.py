"""Decoded trees are kept open between requests: bounded, never stale, never a way around access."""

from __future__ import annotations

import re

import pytest

from tests.webapp.material import People, add_tree, worked_tree
from tests.webapp.token_trees import reading_tree
from trainer import payload as payload_module
from trainer.payload import Read
from trainer.tree import RolloutTree
from webapp.runs.models import Run
from webapp.trees import opened
from webapp.trees.models import StoredTree


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the payloads that were decoded, in order."""
    sizes: list[int] = []
    real = opened.open_payload

    def counted(read: Read) -> RolloutTree:
        sizes.append(len(read(0, 2**30)))
        return real(read)

    monkeypatch.setattr(opened, "open_payload", counted)
    opened.forget()
    return sizes


def test_a_tree_that_is_read_on_is_decoded_once(run: Run, people: People, decoded: list[int]) -> None:
    tree = add_tree(run, 5, worked_tree(5))
    for name in ("viewer", "editor"):
        for node in ("1", "1.1", "2"):
            assert people.client(name).get(f"/t/{tree.id}/n/{node}").status_code == 200
    assert len(decoded) == 1


def test_who_may_not_see_a_tree_does_not_see_an_open_one(
    run: Run, people: People, decoded: list[int]
) -> None:
    tree = add_tree(run, 5, worked_tree(5))
    assert people.client("viewer").get(f"/t/{tree.id}/n/1").status_code == 200
    assert people.client("stranger").get(f"/t/{tree.id}/n/1").status_code == 404
    assert people.client("stranger").get(f"/api/v1/trees/{tree.id}/paths/1/tokens").status_code == 404
    assert len(decoded) == 1


def test_a_row_that_changed_is_read_again(run: Run, people: People, decoded: list[int]) -> None:
    tree, client = add_tree(run, 5, worked_tree(5)), people.client("viewer")
    assert "45+26=71" in client.get(f"/t/{tree.id}/n/1").content.decode()
    other = worked_tree(5, text="another text\n")
    StoredTree.objects.filter(id=tree.id).update(payload=other.to_payload())
    assert "another text" in client.get(f"/t/{tree.id}/n/1").content.decode()
    assert len(decoded) == 2


def test_few_trees_are_kept_and_none_that_is_too_large(
    run: Run, people: People, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = people.client("viewer")
    trees = [add_tree(run, step, worked_tree(step)) for step in range(5, 9)]

    def read(which: int) -> None:
        assert client.get(f"/t/{trees[which].id}/n/1").status_code == 200

    for which in (0, 1, 2, 0, 3):  # the one that was not read for longest goes
        read(which)
    assert len(decoded) == 4
    read(0)
    assert len(decoded) == 4
    read(1)
    assert len(decoded) == 5
    monkeypatch.setattr(opened, "MOST_BYTES", 100)
    opened.forget()
    read(0)
    read(0)
    assert len(decoded) == 7


PATHS = (
    "/t/{}/", "/t/{}/?n=1.1", "/t/{}/n/0", "/t/{}/n/1.1", "/t/{}/siblings?n=1", "/t/{}/diff?a=1&b=2",
    "/t/{}/estimators", "/api/v1/trees/{}/texts?blocks=0",
    "/api/v1/trees/{}/columns", "/api/v1/trees/{}/nodes/1", "/api/v1/trees/{}/nodes/1/audit",
    "/api/v1/trees/{}/nodes/1.1/estimators", "/api/v1/trees/{}/paths/1.1/tokens",
    "/api/v1/trees/{}/find?q=a",
)  # fmt: skip


def test_every_page_is_the_same_whether_the_tree_is_stored_in_parts_or_not(
    run: Run, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = people.client("viewer")
    tree = reading_tree()
    stored = add_tree(run, 5, tree)

    def pages() -> dict[str, bytes]:
        opened.forget()
        found = {path: client.get(path.format(stored.id)) for path in PATHS}
        assert {path: answer.status_code for path, answer in found.items()} == dict.fromkeys(PATHS, 200)
        secret = re.compile(rb"csrfmiddlewaretoken\W+value=\W+\w+")
        return {path: secret.sub(b"", answer.content) for path, answer in found.items()}

    whole = pages()
    monkeypatch.setattr(payload_module, "CHUNK_TOKENS", 8)
    packed = tree.to_payload()
    assert packed[:4] != bytes(stored.payload)[:4]
    StoredTree.objects.filter(id=stored.id).update(payload=packed)
    assert pages() == whole
