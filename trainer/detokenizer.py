"""From the token ids of a tree to the text of each segment.

A character may be split over tokens, and so over segments. The rule: the text of a segment holds the
characters that are complete at its end; what is left over goes to its children. So along every path the texts
join to exactly the decoded path.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import decoders

_REPLACEMENT = "\ufffd"


class SegmentDecoder:
    """Decodes segments with a `transformers` fast tokenizer. End tokens leave no text, other special tokens
    do.
    """

    def __init__(self, tokenizer: Any, end_ids: frozenset[int]) -> None:
        """`tokenizer`: PreTrainedTokenizerFast; Any because transformers types it only in part."""
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._bytes = _byte_table(tokenizer) if _is_byte_level(tokenizer) else None

    def newline_tokens(self, vocabulary: int) -> NDArray[np.bool_]:
        """[V] True where a token's text holds a line break."""
        mask = np.zeros(vocabulary, np.bool_)
        known = min(vocabulary, len(self._tokenizer))
        if self._bytes is not None:
            mask[:known] = [b"\n" in self._bytes.get(token, b"") for token in range(known)]
        else:
            texts = self._tokenizer.batch_decode(
                [[token] for token in range(known)], clean_up_tokenization_spaces=False
            )
            mask[:known] = ["\n" in text for text in texts]
        return mask

    def token_bytes(self, ids: Iterable[int]) -> dict[int, bytes]:
        """Text of each token alone, UTF-8, end tokens and special tokens by their names. A token may hold a
        part of a character.
        """
        if self._bytes is not None:
            return {token: self._bytes.get(token, b"") for token in ids}
        return {
            token: str(
                self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            ).encode("utf-8", "replace")
            for token in ids
        }

    def texts(
        self, parent: Sequence[int] | NDArray[np.int32], segments: Sequence[Sequence[int]]
    ) -> list[str]:
        """Text of each node of a tree. parent: breadth-first, -1 at the root; segments[0], the prompt, is
        left out: "" .
        """
        children = np.bincount(np.asarray(parent[1:], np.int64), minlength=len(segments))
        if self._bytes is not None:
            return self._from_bytes(parent, segments, children)
        return self._from_paths(parent, segments, children)

    def _from_bytes(
        self,
        parent: Sequence[int] | NDArray[np.int32],
        segments: Sequence[Sequence[int]],
        children: NDArray[np.int64],
    ) -> list[str]:
        assert self._bytes is not None  # noqa: S101  # for mypy: `texts` looked
        table, ends = self._bytes, self._end_ids
        texts, pending = [""], [b""]
        for node in range(1, len(segments)):
            data = pending[parent[node]] + b"".join(
                [table.get(t, b"") for t in segments[node] if t not in ends]
            )
            text, used = codecs.utf_8_decode(data, "replace", not children[node])
            texts.append(text)
            pending.append(data[used:])
        return texts

    def _from_paths(
        self,
        parent: Sequence[int] | NDArray[np.int32],
        segments: Sequence[Sequence[int]],
        children: NDArray[np.int64],
    ) -> list[str]:
        """For tokenizers whose tokens have no bytes of their own: decode every path, keep what no child takes
        back.
        """
        paths: list[list[int]] = [[]]
        for node in range(1, len(segments)):
            paths.append(paths[parent[node]] + [t for t in segments[node] if t not in self._end_ids])
        whole: list[str] = [
            self._tokenizer.decode(path, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if path
            else ""
            for path in paths
        ]
        below: list[list[str]] = [[] for _ in segments]
        for node in range(len(segments) - 1, 0, -1):
            if children[node]:
                whole[node] = _common_start([whole[node].rstrip(_REPLACEMENT), *below[node]])
            below[parent[node]].append(whole[node])
        whole[0] = ""
        return [""] + [whole[node][len(whole[parent[node]]) :] for node in range(1, len(segments))]


def _common_start(texts: list[str]) -> str:
    """The longest text that all of them start with."""
    first, last = min(texts), max(texts)
    size = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:size]


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and isinstance(backend.decoder, decoders.ByteLevel)


def _byte_table(tokenizer: Any) -> dict[int, bytes]:
    """Bytes of every token. Byte-level BPE writes each byte as one printable character (Radford et al. 2019,
    GPT-2).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    byte_of = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    byte_of.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    added = {token: str(entry.content) for token, entry in tokenizer.added_tokens_decoder.items()}
    table: dict[int, bytes] = {}
    for text, token in tokenizer.get_vocab().items():
        if token in added or any(letter not in byte_of for letter in text):
            table[token] = added.get(token, text).encode("utf-8", "replace")
        else:
            table[token] = bytes(byte_of[letter] for letter in text)
    return table
