"""Growths on the scripted engine: which tree grows, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from trainer.data import Problem
from trainer.sampling.engine import Plan, SamplingPlan, SamplingStopped, plan_from_config
from trainer.sampling.growth import END, PROMPT, Ground, Orders, Request, Segment, Strand, tree_of
from trainer.sampling.scripted_engine import Distribution, Letters, ScriptedEngine
from trainer.sampling.segment_tree import repeats_itself
from trainer.schema.sampler import FlatSampler, Sampler, SegmentTreeSampler
from trainer.schema.section import Section
from trainer.seeding import child_path, child_paths
from trainer.tree import FinishReason, RolloutTree

LETTERS = Letters("ab\n$12")
A, B, NEWLINE, STOP, ONE, TWO = range(6)
PROBLEM = Problem("p", "ab", "a")


def anything(_path: tuple[int, ...]) -> Sequence[float]:
    return (0.35, 0.35, 0.15, 0.15, 0.0, 0.0)


def grow(
    plan: Plan | Sampler,
    distribution: Distribution = anything,
    *,
    problems: Sequence[Problem] = (PROBLEM,),
    seed: int = 1,
    step: int = 1,
    shuffle: int | None = None,
    engine: ScriptedEngine | None = None,
) -> list[RolloutTree]:
    engine = engine or ScriptedEngine(LETTERS, distribution, shuffle=shuffle)
    return engine.sample(
        problems,
        plan_from_config(plan) if isinstance(plan, Section) else plan,
        seed=seed,
        step=step,
        should_stop=lambda: False,
        on_progress=lambda _done, _total: None,
    )


def outline(tree: RolloutTree) -> list[tuple[int, str, str]]:
    """(parent, letters, how it ended) of every node but the root."""
    words = [
        "".join(LETTERS.letters[t] for t in tree.tokens[tree.token_offsets[n] : tree.token_offsets[n + 1]])
        for n in range(tree.n_nodes)
    ]
    return [
        (int(tree.parent[n]), words[n], FinishReason(tree.finish[n]).word) for n in range(1, tree.n_nodes)
    ]


SAMPLERS: dict[str, Sampler] = {
    "flat": FlatSampler(group_size=6, max_tokens=9),
    "merged": FlatSampler(group_size=12, max_tokens=9, merge="newline"),
    "budgets": FlatSampler(group_size=6, max_tokens=9, budgets=(1, 2), budget_sentence="a{budget}b"),
    "segment tree": SegmentTreeSampler(depth=3, branching_per_depth=(3, 2, 2), segment_tokens_per_depth=(4,)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_tree_does_not_depend_on_the_order_of_completion(name: str) -> None:
    problems = [Problem(f"p{i}", "ab" + "a" * i, "a") for i in range(3)]
    usual = grow(SAMPLERS[name], problems=problems)
    for shuffle in range(4):
        other = grow(SAMPLERS[name], problems=problems, shuffle=shuffle)
        assert [tree.to_payload() for tree in usual] == [tree.to_payload() for tree in other]
    alone = [grow(SAMPLERS[name], problems=[problem])[0] for problem in problems]
    assert [tree.to_payload() for tree in usual] == [tree.to_payload() for tree in alone]


def spelled(*answers: str) -> Distribution:
    """Whatever the random numbers: answer number i of a flat sample is answers[i]. A path is continued by the
    first answer that starts with it and is not written yet."""
    left = {answer: answers.count(answer) for answer in answers}

    def distribution(path: tuple[int, ...]) -> Sequence[float]:
        so_far = "".join(LETTERS.letters[t] for t in path[2:])
        answer = next(a for a in answers if left[a] and a.startswith(so_far))
        token = LETTERS.letters.index(answer[len(so_far)])
        left[answer] -= len(so_far) + 1 == len(answer)
        return [float(t == token) for t in range(6)]

    return distribution


def test_merged_answers_share_their_equal_beginnings() -> None:
    # Five answers of lines: three start with "a", two of them are equal; cut behind line breaks.
    answers = ("a\nb$", "a\nb$", "a\na\n$", "b\nb$", "ab$")
    tree = grow(FlatSampler(group_size=5, max_tokens=5, merge="newline"), spelled(*answers))[0]
    assert outline(tree) == [
        (0, "a\n", "split"),  # 1: through it go answers 1, 2, 3
        (0, "b\n", "split"),  # 2: answer 4
        (0, "ab$", "eos"),  # 3: answer 5
        (1, "b$", "eos"),  # 4: answers 1 and 2 end here
        (1, "a\n", "split"),  # 5
        (2, "b$", "eos"),  # 6
        (5, "$", "eos"),  # 7
    ]
    assert tree.copies.tolist() == [0, 0, 0, 1, 2, 0, 1, 1]
    assert tree.answer_counts().tolist() == [5, 3, 1, 1, 2, 1, 1, 1]


def test_merging_changes_nothing_but_the_shape() -> None:
    """Every sampled answer is a path of the merged tree, as often as it was sampled."""
    for step in range(1, 20):
        plain = grow(FlatSampler(group_size=12, max_tokens=7), step=step)[0]
        merged = grow(FlatSampler(group_size=12, max_tokens=7, merge="newline"), step=step)[0]
        assert sorted(answers_of(plain)) == sorted(answers_of(merged))
        children = [
            sorted(outline(merged)[i][1] for i in np.flatnonzero(merged.parent[1:] == n))
            for n in range(merged.n_nodes)
        ]
        assert all(len(set(words)) == len(words) for words in children)


def answers_of(tree: RolloutTree) -> list[str]:
    """Every answer, as often as it was sampled."""
    words = ["", *(word for _, word, _ in outline(tree))]
    found = []
    for leaf in np.flatnonzero(tree.is_leaf()).tolist():
        found += ["".join(words[n] for n in tree.path(leaf))] * int(tree.copies[leaf])
    return found


def test_an_answer_that_is_cut_at_a_line_break_ends_there() -> None:
    tree = grow(FlatSampler(group_size=2, max_tokens=2, merge="newline"), spelled("a\n", "a\n"))[0]
    assert outline(tree) == [(0, "a\n", "length")]
    assert tree.copies.tolist() == [0, 2]


def test_budgets_stand_before_their_answers_and_are_not_sampled() -> None:
    sampler = FlatSampler(group_size=4, max_tokens=3, budgets=(12, 2), budget_sentence="a{budget}\n")
    engine = ScriptedEngine(LETTERS, anything)
    tree = grow(sampler, engine=engine)[0]
    assert outline(tree)[:2] == [(0, "a12\n", "given"), (0, "a2\n", "given")]
    assert tree.parent.tolist() == [-1, 0, 0, 1, 1, 2, 2]
    assert tree.subgroup.tolist() == [0, 0, 1, 0, 0, 1, 1]
    assert not tree.logprobs[: tree.token_offsets[3]].any()
    assert tree.logprobs[tree.token_offsets[3] :].all()
    assert engine.spent.given == 7
    assert engine.spent.sampled == tree.token_counts()[3:].sum()
    assert plan_from_config(sampler).most_positions == 3 + 4


def test_repetition_is_a_window_that_comes_too_often() -> None:
    assert repeats_itself("ababababab", 2, 5)  # ab at 0, 2, 4, 6, 8
    assert not repeats_itself("ababababab", 2, 6)
    assert repeats_itself("aaaaa", 2, 4)  # overlaps count
    assert not repeats_itself("aaaaa", 2, 5)
    assert not repeats_itself("aaaaa", 0, 2)
    assert not repeats_itself("", 3, 2)


def test_a_segment_that_repeats_itself_is_a_leaf() -> None:
    sampler = SegmentTreeSampler(
        depth=2,
        branching_per_depth=(2,),
        segment_tokens_per_depth=(6,),
        repetition_window=1,
        repetition_count=6,
    )
    tree = grow(sampler, lambda _path: (1, 0, 0, 0, 0, 0))[0]
    assert outline(tree) == [(0, "aaaaaa", "repetition")] * 2
    # Five of six letters are not enough.
    other = grow(sampler, lambda path: (0, 1, 0, 0, 0, 0) if len(path) == 4 else (1, 0, 0, 0, 0, 0))[0]
    assert other.n_nodes == 7


@pytest.mark.parametrize("name", SAMPLERS)
def test_stop_is_heard(name: str) -> None:
    engine = ScriptedEngine(LETTERS, anything)
    with pytest.raises(SamplingStopped):
        engine.sample(
            [PROBLEM],
            plan_from_config(SAMPLERS[name]),
            seed=1,
            step=1,
            should_stop=lambda: True,
            on_progress=lambda _done, _total: None,
        )


def test_the_scripted_engine_refuses_what_a_growth_may_not_ask_for() -> None:
    class Wrong:
        total, done = 1, 0

        def __init__(self, request: Request) -> None:
            self.request = request

        def begin(self) -> Orders:
            return Orders([Request(chain=1, most_tokens=4)], release=[PROMPT])

        def take(self, _segments: Sequence[Segment]) -> Orders:
            return Orders([self.request])

        def tree(self) -> RolloutTree:
            raise AssertionError

    class WrongPlan:
        temperature, most_tokens, most_positions = 1.0, 4, 4

        def __init__(self, request: Request) -> None:
            self.request = request

        def growth(self, _ground: Ground) -> Wrong:
            return Wrong(self.request)

    for request, message in (
        (Request(chain=1), "in use"),
        (Request(chain=2), "not there any more"),
        (Request(chain=2, parent=1), "END of its parent, but NOTHING"),
        (Request(chain=2, parent=1, at=1), "INSIDE of its parent, but NOTHING"),
    ):
        with pytest.raises(ValueError, match=message):
            grow(WrongPlan(request))


# ------------------------------------------------------------------------------------- strands to trees


def test_strands_are_cut_where_others_leave_them() -> None:
    """Worked by hand. Strand 1 "abab$" from the prompt; 2 "b$" before its token 2; 3 "a$" before token 1 of
    2, hence one token further; 4 "bb$" before token 2 of 1 as well; 5 "a" before token 0 of 4, which is the
    same place again; 6 "$" before token 0 of 1, hence at the root; 7 "b" behind all of 5.

    root: 1 "ab" (fork) | 6 "$"
    below 1: 1 "ab$" | 2 "b" (fork) | 4 "bb$" | 5 "a" (length)
    below 2: 2 "$" | 3 "a$";  below 5: 7 "b"
    """

    def strand(parent: int, at: int, word: str, finish: FinishReason = FinishReason.EOS) -> Strand:
        tokens = np.array(LETTERS.encode(word), np.int32)
        places = np.arange(len(tokens), dtype=np.float32)
        return Strand(parent, at, tokens, -places, places, finish, subgroup=len(word), visits=len(word))

    strands = {
        7: strand(5, END, "b", FinishReason.PRUNED),
        1: strand(PROMPT, END, "abab$"),
        2: strand(1, 2, "b$"),
        3: strand(2, 1, "a$"),
        5: strand(4, 0, "a", FinishReason.LENGTH),
        4: strand(1, 2, "bb$"),
        6: strand(1, 0, "$"),
    }
    tree = tree_of(Ground(PROBLEM, LETTERS.encode("ab"), 0, 3, LETTERS), strands)
    assert outline(tree) == [
        (0, "ab", "fork"),
        (0, "$", "eos"),
        (1, "ab$", "eos"),
        (1, "b", "fork"),
        (1, "bb$", "eos"),
        (1, "a", "length"),
        (4, "$", "eos"),
        (4, "a$", "eos"),
        (6, "b", "pruned"),
    ]
    assert tree.copies.tolist() == [0, 0, 1, 1, 0, 1, 0, 1, 1, 1]
    assert tree.subgroup.tolist() == [0, 5, 1, 5, 2, 3, 1, 2, 2, 1]
    assert tree.visits.tolist() == tree.subgroup.tolist()
    assert tree.entropies.tolist() == [0, 0, 0, 1, 0, 2, 3, 4, 0, 0, 1, 2, 0, 1, 0, 1, 0]
    assert tree.logprobs.tolist() == (-tree.entropies).tolist()
    assert (tree.step, tree.policy_version, tree.problem_id) == (3, 2, "p")
    assert tree.texts == ("ab", "ab", "", "ab", "b", "bb", "a", "", "a", "b")


def test_child_path_is_child_paths() -> None:
    paths = np.array([0, 1, 2**63, 2**64 - 1, 12345], np.uint64)
    numbers = np.array([0, 7, 2**31, 3, 99])
    expected = child_paths(paths, numbers).tolist()
    assert [child_path(int(p), int(n)) for p, n in zip(paths, numbers, strict=True)] == expected


# -------------------------------------------------------------------------------------------- statistics


def chi_square(observed: dict[str, int], expected: dict[str, float]) -> float:
    """p-value of the counts under these probabilities, which sum to 1; cells of fewer than 5 expected are
    one cell."""
    total = sum(observed.values())
    assert sum(expected.values()) == pytest.approx(1)
    assert set(observed) <= set(expected)
    large = [word for word in expected if expected[word] * total >= 5]
    cells = [(observed.get(word, 0), expected[word] * total) for word in large]
    rest = total - sum(seen for seen, _ in cells), total - sum(wanted for _, wanted in cells)
    if rest[1] > 1e-9 * total:
        cells.append(rest)
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    return upper_tail(statistic, len(cells) - 1)


def upper_tail(statistic: float, freedom: int) -> float:
    """P(chi-square with so many degrees of freedom > statistic)."""
    import torch

    half = torch.tensor(freedom / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, torch.tensor(statistic / 2, dtype=torch.float64)))


def toy(path: tuple[int, ...]) -> Sequence[float]:
    """a, b, end with .5, .3, .2; behind an a with .1, .6, .3."""
    return (0.1, 0.6, 0, 0.3, 0, 0) if path[-1] == A else (0.5, 0.3, 0, 0.2, 0, 0)


def exactly(most_tokens: int) -> dict[str, float]:
    """The probability of every answer of up to so many tokens to the prompt "ab", by enumeration."""
    open_paths: dict[str, float] = {"": 1.0}
    ended: dict[str, float] = {}
    for _ in range(most_tokens):
        longer: dict[str, float] = {}
        for path, chance in open_paths.items():
            for letter, step in zip("ab\n$12", toy(tuple(LETTERS.encode("ab" + path))), strict=True):
                if step:
                    (ended if letter == "$" else longer)[path + letter] = chance * step
        open_paths = longer
    return ended | open_paths


def test_chi_square_of_known_numbers() -> None:
    assert upper_tail(3.841459, 1) == pytest.approx(0.05, abs=1e-6)
    assert upper_tail(18.307038, 10) == pytest.approx(0.05, abs=1e-6)
    assert chi_square({"a": 60, "b": 40}, {"a": 0.5, "b": 0.5}) == pytest.approx(0.0455, abs=1e-4)


@pytest.mark.parametrize("name", ["flat", "segment tree"])
def test_answers_come_as_often_as_enumeration_says(name: str) -> None:
    """Of each tree the answer reached by last children: a sample of the policy, and the trees are
    independent."""
    plans: dict[str, Plan] = {
        "flat": SamplingPlan((2,), (5,), False, 1.0),
        "segment tree": SamplingPlan((2, 1, 2), (2, 1, 2), False, 1.0),
    }
    seen: dict[str, int] = {}
    for tree in grow(plans[name], toy, problems=[Problem(f"p{i}", "ab", "") for i in range(1500)]):
        node, answer = 0, ""
        while len(children := np.flatnonzero(tree.parent == node)):
            node = int(children[-1])
            answer += outline(tree)[node - 1][1]
        seen[answer] = seen.get(answer, 0) + 1
    assert chi_square(seen, exactly(5)) > 0.001


def test_siblings_are_independent() -> None:
    pairs: dict[str, int] = {}
    for tree in grow(
        SamplingPlan((1, 2), (1, 1), False, 1.0),
        toy,
        problems=[Problem(f"p{i}", "ab", "") for i in range(2000)],
    ):
        if tree.n_nodes == 4 and tree.tokens[2] == A:
            pair = "".join(outline(tree)[i][1] for i in (1, 2))
            pairs[pair] = pairs.get(pair, 0) + 1
    chances = dict(zip("ab$", (0.1, 0.6, 0.3), strict=True))
    assert chi_square(pairs, {x + y: chances[x] * chances[y] for x in chances for y in chances}) > 0.001
