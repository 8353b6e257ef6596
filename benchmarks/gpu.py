"""All that is to be measured on a GPU, by one command, in less than eight minutes.

    python -m benchmarks.gpu [--output FILE] [--seconds 480] [--only PART ...]

Random Qwen2 models of 0.1, 0.5 and 1.5 billion parameters: what the local engine samples a second; packed
(FlexAttention) against flat training of a tree of N = 2k to 64k unique tokens in bfloat16, with memory, MFU
and the difference of the gradients; how far bfloat16 and packing move the logprobs off those that were
sampled with; vLLM, where it is installed; and the tests that need a GPU.

Each part is a process of its own with a limit of its own: what fails or does not fit is told in its line and
takes nothing along. One JSON object a line, written as soon as it is known, the first about the machine.
`--tiny` goes through the same code with tiny models, on a CPU as well; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.shapes import Shape, full_tree, multiplications
from trainer.credit import CreditPlan, credit_trees
from trainer.data import load_data
from trainer.optim import Optimiser, UpdateData
from trainer.packing import flatten, pack
from trainer.policy import Policy, load_policy
from trainer.presets import PRESETS
from trainer.sampling.agreement import EngineMismatchError, check_against_policy
from trainer.sampling.engine import Engine, SamplingPlan
from trainer.sampling.local_engine import LocalEngine
from trainer.schema.data import ChainData
from trainer.schema.objective import PolicyObjective
from trainer.schema.training import TrainingConfig
from trainer.tree import RolloutTree, Verdict

# Dense bfloat16 multiply-adds count as two operations; makers' figures without sparsity.
PEAK: Final = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "B200": 2250e12}
TURNS = 3
BRANCHING = (4, 4, 4)  # of the trees that are trained on
NODES = 4 + 16 + 64

Say = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Size:
    """hidden, layers, heads, key-value heads, inner, vocabulary, positions."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    positions: int = 4096


SIZES: Final = {
    "0.1B": Size(768, 12, 12, 4, 2048, 32_000),
    "0.5B": Size(896, 24, 14, 2, 4864, 151_936),
    "1.5B": Size(1536, 28, 12, 2, 8960, 151_936),
    "tiny": Size(128, 2, 4, 2, 256, 512),
}


@dataclass(frozen=True, slots=True)
class Part:
    """What is measured, on which model, by what sizes, and how long it may take at most."""

    name: str
    measure: Callable[[Part, torch.device, Say, float], None]
    model: str
    sizes: tuple[int, ...]
    seconds: float


def policy_of(model: str, device: torch.device) -> Policy:
    """Random weights, the tiny reasoner's tokenizer, no end token: every answer runs to its limit."""
    size = SIZES[model]
    config = Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.positions,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(device):
        built = Qwen2ForCausalLM(config).eval()
    built.model.norm.weight.data.mul_(4)  # else all tokens would be about equally likely
    return Policy(built, load_policy("tiny-reasoner").tokenizer, frozenset())


@contextmanager
def timed(device: torch.device) -> Iterator[dict[str, float]]:
    """Wall seconds and, of a GPU, the most memory allocated."""
    found: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    yield found
    if device.type == "cuda":
        torch.cuda.synchronize()
        found["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    found["seconds"] = time.perf_counter() - began


def sampled(engine: Engine, count: int, tokens: int, step: int) -> list[RolloutTree]:
    """`count` trees of 4 x 4 x 4 segments of so many tokens."""
    problems = load_data(ChainData(operations=5), seed=5, evaluation_problems=1).training.batch(1, count)
    plan = SamplingPlan(BRANCHING, (tokens,) * 3, split_at_newline=False, temperature=1.0)
    return engine.sample(
        problems, plan, seed=1, step=step, should_stop=lambda: False, on_progress=lambda _done, _all: None
    )


def sampling(part: Part, device: torch.device, say: Say, until: float) -> None:
    """The local engine, by number of trees that grow at once."""
    policy = policy_of(part.model, device)
    engine = LocalEngine(policy)
    tokens = 4 if part.model == "tiny" else 64
    sampled(engine, 1, tokens, 0)
    for count in part.sizes:
        if time.monotonic() > until:
            say(trees=count, skipped="no time left")
            continue
        with guarded(say, trees=count), timed(device) as found:
            trees = sampled(engine, count, tokens, 1)
        if "seconds" in found:
            unique = sum(int(tree.token_counts()[1:].sum()) for tree in trees)
            say(trees=count, unique_tokens=unique, tokens_per_second=unique / found["seconds"], **found)
        free()


def data_of(policy: Policy, unique: int) -> tuple[Optimiser, UpdateData]:
    """One full tree of about so many unique tokens, in one packed row."""
    tokens = max(1, unique // NODES)
    tree = full_tree(Shape("", BRANCHING, (tokens,) * 3, 1), 0, policy.model.config.vocab_size)
    trees = credit_trees([tree], CreditPlan(PRESETS["grpo-tiny"].config.credit))
    optimiser = optimiser_of(policy, NODES * tokens + 1024)  # with the prompt
    return optimiser, optimiser.data([trees], [], 1)[0]


def optimiser_of(policy: Policy, most: int, layout: str = "packed") -> Optimiser:
    config = TrainingConfig.model_validate({"microbatch_tokens": most, "layout": layout})
    return Optimiser(policy, config, PolicyObjective(), "trajectory")


def training(part: Part, device: torch.device, say: Say, until: float) -> None:
    """Gradients of one tree, packed and flat, by its unique tokens."""
    policy = policy_of(part.model, device)
    policy.is_half = True
    if part.model in ("0.5B", "1.5B"):
        policy.use_gradient_checkpointing()
    parameters = policy.parameter_count()
    peak = next((flops for name, flops in PEAK.items() if name in device_name(device)), None)
    for unique in part.sizes:
        if time.monotonic() > until:
            say(unique_tokens=unique, skipped="no time left")
            continue
        optimiser, data = data_of(policy, unique)
        most = optimiser.microbatch_tokens
        rates, gradients, products = {}, {}, {}
        for layout, batches in (("packed", pack(data.weights, most)), ("flat", flatten(data.weights, most))):
            products[layout] = multiplications(policy.model, list(batches))
            with guarded(say, unique_tokens=unique, layout=layout):
                seconds, memory, first = [], 0.0, 0.0
                for turn in range(TURNS + 1):
                    with timed(device) as found:
                        result, _ = optimiser.gradient(data, lambda: False, layout=layout)
                    memory = max(memory, found.get("memory_gib", 0.0))
                    if turn:
                        seconds.append(found["seconds"])
                    else:
                        first = found["seconds"]  # kernels are compiled
                took = statistics.median(seconds)
                rates[layout] = took
                gradients[layout] = gradient_of(policy)
                flops = 6 * products[layout]  # a multiply-add is two, and backward is two forwards
                say(
                    unique_tokens=unique,
                    layout=layout,
                    parameters=parameters,
                    computed_tokens=result.computed_tokens,
                    seconds=took,
                    first_seconds=first,
                    unique_tokens_per_second=result.trained_tokens / took,
                    memory_gib=memory,
                    mfu=flops / took / peak if peak else None,
                )
            free()
        if len(rates) == 2:
            away = (gradients["packed"] - gradients["flat"]).norm() / gradients["flat"].norm()
            say(
                unique_tokens=unique,
                packed_is_faster_by=rates["flat"] / rates["packed"],
                products_ratio=products["flat"] / products["packed"],
                gradient_difference=float(away),
            )
        gradients.clear()
        free()


def gradient_of(policy: Policy) -> torch.Tensor:
    """Of all parameters in one row, on the CPU."""
    parts = [own.grad.flatten().cpu() for own in policy.model.parameters() if own.grad is not None]
    return torch.cat(parts)


def gaps(part: Part, device: torch.device, say: Say, until: float) -> None:
    """How far logprobs lie off the sampler's: of float32 and bfloat16, packed and flat."""
    policy = policy_of(part.model, device)
    engine = LocalEngine(policy)
    for tokens in part.sizes:
        trees = sampled(engine, 2, tokens, 1)
        weights = optimiser_of(policy, 16_384).data([credit_all(trees)], [], 1)[0].weights
        for precision in ("float32", "bfloat16"):
            policy.is_half = precision == "bfloat16"
            for layout in ("packed", "flat"):
                if time.monotonic() > until:
                    return
                with guarded(say, segment_tokens=tokens, precision=precision, layout=layout):
                    optimiser = optimiser_of(policy, 16_384, layout)
                    off = [
                        abs(known - each.tree.logprobs)[each.trains]
                        for each, known in zip(weights, optimiser.logprobs(policy, weights), strict=True)
                    ]
                    every = [float(x) for part_of in off for x in part_of if x == x]
                    say(
                        segment_tokens=tokens,
                        precision=precision,
                        layout=layout,
                        tokens=len(every),
                        largest_gap=max(every),
                        mean_gap=statistics.fmean(every),
                    )
        free()


def credit_all(trees: list[RolloutTree]) -> list[RolloutTree]:
    """Random rewards, so that tokens have a part in the loss."""
    rewarded = []
    for number, tree in enumerate(trees):
        leaf = tree.is_leaf()
        reward = np.where(leaf, np.random.default_rng(number).random(tree.n_nodes) < 0.5, np.nan)
        verdict = np.where(leaf, np.where(reward > 0, Verdict.CORRECT, Verdict.INCORRECT), Verdict.NONE)
        rewarded.append(tree.with_verdicts(verdict.astype(np.uint8), reward, [""] * tree.n_nodes))
    return credit_trees(rewarded, CreditPlan(PRESETS["grpo-tiny"].config.credit))


def vllm(part: Part, device: torch.device, say: Say, until: float) -> None:
    """The vLLM engine beside the policy on the same GPU, in both precisions."""
    from trainer.sampling.vllm_engine import VllmEngine, installed_version
    from trainer.schema.engine import VllmEngineChoice

    if installed_version() is None:
        say(skipped="vLLM is not installed here")
        return
    policy = policy_of(part.model, device)
    tokens, memory = (4, 64) if part.model == "tiny" else (64, 8192)
    problems = load_data(ChainData(operations=5), seed=5, evaluation_problems=1).training.batch(1, 2)
    for dtype in ("float32", "bfloat16"):
        if time.monotonic() > until:
            say(dtype=dtype, skipped="no time left")
            continue
        with guarded(say, dtype=dtype):
            began = time.perf_counter()
            choice = VllmEngineChoice.model_validate(
                {"kind": "vllm", "kv_memory_mib": memory, "max_sequences": 1024, "dtype": dtype}
                | {"sleep_while_training": True}
            )
            engine = VllmEngine(policy, choice)
            started = time.perf_counter() - began
            try:
                gap: float | str = check_against_policy(engine, policy, problems, tolerance=1.0)
            except EngineMismatchError as error:
                gap = str(error)[:300]
            sampled(engine, 1, tokens, 0)
            for count in part.sizes:
                with timed(device) as found:
                    trees = sampled(engine, count, tokens, 1)
                unique = sum(int(tree.token_counts()[1:].sum()) for tree in trees)
                say(
                    dtype=dtype,
                    trees=count,
                    start_seconds=started,
                    sync_seconds=engine.sync_seconds,
                    logprob_gap=gap,
                    unique_tokens=unique,
                    tokens_per_second=unique / found["seconds"],
                    **found,
                )
            awake = used_bytes(device)
            with timed(device) as resting:
                engine.rest()
            asleep = used_bytes(device)
            engine.sync()
            say(
                dtype=dtype,
                given_back_bytes=awake - asleep,
                taken_again_bytes=used_bytes(device) - asleep,
                rest_seconds=resting["seconds"],
                wake_seconds=engine.sync_seconds,
                logprob_gap=check_against_policy(engine, policy, problems, tolerance=1.0),
            )
            engine.close()
        free()


def used_bytes(device: torch.device) -> int:
    """Of the whole GPU, by whomever; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    free_bytes, total = torch.cuda.mem_get_info(device)
    return total - free_bytes


def tests(_part: Part, _device: torch.device, say: Say, _until: float) -> None:
    """Those that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu", "-m", "gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    say(status=done.returncode, tail=(done.stdout + done.stderr)[-1500:])


PARTS: Final = (
    Part("training 0.5B", training, "0.5B", (2048, 8192, 32_768, 65_536), 150),
    Part("sampling 0.5B", sampling, "0.5B", (4, 16, 64), 50),
    Part("gaps 0.5B", gaps, "0.5B", (64,), 60),
    Part("tests", tests, "0.1B", (), 60),
    Part("training 1.5B", training, "1.5B", (8192, 32_768), 90),
    Part("sampling 1.5B", sampling, "1.5B", (16,), 40),
    Part("training 0.1B", training, "0.1B", (8192, 65_536), 60),
    Part("sampling 0.1B", sampling, "0.1B", (16, 64), 30),
    Part("vllm 0.5B", vllm, "0.5B", (16, 64), 120),
)
TINY: Final = (
    Part("training", training, "tiny", (256, 512), 60),
    Part("sampling", sampling, "tiny", (1, 2), 60),
    Part("gaps", gaps, "tiny", (6,), 60),
    Part("vllm", vllm, "tiny", (1,), 120),
)


@contextmanager
def guarded(say: Say, **about: Any) -> Iterator[None]:
    """What fails inside is told, with what it was about."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # whatever it is, the other figures are wanted
        lines = traceback.format_exc().strip().splitlines()
        say(**about, error=f"{type(error).__name__}: {str(error)[:400]}", at=lines[-3].strip()[:200])
    finally:
        free()


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def run_part(name: str, parts: tuple[Part, ...], device: torch.device, seconds: float) -> None:
    """In this process; lines go to standard output."""
    part = next(part for part in parts if part.name == name)

    def say(**found: Any) -> None:
        print(json.dumps({"part": part.name, "model": part.model} | found), flush=True)

    if device.type == "cpu":
        torch.set_num_threads(1)
    part.measure(part, device, say, time.monotonic() + seconds * 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure on a GPU.")
    parser.add_argument("--output", type=Path, help="a file for the lines, too")
    parser.add_argument("--seconds", type=float, default=480, help="for all parts together")
    parser.add_argument("--only", nargs="*", default=[], metavar="PART")
    parser.add_argument("--tiny", action="store_true", help="tiny models: only whether it all runs")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # of a child
    chosen = parser.parse_args()
    parts = TINY if chosen.tiny else PARTS
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not chosen.tiny:
        parser.error("torch finds no GPU here; --tiny goes through the same code on a CPU")
    if chosen.part:
        run_part(chosen.part, parts, device, chosen.seconds)
        return
    until = time.monotonic() + chosen.seconds

    def say(line: str) -> None:
        print(line, flush=True)
        if chosen.output:
            with chosen.output.open("a") as file:
                file.write(line + "\n")

    about = {"device": device_name(device), "torch": torch.__version__, "cuda": torch.version.cuda}
    say(json.dumps(about | {"cores": os.cpu_count(), "at": time.strftime("%Y-%m-%d %H:%M:%S")}))
    for part in parts:
        if chosen.only and part.name not in chosen.only:
            continue
        left = until - time.monotonic()
        if left < 15:
            say(json.dumps({"part": part.name, "skipped": "no time left"}))
            continue
        run_child(part, min(part.seconds, left), chosen.tiny, say)


def run_child(part: Part, seconds: float, is_tiny: bool, say: Callable[[str], None]) -> None:
    """Pass a part's lines on as they come; say how it ended where that is not well."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part.name, "--seconds", str(seconds)]
    with subprocess.Popen(
        [*command, "--tiny"] if is_tiny else command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        timer = threading.Timer(seconds, child.kill)
        timer.start()
        tail: list[str] = []
        errors = threading.Thread(target=lambda: tail.extend(child.stderr or []))
        errors.start()
        try:
            for line in child.stdout or []:
                if line.startswith("{"):
                    say(line.rstrip("\n"))
        finally:
            timer.cancel()
        status = child.wait()
        errors.join()
    if status:
        why = f"it took more than {seconds:.0f} s" if status < 0 else "".join(tail)[-600:]
        say(json.dumps({"part": part.name, "status": status, "error": why}))


if __name__ == "__main__":
    main()
