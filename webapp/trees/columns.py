"""A tree's numbers for the browser's canvas: one binary answer of typed columns, some twenty bytes a node.

Nothing is worked out here but means over a segment's tokens and where the value falls; the numbers are the
recorded ones.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from trainer.cliffs import value_cliff
from trainer.token_means import mean_mismatch, token_means
from trainer.tree import CreditState, FinishReason, RolloutTree, Verdict
from webapp.trees.words import CREDIT_WORDS

_COMPRESS_FROM_BYTES = 1024
COLUMNS_VERSION = 3  # raised with what is sent, so that no browser reads a kept answer of before


def columns_path(tree_id: int) -> str:
    """Where a page reads the columns of a tree, below `/api/v1`."""
    return f"/trees/{tree_id}/columns?v={COLUMNS_VERSION}"


def columns(tree: RolloutTree) -> bytes:
    """The columns that canvas and outline draw from, for typed arrays:

    uint32 header length · header JSON, padded with blanks · columns, each 4-byte aligned; all little-endian.
    Offsets count from the end of the header. Nodes come breadth-first, so `n_children` tells the whole shape.

    Counts are the smallest unsigned integer that holds them. Values and advantages are float32; means over
    tokens are float16, three significant digits, which is what colours and tables show (a node's own page has
    the exact ones). What no node of the tree has is left out: `copies` where no leaf stands for several
    answers, `visits` where nothing was searched, `mismatch` where sampler and policy agree.
    """
    leaf = tree.is_leaf()
    cliff = value_cliff(tree)
    arrays: dict[str, NDArray[Any]] = {
        "n_children": _narrow(tree.child_counts()),
        "tokens": _narrow(tree.token_counts()),
        "value": tree.value.astype("<f4"),
        "advantage": tree.advantage.astype("<f4"),
        "entropy": _half(token_means(tree, tree.entropies)),
        "logprob": _half(token_means(tree, tree.logprobs)),
        "verdict": tree.verdict.astype("u1"),
        "finish": tree.finish.astype("u1"),
        "credit_state": tree.credit_state.astype("u1"),
    }
    if (tree.copies[leaf] != 1).any():
        arrays["copies"] = _narrow(tree.copies)
    if tree.visits.any():
        arrays["visits"] = _narrow(tree.visits)
    mismatch = mean_mismatch(tree)
    if mismatch is not None:
        arrays["mismatch"] = _half(mismatch)
    return packed(
        {
            "n_nodes": tree.n_nodes,
            "labels": {
                "verdict": [member.word for member in Verdict],
                "finish": [member.word for member in FinishReason],
                "credit_state": [member.word for member in CreditState],
                "credit": [CREDIT_WORDS[member] for member in CreditState],
            },
            "names_from": "n_children",
            "policy_version": tree.policy_version,
            "cliff": cliff
            and {"node": cliff.node, "drop": cliff.drop, "probability": round(cliff.probability, 4)},
        },
        arrays,
    )


def packed(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Header and columns in one answer. The header gains `columns`: each with its name, type, offset from the
    end of the header, and length.
    """
    listed, parts, offset = [], [], 0
    for name, array in arrays.items():
        raw = array.tobytes()
        raw += b"\0" * (-len(raw) % 4)
        listed.append({"name": name, "dtype": array.dtype.name, "offset": offset, "length": len(array)})
        parts.append(raw)
        offset += len(raw)
    head = json.dumps({**header, "columns": listed}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 4)
    return struct.pack("<I", len(head)) + head + b"".join(parts)


def encoded(raw: bytes, accepted: str) -> tuple[bytes, str]:
    """`raw` compressed as the request accepts it, and the word for it; "" when it stays as it is."""
    offered = {part.split(";")[0].strip().lower() for part in accepted.split(",") if "q=0" not in part}
    if len(raw) < _COMPRESS_FROM_BYTES:
        return raw, ""
    if "zstd" in offered:
        return zstandard.ZstdCompressor(level=3).compress(raw), "zstd"
    if "gzip" in offered:
        packer = zlib.compressobj(level=3, wbits=31)
        return packer.compress(raw) + packer.flush(), "gzip"
    return raw, ""


def _narrow(counts: NDArray[Any]) -> NDArray[Any]:
    """As the smallest of uint8, uint16 and uint32 that holds the largest."""
    largest = int(counts.max(initial=0))
    return counts.astype("u1" if largest < 2**8 else "<u2" if largest < 2**16 else "<u4")


def _half(numbers: NDArray[np.float64]) -> NDArray[np.float16]:
    """As float16; what it cannot hold becomes its largest, never infinite."""
    limit = float(np.finfo(np.float16).max)
    return np.clip(numbers, -limit, limit).astype("<f2")
