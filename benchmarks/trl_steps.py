"""Steps of TRL's GRPOTrainer on given problems, timed. Runs under a Python that has TRL and not Arborist.

Reads JSON from stdin: {"model": folder, "problems": [{"prompt", "answer"}], "steps", "problems_per_step",
"samples", "max_tokens", "learning_rate"}. The last line printed is a JSON list: CPU seconds of each step.
"""

import json
import os
import sys
import tempfile
import time
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers' own is untyped
    """CPU time between the ends of steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_step_begin(self, *_args: Any, **_more: Any) -> None:
        if not self._last:
            self._last = time.process_time()

    def on_step_end(self, *_args: Any, **_more: Any) -> None:
        now = time.process_time()
        self.seconds.append(now - self._last)
        self._last = now


def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 if what follows the last `#### ` is the answer."""
    return [
        float(text.rpartition("#### ")[2].strip() == right)
        for text, right in zip(completions, answer, strict=True)
    ]


def main() -> None:
    given = json.load(sys.stdin)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    batch = given["problems_per_step"] * given["samples"]
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=reward,
            train_dataset=Dataset.from_list(given["problems"]),
            callbacks=[clock],
            args=GRPOConfig(
                output_dir=scratch,
                use_cpu=True,
                per_device_train_batch_size=batch,
                num_generations=given["samples"],
                max_completion_length=given["max_tokens"],
                max_steps=given["steps"],
                learning_rate=given["learning_rate"],
                beta=0.0,
                temperature=1.0,
                use_vllm=False,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                save_strategy="no",
                logging_steps=10**6,
                disable_tqdm=True,
                dataloader_num_workers=0,
            ),
        )
        trainer.train()
    print(json.dumps(clock.seconds))


if __name__ == "__main__":
    main()
