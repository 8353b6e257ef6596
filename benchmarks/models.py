"""A model of a given size with random weights, for measuring what depends on size alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.policy import load_policy


def random_model(folder: Path, hidden: int, layers: int) -> int:
    """Make a model folder with the tiny reasoner's tokenizer; returns how many parameters it has. `hidden` is
    a multiple of 96: heads of 32, a third as many for keys and values.
    """
    tokenizer = load_policy("tiny-reasoner").tokenizer
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(  # type: ignore[no-untyped-call]  # transformers types it in part
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 96,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(model.num_parameters())
