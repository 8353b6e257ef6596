"""Attention of a packed row: every token sees the tokens of its own path, and nothing else.

On a CPU by gathering: the runs of a row (`packing.Runs`) are sorted into buckets of like size; in each bucket
one call of scaled dot-product attention lets every run's queries look at the keys of its path and of itself.
Linear layers see every token once; only keys and values are copied. The dense mask that would do the same is
0.5 to 4 % full and slower than no packing. On a GPU FlexAttention takes the rule as a block mask
(k <= q < end of k's subtree), where the row is long enough.

It is one of transformers' attention functions, so that any model of theirs that calls them can use it;
dropout is 0. Letters: U tokens, B runs of a bucket, Q and W its longest run and path with run, K key-value
heads, G query heads for each, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainer.packing import Runs

NAME: Final = "arborist_packed"
# A bucket is closed when padding would make it so much larger than what it holds, unless it is small anyway.
MOST_PADDING: Final = 1.1
SMALL_BUCKET: Final = 1 << 14  # query-key pairs
FLEX_BLOCK: Final = 128  # tokens of a side of a block that the kernel takes or leaves
FLEX_KERNELS: Final = 64  # compiled, each for one length
FLEX_LENGTH: Final = 2048  # tokens from which on a GPU's block mask is worth its kernel


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """mask [B or 1, 1, Q, W]: 0 where a query looks, -inf where it must not; one for all runs if they are of
    one length and width.
    """

    runs: int
    longest: int  # Q
    widest: int  # W
    mask: Tensor
    _by_groups: dict[int, Tensor] = field(default_factory=dict)

    def mask_of(self, groups: int) -> Tensor:
        """[B or 1, 1, Q * groups, W], made once for all layers."""
        if groups == 1:
            return self.mask
        if groups not in self._by_groups:
            self._by_groups[groups] = self.mask.repeat_interleave(groups, 2)
        return self._by_groups[groups]


@dataclass(frozen=True, slots=True, eq=False)
class PathLayout:
    """All buckets of a row, one after the other.

    queries [sum of B * Q], keys [sum of B * W]: places in the row; back [U]: which query is token u's; filled
    [.] queries that are padding. seen [sum of B * W], seen_from [U]: which keys are token u's, those of all
    tokens one after the other, and where its own begin.
    """

    buckets: tuple[Bucket, ...]
    queries: Tensor
    keys: Tensor
    back: Tensor
    filled: Tensor
    seen: Tensor
    seen_from: Tensor

    @classmethod
    def of(cls, runs: Runs, device: torch.device) -> PathLayout:
        """Sort runs into buckets; no run may be empty of tokens but have children (they are skipped)."""
        length = runs.end - runs.start
        seen = [np.empty(0, np.int64)] * len(length)  # places of a run's path, its own included
        for run in range(len(length)):
            above = seen[runs.parent[run]] if runs.parent[run] >= 0 else np.empty(0, np.int64)
            seen[run] = np.concatenate((above, np.arange(runs.start[run], runs.end[run])))
        width = runs.path + length
        order = [run for run in np.lexsort((length, width)).tolist() if length[run]]
        buckets: list[Bucket] = []
        queries, keys, filled = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        back = np.zeros(int(length.sum()), np.int64)
        before = 0  # queries of the buckets so far
        for chosen in _grouped(order, length, width):
            b, q, w = len(chosen), int(length[chosen].max()), int(width[chosen].max())
            n, total = length[chosen][:, None], width[chosen][:, None]
            query, key = np.arange(q), np.arange(w)
            is_real = query < n
            asks = runs.start[chosen][:, None] + np.where(is_real, query, 0)
            back[asks[is_real]] = before + np.flatnonzero(is_real)
            sees = np.zeros((b, w), np.int64)
            for row, run in enumerate(chosen):
                sees[row, : width[run]] = seen[run]
            if (n == q).all() and (total == w).all():
                hidden = (key > (w - q + query)[:, None])[None]
            else:
                hidden = key > (total - n + query)[:, :, None]
                # A padded query looks somewhere, so that nothing is NaN.
                hidden[~is_real] = key > 0
                filled.append(before + np.flatnonzero(~is_real))
            before += b * q
            queries.append(asks.ravel())
            keys.append(sees.ravel())
            mask = np.where(hidden, -np.inf, 0.0).astype(np.float32)
            buckets.append(Bucket(b, q, w, torch.from_numpy(mask[:, None]).to(device)))
        looked = np.concatenate(keys)
        # Numbers of 16 bits are sorted by counting.
        sortable = looked.astype(np.uint16) if len(back) <= 1 << 16 else looked
        times = np.bincount(looked, minlength=len(back))
        places = (
            np.concatenate(queries),
            looked,
            back,
            np.concatenate(filled),
            np.argsort(sortable, kind="stable"),
            np.cumsum(times) - times,
        )
        return cls(tuple(buckets), *(torch.from_numpy(at).to(device) for at in places))


def _grouped(
    order: list[int], length: np.ndarray[Any, Any], width: np.ndarray[Any, Any]
) -> Iterator[list[int]]:
    """Runs in groups whose padded size stays near their real one."""
    group: list[int] = []
    real = q = w = 0
    for run in order:
        n, total = int(length[run]), int(width[run])
        larger = (len(group) + 1) * max(q, n) * max(w, total)
        if group and larger > max(MOST_PADDING * (real + n * total), SMALL_BUCKET):
            yield group
            group, real, q, w = [], 0, 0, 0
        group.append(run)
        real, q, w = real + n * total, max(q, n), max(w, total)
    if group:
        yield group


class _Moved(Function):
    """Rows to where they are read, each once; `back` leads the gradient to where they came from, `filled`
    are rows there that nobody read.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, to: Tensor, back: Tensor, filled: Tensor | None) -> Tensor:
        ctx.back, ctx.filled = back, filled
        return rows.index_select(0, to)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        found = gradient.index_select(0, ctx.back)
        return found if ctx.filled is None else found.index_fill_(0, ctx.filled, 0.0), None, None, None


class _Looked(Function):
    """Rows [U, .] of tokens as rows of keys, a token's as often as it is looked at: backwards its sum, which
    `embedding_bag` makes several times as fast as what `index_select` would do.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layout: PathLayout) -> Tensor:
        ctx.layout = layout
        return rows.index_select(0, layout.keys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layout = ctx.layout
        return functional.embedding_bag(layout.seen, gradient, layout.seen_from, mode="sum"), None


@dataclass(frozen=True, slots=True, eq=False)
class BlockLayout:
    """A row on a GPU: FlexAttention's block mask of the rule k <= q < end of k's subtree."""

    mask: Any  # torch's BlockMask
    length: int

    @classmethod
    def of(cls, runs: Runs, device: torch.device) -> BlockLayout:
        """The mask over the row, padded to a few sizes so that the kernel is compiled for few of them.

        Which blocks are looked at follows from the ends of subtrees alone, [blocks, blocks] numbers;
        `create_block_mask` would ask the rule for all U x U pairs, 4 GB at 64k tokens.
        """
        from torch.nn.attention.flex_attention import BlockMask

        length = int(runs.end[-1])
        padded = max(FLEX_LENGTH, 1 << (length - 1).bit_length())
        last = np.full(padded, 0, np.int64)  # end of the subtree of every token
        last[:length] = subtree_ends(runs)
        ends = torch.from_numpy(last).to(device)

        def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            # Padding sees itself alone, so that nothing is NaN.
            return ((k <= q) & (q < ends[k])) | (q == k)

        blocks = padded // FLEX_BLOCK
        first = np.arange(blocks) * FLEX_BLOCK
        by_block = last.reshape(blocks, FLEX_BLOCK)
        before = np.tri(blocks, k=-1, dtype=np.bool_)  # [query block, key block]
        whole = before & (by_block.min(1) >= first[:, None] + FLEX_BLOCK)
        partly = (before & (by_block.max(1) > first[:, None]) & ~whole) | np.eye(blocks, dtype=np.bool_)
        mask = BlockMask.from_kv_blocks(
            *_chosen_blocks(partly, device),
            *_chosen_blocks(whole, device),
            BLOCK_SIZE=FLEX_BLOCK,
            mask_mod=sees,
            seq_lengths=(padded, padded),
        )
        return cls(mask, padded)


def _chosen_blocks(chosen: np.ndarray[Any, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of [Q, K] bools: how many of a row are chosen [1, 1, Q], and which, those first [1, 1, Q, K]."""
    order = np.argsort(~chosen, axis=1, kind="stable")
    both = (chosen.sum(1, dtype=np.int32)[None, None], order.astype(np.int32)[None, None])
    counts, indices = (torch.from_numpy(part).to(device) for part in both)
    return counts, indices


def subtree_ends(runs: Runs) -> np.ndarray[Any, Any]:
    """[U] where the subtree below each token ends: the first place that is no longer on its path or below
    it."""
    end = runs.end.copy()
    for run in range(len(end) - 1, -1, -1):
        parent = runs.parent[run]
        if parent >= 0:
            end[parent] = max(end[parent], end[run])
    return np.repeat(end, runs.end - runs.start)


def layout_of(runs: Runs, device: torch.device) -> PathLayout | BlockLayout:
    """Gathered paths on a CPU and for short rows, a block mask for long ones on a GPU."""
    if device.type == "cuda" and int(runs.end[-1]) >= FLEX_LENGTH:
        return BlockLayout.of(runs, device)
    return PathLayout.of(runs, device)


@cache
def _compiled_flex() -> Any:
    """FlexAttention, compiled once per padded length, with and without gradient. Past torch's limit of 8
    kernels it would say nothing and make all U x U scores.
    """
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    config.recompile_limit = max(config.recompile_limit, FLEX_KERNELS)
    return torch.compile(flex_attention, dynamic=False)


def _flex(query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, scaling: float | None) -> Tensor:
    """[1, U, K*G, D] by FlexAttention."""
    from torch.nn.attention.flex_attention import flex_attention

    more = layout.length - query.shape[2]
    q, k, v = (functional.pad(x, (0, 0, 0, more)) for x in (query, key, value))
    # Uncompiled it is slow, and the same.
    attend: Any = _compiled_flex() if q.is_cuda else flex_attention
    mixed: Tensor = attend(
        q, k, v, block_mask=layout.mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return mixed[:, :, : query.shape[2]].transpose(1, 2)


def path_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    path_layout: PathLayout | BlockLayout | None = None,
    **_: Any,  # what other attention functions take
) -> tuple[Tensor, None]:
    """query [1, K*G, U, D], key and value [1, K, U, D]. Returns [1, U, K*G, D]. Without a layout: plain
    causal attention of [B, heads, T, D].
    """
    if path_layout is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling
        )
        return plain
    if attention_mask is not None or dropout:
        raise ValueError("Packed attention knows no other mask and no dropout.")
    if isinstance(path_layout, BlockLayout):
        return _flex(query, key, value, path_layout, scaling), None
    heads, kv_heads, size = query.shape[1], key.shape[1], query.shape[3]
    groups = heads // kv_heads
    # One row of all heads per token, so that a gather copies whole rows; one gather for all buckets.
    at = path_layout
    q, k, v = (x.squeeze(0).transpose(0, 1).flatten(1) for x in (query, key, value))
    # A query that is padding is read by nobody, so it has no gradient to bring back.
    q = _Moved.apply(q, at.queries, at.back, None)  # type: ignore[no-untyped-call]  # torch's
    k, v = (_Looked.apply(x, at) for x in (k, v))  # type: ignore[no-untyped-call]  # torch's
    asked = [bucket.runs * bucket.longest for bucket in path_layout.buckets]
    looked = [bucket.runs * bucket.widest for bucket in path_layout.buckets]
    found = []
    for bucket, qs, ks, vs in zip(
        path_layout.buckets,
        torch.split(q, asked),
        torch.split(k, looked),
        torch.split(v, looked),
        strict=True,
    ):
        b = bucket.runs
        # The query heads of a key-value head stand side by side in the query length: [B, K, Q*G, D].
        mine = qs.view(b, -1, kv_heads, groups, size).permute(0, 2, 1, 3, 4).reshape(b, kv_heads, -1, size)
        keys = ks.view(b, -1, kv_heads, size).transpose(1, 2)
        values = vs.view(b, -1, kv_heads, size).transpose(1, 2)
        mask = bucket.mask_of(groups).to(mine.dtype)
        mixed = functional.scaled_dot_product_attention(mine, keys, values, attn_mask=mask, scale=scaling)
        mixed = mixed.view(b, kv_heads, -1, groups, size).permute(0, 2, 1, 3, 4).reshape(-1, heads * size)
        found.append(mixed)
    answered: Tensor = _Moved.apply(torch.cat(found), at.back, at.queries, at.filled)  # type: ignore[no-untyped-call]  # torch's
    return answered.view(1, -1, heads, size), None


def use_path_attention(model: Any) -> None:
    """From now on the model's layers call `path_attention`: with a layout packed, without one as ever. `Any`:
    transformers' models.
    """
    AttentionInterface.register(NAME, path_attention)
    model.config._attn_implementation = NAME
