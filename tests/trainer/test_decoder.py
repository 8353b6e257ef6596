from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer.policy import Policy
from trainer.sampling.decoder import CachedDecoder, UnsupportedModelError, refuse_unsupported

KINDS = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    ("qwen3", {"head_dim": 16}),
]


@torch.no_grad()
def largest_gap(model: Any, vocabulary: int) -> float:
    """Between the decoder and the module over prompts of unequal length and 12 tokens after each."""
    decoder = CachedDecoder(model)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, vocabulary, (5, 30), generator=generator)
    lengths = torch.tensor([10, 1, 7, 9, 3])
    expected = model(input_ids=tokens).logits
    rows = torch.arange(5)
    cache = decoder.empty_cache(5, 12)
    logits = decoder.logits(decoder.prefill(tokens[:, :10], lengths, cache))
    gap = float((logits - expected[rows, lengths - 1]).abs().max())
    positions = lengths.clone()
    for _ in range(12):
        columns = int(positions.max()) + 1
        cache = decoder.widened(cache, columns + 3)
        logits = decoder.logits(decoder.step(tokens[rows, positions], positions, cache, columns))
        gap = max(gap, float((logits - expected[rows, positions]).abs().max()))
        positions += 1
    return gap


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_logits_equal_those_of_the_module(
    kind: str, changes: dict[str, Any], random_model: Callable[..., Any]
) -> None:
    model = random_model(kind, 100, **changes)
    assert largest_gap(model, 100) < 1e-4
    assert model(input_ids=torch.arange(9)[None]).logits.std() > 0.5  # the comparison means something


def test_logits_of_the_packaged_model_equal_those_of_the_module(tiny_reasoner: Policy) -> None:
    assert largest_gap(tiny_reasoner.model, 400) < 1e-4


def test_sync_takes_over_changed_weights(random_model: Callable[..., Any]) -> None:
    model = random_model("qwen3", 100)
    decoder = CachedDecoder(model)
    tokens, lengths = torch.arange(6)[None], torch.tensor([6])

    def gap() -> float:
        logits = decoder.logits(decoder.prefill(tokens, lengths, decoder.empty_cache(1, 6)))
        return float((logits - model(input_ids=tokens).logits[:, -1].detach()).abs().max())

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.sign(parameter))
    assert gap() > 1e-2
    decoder.sync()
    assert gap() < 1e-4


def test_rotary_table_grows_with_the_cache(random_model: Callable[..., Any]) -> None:
    model = random_model("llama", 50, max_position_embeddings=4096)
    decoder = CachedDecoder(model)
    tokens = torch.randint(0, 50, (1, 1300), generator=torch.Generator().manual_seed(1))
    logits = decoder.logits(decoder.prefill(tokens, torch.tensor([1300]), decoder.empty_cache(1, 1300)))
    assert float((logits - model(input_ids=tokens).logits[:, -1]).abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "Model type 'gpt2'"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "'dynamic'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"hidden_act": "gelu"}, "'gelu'"),
    ],
)
def test_other_architectures_are_refused_by_name(
    change: dict[str, Any], message: str, random_model: Callable[..., Any]
) -> None:
    config = random_model("qwen2").config
    refuse_unsupported(config)
    other = type("Other", (), {name: getattr(config, name) for name in ("model_type", "hidden_act")} | change)
    with pytest.raises(UnsupportedModelError, match=message):
        refuse_unsupported(other)
