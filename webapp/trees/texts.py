"""The texts of a tree as its picture needs them: starts by the block, and which nodes have some letters."""

from __future__ import annotations

from typing import Any

from webapp.trees.nodes import text_start
from webapp.trees.opened import OpenTree

TEXT_BLOCK = 128  # nodes, breadth-first
MAX_BLOCKS = 64  # of one request
MAX_FOUND = 10_000
MAX_QUERY_LETTERS = 200


def text_starts(opened: OpenTree, blocks: list[int]) -> dict[str, list[str]]:
    """By block, the first letters of its nodes' texts on one line. Blocks beyond the end are left out."""
    texts = opened.tree.texts
    return {
        str(block): [text_start(text) for text in texts[block * TEXT_BLOCK : (block + 1) * TEXT_BLOCK]]
        for block in blocks
        if 0 <= block * TEXT_BLOCK < len(texts)
    }


def find_text(opened: OpenTree, query: str) -> dict[str, Any]:
    """The nodes whose text, or whose answer as the verifier read it, has `query` in it, whatever the case:
    the first 10,000 breadth-first, and how many there are.
    """
    wanted = query.casefold()
    folded = opened.keep("folded texts", lambda: tuple(map(_folded, opened.tree.texts, opened.tree.answers)))
    found = [node for node, text in enumerate(folded) if wanted in text]
    return {"query": query, "total": len(found), "nodes": found[:MAX_FOUND]}


def _folded(text: str, answer: str) -> str:
    # A line break between them, so that nothing is found across the two.
    return f"{text}\n{answer}".casefold() if answer else text.casefold()
