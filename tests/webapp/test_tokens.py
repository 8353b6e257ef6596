"""Where tokens stand in their segments' texts, and the tokens of a path as the browser reads them."""

from __future__ import annotations

import dataclasses
import json
import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.webapp.material import People, add_tree, worked_tree
from tests.webapp.token_trees import END, of_bytes, path_text
from trainer.presets import PRESETS
from webapp.runs.models import Run
from webapp.trees.opened import OpenTree
from webapp.trees.tokens import path_tokens

CONFIG = PRESETS["treerpo-tiny"].config
HOSTILE = "<img src=x onerror=alert(1)>\u202e\u200b</script>\x00{{7*7}}\r\n"


def read(raw: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    (length,) = struct.unpack_from("<I", raw)
    header = json.loads(raw[4 : 4 + length])
    arrays = {
        column["name"]: np.frombuffer(raw, column["dtype"], column["length"], 4 + length + column["offset"])
        for column in header["columns"]
    }
    return header, arrays


def parts(header: dict[str, Any], end: np.ndarray[Any, Any]) -> list[list[str]]:
    """The texts of the tokens of each segment, cut as JavaScript cuts: in UTF-16 units."""
    found, at = [], 0
    for segment in header["segments"]:
        units = segment["text"].encode("utf-16-le")
        ends = [0, *end[at : at + segment["count"]].tolist()]
        found.append([units[2 * a : 2 * b].decode("utf-16-le") for a, b in pairwise(ends)])
        at += segment["count"]
    return found


@given(
    st.text(st.sampled_from("aé≠😀\u202e\u200b\n<&"), max_size=12).map(str.encode),
    st.lists(st.integers(1, 3), min_size=1, max_size=8),
    st.integers(0, 40),
    st.booleans(),
)
def test_the_parts_of_every_segment_join_to_its_text(
    text: bytes, steps: list[int], cut: int, ended: bool
) -> None:
    """Any text, cut into tokens and segments between any two bytes."""
    tokens: list[bytes] = []
    while len(b"".join(tokens)) < len(text):
        done = len(b"".join(tokens))
        tokens.append(text[done : done + steps[len(tokens) % len(steps)]])
    cut = min(cut, len(tokens))
    tree = of_bytes([-1, 0, 1], [[b"q"], tokens[:cut], tokens[cut:]], ended=ended)
    header, arrays = read(path_tokens(OpenTree(tree), 2, CONFIG))
    assert [segment["is_placed"] for segment in header["segments"]] == [True] * 3
    cut_up = parts(header, arrays["end"])
    assert ["".join(one) for one in cut_up] == list(tree.texts)
    # After each token stands what the path's bytes up to it can be read as.
    read_so_far, raw = "", b""
    for token, part in zip([b"q", *tokens], [p for one in cut_up for p in one], strict=False):
        raw, read_so_far = raw + token, read_so_far + part
        assert read_so_far == path_text(raw, is_last=False)


def test_a_split_character_belongs_to_the_token_that_completes_it() -> None:
    tree = of_bytes([-1, 0, 1, 1], [[b"q"], [b"x\xe2"], [b"\x89", b"\xa0y"], [b"\x89\xa1"]], ended=True)
    assert tree.texts == ("q", "x", "≠y", "≡")
    header, arrays = read(path_tokens(OpenTree(tree), 2, CONFIG))
    assert parts(header, arrays["end"]) == [["q"], ["x"], ["", "≠y", ""]]
    assert header["pieces"]["1"] == "⟨78 E2⟩"
    assert header["pieces"][str(END)] == "<|end|>"
    assert parts(*(lambda h, a: (h, a["end"]))(*read(path_tokens(OpenTree(tree), 3, CONFIG))))[2] == ["≡", ""]


def test_hostile_text_is_placed_as_it_was_stored() -> None:
    letters = [bytes([byte]) for byte in HOSTILE.encode()]
    tree = of_bytes([-1, 0], [[b"q"], letters])
    header, arrays = read(path_tokens(OpenTree(tree), 1, CONFIG))
    assert "".join(parts(header, arrays["end"])[1]) == HOSTILE.replace("\x00", "\u2400")


@pytest.mark.parametrize("wrong", ["text", "bytes"])
def test_tokens_that_do_not_make_the_text_are_not_placed(wrong: str) -> None:
    tree = of_bytes([-1, 0], [[b"q"], [b"a", b"b"]])
    if wrong == "text":
        tree = dataclasses.replace(tree, texts=("q", "something else"))
    else:
        tree = tree.with_token_bytes({})
    header, arrays = read(path_tokens(OpenTree(tree), 1, CONFIG))
    assert header["segments"][1]["is_placed"] is False
    assert header["segments"][1]["text"] == tree.texts[1]
    assert arrays["end"].tolist()[1:] == [0, 0]


def test_the_path_of_a_recorded_tree(run: Run, people: People) -> None:
    """Numbers as recorded; alternatives and mismatch only where there are any."""
    client = people.client("viewer")
    plain = add_tree(run, 5, worked_tree(5))
    header, arrays = read(client.get(f"/api/v1/trees/{plain.id}/paths/1.1/tokens").content)
    assert [(s["node"], s["count"]) for s in header["segments"]] == [("0", 3), ("1", 2), ("1.1", 2)]
    assert arrays["id"].tolist() == [1, 2, 3, 4, 5, 7, 8]
    np.testing.assert_allclose(arrays["logprob"], [0, 0, 0, -0.5, -1.5, -1, -2])
    assert arrays["trained"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert header["segments"][1]["advantage"] == pytest.approx(4 / 3)
    assert (header["top_k"], "mismatch" in arrays, "top_id" in arrays) == (0, False, False)
    dropped = read(client.get(f"/api/v1/trees/{plain.id}/paths/2.1/tokens").content)[1]
    assert dropped["trained"].tolist() == [0, 0, 0, 1, 0]  # 2 has credit, 2.1 was filtered out

    tree = worked_tree(6)
    n = len(tree.tokens)
    tree = dataclasses.replace(
        tree,
        mismatch=np.full(n, 0.25, np.float16),
        top_tokens=np.tile(np.array([[7, 77]], np.int32), (n, 1)),
        top_logprobs=np.tile(np.array([[-0.5, -1]], np.float16), (n, 1)),
        token_bytes={7: b"seven", 77: b"\xe2"},
    )
    full = add_tree(run, 6, tree)
    header, arrays = read(client.get(f"/api/v1/trees/{full.id}/paths/1/tokens").content)
    assert (header["top_k"], arrays["top_id"].tolist()[-2:]) == (2, [7, 77])
    assert arrays["top_logprob"].tolist()[-2:] == [-0.5, -1]
    assert header["pieces"] == {"7": "seven", "77": "⟨E2⟩"}
    assert client.get(f"/api/v1/trees/{full.id}/paths/9/tokens").status_code == 404
