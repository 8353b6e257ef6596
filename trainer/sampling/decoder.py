"""A decoder with a static KV cache, made from the weights of a Llama, Qwen2 or Qwen3 module of transformers.

It computes what the module computes (equal logits to about 1e-5), one new token per row and call, and lets
rows be copied, dropped and branched by one index_select. It holds no sampling rule and no tree
(`local_engine`), and no gradients (`trainer.policy`).

Letters in the shape comments: B rows, T tokens, H hidden, K key-value heads, G query heads per key-value
head, D head size, V vocabulary, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SUPPORTED = ("llama", "qwen2", "qwen3")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # their angles do not depend on the sequence length


class UnsupportedModelError(ValueError):
    """The model's architecture has a part that this decoder does not compute."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """Weights of one block. The norm weights are folded into the linear maps that follow them."""

    qkv: Tensor  # [(K*G + 2K) * D, H]
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # [K*G + K, D], Qwen3 only
    out: Tensor  # [H, K*G*D]
    out_bias: Tensor | None
    gate_up: Tensor  # [2 * intermediate, H]
    gate_up_bias: Tensor | None
    down: Tensor  # [H, intermediate]
    down_bias: Tensor | None


class CachedDecoder:
    """Prefill prompts, then one token per row and call.

    A cache is one tensor [L, 2, B, K, T, D] (2: keys, values). Column t of a row holds its token at position
    t; columns from the row's length on mean nothing and are masked.
    """

    def __init__(self, model: nn.Module) -> None:
        """Raises UnsupportedModelError naming the part that is not supported."""
        config: Any = model.config  # transformers' config classes share no typed base for these fields
        refuse_unsupported(config)
        self._model: Any = model
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_size: int = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self.layers: int = config.num_hidden_layers
        self.vocabulary: int = config.vocab_size
        self.max_positions: int = config.max_position_embeddings
        self._eps: float = config.rms_norm_eps
        self._scale = self.head_size**-0.5
        self._silu = functional.silu
        self._cos, self._sin = self._rotary_table(min(self.max_positions, 1024))
        self.sync()

    def sync(self, value_head: nn.Linear | None = None, *, copies: bool = False) -> None:
        """Take over the module's weights as they are now. Call it after every update of the policy.

        `value_head`: H to 1, reads the final normed hidden state; its sigmoid is a value. `copies`: keep
        nothing of the module itself, whose weights will be gone.
        """
        embedding = self._model.get_input_embeddings().weight.detach()
        self.embedding: Tensor = embedding.clone() if copies else embedding  # [V, H]
        with torch.no_grad():
            self._layers = [self._read(block) for block in self._model.model.layers]
            self._head: Tensor = (
                self._model.get_output_embeddings().weight * self._model.model.norm.weight
            )  # [V, H]
            bias = self._model.get_output_embeddings().bias
            self._head_bias: Tensor | None = None if bias is None else bias.detach().clone()
            self._value_head: tuple[Tensor, Tensor] | None = None
            if value_head is not None:
                weight = value_head.weight * self._model.model.norm.weight
                self._value_head = (weight, value_head.bias.detach().clone())

    def _read(self, block: Any) -> _Layer:
        attention, mlp = block.self_attn, block.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        qk_norm = None
        if hasattr(attention, "q_norm"):
            qk_norm = torch.cat(
                [
                    attention.q_norm.weight.expand(self.heads, -1),
                    attention.k_norm.weight.expand(self.kv_heads, -1),
                ]
            )
        return _Layer(
            qkv=torch.cat([x.weight for x in projections]) * block.input_layernorm.weight,
            qkv_bias=_joined_bias(projections),
            qk_norm=qk_norm,
            # Copies, as an adapter is taken off the weights again.
            out=attention.o_proj.weight.detach().clone(),
            out_bias=_joined_bias((attention.o_proj,)),
            gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
            * block.post_attention_layernorm.weight,
            gate_up_bias=_joined_bias((mlp.gate_proj, mlp.up_proj)),
            down=mlp.down_proj.weight.detach().clone(),
            down_bias=_joined_bias((mlp.down_proj,)),
        )

    def _rotary_table(self, positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin [positions + 1, D]; sin is signed so that rotate(x) = x cos + swap_halves(x) sin. The
        last row is again the one before: there stands what has ended with a full path, and nobody reads it.
        """
        weight = self._model.get_input_embeddings().weight
        cos, sin = self._model.model.rotary_emb(
            torch.zeros(1, dtype=weight.dtype, device=weight.device),
            torch.arange(positions, device=weight.device)[None],
        )
        half = self.head_size // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        return torch.cat([cos[0], cos[0, -1:]]), torch.cat([sin[0], sin[0, -1:]])

    # ---- cache

    def empty_cache(self, rows: int, columns: int) -> Tensor:
        """[L, 2, rows, K, columns, D] zeros; `columns` is the longest path that it must hold."""
        self.reach(columns)
        return self.embedding.new_zeros(self.layers, 2, rows, self.kv_heads, columns, self.head_size)

    def reach(self, columns: int) -> None:
        """Be ready for paths of so many tokens."""
        if columns >= len(self._cos):
            self._cos, self._sin = self._rotary_table(min(self.max_positions, 2 * columns))

    def widened(self, cache: Tensor, columns: int) -> Tensor:
        """The cache with room for more tokens per row."""
        if columns <= cache.shape[4]:
            return cache
        self.reach(columns)
        wider = cache.new_empty(*cache.shape[:4], columns, cache.shape[5])
        wider[:, :, :, :, : cache.shape[4]] = cache
        wider[:, :, :, :, cache.shape[4] :] = 0
        return wider

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of a cache."""
        return 2 * self.layers * self.kv_heads * columns * self.head_size * self.embedding.element_size()

    # ---- forward

    @torch.no_grad()
    def prefill(self, tokens: Tensor, lengths: Tensor, cache: Tensor) -> Tensor:
        """Read whole prompts. tokens [B, T] int64 padded on the right, lengths [B] >= 1; fills columns 0..T-1
        of `cache`.

        Returns the hidden state after each prompt's last token, [B, H].
        """
        rows, width = tokens.shape
        cos, sin = self._cos[:width, None], self._sin[:width, None]  # [T, 1, D]
        x = functional.embedding(tokens, self.embedding)  # [B, T, H]
        for number, layer in enumerate(self._layers):
            q, k, v = self._qkv(layer, self._normed(x), cos, sin)  # [B, T, heads, D]
            cache[number, 0, :, :, :width] = k.transpose(1, 2)
            cache[number, 1, :, :, :width] = v.transpose(1, 2)
            mixed = functional.scaled_dot_product_attention(
                q.transpose(1, 2),
                k.transpose(1, 2),
                v.transpose(1, 2),
                is_causal=True,
                scale=self._scale,
                enable_gqa=self.heads != self.kv_heads,
            )  # [B, heads, T, D]
            x = self._rest(layer, x, mixed.transpose(1, 2).reshape(rows, width, -1))
        return x[torch.arange(rows, device=x.device), lengths - 1]

    @torch.no_grad()
    def step(self, tokens: Tensor, positions: Tensor, cache: Tensor, columns: int) -> Tensor:
        """Read one token per row. tokens [B] int64; positions [B] int64, where each row's token stands
        (written there).

        `columns` > max(positions): how much of the cache is looked at. Returns the hidden state after each
        token, [B, H].
        """
        rows = len(tokens)
        groups = self.heads // self.kv_heads
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]  # [B, 1, D]
        span = cache.shape[4]
        # Row r, head h writes to row (r*K + h)*span + position of the layer's keys seen as [B*K*span, D];
        # values follow.
        slots = torch.arange(rows * self.kv_heads, device=tokens.device).view(rows, self.kv_heads) * span
        slots = (slots + positions[:, None]).view(-1)  # [B*K]
        slots = torch.cat([slots, slots + rows * self.kv_heads * span])  # [2*B*K]
        hidden = torch.arange(columns, device=tokens.device) > positions[:, None]  # [B, columns]
        mask = torch.zeros(hidden.shape, dtype=cache.dtype, device=tokens.device).masked_fill_(
            hidden, float("-inf")
        )
        mask = mask.view(rows, 1, 1, columns)
        x = functional.embedding(tokens, self.embedding)  # [B, H]
        for number, layer in enumerate(self._layers):
            q, k, v = self._qkv(layer, self._normed(x), cos, sin)  # [B, heads, D]
            cache[number].view(-1, self.head_size).index_copy_(
                0, slots, torch.cat([k.reshape(-1, self.head_size), v.reshape(-1, self.head_size)])
            )
            keys, values = cache[number, :, :, :, :columns]  # [B, K, columns, D]
            mixed = self._attend(q.view(rows, self.kv_heads, groups, self.head_size), keys, values, mask)
            x = self._rest(layer, x, mixed.reshape(rows, -1))
        return x

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """q [B, K, G, D]: the query heads of a key-value head stand in the place of the query length. Returns
        the same.
        """
        return functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=self._scale)

    def _normed(self, x: Tensor) -> Tensor:
        """x over its root mean square; the norm's weight stands in the next linear map."""
        return x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self._eps).to(x.dtype)

    def _qkv(self, layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        joined = functional.linear(x, layer.qkv, layer.qkv_bias)
        joined = joined.view(*x.shape[:-1], self.heads + 2 * self.kv_heads, self.head_size)
        qk = joined[..., : self.heads + self.kv_heads, :]
        if layer.qk_norm is not None:
            qk = self._normed(qk) * layer.qk_norm
        qk = qk * cos + qk.roll(self.head_size // 2, -1) * sin
        return (
            qk[..., : self.heads, :],
            qk[..., self.heads :, :],
            joined[..., self.heads + self.kv_heads :, :],
        )

    def _rest(self, layer: _Layer, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + functional.linear(mixed, layer.out, layer.out_bias)
        gate, up = functional.linear(self._normed(x), layer.gate_up, layer.gate_up_bias).chunk(2, -1)
        return x + functional.linear(self._silu(gate) * up, layer.down, layer.down_bias)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Logits [B, V] float32 of the next token, from hidden states [B, H]."""
        return functional.linear(self._normed(x), self._head, self._head_bias).float()

    @torch.no_grad()
    def values(self, x: Tensor) -> Tensor:
        """What the value head says of hidden states [B, H]: [B] float32, 0 to 1. Raises ValueError without a
        value head.
        """
        if self._value_head is None:
            raise ValueError(
                "The policy has no value head. Train one (objective supervised with a value_weight above 0), "
                "or score nodes by rollouts."
            )
        weight, bias = self._value_head
        return torch.sigmoid(functional.linear(self._normed(x), weight, bias).float())[:, 0]


def refuse_unsupported(config: Any) -> None:
    """Raise UnsupportedModelError, naming the part, unless the architecture is one that this decoder computes
    exactly.
    """
    kind = config.model_type
    if kind not in SUPPORTED:
        raise UnsupportedModelError(
            f"Model type {kind!r} is not supported. Use a {', '.join(SUPPORTED[:-1])} or {SUPPORTED[-1]} "
            f"model."
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in _STATIC_ROPE:
        raise UnsupportedModelError(
            f"Rotary embedding {rope!r} is not supported. Supported are {', '.join(_STATIC_ROPE)}."
        )
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layers != {"full_attention"}:
        raise UnsupportedModelError(
            f"Attention layers of type {', '.join(sorted(layers - {'full_attention'}))} are not supported, "
            f"only full attention."
        )
    if config.hidden_act != "silu":
        raise UnsupportedModelError(f"Activation {config.hidden_act!r} is not supported, only 'silu'.")


def _joined_bias(linears: tuple[nn.Linear, ...]) -> Tensor | None:
    biases: list[Tensor | None] = [x.bias for x in linears]
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            x.weight.new_zeros(x.out_features) if bias is None else bias.detach()
            for x, bias in zip(linears, biases, strict=True)
        ]
    )
