"""Small policies for the trainer's tests; made once per session, never trained in place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trainer.policy import Policy, load_policy

SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_reasoner() -> Policy:
    """The packaged model. Do not change its weights."""
    return load_policy("tiny-reasoner")


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Any]:
    """random_model("qwen3", vocabulary): an untrained model with lively weights; `Any`, as transformers types
    them.
    """
    kinds: dict[str, tuple[Any, Any]] = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }

    def build(kind: str, vocabulary: int = 100, **changes: Any) -> Any:
        config, model = kinds[kind]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            built = model(config(vocab_size=vocabulary, **(SHAPE | changes))).eval()
            for parameter in built.parameters():
                if parameter.dim() > 1:
                    parameter.data.normal_(0, 0.3)
                else:
                    parameter.data.add_(0.3 * torch.randn_like(parameter))
        return built

    return build


@pytest.fixture(scope="session")
def wild_policy(tiny_reasoner: Policy, random_model: Callable[..., Any]) -> Policy:
    """The tiny reasoner's tokenizer on an untrained Qwen2: answers of any bytes, split and ended at random.

    It has many end tokens and tokens that count as line breaks, so that some segments end early.
    """
    model = random_model("qwen2", len(tiny_reasoner.tokenizer), tie_word_embeddings=True)
    model.model.norm.weight.data.mul_(0.5)
    policy = Policy(
        model, copy.deepcopy(tiny_reasoner.tokenizer), tiny_reasoner.end_ids | set(range(300, 330))
    )
    policy.newline_tokens[200:230] = True
    return policy


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A copy of the tiny reasoner's folder, to be damaged."""
    import shutil

    from trainer.policy import resolve_model

    return Path(shutil.copytree(resolve_model("tiny-reasoner"), tmp_path / "model"))
