from __future__ import annotations

import time
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.judges import boxed, compiled, exact, judge_called, last_boxed, matched, numeric


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{a} and \boxed{unclosed", "a"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1}}}", "1"),
        ("no box", None),
        (r"\boxed", None),
        ("", None),
    ],
)
def test_the_last_closed_box_counts(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    "text", [r"\boxed{" * 200_000, r"\boxed{" * 100_000 + "}" * 100_000, "{" * 1_000_000, "\\" * 1_000_000]
)
def test_boxes_are_found_in_linear_time(text: str) -> None:
    started = time.process_time()
    last_boxed(text)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("text", "reference", "verdict"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5", "correct"),
        (r"\boxed{0.5}", r"\frac12", "correct"),
        (r"\boxed{1,234}", "1234", "correct"),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", "correct"),
        (r"\boxed{3} \boxed{4}", "3", "incorrect"),
        (r"\boxed{\sqrt{8}}", r"\boxed{2\sqrt{2}}", "correct"),
        (r"\boxed{7}", "8", "incorrect"),
        (r"\boxed{0.\overline{3}}", "0", "incorrect"),
        (r"\boxed{(1, 2)}", "(1,2)", "correct"),
        (r"\boxed{10\%}", "0.1", "correct"),
        (r"\boxed{x=5}", "5", "correct"),
        ("7", "7", "unparsed"),
    ],
)
def test_boxed_answers_are_compared_as_mathematics(text: str, reference: str, verdict: str) -> None:
    assert boxed(text, True, reference)[0] == verdict


@pytest.mark.parametrize(
    "code",
    [
        '__import__("os").system("touch PROOF")',
        "open('PROOF', 'w')",
        r"\text{open('PROOF', 'w')}",
        "(lambda: open('PROOF', 'w'))()",
        "1+1\nopen('PROOF', 'w')",
        "x_{open('PROOF', 'w')}",
    ],
)
def test_answers_are_compared_and_never_run(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[str] = []
    monkeypatch.setattr("math_verify.parser.parse_expr", lambda text, **_more: evaluated.append(text))
    monkeypatch.chdir(tmp_path)
    assert boxed(rf"\boxed{{{code}}}", True, "7")[0] == "incorrect"
    assert boxed(r"\boxed{7}", True, code)[0] == "incorrect"
    assert boxed(rf"\boxed{{{code}}}", True, "x = (3+4)**2 }")[0] == "incorrect"  # what no LaTeX can be
    assert evaluated == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "reference", "verdict", "shown"),
    [
        ("it is 3.14159", "3.1416", "incorrect", "3.14159"),
        ("first 2, then 1,000", "1000", "correct", "1,000"),
        ("-7", "-7.0000001", "correct", "-7"),
        ("1e3", "1000", "correct", "1e3"),
        ("none", "5", "unparsed", ""),
        ("5 of 6", "5", "incorrect", "6"),
        ("٥", "5", "unparsed", ""),
        ("1e999", "5", "incorrect", "1e999"),
    ],
)
def test_numeric(text: str, reference: str, verdict: str, shown: str) -> None:
    assert numeric(text, True, reference, 1e-6) == (verdict, shown)


def test_a_reference_without_a_number_is_a_failure_and_no_verdict() -> None:
    with pytest.raises(ValueError, match="holds no number"):
        numeric("5", True, "five", 1e-6)


def test_exact_and_regex() -> None:
    assert exact(" Yes \n", True, "yes", ignore_case=True)[0] == "correct"
    assert exact("Yes", True, "yes", ignore_case=False)[0] == "incorrect"
    assert exact("  ", True, "yes", ignore_case=False)[0] == "unparsed"
    pattern = compiled(r"answer is (\S+)")
    assert matched("answer is 4, no: answer is 5", True, "5", pattern) == ("correct", "5")
    assert matched("nothing", True, "5", pattern) == ("unparsed", "")
    assert matched("answer is 5", False, "5", pattern)[0] == "truncated"
    assert matched("abc", True, "abc", compiled("abc"))[0] == "correct"
    with pytest.raises(ValueError, match="no regular expression"):
        compiled("(")


@given(st.text(max_size=200), st.booleans())
def test_any_text_gets_a_verdict_from_the_plain_rules(text: str, ended: bool) -> None:
    for kind, settings in (("gsm8k", {}), ("numeric", {"tolerance": 0.1}), ("exact", {"ignore_case": True})):
        assert judge_called(kind, settings)(text, ended, "5")[0] in (
            "correct", "incorrect", "unparsed", "truncated",
        )  # fmt: skip


def test_a_plugin_is_an_installed_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no verifier plug-in 'mine'.*Install a package"):
        judge_called("plugin", {"name": "mine"})
    entry = EntryPoint("mine", "tests.trainer.test_judges:plugged", "arborist.verifiers")
    found: Any = [entry]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found)
    judge = judge_called("plugin", {"name": "mine"})
    assert judge("5", True, "5") == ("correct", "5")
    assert judge("6", True, "5") == ("incorrect", "six")
    assert judge("7", True, "5") == ("correct", "7")
    with pytest.raises(ValueError, match="maybe"):
        judge("8", True, "5")


def plugged(text: str, _ended: bool, reference: str) -> Any:
    return {"5": True, "6": ("incorrect", "six"), "7": ("correct", "7"), "8": ("maybe", "")}[text]
