"""Synthetic rollout trees for trying and measuring the tree browser: plausible shapes, texts, verdicts.

Nothing here was sampled from a policy. Values and advantages are real: they come from `trainer.credit`. The
same seed gives the same trees. Pure: `manage.py make_forest` stores them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from functools import lru_cache
from typing import Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from trainer.credit import CreditPlan, credit_trees
from trainer.tree import FinishReason, RolloutTree, Verdict, sampled_tree

POOL_TEXTS = 4096  # different texts in one tree, at most
VOCABULARY = 32_000
STAGES = 4  # of training, when trees are used again
FRESH_NODES = 400_000  # in a forest whose trees are all grown; larger ones use trees again
STOCK_NODES = 100_000  # in trees that are used again, all together
LINE_NODES = 200_000  # of a tree whose texts are whole lines; a payload has a largest size

_PROBLEMS = (
    "How many positive even divisors does ${a}$ have?",
    "Let $f(x) = {b}x^2 - {c}x + {d}$. For how many integers $1 \\le n \\le {a}$ does ${e}$ divide $f(n)$?",
    "A bag holds {b} red and {c} blue marbles; {e} are drawn.\nHow likely are just two red ones?",
    "In triangle $ABC$, $AB = {b}$, $BC = {c}$ and $\\angle B = 60^\\circ$. Find $AC^2$.",
    "Find the remainder when $\\sum_{{k=1}}^{{{a}}} k^{e}$ is divided by ${d}$.",
    "The sequence $a_1 = {b}$, $a_{{n+1}} = a_n + {c}n$ is given. What is the smallest $n$ with $a_n > {a}$?",
    "Cal has {b} books. He buys {c}, then gives away {d}, and doubles what is left. How many has he?",
    "How many ways are there to seat {e} people around a round table if two of them do not sit side by side?",
)
_LINES = (
    "First we factor ${a}$: it is $2^{e} \\cdot {b}$, so an even divisor keeps at least one factor of $2$.",
    "Write $n = {b}k + {c}$; then $n^2 \\equiv {d} \\pmod{{{e}}}$.",
    "By the law of cosines, $AC^2 = {b}^2 + {c}^2 - 2 \\cdot {b} \\cdot {c} \\cos 60^\\circ = {a}$.",
    "Therefore the number of ways is $\\binom{{{b}}}{{{e}}} = {a}$.",
    "But this counts every pair twice, so we divide by $2$ and get ${d}$.",
    "Wait, let me check that again: ${b} + {c} = {d}$, which is right.",
    "Hmm, that cannot be: ${d}$ is not a multiple of ${e}$.",
    "So the sum telescopes and only $\\frac{{1}}{{{b}}} - \\frac{{1}}{{{c}}}$ is left.",
    "Substituting back gives $x = {b}$ or $x = -{c}$; only the positive root counts.",
    "{b}+{c}={d} books. {d}-{e}={a} books.",
    "Or use the generating function $\\prod_{{i=1}}^{{{e}}} (1 + x^i)$ and read off the coefficient.",
    "The even divisors now must include the factor $2$, so we have ${e}$ choices for its power.",
)
_DISPLAYS = (
    "$$\\sum_{{k=1}}^{{{b}}} k^2 = \\frac{{{b}({b}+1)(2 \\cdot {b}+1)}}{{6}} = {a}$$",
    "$$\\begin{{aligned}}\n  S &= {b} + {c} + {d} \\\\\n    &= {a}\n\\end{{aligned}}$$",
    "$$\\int_0^{{{e}}} ({b}x + {c})\\,dx = \\left[\\tfrac{{{b}}}{{2}}x^2 + {c}x\\right]_0^{{{e}}}$$",
    "```python\nprint(sum(k for k in range({a}) if k % {e} == 0))\n```",
    "- case 1: $n$ is even, ${b}$ values\n- case 2: $n$ is odd, ${c}$ values",
)
_HOSTILE = (
    "<img src=x onerror=\"document.title='pwned'\">",
    "<script>document.title='pwned'</script>",
    "\u202e1 = rewsna\u202c",
    "a\u200bb\ufeffc",
    "\\href{javascript:alert(1)}{click}",
    '=HYPERLINK("http://example.invalid")',
    "{{ 7*7 }}{% debug %}",
    "Z" + "\u0335" * 40,
    "\x1b[31mred\x1b[0m",
)
_PIECE = re.compile(r" ?\w{1,5}|\s|[^\w\s]")


Detail = Literal["words", "line", "paragraph"]


@dataclasses.dataclass(frozen=True, slots=True)
class ForestPlan:
    """What to make: `trees` trees of about `nodes` nodes over `steps` steps. `long`: several lines a node."""

    trees: int
    nodes: int
    steps: int
    long: bool
    seed: int

    def __post_init__(self) -> None:
        for name, low, high in (
            ("trees", 1, 10_000_000),
            ("nodes", 2, 1_000_000),
            ("steps", 1, self.trees),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value:,}. Use {low:,} to {high:,}.")
        if self.trees * self.nodes > 2_000_000_000:
            raise ValueError(
                f"{self.trees:,} trees of {self.nodes:,} nodes are {self.trees * self.nodes:,} nodes, some "
                f"{self.trees * self.nodes // 8_000_000:,} GB. Use at most 2,000,000,000 nodes."
            )
        if self.long and self.nodes > LINE_NODES:
            raise ValueError(
                f"Long texts in a tree of {self.nodes:,} nodes are more than one payload may hold. Use at "
                f"most {LINE_NODES:,} nodes, or leave out --words."
            )

    @property
    def per_step(self) -> int:
        return math.ceil(self.trees / self.steps)

    @property
    def problems(self) -> int:
        """How many different problems there are: each comes in some ten steps, if there are as many."""
        return max(self.per_step, min(self.trees // 10, 4096))

    @property
    def detail(self) -> Detail:
        """How much a node says."""
        return "paragraph" if self.long else "line" if self.nodes <= LINE_NODES else "words"

    @property
    def stages(self) -> int:
        """Steps with trees of their own. Fewer than `steps`: the trees of a stage are used again."""
        fresh = self.trees * self.nodes <= FRESH_NODES or self.trees <= 64
        return self.steps if fresh else min(self.steps, STAGES)

    @property
    def stock_problems(self) -> int:
        """Problems with trees of their own."""
        if self.stages == self.steps and self.stages != STAGES:
            return self.problems
        return max(1, min(self.problems, STOCK_NODES // (self.nodes * self.stages)))


class Forest:
    """The trees of a plan, one at a time."""

    def __init__(self, plan: ForestPlan, credit: CreditPlan) -> None:
        self.plan, self.credit = plan, credit
        self._stock: dict[tuple[int, int], RolloutTree] = {}

    def place(self, number: int) -> tuple[int, int]:
        """Step, counted from 1, and index of tree `number` of the plan."""
        step, index = divmod(number, self.plan.per_step)
        return step + 1, index

    def problem(self, number: int) -> int:
        """The problem of tree `number`: every problem comes by in turn."""
        return number % self.plan.problems

    def tree(self, number: int) -> RolloutTree:
        """Tree `number`, with credit. When the plan is large it has the shape and texts of another one."""
        plan, problem = self.plan, self.problem(number)
        step, _ = self.place(number)
        stage = (step - 1) * plan.stages // plan.steps
        if plan.stages == plan.steps and plan.stock_problems == plan.problems:
            return self._grown(problem, step, stage)
        key = (problem % plan.stock_problems, stage)
        if key not in self._stock:
            self._stock[key] = self._grown(key[0], step, stage)
        return dataclasses.replace(
            self._stock[key], step=step, policy_version=step - 1, problem_id=problem_id(problem)
        )

    def _grown(self, problem: int, step: int, stage: int) -> RolloutTree:
        plan = self.plan
        progress = (stage + 1) / plan.stages
        tree = grow(
            np.random.default_rng((plan.seed, problem, stage)),
            nodes=plan.nodes,
            problem=problem,
            seed=plan.seed,
            step=step,
            progress=progress,
            detail=plan.detail,
        )
        return credit_trees([tree], self.credit)[0]


def problem_id(problem: int) -> str:
    return f"syn-{problem:04d}"


def grow(
    rng: np.random.Generator,
    *,
    nodes: int,
    problem: int,
    seed: int,
    step: int,
    progress: float,
    detail: Detail,
) -> RolloutTree:
    """One tree of `nodes` nodes, half to twice as many when there are few, verified, without credit.

    progress in (0, 1]: how far training is; later trees are right more often.
    """
    n = nodes if nodes >= 5000 else max(2, int(nodes * rng.uniform(0.6, 1.4)))
    parent = _shape(rng, n)
    n = len(parent)
    of_problem = np.random.default_rng((seed, problem))
    quality = _quality(rng, parent, skill=of_problem.normal(-1.2, 1.6) + 2.2 * progress)
    texts, tokens, pick = _texts(rng, parent, detail=detail)
    numbers = _numbers(of_problem)
    prompt = _PROBLEMS[problem % len(_PROBLEMS)].format(**numbers) + "\n"
    reference = str(numbers["a"])

    leaf = np.bincount(parent[1:], minlength=n) == 0
    verdict, reward, finish = _outcomes(rng, leaf, quality)
    wrong = rng.integers(2, 999, 7).astype(str).tolist()  # a few wrong answers come again and again
    choices = rng.integers(0, 7, n).tolist()
    answers = [""] * n
    for node in np.flatnonzero((verdict == Verdict.CORRECT) | (verdict == Verdict.INCORRECT)).tolist():
        answers[node] = reference if verdict[node] == Verdict.CORRECT else wrong[choices[node]]

    written = [texts[i] for i in pick.tolist()]
    ids = [tokens[i] for i in pick.tolist()]
    written[0], ids[0] = prompt, _token_ids(prompt)
    for node in np.flatnonzero(leaf).tolist():
        if answers[node]:
            end = (
                f" {answers[node]}" if detail == "words" else f"\nThe answer is $\\boxed{{{answers[node]}}}$."
            )
            written[node] += end
            ids[node] = np.concatenate((ids[node], _token_ids(end)))
    # Rounded as half floats, so that many small trees take little room.
    entropies = [rng.gamma(0.5, 0.5, len(one)).astype(np.float16).astype(np.float32) for one in ids]
    logprobs = [(-0.8 * one * rng.gamma(1.5, 0.6)).astype(np.float16).astype(np.float32) for one in entropies]
    for one in entropies[1:]:
        one[:1] += 0.7  # where a branch begins the policy is of several minds
    entropies[0][:] = logprobs[0][:] = 0
    tree = sampled_tree(
        problem_id=problem_id(problem),
        reference_answer=reference,
        step=step,
        policy_version=step - 1,
        parent=parent,
        segment_tokens=ids,
        segment_logprobs=logprobs,
        segment_entropies=entropies,
        finish=finish,
        texts=written,
    )
    return tree.with_verdicts(verdict, reward, answers)


def _shape(rng: np.random.Generator, n: int) -> NDArray[np.int32]:
    """[n] parents, breadth-first: wide at the root, narrower below, some branches ending early."""
    levels = [np.array([-1], np.int32)]
    first, total = 0, 1
    while total < n:
        width = len(levels[-1])
        if total == 1:
            counts = np.array([min(int(rng.integers(3, 9)), n - 1, max(2, n // 3))])
        else:
            counts = rng.choice([0, 2, 3, 4, 8], width, p=[0.22, 0.42, 0.2, 0.13, 0.03])
            counts[rng.integers(width)] = max(2, int(counts.max()))
        children = np.repeat(np.arange(first, first + width, dtype=np.int32), counts)[: n - total]
        levels.append(children)
        first, total = total, total + len(children)
    return np.concatenate(levels)


def _quality(rng: np.random.Generator, parent: NDArray[np.int32], skill: float) -> NDArray[np.float64]:
    """[N] log-odds that an answer through a node is right: a walk that falls off a cliff now and then."""
    n = len(parent)
    change = rng.normal(0, 0.45, n) - np.where(rng.random(n) < 0.05, 3.0, 0.0)
    quality: list[float] = change.tolist()
    quality[0] = skill
    for node, above in enumerate(parent[1:].tolist(), start=1):
        quality[node] += quality[above]
    return np.array(quality)


def _outcomes(
    rng: np.random.Generator, leaf: NDArray[np.bool_], quality: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.uint8]]:
    """Verdict, reward and finish of each node, [N]."""
    n = len(leaf)
    right = rng.random(n) < 1 / (1 + np.exp(-quality))
    verdict = np.where(right, Verdict.CORRECT, Verdict.INCORRECT).astype(np.uint8)
    luck = rng.random(n)
    verdict[~right & (luck < 0.08)] = Verdict.UNPARSED
    verdict[~right & (luck > 0.88)] = Verdict.TRUNCATED
    verdict[(luck > 0.5) & (luck < 0.503)] = Verdict.ERROR
    finish = np.full(n, FinishReason.EOS, np.uint8)
    finish[verdict == Verdict.TRUNCATED] = FinishReason.LENGTH
    finish[~leaf] = FinishReason.SPLIT
    finish[0] = FinishReason.NONE
    verdict[~leaf] = Verdict.NONE
    reward = np.where(
        leaf & (verdict != Verdict.ERROR), (verdict == Verdict.CORRECT).astype(np.float64), np.nan
    )
    return verdict, reward, finish


def _texts(
    rng: np.random.Generator, parent: NDArray[np.int32], *, detail: Detail
) -> tuple[list[str], list[NDArray[np.int32]], NDArray[np.int64]]:
    """Texts, their token ids, and [N] which of them each node has. Some siblings say just the same."""
    n = len(parent)
    count = min(n, POOL_TEXTS)
    texts = [_text(rng, detail=detail) for _ in range(count)]
    pick = np.arange(n) if n == count else rng.integers(0, count, n)
    share = 0.4 if rng.random() < 0.12 else 0.03
    again = np.flatnonzero((np.diff(parent, prepend=-2) == 0) & (rng.random(n) < share))
    for node in again.tolist():
        pick[node] = pick[node - 1]
    return texts, [_token_ids(text) for text in texts], pick


def _text(rng: np.random.Generator, *, detail: Detail) -> str:
    """Some words of mathematics, a line, or a paragraph with formulas."""
    lines = [_LINES[rng.integers(len(_LINES))].format(**_numbers(rng))]
    if detail != "paragraph":
        letters = int(rng.integers(24, 90)) if detail == "line" else int(rng.integers(6, 24))
        return lines[0][:letters] + ("\n" if rng.random() < 0.7 else "")
    for _ in range(int(rng.integers(1, 7))):
        some = _DISPLAYS if rng.random() < 0.25 else _LINES
        lines.append(some[rng.integers(len(some))].format(**_numbers(rng)))
    if rng.random() < 0.02:
        lines.append(_HOSTILE[rng.integers(len(_HOSTILE))])
    return "\n".join(lines) + "\n"


def _numbers(rng: np.random.Generator) -> dict[str, int]:
    return {
        "a": int(rng.integers(12, 2500)),
        "b": int(rng.integers(3, 60)),
        "c": int(rng.integers(2, 45)),
        "d": int(rng.integers(5, 130)),
        "e": int(rng.integers(2, 9)),
    }


def _token_ids(text: str) -> NDArray[np.int32]:
    """[T] a made-up tokenizer: short pieces of words, by their hash."""
    return np.array([_id(piece) for piece in _PIECE.findall(text)], np.int32)


@lru_cache(maxsize=100_000)
def _id(piece: str) -> int:
    return crc32(piece.encode("utf-8", "surrogatepass")) % VOCABULARY
