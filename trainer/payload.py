"""A rollout tree as bytes, to be stored: msgpack of typed little-endian arrays, compressed with zstd.

A large tree is packed in parts, so that who looks at one node does not unpack every token of the tree: first
a frame that zstd skips, with the length of each part; then all that is not per token, with means over each
segment's tokens; then the token columns in stretches of `CHUNK_TOKENS`; then the alternatives, likewise.
`open_payload` leaves those packed until they are read. A tree of fewer tokens is one part, as it was in
version 4. Versions 1 to 5 are read.
"""

from __future__ import annotations

import dataclasses
import io
import math
import struct
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from typing import Any, Final

import msgpack
import numpy as np
import zstandard
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import DTypeLike, NDArray

from trainer.text import storable
from trainer.token_means import mean_mismatch, token_means
from trainer.tree import (
    MOST_TOP,
    NODE_COLUMNS,
    OPTIONAL_COLUMNS,
    TOKEN_COLUMNS,
    Kept,
    RolloutTree,
    single_copies,
)

WHOLE_VERSION: Final = 4
PARTS_VERSION: Final = 5
MAX_PART_BYTES: Final = 256 * 2**20
MAX_STRETCH_BYTES: Final = 64 * 2**20
CHUNK_TOKENS: Final = 65_536
_SKIPPED: Final = struct.Struct("<II")  # a frame that zstd skips: magic number, length of what follows
_SKIPPED_MAGIC: Final = 0x184D2A5A
HEAD_BYTES: Final = 64 * 1024  # read at once; an index is shorter but for the largest trees
_DAMAGE: Final = (
    zstandard.ZstdError, msgpack.UnpackException, struct.error, KeyError, IndexError, OverflowError,
    TypeError, ValueError,
)  # fmt: skip

Read = Callable[[int, int], bytes]  # bytes from one place to another; fewer where there are no more


# ------------------------------------------------------------------------------------------------ packing


def pack(tree: RolloutTree) -> bytes:
    """The payload. Text is made storable."""
    present = [name for name in OPTIONAL_COLUMNS if getattr(tree, name) is not None]
    token_names = [*TOKEN_COLUMNS, *(name for name in present if not OPTIONAL_COLUMNS[name][1])]
    wide_names = [name for name in present if OPTIONAL_COLUMNS[name][1]]
    in_parts = len(tree.tokens) > CHUNK_TOKENS
    columns = {name: _raw(getattr(tree, name), kind) for name, kind in NODE_COLUMNS.items()}
    if not in_parts:
        columns |= {name: _raw(getattr(tree, name), _kind(name)) for name in (*token_names, *wide_names)}
    columns["token_offsets"] = _raw(tree.token_offsets, np.int64)
    body: dict[str, Any] = {
        "version": PARTS_VERSION if in_parts else WHOLE_VERSION,
        "problem_id": storable(tree.problem_id),
        "reference_answer": storable(tree.reference_answer),
        "step": tree.step,
        "policy_version": tree.policy_version,
        "batch_mean": tree.batch_mean,
        "batch_std": tree.batch_std,
        "temperature": tree.temperature,
        "stream": tree.stream,
        "loss_share": tree.loss_share,
        "update": [tree.update, tree.updates],
        "top_k": 0 if tree.top_tokens is None else tree.top_tokens.shape[1],
        "token_bytes": [list(tree.token_bytes), list(tree.token_bytes.values())],
        "columns": columns,
        "texts": [storable(text) for text in tree.texts],
        "answers": [storable(text) for text in tree.answers],
    }
    if not in_parts:
        return _compressed(body if tree.kept is None else body | {"kept": _kept_raw(tree.kept)})
    body["packed"] = present
    body["is_cut"] = tree.kept is not None
    body["means"] = _means_of(tree)
    parts = [_compressed(body)]
    for names in (token_names, wide_names):
        for start in range(0, len(tree.tokens), CHUNK_TOKENS) if names else ():
            own = slice(start, start + CHUNK_TOKENS)
            parts.append(_compressed({name: _raw(getattr(tree, name)[own], _kind(name)) for name in names}))
    if tree.kept is not None:
        for start in range(0, len(tree.tokens), CHUNK_TOKENS):
            parts.append(_compressed({"kept": _kept_raw(tree.kept.between(start, start + CHUNK_TOKENS))}))
    index: bytes = msgpack.packb([len(part) for part in parts])
    return b"".join((_SKIPPED.pack(_SKIPPED_MAGIC, len(index)), index, *parts))


def _means_of(tree: RolloutTree) -> dict[str, bytes]:
    """[N] float32 of each; of a mismatch that is but rounding every one is NaN."""
    means = {name: token_means(tree, getattr(tree, name)) for name in ("logprobs", "entropies")}
    if tree.mismatch is not None:
        found = mean_mismatch(tree)
        means["mismatch"] = np.full(tree.n_nodes, np.nan) if found is None else found
    return {name: _raw(column, np.float32) for name, column in means.items()}


def _kind(name: str) -> type:
    return TOKEN_COLUMNS[name] if name in TOKEN_COLUMNS else OPTIONAL_COLUMNS[name][0]


def _raw(column: NDArray[Any], kind: DTypeLike) -> bytes:
    return np.ascontiguousarray(column, np.dtype(kind).newbyteorder("<")).tobytes()


def _kept_raw(kept: Kept) -> list[bytes]:
    return [_raw(kept.counts, np.int32), _raw(kept.tokens, np.int32)]


def _compressed(body: Mapping[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(body, use_bin_type=True)
    return zstandard.ZstdCompressor(level=3).compress(packed)


# ------------------------------------------------------------------------------------------------ unpacking


def unpack(payload: bytes) -> RolloutTree:
    """The tree, all of it. Raises ValueError naming the damage; never trusts a length."""
    try:
        tree, parts = _opened(lambda start, stop: payload[start:stop])
        return tree if parts is None else _all_of(tree)
    except _DAMAGE as damage:
        raise _cannot_be_read(damage) from damage


def open_payload(read: Read) -> RolloutTree:
    """The tree, of a large one with its token columns still packed: `PackedColumn`, which reads as an array.
    `read` gives parts of the payload, now and later. Raises ValueError as `unpack` does, and so may reading a
    token later.
    """
    try:
        return _opened(read)[0]
    except _DAMAGE as damage:
        raise _cannot_be_read(damage) from damage


def advantages_in(payload: bytes) -> NDArray[np.float64]:
    """[N] the advantages of a payload alone. They stand near its beginning, so of a large tree a tenth is
    unpacked. Raises ValueError naming the damage.
    """
    try:
        places = _index(lambda start, stop: payload[start:stop])
        first = payload if places is None else payload[slice(*places[0])]
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(first)) as stream:
            reader = msgpack.Unpacker(stream, raw=False, max_buffer_size=MAX_PART_BYTES)
            for _ in range(reader.read_map_header()):
                if reader.unpack() != "columns":
                    reader.skip()
                    continue
                for _ in range(reader.read_map_header()):
                    if reader.unpack() == "advantage":
                        return np.frombuffer(reader.unpack(), "<f8")
                    reader.skip()
    except _DAMAGE as damage:
        raise _cannot_be_read(damage) from damage
    raise ValueError("This tree cannot be read: it has no advantages.")


class DamagedTreeError(ValueError):
    """The payload cannot be read, or a part of it that was left packed."""


def _cannot_be_read(damage: Exception) -> DamagedTreeError:
    return DamagedTreeError(f"This tree cannot be read: {damage}")


def _index(read: Read) -> list[tuple[int, int]] | None:
    """Where each part lies; None for a payload that is one part."""
    head = read(0, HEAD_BYTES)
    if len(head) < _SKIPPED.size:
        return None
    magic, length = _SKIPPED.unpack_from(head)
    if magic != _SKIPPED_MAGIC:
        return None
    start = _SKIPPED.size + length
    index = head[_SKIPPED.size : start] if start <= len(head) else read(_SKIPPED.size, start)
    lengths = msgpack.unpackb(index)
    if not lengths or not all(type(one) is int and one > 0 for one in lengths):
        raise ValueError("its list of parts is none")
    return list(pairwise(accumulate(lengths, initial=start)))


def _decompressed(part: bytes, most: int = MAX_PART_BYTES) -> dict[str, Any]:
    size = zstandard.frame_content_size(part)
    if not 0 <= size <= most:
        raise ValueError(f"it claims {size} bytes; at most {most} are read")
    body = msgpack.unpackb(zstandard.ZstdDecompressor().decompress(part), raw=False, strict_map_key=True)
    if not isinstance(body, dict):
        raise ValueError("a part of it is no map")
    return body


def _opened(read: Read) -> tuple[RolloutTree, _Parts | None]:
    places = _index(read)
    body = _decompressed(read(0, 2**62) if places is None else read(*places[0]))
    version = body["version"]
    expected = range(1, WHOLE_VERSION + 1) if places is None else (PARTS_VERSION,)
    if version not in expected:
        raise ValueError(f"payload version {version}; this Arborist reads versions 1 to {PARTS_VERSION}")
    if version == 1:
        _add_columns_of_version_2(body)
    columns: dict[str, Any] = {
        name: _column(body["columns"][name], kind)
        for name, kind in (*NODE_COLUMNS.items(), ("token_offsets", np.int64))
    }
    parts = None
    if places is None:
        columns |= {name: _column(body["columns"][name], kind) for name, kind in TOKEN_COLUMNS.items()}
    else:
        parts = _Parts(read, places[1:], int(columns["token_offsets"][-1]), body)
        columns |= {name: parts.column(name) for name in TOKEN_COLUMNS}
    tree = RolloutTree(
        problem_id=str(body["problem_id"]),
        reference_answer=str(body["reference_answer"]),
        step=int(body["step"]),
        policy_version=int(body["policy_version"]),
        batch_mean=float(body["batch_mean"]),
        batch_std=float(body["batch_std"]),
        texts=_texts(body["texts"]),
        answers=_texts(body["answers"]),
        **columns,
        **(_optional_parts(body, parts) if version >= 3 else {}),
        **(_update_of(body) if version >= 4 else {}),
    )
    return tree, parts


def _column(raw: Any, kind: DTypeLike) -> NDArray[Any]:
    """`Any`: whatever msgpack held; a wrong type raises TypeError or ValueError."""
    return np.frombuffer(raw, np.dtype(kind).newbyteorder("<")).astype(kind, copy=False)


def _texts(given: Any) -> tuple[str, ...]:
    """`Any`: as above."""
    if set(map(type, given)) - {str}:
        raise TypeError("one of its texts is none")
    return tuple(given)


def _all_of(tree: RolloutTree) -> RolloutTree:
    """With every token unpacked."""
    names = [*TOKEN_COLUMNS, *(name for name in OPTIONAL_COLUMNS if getattr(tree, name) is not None)]
    whole: dict[str, Any] = {name: np.asarray(getattr(tree, name)) for name in names}
    return dataclasses.replace(tree, **whole)


def _optional_parts(body: dict[str, Any], parts: _Parts | None) -> dict[str, Any]:
    """What only trees since version 3 may have. `Any`: whatever msgpack held; a wrong type raises TypeError,
    AttributeError or ValueError.
    """
    top_k = _top_k(body)
    ids, texts = body["token_bytes"]
    found: dict[str, Any] = {
        "temperature": float(body["temperature"]),
        "stream": None if body["stream"] is None else int(body["stream"]),
        "loss_share": float(body["loss_share"]),
        "token_bytes": {int(token): bytes(memoryview(text)) for token, text in zip(ids, texts, strict=True)},
    }
    if "kept" in body:  # of trees on their way to training alone
        found["kept"] = _kept_of(body)
    elif parts is not None and body.get("is_cut"):
        found["kept"] = parts.kept()
    for name, (kind, is_wide) in OPTIONAL_COLUMNS.items():
        if parts is not None and name in body["packed"]:
            found[name] = parts.column(name)
        elif parts is None and name in body["columns"]:
            column = _column(body["columns"][name], kind)
            found[name] = column.reshape(-1, top_k) if is_wide else column
    return found


def _kept_of(body: dict[str, Any]) -> Kept:
    """`Any`: as above."""
    counts, tokens = body["kept"]
    return Kept(_column(counts, np.int32), _column(tokens, np.int32))


def _top_k(body: dict[str, Any]) -> int:
    top_k = int(body["top_k"])
    if not 0 <= top_k <= MOST_TOP:
        raise ValueError(f"{top_k} alternatives per token; at most {MOST_TOP} are read")
    return top_k


def _update_of(body: dict[str, Any]) -> dict[str, Any]:
    """Of version 4. `Any`: as above."""
    update, updates = body["update"]
    return {"update": int(update), "updates": int(updates)}


def _add_columns_of_version_2(body: dict[str, Any]) -> None:
    """What a payload of version 1 leaves out. `Any`: whatever msgpack held; a wrong type raises TypeError."""
    parent = np.frombuffer(body["columns"]["parent"], "<i4")
    body["columns"] |= {
        "copies": single_copies(parent).astype("<i4").tobytes(),
        "subgroup": bytes(4 * len(parent)),
        "visits": bytes(4 * len(parent)),
    }
    body["batch_mean"] = body["batch_std"] = math.nan


# ----------------------------------------------------------------------------------------- packed columns


class _Parts:
    """The token columns of a payload, stretch by stretch; what was unpacked is kept."""

    def __init__(
        self, read: Read, places: list[tuple[int, int]], n_tokens: int, body: dict[str, Any]
    ) -> None:
        self.n_tokens = n_tokens
        self._read = read
        self._top_k = _top_k(body)
        self._n_chunks = -(-n_tokens // CHUNK_TOKENS)
        self._names = [*TOKEN_COLUMNS, *body["packed"]]
        wide = any(name in OPTIONAL_COLUMNS and OPTIONAL_COLUMNS[name][1] for name in self._names)
        self._kept_from = self._n_chunks * (1 + wide)
        if len(places) != self._kept_from + self._n_chunks * bool(body.get("is_cut")):
            raise ValueError(f"{len(places)} parts for {n_tokens} tokens")
        self._places = places
        self._chunks: dict[int, dict[str, NDArray[Any]]] = {}
        self._means = body["means"]

    def column(self, name: str) -> Any:
        """A `PackedColumn`, which stands where an array is expected."""
        kind, is_wide = (TOKEN_COLUMNS[name], False) if name in TOKEN_COLUMNS else OPTIONAL_COLUMNS[name]
        means = _column(self._means[name], np.float32).astype(np.float64) if name in self._means else None
        return PackedColumn(self, name, np.dtype(kind), self._top_k if is_wide else 0, means)

    def kept(self) -> Kept | None:
        """What all of the tokens were drawn from."""
        bodies = [_decompressed(self._read(*place)) for place in self._places[self._kept_from :]]
        return Kept.joined([(own, len(own.counts)) for own in map(_kept_of, bodies)])

    def stretch(self, name: str, at: int, width: int) -> NDArray[Any]:
        """Tokens at * CHUNK_TOKENS and on, of one column. Raises DamagedTreeError."""
        place = at + (self._n_chunks if width else 0)
        found = self._chunks.get(place)
        if found is None:
            try:
                body = _decompressed(self._read(*self._places[place]), MAX_STRETCH_BYTES)
                found = {one: _column(raw, _kind(one)) for one, raw in body.items()}
                n = min(CHUNK_TOKENS, self.n_tokens - at * CHUNK_TOKENS)
                for one, column in found.items():
                    if width:
                        found[one] = column = column.reshape(-1, self._top_k)
                    if len(column) != n:
                        raise ValueError(f"column {one} has {len(column)} rows for {n} tokens")
                found[name]  # a column that is missing is damage
            except _DAMAGE as damage:
                raise _cannot_be_read(damage) from damage
            self._chunks[place] = found
        return found[name]


class PackedColumn(NDArrayOperatorsMixin):
    """A token column of which only the stretches that are read are unpacked. It reads as the array it stands
    for; `means`: [N] over each segment's tokens, where they were stored.
    """

    def __init__(
        self, parts: _Parts, name: str, kind: np.dtype[Any], width: int, means: NDArray[np.float64] | None
    ) -> None:
        self._parts = parts
        self._name = name
        self._width = width
        self.dtype = kind
        self.means = means
        self.shape = (parts.n_tokens, width) if width else (parts.n_tokens,)
        self.ndim = len(self.shape)
        self.nbytes = kind.itemsize * math.prod(self.shape)  # when all of it is unpacked

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """`Any`: as numpy has it."""
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._between(start, max(stop, start))
        if isinstance(key, int | np.integer) and 0 <= key < len(self):
            return self._between(int(key), int(key) + 1)[0]
        if isinstance(key, np.ndarray) and key.ndim == 1 and key.dtype.kind in "iu" and len(key):
            low, high = int(key.min()), int(key.max()) + 1
            if low >= 0 and high <= len(self):
                return self._gathered(key)
        return np.asarray(self)[key]

    def _between(self, start: int, stop: int) -> NDArray[Any]:
        if start == stop:
            return np.zeros((0, *self.shape[1:]), self.dtype)
        first, last = start // CHUNK_TOKENS, (stop - 1) // CHUNK_TOKENS
        found = [self._parts.stretch(self._name, at, self._width) for at in range(first, last + 1)]
        whole = found[0] if len(found) == 1 else np.concatenate(found)
        return whole[start - first * CHUNK_TOKENS : stop - first * CHUNK_TOKENS]

    def _gathered(self, places: NDArray[Any]) -> NDArray[Any]:
        found = np.empty((len(places), *self.shape[1:]), self.dtype)
        chunk = places // CHUNK_TOKENS
        for at in np.unique(chunk):
            here = chunk == at
            stretch = self._parts.stretch(self._name, int(at), self._width)
            found[here] = stretch[places[here] - int(at) * CHUNK_TOKENS]
        return found

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self._between(0, len(self))
        return np.array(whole, dtype, copy=copy)

    def astype(self, dtype: DTypeLike, **options: Any) -> NDArray[Any]:
        return np.asarray(self).astype(dtype, **options)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        unpacked = [np.asarray(one) if isinstance(one, PackedColumn) else one for one in inputs]
        return getattr(ufunc, method)(*unpacked, **options)
