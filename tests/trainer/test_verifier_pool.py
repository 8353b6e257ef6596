from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trainer.schema.verifier import BoxedVerifier, Gsm8kVerifier, PluginVerifier, RegexVerifier
from trainer.tree import Verdict
from trainer.verifier_pool import VerifierError, VerifierPool, in_words
from trainer.verifiers import Verifier

pytestmark = pytest.mark.process

TROUBLE = """
import ctypes, os, time
def judge(text, has_ended, reference):
    if text == "hang":
        while True: pass
    if text == "sleep": time.sleep(60)
    if text == "memory": return len(bytearray(10**10)) > 0
    if text == "exit": os._exit(3)
    if text == "segfault": ctypes.string_at(0)
    if text == "raise": raise RuntimeError("out of order")
    if text == "print": print("among the answers")
    return text == reference
"""


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A plug-in that does everything wrong, installed where children find it."""
    (tmp_path / "trouble.py").write_text(TROUBLE)
    info = tmp_path / "trouble-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trouble\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[arborist.verifiers]\ntrouble = trouble:judge\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return PluginVerifier(name="trouble", timeout_seconds=0.5, memory_mb=256).model_dump(mode="json")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_trouble_costs_the_one_answer_it_was(trouble: dict[str, Any]) -> None:
    texts = [
        "5",
        "hang",
        "5",
        "memory",
        "5",
        "exit",
        "5",
        "segfault",
        "5",
        "raise",
        "5",
        "sleep",
        "print",
        "5",
    ]
    began = time.monotonic()
    with VerifierPool(trouble, children=1) as pool:
        found = pool.judge([(text, True, "5") for text in texts])
        troubles = pool.take_troubles()
        assert pool.take_troubles() == {}
    verdicts = [verdict for verdict, _ in found]
    expected = ["correct" if text == "5" else "incorrect" if text == "print" else "error" for text in texts]
    assert verdicts == expected
    assert troubles == {"timeout": 2, "memory": 1, "crashed": 2, "failed": 1}
    assert "out of order" in found[9][1]
    assert time.monotonic() - began < 20
    words = in_words(troubles, 0.5, 256)
    assert words.startswith("6 answers have no verdict and no reward: ")
    assert "2 took longer than 0.5 s" in words


def test_many_answers_go_in_order_over_several_children() -> None:
    with Verifier(Gsm8kVerifier()) as verifier:
        answers = [(f"#### {n}", True, str(n - n % 3)) for n in range(500)]
        found = verifier.judge_many(answers)
        assert [j.verdict == Verdict.CORRECT for j in found] == [n % 3 == 0 for n in range(500)]
        assert verifier.troubles() == ""
        assert verifier("#### 5", True, "5").reward == 1


def test_bombs_of_mathematics_and_of_patterns_are_ended() -> None:
    with Verifier(BoxedVerifier(timeout_seconds=1)) as verifier:
        bomb, fine = verifier.judge_many(
            [(r"\boxed{9^{9^{9^9}}}", True, "7"), (r"\boxed{\frac{1}{2}}", True, "0.5")]
        )
        assert bomb.verdict in (Verdict.ERROR, Verdict.INCORRECT)
        assert fine.verdict is Verdict.CORRECT
    with Verifier(RegexVerifier(pattern=r"(a+)+$", timeout_seconds=0.5)) as verifier:
        bomb, fine = verifier.judge_many([("a" * 60 + "!", True, "a"), ("aaa", True, "aaa")])
        assert bomb.verdict is Verdict.ERROR
        assert fine.verdict is Verdict.CORRECT
        assert "1 took longer than 0.5 s" in verifier.troubles()


def test_odd_text_arrives_as_it_is() -> None:
    with Verifier(Gsm8kVerifier()) as verifier:
        for text in ("\x00", "\ud800", "\n\r\u2028", "😀" * 1000, "x" * 300_000):
            assert verifier(f"#### {text}", True, text).verdict in (Verdict.CORRECT, Verdict.UNPARSED)


def test_a_verifier_that_cannot_be_used_says_so_before_anything_is_sampled() -> None:
    with pytest.raises(VerifierError, match="no verifier plug-in 'nobody'"):
        Verifier(PluginVerifier(name="nobody")).start()
    with pytest.raises(VerifierError, match="no regular expression"):
        Verifier(RegexVerifier(pattern="(")).start()


def test_closing_ends_the_children_even_one_that_hangs(trouble: dict[str, Any]) -> None:
    pool = VerifierPool(trouble, children=1)
    pool.start()
    (child,) = pool._children
    child.send([("hang", True, "5")])
    time.sleep(0.2)
    assert is_alive(child.process.pid)
    pool.close()
    assert not is_alive(child.process.pid)


def test_judging_many_plain_answers_costs_little() -> None:
    answers = [("45+26=71 books.\n71+27=98 books.\n#### 98", True, "98")] * 800
    with Verifier(Gsm8kVerifier()) as verifier:
        verifier.judge_many(answers)
        before = time.process_time()
        verifier.judge_many(answers)
        assert time.process_time() - before < 0.2  # some 10 ms; the bound only tells a blunder from noise
