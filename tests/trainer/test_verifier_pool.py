from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.schema.verifier import BoxedVerifier, Gsm8kVerifier, PluginVerifier, RegexVerifier
from trainer.tree import Verdict
from trainer.verifier_pool import JudgingStopped, VerifierError, VerifierPool, _Job, in_words
from trainer.verifiers import Verifier

pytestmark = pytest.mark.process

TROUBLE = """
import ctypes, os, time
kept = []
def judge(text, has_ended, reference):
    if text == "swallow":
        block = []
        try:
            while True: block.append(bytearray(os.urandom(1) * (1 << 24)))
        except MemoryError:
            return False
    if text == "leak": kept.append(bytearray(b"x" * (60 << 20)))
    if text == "second" and not kept: kept.append(1); return True
    if text == "second": os._exit(3)
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
        troubles, reason = pool.take_troubles()
        assert pool.take_troubles() == ({}, "")
    verdicts = [verdict for verdict, _ in found]
    expected = ["correct" if text == "5" else "incorrect" if text == "print" else "error" for text in texts]
    assert verdicts == expected
    assert troubles == {"timeout": 2, "memory": 1, "crashed": 2, "failed": 1}
    assert "out of order" in found[9][1]
    assert time.monotonic() - began < 20
    words = in_words(troubles, 0.5, 256, reason)
    assert words.startswith("6 answers have no verdict and no reward: ")
    assert "2 took longer than 0.5 s" in words
    assert "1 made the verifier fail (RuntimeError: out of order)" in words


def test_running_out_of_memory_is_no_wrong_answer_even_when_a_library_hides_it(
    trouble: dict[str, Any],
) -> None:
    with VerifierPool(trouble | {"timeout_seconds": 20}, children=1) as pool:
        found = pool.judge([("5", True, "5"), ("swallow", True, "5"), ("5", True, "5")])
        assert found == [("correct", "5"), ("error", "memory"), ("correct", "5")]


def test_what_came_before_in_the_same_process_does_not_decide(trouble: dict[str, Any]) -> None:
    with VerifierPool(trouble | {"timeout_seconds": 20}, children=1) as pool:
        # Five leaks of 60 MB fill the 256 MB; each by itself is fine.
        found = pool.judge([("leak", True, "leak")] * 12)
        assert [verdict for verdict, _ in found] == ["correct"] * 12
        # Every second one in a process ends it.
        found = pool.judge([("second", True, "5")] * 5)
        assert [verdict for verdict, _ in found] == ["correct"] * 5
        assert pool.take_troubles() == ({}, "")


def test_a_child_that_was_ended_while_it_waited_costs_no_answer(trouble: dict[str, Any]) -> None:
    with VerifierPool(trouble, children=1) as pool:
        assert pool.judge([("5", True, "5")]) == [("correct", "5")]
        os.kill(pool._children[0].process.pid, signal.SIGKILL)
        time.sleep(0.1)
        assert pool.judge([("6", True, "5"), ("5", True, "5")]) == [("incorrect", "6"), ("correct", "5")]
        assert pool.take_troubles() == ({}, "")


def test_judging_can_be_stopped_and_goes_on_later(trouble: dict[str, Any]) -> None:
    told: list[tuple[int, int]] = []
    with VerifierPool(trouble | {"timeout_seconds": 60}, children=1) as pool:
        began = time.monotonic()
        answers = [("5", True, "5"), ("hang", True, "5")]
        with pytest.raises(JudgingStopped):
            pool.judge(
                answers,
                should_stop=lambda: time.monotonic() > began + 1.5,
                on_progress=lambda done, total: told.append((done, total)),
            )
        assert time.monotonic() - began < 10
        assert told[-1] == (1, 2)
        assert pool.judge([("5", True, "5")]) == [("correct", "5")]


def test_long_answers_go_in_small_batches() -> None:
    long = "x" * 900_000 + "\n#### "
    answers = [(f"{long}{n}", True, "7") for n in range(12)]
    assert [len(batch) for batch in _Job(answers).waiting] == [2] * 6
    assert [len(batch) for batch in _Job([("5", True, "5")] * 130).waiting] == [64, 64, 2]
    with Verifier(Gsm8kVerifier()) as verifier:
        found = verifier.judge_many(answers)
    assert [j.answer for j in found] == [str(n) for n in range(12)]
    assert [j.reward for j in found] == [float(n == 7) for n in range(12)]


def test_children_end_with_their_parent(tmp_path: Path) -> None:
    """Even when it has no chance to say goodbye."""
    program = (
        "import os, sys\n"
        "from trainer.schema.verifier import Gsm8kVerifier\n"
        "from trainer.verifiers import Verifier\n"
        "verifier = Verifier(Gsm8kVerifier())\n"
        "verifier.start()\n"
        "print(verifier._pool._children[0].process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 5
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(child)


def test_children_hold_nothing_heavy_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARBORIST_SECRET_KEY", "hush")
    with Verifier(Gsm8kVerifier()) as verifier:
        verifier.start()
        pid = verifier._pool._children[0].process.pid
        assert "hush" not in Path(f"/proc/{pid}/environ").read_text()
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "torch" not in mapped
        assert "numpy" not in mapped


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


def test_a_verifier_that_is_killed_at_work_changes_no_verdict() -> None:
    """As an operator or the kernel may do it, in the middle of a batch of real mathematics."""
    answers = [
        (f"\\boxed{{\\frac{{{n}}}{{{n + 1}}}}}", True, f"\\frac{{{2 * n}}}{{{2 * n + 2 + n % 2}}}")
        for n in range(1, 101)
    ]
    killed: list[int] = []

    def judged(on_progress: Callable[[int, int], None]) -> list[str]:
        with Verifier(BoxedVerifier(timeout_seconds=60)) as verifier:

            def watch(done: int, total: int) -> None:
                # Not one that tries an answer again by itself: whose process ends twice is to blame.
                at_work = [c.process.pid for c in verifier._pool._children if c.is_ready and len(c.owes) > 1]
                on_progress(done, at_work[0] if at_work else 0)

            found = verifier.judge_many(answers, on_progress=watch)
            assert verifier.troubles() == ""
            return [str(one.verdict) for one in found]

    def kill(_done: int, pid: int) -> None:
        if pid and pid not in killed and len(killed) < 3:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    unharmed = judged(lambda _done, _pid: None)
    assert len(set(unharmed)) == 2
    assert judged(kill) == unharmed
    assert len(killed) == 3
    assert not any(map(is_alive, killed))


def test_odd_text_arrives_as_it_is() -> None:
    with Verifier(Gsm8kVerifier()) as verifier:
        for text in ("\x00", "\ud800", "\n\r\u2028", "😀" * 1000, "x" * 300_000):
            assert verifier(f"#### {text}", True, text).verdict in (Verdict.CORRECT, Verdict.UNPARSED)


def test_a_verifier_that_cannot_be_used_says_so_before_anything_is_sampled() -> None:
    with pytest.raises(VerifierError, match="no verifier plug-in 'nobody'"):
        Verifier(PluginVerifier(name="nobody")).start()
    for pattern in ("(", "a{99999999999}", "(" * 499 + "a"):
        broken = RegexVerifier().model_copy(update={"pattern": pattern})
        with pytest.raises(VerifierError, match="no regular expression"):
            Verifier(broken).start()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("1/0", "ZeroDivisionError: division by zero"),
        ("import nothing_at_all", "No module named"),
        ("def (", "SyntaxError"),
        ("other = 1", "has no attribute 'judge'"),
        ("import os; os._exit(7)", "ended before it was ready .exit status 7"),
    ],
)
def test_a_plugin_that_does_not_load_says_why(
    trouble: dict[str, Any], tmp_path: Path, code: str, sentence: str
) -> None:
    (tmp_path / "trouble.py").write_text(code)
    with VerifierPool(trouble) as pool:
        with pytest.raises(VerifierError, match=sentence):
            pool.start()
        assert pool._children == []


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
