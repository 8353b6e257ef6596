"""The text of single tokens, from what a tree brings along: no tokenizer is needed. Torch-free.

A character may be split over tokens. The rule is that of `detokenizer`: a token's piece holds the characters
that are complete at its end, so that pieces join to just the segment's text.
"""

from __future__ import annotations

import codecs

from trainer.text import storable
from trainer.tree import ROOT, FinishReason, RolloutTree


def token_text(tree: RolloutTree, token: int) -> str | None:
    """Text of a token alone, with U+FFFD for a part of a character; None where the tree does not tell."""
    known = tree.token_bytes.get(token)
    return None if known is None else storable(known.decode("utf-8", "replace"))


def token_pieces(tree: RolloutTree, node: int) -> list[str] | None:
    """What each token adds to the text of `node`; "" for one that adds nothing (an end token, the first part
    of a character). They join to `tree.texts[node]`. None where the tree does not tell, or where tokens of
    this vocabulary have no text of their own, or for the prompt.
    """
    if node == ROOT:
        return None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces: list[str] = []
    for above in tree.path(node)[1:]:
        first, last = (int(offset) for offset in tree.token_offsets[above : above + 2])
        tokens = tree.tokens[first:last].tolist()
        pieces = []
        for place, token in enumerate(tokens):
            known = tree.token_bytes.get(token)
            if known is None:
                return None
            is_end = place + 1 == len(tokens) and tree.finish[above] == FinishReason.EOS
            pieces.append("" if is_end else decoder.decode(known))
    if pieces and tree.is_leaf()[node]:
        pieces[-1] += decoder.decode(b"", final=True)
    pieces = [storable(piece) for piece in pieces]
    return pieces if "".join(pieces) == storable(tree.texts[node]) else None
