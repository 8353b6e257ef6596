"""On a machine with an NVIDIA GPU: long packed rows by FlexAttention are the same as flat ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.trainer.trees import credit_tree, tree_of
from trainer.attention import FLEX_LENGTH, BlockLayout, layout_of, use_path_attention
from trainer.optim import Optimiser
from trainer.packing import pack
from trainer.policy import Policy, load_policy
from trainer.presets import PRESETS
from trainer.schema.objective import PolicyObjective
from trainer.schema.training import TrainingConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.fixture(scope="module")
def policy() -> Policy:
    torch.manual_seed(0)
    tiny = load_policy("tiny-reasoner")
    config = Qwen2Config(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    policy = Policy(Qwen2ForCausalLM(config).cuda(), tiny.tokenizer, tiny.end_ids)
    use_path_attention(policy.model)
    return policy


def test_long_packed_rows_have_the_gradient_of_flat_ones(policy: Policy) -> None:
    deep = [[[[1, 0], [0, 1]], [[1, 1], [0, 0]]], [[[1, 0], 0], [1, [0, 1]]]]
    credit = PRESETS["grpo-tiny"].config.credit
    trees = [credit_tree(tree_of(deep, tokens_per_segment=64), credit) for _ in range(2)]
    training = TrainingConfig(microbatch_tokens=16384)
    optimiser = Optimiser(policy, training, PolicyObjective(), "trajectory")
    data = optimiser.data([trees], [], 1)[0]
    (batch,) = pack(data.weights, 16384)
    assert len(batch.tokens) >= FLEX_LENGTH
    assert isinstance(layout_of(batch.runs, torch.device("cuda")), BlockLayout)
    found = {}
    for layout in ("packed", "flat"):
        optimiser.gradient(data, lambda: False, layout=layout)
        found[layout] = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
    away = float((found["packed"] - found["flat"]).norm() / found["flat"].norm())
    assert np.isfinite(away)
    assert away <= 1e-3  # TF32 inside the kernels
