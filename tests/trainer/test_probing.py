"""Continuations sampled by hand: the same numbers as any sampling, from any beginning, judged with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from trainer.data import Problem
from trainer.policy import Policy
from trainer.probing import Begun, Continuation, Ended, ProbeError, ProbeRequest, read_line, sample_probe
from trainer.sampling.engine import SamplingPlan
from trainer.sampling.local_engine import LocalEngine
from trainer.tree import Verdict
from trainer.verifiers import Judgement

PROMPT = "Cal has 45 books. Finds 26. How many?\n"


def request_for(policy: Policy, **changes: Any) -> ProbeRequest:
    asked = {
        "model": "tiny-reasoner",
        "problem_id": "p",
        "reference_answer": "71",
        "prompt_tokens": tuple(policy.encode(PROMPT)),
        "answer_tokens": (),
        "answer_text": "",
        "numbers": tuple(range(11)),
        "temperature": 1.0,
        "max_tokens": 24,
        "seed": 5,
        "verifier": None,
    }
    return ProbeRequest.model_validate(asked | changes)


def sampled(policy: Policy, judge: Any = None, **changes: Any) -> list[Continuation]:
    """`judge`: anything with a Verifier's `judge_many`."""
    said: list[BaseModel] = []
    sample_probe(request_for(policy, **changes), policy, judge, said.append)
    assert isinstance(said[0], Begun)
    return [one for one in said if isinstance(one, Continuation)]


def test_a_probe_of_the_prompt_is_a_flat_sample_of_it(tiny_reasoner: Policy) -> None:
    """The oracle is the engine's own flat sampling: same seed, same problem, all answers in one round."""
    (tree,) = LocalEngine(tiny_reasoner).sample(
        [Problem("p", PROMPT, "71")],
        SamplingPlan((11,), (24,), split_at_newline=False, temperature=1.0),
        seed=5,
        step=0,
        should_stop=lambda: False,
        on_progress=lambda _done, _total: None,
    )
    found = sampled(tiny_reasoner)
    assert [one.number for one in found] == list(range(11))
    for one in found:
        node = 1 + one.number
        span = slice(tree.token_offsets[node], tree.token_offsets[node + 1])
        assert list(one.tokens) == tree.tokens[span].tolist()
        assert one.logprobs == pytest.approx(tree.logprobs[span].tolist(), abs=1e-5)
        assert one.entropies == pytest.approx(tree.entropies[span].tolist(), abs=1e-5)
        assert one.text == tree.texts[node]
    # What is missing of a probe is sampled later, alone, and is the same.
    again = sampled(tiny_reasoner, numbers=(2, 9))
    assert [one.tokens for one in again] == [found[2].tokens, found[9].tokens]
    assert [one.tokens for one in sampled(tiny_reasoner, seed=6)] != [one.tokens for one in found]


def test_it_goes_on_inside_a_character_and_is_judged_with_its_beginning(tiny_reasoner: Policy) -> None:
    class Judge:
        def judge_many(self, answers: Any) -> list[Judgement]:
            heard.extend(answers)
            right = Judgement(Verdict.CORRECT, 1.0, "")
            return [right, *[Judgement(Verdict.ERROR, float("nan"), "")] * (len(answers) - 1)]

    heard: list[tuple[str, bool, str]] = []
    # é is two tokens here; the beginning ends behind the first of them.
    cut = tiny_reasoner.encode_text("caf\u00e9")[:-1]
    found = sampled(
        tiny_reasoner, Judge(), answer_tokens=tuple(cut), answer_text="caf", numbers=(0, 1, 2), max_tokens=5
    )
    prompt = tiny_reasoner.encode(PROMPT)
    for one, (text, has_ended, reference) in zip(found, heard, strict=True):
        whole = tiny_reasoner.decoder.texts((-1, 0), (prompt, [*cut, *one.tokens]))[1]
        assert "caf" + one.text == whole == text
        assert (has_ended, reference) == (one.finish == "eos", "71")
    assert [one.verdict for one in found] == ["correct", "error", "error"]
    assert [one.reward for one in found] == [1.0, None, None]


def test_an_edited_beginning_is_read_anew_and_one_that_does_not_fit_is_refused(tiny_reasoner: Policy) -> None:
    text = "45+26=71 books.\n"
    exact = sampled(tiny_reasoner, answer_tokens=tuple(tiny_reasoner.encode_text(text)), answer_text=text)
    assert sampled(tiny_reasoner, answer_tokens=None, answer_text=text) == exact
    assert sampled(tiny_reasoner, answer_tokens=None, answer_text="45+26=") != exact
    assert len({one.tokens for one in sampled(tiny_reasoner, temperature=0.0, numbers=(0, 1))}) == 1
    positions = tiny_reasoner.model.config.max_position_embeddings
    prompt = len(tiny_reasoner.encode(PROMPT))
    told = rf"{prompt} tokens and {positions} more do not fit.* at most {positions - prompt} max tokens"
    with pytest.raises(ProbeError, match=told):
        sampled(tiny_reasoner, max_tokens=positions)
    with pytest.raises(ProbeError, match="it is another model than the tree was sampled with"):
        sampled(tiny_reasoner, answer_tokens=(10**6,))


@pytest.mark.process
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"checkpoint": "/nowhere/step-7"}, "The checkpoint step-7 is not there any more"),
        ({"verifier": {"kind": "plugin", "name": "no-such"}}, "The run's verifier cannot be used: "),
    ],
)
def test_the_last_line_says_why_it_failed(
    tiny_reasoner: Policy, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request_for(tiny_reasoner, **changes).model_dump(mode="json")))
    done = subprocess.run(
        [sys.executable, "-m", "trainer.probing", str(path)], capture_output=True, timeout=120, check=False
    )
    (last,) = map(read_line, done.stdout.splitlines())
    assert isinstance(last, Ended)
    assert (done.returncode, last.outcome) == (1, "failed")
    assert last.reason.startswith(reason)
