"""Builds the tiny reasoner from a seed: tokenizer, data and a supervised (SFT) policy, on one CPU thread.

    python -m trainer.warmup --output trainer/assets/tiny-reasoner --seed 0
    python -m trainer.warmup --output models/graph --seed 0 --task graph

The result is a folder that `transformers` loads like any other model, with `warmup.json` beside it: the
command, the versions and the measured accuracy. The policy first learns `chain` from right solutions, then
from solutions in which steps go wrong and the mistake is carried on. It ends up knowing arithmetic (greedy
decoding is nearly always right) yet slipping when it samples, which is where reinforcement learning begins.

This is not the reinforcement learning (`trainer.loop`), and its sampling loop serves the measurement only.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import safetensors
import tokenizers
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer.tasks import graph
from trainer.tasks.chain import (
    ANSWER_MARK,
    ChainProblem,
    corrupt,
    corrupt_late,
    corrupt_with_repairs,
    problem_at,
)
from trainer.tasks.graph import GraphProblem

END_TOKEN: Final = "<|end|>"  # noqa: S105  # of the vocabulary; no password
PAD_TOKEN: Final = "<|pad|>"  # noqa: S105
MAX_VOCABULARY: Final = 512
TOKENIZER_PROBLEMS: Final = 4000

# A newline, a digit, an operator, a word with the space before it (and the space after it where a digit
# follows, so that in "Finds 26" the space costs no token), any other whitespace character.
_PIECES: Final = r"\n|[0-9]|[+*=/<>-]| ?[^\s0-9+*=/<>-]+(?: (?=[0-9]))?|\s"

TaskName = Literal["chain", "graph"]
# Sizes that accuracy is measured at: operations, or people.
MEASURED: Final[dict[TaskName, tuple[int, ...]]] = {"chain": (3, 5, 8), "graph": (2, 4, 6)}
LEARNT_SHARE: Final = 0.9


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training: `steps` batches of problems with `operations` (inclusive range; of `graph` so
    many people), of whose solution steps the share `wrong_share` (0 to 1) is wrong."""

    steps: int
    operations: tuple[int, int]
    wrong_share: float


Errors = Literal["uniform", "late", "repair"]
CORRUPTIONS: Final = {"uniform": corrupt, "late": corrupt_late, "repair": corrupt_with_repairs}
# Shares of wrong steps in the last phase, so that all three start about equally good.
LAST_SHARE: Final[dict[Errors, float]] = {"uniform": 0.19, "late": 0.45, "repair": 0.25}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything but the seed that decides the weights. The defaults made the committed model.

    When the policy finds out how to add is partly luck: with other seeds, or other step counts (which stretch
    the learning-rate schedule), it may need more steps. `main` says so when a policy has not learnt enough.
    """

    phases: tuple[Phase, ...] = (
        Phase(steps=750, operations=(3, 3), wrong_share=0.0),
        Phase(steps=1500, operations=(3, 3), wrong_share=0.20),
        Phase(steps=2000, operations=(3, 8), wrong_share=0.19),
    )
    hidden_size: int = 96
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 3
    kv_heads: int = 1
    batch_size: int = 32
    learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    warmup_steps: int = 50
    gradient_norm: float = 1.0
    prompt_loss_weight: float = 0.1
    errors: Errors = "uniform"
    task: TaskName = "chain"


# `graph` needs some 2.3 times as many steps: who comes next has to be found among shuffled sentences.
GRAPH_PHASES: Final = (
    Phase(steps=1700, operations=(3, 3), wrong_share=0.0),
    Phase(steps=3400, operations=(3, 3), wrong_share=0.20),
    Phase(steps=4600, operations=(2, 6), wrong_share=0.19),
)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Right answers among `problems` held-out problems with `operations` operations each."""

    operations: int
    problems: int
    sampled_correct: int
    greedy_correct: int


def build_tokenizer(
    seed: int,
    problems: int = TOKENIZER_PROBLEMS,
    errors: Errors = "uniform",
    task: TaskName = "chain",
) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer on warm-up problems; on checks, too, where solutions have any.

    All 256 bytes are in the vocabulary, so any text survives a round trip. Digits and newlines are always
    tokens of their own. Merges stop by themselves once each word of the task is one token, at 400 tokens.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    rng = np.random.Generator(np.random.Philox(key=_named_seed(seed, "tokenizer")))
    bpe.train_from_iterator(
        _tokenizer_texts(seed, problems, errors, task, rng),
        trainers.BpeTrainer(
            vocab_size=MAX_VOCABULARY,
            special_tokens=[END_TOKEN, PAD_TOKEN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers types it in part
        tokenizer_object=bpe,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def _tokenizer_texts(
    seed: int, problems: int, errors: Errors, task: TaskName, rng: np.random.Generator
) -> Iterator[str]:
    for index in range(problems):
        if task == "graph":
            told = graph.problem_at(seed, "warmup", index, 2 + index % 5)
            yield told.prompt + told.solution
        else:
            problem = problem_at(seed, "warmup", index, (3, 8))
            repaired = errors == "repair"
            yield problem.prompt + (corrupt_with_repairs(problem, rng, 0.2) if repaired else problem.solution)


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return the untrained policy, float32, its weights drawn from `seed` alone.

    Llama and not Qwen2: for Qwen2 models `AutoTokenizer` ignores the folder's own tokenizer rules and applies
    Qwen's, which normalise text and split it elsewhere.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_named_seed(seed, "weights"))
        return LlamaForCausalLM(config)  # type: ignore[no-untyped-call]  # as above


def train(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    report: Callable[[int, int, float], None] | None = None,
) -> LlamaForCausalLM:
    """Train the policy by next-token prediction; the same arguments give the same bits.

    `report(step, steps, loss)` is called after each step; the loss is in nats per weighted token.
    Raises FloatingPointError when the loss is no longer finite.
    """
    model = build_model(recipe, tokenizer, seed)
    model.train()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    steps = sum(phase.steps for phase in recipe.phases)
    for step, (tokens, weights) in enumerate(_batches(recipe, tokenizer, seed)):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, steps, recipe.warmup_steps)
        loss = batch_loss(model, tokens, weights)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"The warm-up loss is {loss.item()} at step {step + 1} of {steps}; it must be finite. "
                f"Lower the learning rate ({recipe.learning_rate})."
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves `Tensor.backward` untyped
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm)
        optimiser.step()
        if report is not None:
            report(step + 1, steps, loss.item())
    model.eval()  # type: ignore[no-untyped-call]  # as above
    return model


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    operations: int,
    problems: int,
    seed: int,
    task: TaskName = "chain",
) -> Accuracy:
    """Count right answers on the first `problems` evaluation problems, sampled once (T = 1) and greedily."""
    make: Callable[..., ChainProblem | GraphProblem] = problem_at if task == "chain" else graph.problem_at
    held_out = [make(seed, "evaluation", index, operations) for index in range(problems)]
    generator = torch.Generator().manual_seed(_named_seed(seed, f"measure/{operations}"))
    return Accuracy(
        operations=operations,
        problems=problems,
        sampled_correct=_count_correct(model, tokenizer, held_out, generator),
        greedy_correct=_count_correct(model, tokenizer, held_out, None),
    )


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM,
    prompts: Tensor,
    max_tokens: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Continue prompts of equal length until all have ended: sampled at T = 1, greedily without a generator.

    prompts [B, P] int64. Returns [B, <= max_tokens] int64; what follows the first end token means nothing.
    """
    end = model.config.eos_token_id
    finished = torch.zeros(len(prompts), dtype=torch.bool)  # [B]
    inputs, cache, columns = prompts, None, []
    for _ in range(max_tokens):
        output = model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        logits = output.logits[:, -1].float()  # [B, V]
        if generator is None:
            chosen = logits.argmax(-1, keepdim=True)  # [B, 1]
        else:
            chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator)  # [B, 1]
        columns.append(chosen)
        finished |= chosen[:, 0] == end
        if bool(finished.all()):
            break
        inputs = chosen
    return torch.cat(columns, dim=1)


def save(
    folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, record: dict[str, Any]
) -> None:
    """Write model, tokenizer and `warmup.json` to a temporary folder beside `folder`, then swap it in.

    Raises FileExistsError when `folder` holds something that is not an earlier warm-up.
    """
    refuse_foreign_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        fresh = Path(scratch, "new")
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        (fresh / "warmup.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for file in fresh.iterdir():
            file.chmod(0o644)  # safetensors writes files that only their owner can read
        if folder.exists():
            folder.replace(Path(scratch, "old"))
        fresh.replace(folder)


def refuse_foreign_folder(folder: Path) -> None:
    """Raise FileExistsError unless `folder` is absent, empty, or an earlier warm-up (which may go)."""
    if (
        folder.exists()
        and not (folder / "warmup.json").is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise FileExistsError(
            f"{folder} exists and is no earlier warm-up (it has no warmup.json), so it is not replaced. "
            "Choose another --output or move it away."
        )


def _batches(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of all phases in order, as `pad_batch` makes them.

    All problems of a batch have the same number of operations, so that little of it is padding.
    """
    index = 0
    for number, phase in enumerate(recipe.phases):
        rng = np.random.Generator(np.random.Philox(key=_named_seed(seed, f"mistakes/{number}")))
        fewest, most = phase.operations
        for _ in range(phase.steps):
            operations = fewest + int(rng.random() * (most - fewest + 1))
            prompts, solutions = [], []
            for row in range(index, index + recipe.batch_size):
                if recipe.task == "graph":
                    told = graph.problem_at(seed, "warmup", row, operations)
                    solution = graph.corrupt(told, rng, phase.wrong_share)
                    prompts.append(told.prompt)
                else:
                    problem = problem_at(seed, "warmup", row, operations)
                    solution = CORRUPTIONS[recipe.errors](problem, rng, phase.wrong_share)
                    prompts.append(problem.prompt)
                solutions.append(solution)
            index += recipe.batch_size
            yield pad_batch(tokenizer, prompts, solutions, recipe.prompt_loss_weight)


def pad_batch(
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    solutions: Sequence[str],
    prompt_weight: float,
) -> tuple[Tensor, Tensor]:
    """Join prompt, solution and end token; pad on the right, where causal attention cannot see it.

    Returns tokens [B, T] int64 and loss weights [B, T] float32: `prompt_weight`, then 1, then 0 on padding.
    """
    before: list[list[int]] = tokenizer(list(prompts))["input_ids"]
    after: list[list[int]] = tokenizer([solution + END_TOKEN for solution in solutions])["input_ids"]
    width = max(len(prompt) + len(solution) for prompt, solution in zip(before, after, strict=True))
    tokens = torch.full((len(before), width), tokenizer.pad_token_id, dtype=torch.int64)  # [B, T]
    weights = torch.zeros((len(before), width), dtype=torch.float32)  # [B, T]
    for row, (prompt, solution) in enumerate(zip(before, after, strict=True)):
        stop = len(prompt) + len(solution)
        tokens[row, :stop] = torch.tensor(prompt + solution)
        weights[row, : len(prompt)] = prompt_weight
        weights[row, len(prompt) : stop] = 1.0
    return tokens, weights


def batch_loss(model: LlamaForCausalLM, tokens: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean next-token loss, scalar float32; normalised by the sum of the weights."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits  # [B, T-1, V]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none"
    )  # [B * (T-1)]
    target_weights = weights[:, 1:].flatten()
    return (losses * target_weights).sum() / target_weights.sum()


def _schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Return the factor on the learning rate: a linear rise, then a linear fall to 0 after the last step."""
    return min((step + 1) / warmup_steps, (steps - step) / max(steps - warmup_steps, 1), 1.0)


def _count_correct(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[ChainProblem | GraphProblem],
    generator: torch.Generator | None,
) -> int:
    by_length: dict[int, list[tuple[ChainProblem | GraphProblem, list[int]]]] = defaultdict(list)
    for problem in problems:
        ids: list[int] = tokenizer(problem.prompt)["input_ids"]
        by_length[len(ids)].append((problem, ids))
    correct = 0
    for length in sorted(by_length):
        group = by_length[length]
        # A right line has at most 12 tokens and the last one 4; mistakes may make numbers longer, and each
        # may
        # be checked and made again.
        max_tokens = max(48 * len(problem.steps) for problem, _ in group) + 8
        completions = complete(model, torch.tensor([ids for _, ids in group]), max_tokens, generator)
        for (problem, _), row in zip(group, completions.tolist(), strict=True):
            correct += is_correct(tokenizer, problem, row)
    return correct


def is_correct(
    tokenizer: PreTrainedTokenizerFast, problem: ChainProblem | GraphProblem, completion: list[int]
) -> bool:
    """Right means: it ended, and what follows its last "#### " is the answer."""
    if tokenizer.eos_token_id not in completion:
        return False
    text = str(tokenizer.decode(completion[: completion.index(tokenizer.eos_token_id)]))
    return text.rpartition(ANSWER_MARK)[2] == str(problem.answer) and ANSWER_MARK in text


def _named_seed(seed: int, name: str) -> int:
    """Derive an independent 63-bit seed for one use of randomness."""
    digest = blake2b(f"warmup/{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _show_progress(every: int) -> Callable[[int, int, float], None]:
    started = time.monotonic()

    def report(step: int, steps: int, loss: float) -> None:
        if step % every and step != steps:
            return
        left = (time.monotonic() - started) / step * (steps - step)
        _say(f"step {step}/{steps}  loss {loss:.4f}  {left:.0f} s left")

    return report


def _say(message: str) -> None:
    sys.stderr.write(f"warm-up: {message}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, train, measure, save. Returns the exit status."""
    options = _read_options(arguments)
    try:
        refuse_foreign_folder(options.output)
    except FileExistsError as error:
        _say(str(error))
        return 1
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # as above
    phases = GRAPH_PHASES if options.task == "graph" else Recipe().phases
    options.steps = options.steps or [phase.steps for phase in phases]
    recipe = Recipe(
        phases=tuple(replace(phase, steps=steps) for phase, steps in zip(phases, options.steps, strict=True)),
        errors=options.errors,
        task=options.task,
    )
    if options.errors != "uniform":
        last = replace(recipe.phases[-1], wrong_share=LAST_SHARE[recipe.errors])
        recipe = replace(recipe, phases=(*recipe.phases[:-1], last))
    started = time.process_time()
    tokenizer = build_tokenizer(options.seed, errors=recipe.errors, task=recipe.task)
    model = train(recipe, tokenizer, options.seed, _show_progress(every=50))
    trained = time.process_time()
    accuracies = []
    for operations in MEASURED[recipe.task]:
        accuracy = measure(model, tokenizer, operations, options.problems, options.seed, recipe.task)
        accuracies.append(accuracy)
        unit = "people" if recipe.task == "graph" else "operations"
        _say(
            f"{operations} {unit}: {accuracy.sampled_correct}/{accuracy.problems} right sampled, "
            f"{accuracy.greedy_correct}/{accuracy.problems} greedy"
        )
    if any(accuracy.greedy_correct < LEARNT_SHARE * accuracy.problems for accuracy in accuracies):
        _say(
            f"at some length this policy is right in less than {LEARNT_SHARE:.0%} of its greedy answers, "
            "so it has not learnt the arithmetic. Use more --steps or another --seed."
        )
    record = {
        "command": (
            f"python -m trainer.warmup --output {options.output.as_posix()} --seed {options.seed} "
            f"--steps {' '.join(map(str, options.steps))} --problems {options.problems}"
            + ("" if recipe.errors == "uniform" else f" --errors {recipe.errors}")
            + ("" if recipe.task == "chain" else f" --task {recipe.task}")
        ),
        "seed": options.seed,
        "recipe": asdict(recipe),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "accuracy": [
            asdict(accuracy)
            | {
                "sampled": round(accuracy.sampled_correct / accuracy.problems, 4),
                "greedy": round(accuracy.greedy_correct / accuracy.problems, 4),
            }
            for accuracy in accuracies
        ],
        "cpu_seconds": {
            "training": round(trained - started, 1),
            "measuring": round(time.process_time() - trained, 1),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "safetensors": safetensors.__version__,
            "numpy": np.__version__,
        },
    }
    save(options.output, model, tokenizer, record)
    _say(f"wrote {options.output}")
    return 0


def _read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    default_steps = [phase.steps for phase in Recipe().phases]
    parser = argparse.ArgumentParser(prog="python -m trainer.warmup", description="Train the tiny reasoner.")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write; an earlier warm-up is replaced"
    )
    parser.add_argument("--seed", type=int, required=True, help="decides data, weights and batches")
    parser.add_argument(
        "--steps",
        type=_count,
        nargs=len(default_steps),
        metavar="N",
        help=f"optimiser steps of each phase (default: {' '.join(map(str, default_steps))}; of graph "
        f"{' '.join(str(phase.steps) for phase in GRAPH_PHASES)})",
    )
    parser.add_argument(
        "--problems", type=_count, default=512, help="held-out problems per length (default: 512)"
    )
    parser.add_argument(
        "--errors",
        choices=list(CORRUPTIONS),
        default="uniform",
        help="where the policy slips: at any step, in the last third alone, or so that it may notice "
        "and repair it",
    )
    parser.add_argument(
        "--task",
        choices=list(MEASURED),
        default="chain",
        help="which problems it learns: sums one after the other, or amounts that depend on one another",
    )
    options = parser.parse_args(arguments)
    if options.task == "graph" and options.errors != "uniform":
        parser.error(f"--errors {options.errors} is for --task chain alone.")
    return options


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more.")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
