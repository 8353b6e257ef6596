from __future__ import annotations

import dataclasses

import numpy as np

from tests.trainer.trees import tree_of
from trainer.token_texts import token_pieces, token_text
from trainer.tree import RolloutTree

EURO = "€".encode()  # three bytes
TEXTS = {1: b"a", 2: EURO[:1], 3: EURO[1:], 4: b"<|end|>", 5: b"\x00", 6: b"\xff"}


def told(parts: list[list[int]], texts: tuple[str, ...]) -> RolloutTree:
    """Root, 1, 2, and 1.1 below 1, with these tokens and texts."""
    tree = tree_of([[1], 0], tokens_per_segment=[len(part) for part in parts], prompt_tokens=0)
    tokens = np.array([token for part in parts for token in part], np.int32)
    return dataclasses.replace(tree, tokens=tokens, texts=("", *texts), token_bytes=TEXTS)


def test_pieces_join_to_the_segments_text_over_split_characters() -> None:
    # Node 1 ends inside a character: its child takes it. Node 2 is a leaf: what is left over stands there.
    tree = told([[1, 2], [1, 6, 2, 4], [3, 5, 1, 4]], ("a", "a\ufffd\ufffd", "€\u2400a"))
    assert token_pieces(tree, 1) == ["a", ""]
    assert token_pieces(tree, 2) == ["a", "\ufffd", "", "\ufffd"]
    assert token_pieces(tree, 3) == ["€", "\u2400", "a", ""]
    assert token_pieces(tree, 0) is None
    assert [token_text(tree, token) for token in (1, 2, 4, 5, 99)] == [
        "a",
        "\ufffd",
        "<|end|>",
        "\u2400",
        None,
    ]


def test_pieces_that_do_not_join_or_are_not_known_are_not_told() -> None:
    parts = [[1, 2], [1], [3, 4]]
    assert token_pieces(told(parts, ("b", "a", "€")), 1) is None
    assert token_pieces(told([[1, 9], [1], [3, 4]], ("a", "a", "€")), 1) is None
    assert token_pieces(dataclasses.replace(told(parts, ("a", "a", "€")), token_bytes={}), 3) is None
