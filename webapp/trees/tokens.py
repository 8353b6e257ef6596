"""The tokens of a path for the reader: where each stands in its segment's text, and what is known of it.

A character may be split over tokens, and texts are what was stored, so a token's text is never decoded alone:
it is the part of the segment's text that ends with it. The parts of a segment join to exactly its text.
"""

from __future__ import annotations

import codecs
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.comparison import pushes
from trainer.config import RunConfig
from trainer.text import storable
from trainer.tree import ROOT, FinishReason, RolloutTree
from webapp.runs.origin import HowMade
from webapp.trees.columns import packed
from webapp.trees.nodes import credit_words, number_of, piece, pull_of
from webapp.trees.opened import OpenTree

TOKENS_VERSION = 2  # as `js/tree/tokens.js`


def path_tokens(opened: OpenTree, node: int, made: RunConfig | HowMade) -> bytes:
    """The tokens from the root to `node`, for typed arrays:

    uint32 header length · header JSON, padded with blanks · columns, each 4-byte aligned; all little-endian.

        id, logprob, entropy   int32, float32 [T]
        end                    uint32 [T]  where the token's part of its segment's text ends, in UTF-16 units
        trained                uint8 [T]   1: it carries the loss
        mismatch               float32 [T] sampling less policy logprob; only where recorded
        log_ratio, clip        float32, uint8 [T]  as in `RolloutTree`; only where a step has several updates
        top_id, top_logprob    int32, float32 [T, K], the most likely first; only where recorded; id -1: none

    `segments` of the header: one for each node, with its number of tokens, its text and its advantage; of a
    segment whose tokens cannot be placed in its text (`is_placed` false) every `end` is 0.
    """
    tree = opened.tree
    path = tree.path(node)
    spans = [(int(tree.token_offsets[part]), int(tree.token_offsets[part + 1])) for part in path]
    at = np.concatenate([np.arange(*span) for span in spans]) if spans else np.zeros(0, np.int64)
    config = HowMade.of(made).config
    push = opened.keep("pushes", lambda: pushes(tree, tree.advantage, tree.credit_state))
    ends, segments, pending = [], [], b""
    for part, (first, stop) in zip(path, spans, strict=True):
        placed, pending = token_ends(tree, part, pending, is_last=bool(opened.leaf[part]))
        ends.append(np.zeros(stop - first, np.uint32) if placed is None else placed)
        segments.append(
            {
                "node": opened.name(part),
                "count": stop - first,
                "text": tree.texts[part],
                "is_placed": placed is not None,
                "is_given": part == ROOT or bool(tree.finish[part] == FinishReason.GIVEN),
                "advantage": number_of(push[part]),
                "words": credit_words(tree, part)["credit_words"],
            }
        )
    owner = np.repeat(path, [stop - first for first, stop in spans])
    arrays: dict[str, NDArray[Any]] = {
        "id": tree.tokens[at].astype("<i4"),
        "end": np.concatenate(ends).astype("<u4"),
        "logprob": tree.logprobs[at].astype("<f4"),
        "entropy": tree.entropies[at].astype("<f4"),
    }
    if config is None:  # imported: what trained is not known, only what has an advantage
        arrays["trained"] = np.isfinite(push[owner]).astype("u1")
    else:
        weights, pull = pull_of(opened, config)
        arrays["trained"] = (weights.trains[at] & (pull.tokens[owner] > 0)).astype("u1")
    shown = tree.tokens[at]
    if tree.mismatch is not None:
        arrays["mismatch"] = tree.mismatch[at].astype("<f4")
    if tree.log_ratio is not None and tree.clip is not None:
        arrays["log_ratio"] = tree.log_ratio[at].astype("<f4")
        arrays["clip"] = tree.clip[at]
    top_k = 0
    if tree.top_tokens is not None and tree.top_logprobs is not None:
        top_k = tree.top_tokens.shape[1]
        arrays["top_id"] = tree.top_tokens[at].astype("<i4").reshape(-1)
        arrays["top_logprob"] = tree.top_logprobs[at].astype("<f4").reshape(-1)
        shown = np.concatenate((shown, arrays["top_id"]))
    sizes = np.abs(push[np.isfinite(push)])
    header = {
        "version": TOKENS_VERSION,
        "n_tokens": len(at),
        "top_k": top_k,
        "segments": segments,
        "pieces": {
            str(token): text
            for token in np.unique(shown).tolist()
            if (text := piece(tree.token_bytes, token)) is not None
        },
        "advantage_limit": float(np.percentile(sizes, 98)) if len(sizes) and sizes.max() > 0 else 1.0,
    }
    return packed(header, arrays)


def token_ends(
    tree: RolloutTree, node: int, pending: bytes, *, is_last: bool
) -> tuple[NDArray[np.uint32] | None, bytes]:
    """Where each token's part of the segment's text ends, in UTF-16 units [tokens of the node], and the bytes
    of a character that is not complete at the end of the segment. None: its tokens do not make its text, or
    their texts were not recorded.

    pending: what the parent left over. is_last: nothing follows, so an incomplete character ends here.
    """
    tokens = tree.tokens[tree.token_offsets[node] : tree.token_offsets[node + 1]].tolist()
    known = tree.token_bytes
    if any(token not in known for token in tokens):
        return None, b""
    # The token that ended an answer leaves no text (`detokenizer.SegmentDecoder`).
    silent = {len(tokens) - 1} if tree.finish[node] == FinishReason.EOS else set()
    for without in (silent, set()) if silent else (set(),):
        ends, text, rest = _decoded(
            [b"" if at in without else known[token] for at, token in enumerate(tokens)], pending, is_last
        )
        if storable(text) == tree.texts[node]:
            return ends, rest
    return None, b""


def _decoded(parts: list[bytes], pending: bytes, is_last: bool) -> tuple[NDArray[np.uint32], str, bytes]:
    """Ends, text, and bytes left over."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts = [decoder.decode(pending)]  # nothing: it is a part of a character
    texts += [decoder.decode(part) for part in parts]
    if is_last:
        texts[-1] += decoder.decode(b"", True)
    lengths = [len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2 for text in texts]
    if len(lengths) > 1:
        lengths[1] += lengths[0]
    ends = np.cumsum(lengths[1:]).astype(np.uint32)
    return ends, "".join(texts), b"" if is_last else bytes(decoder.getstate()[0])
