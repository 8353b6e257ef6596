"""Growths on the scripted engine: which tree grows, token by token."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.trainer.chance import chi_square, upper_tail
from trainer.data import Problem
from trainer.edit_distance import edit_distance
from trainer.sampling.engine import (
    NO_ALTERNATIVES,
    Plan,
    SamplingPlan,
    SamplingStopped,
    TopK,
    plan_from_config,
)
from trainer.sampling.growth import END, PROMPT, Ground, Orders, Request, Segment, Strand, tree_of
from trainer.sampling.lookahead import (
    LookaheadGrowth,
    is_too_similar,
    rouge_l,
    suffix_match,
)
from trainer.sampling.scripted_engine import Distribution, Letters, ScriptedEngine
from trainer.sampling.search_tree import SearchNode, SearchTreeGrowth, committed, puct, uct_best
from trainer.sampling.segment_tree import repeats_itself
from trainer.sampling.watch import GrowthWatch
from trainer.schema.sampler import (
    EntropyForks,
    FlatSampler,
    ForkTreeSampler,
    LookaheadSampler,
    PuctSelect,
    Sampler,
    SearchTreeSampler,
    SegmentTreeSampler,
    SurprisalForks,
    UctSelect,
    UniformForks,
)
from trainer.schema.section import Section
from trainer.seeding import child_path, child_paths
from trainer.tree import FinishReason, RolloutTree, Verdict
from trainer.verifiers import Judgement, verify_trees

LETTERS = Letters("ab\n$12")
A, B, NEWLINE, STOP, ONE, TWO = range(6)
PROBLEM = Problem("p", "ab", "a")


def anything(_path: tuple[int, ...]) -> Sequence[float]:
    return (0.35, 0.35, 0.15, 0.15, 0.0, 0.0)


def guessed(path: tuple[int, ...]) -> float:
    """A value head."""
    return (sum(path) % 7) / 7


def grow(
    plan: Plan | Sampler,
    distribution: Distribution = anything,
    *,
    problems: Sequence[Problem] = (PROBLEM,),
    seed: int = 1,
    step: int = 1,
    shuffle: int | None = None,
    engine: ScriptedEngine | None = None,
    top_k: TopK = NO_ALTERNATIVES,
) -> list[RolloutTree]:
    engine = engine or ScriptedEngine(LETTERS, distribution, shuffle=shuffle, value=guessed)
    return engine.sample(
        problems,
        plan_from_config(plan) if isinstance(plan, Section) else plan,
        seed=seed,
        step=step,
        should_stop=lambda: False,
        on_progress=lambda _done, _total: None,
        top_k=top_k,
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
    "width tree": SegmentTreeSampler(
        depth=4, branching_per_depth=(2,), segment_tokens_per_depth=(3,), max_width=7, fallback="random"
    ),
    "surprisal forks": ForkTreeSampler(trees=3, rounds=2, forks=2, continuations=2, max_tokens=9),
    "entropy forks": ForkTreeSampler(
        score=EntropyForks(threshold=1.3), trees=2, rounds=2, forks=2, max_tokens=9, never_after="ab"
    ),
    "puct": SearchTreeSampler(iterations=3, expand=2, segment_tokens=2, last_tokens=4),
    "uct": SearchTreeSampler(
        select=UctSelect(), iterations=9, expand=3, segment_tokens=2, last_tokens=4, evaluator="value_head"
    ),
    "lookahead": LookaheadSampler(
        group_size=5, max_tokens=12, windows=(2, 3), tree_tokens=8, tree_share=0.8, tree_share_decay=1
    ),
    "uniform forks": ForkTreeSampler(score=UniformForks(), trees=2, rounds=2, forks=3, max_tokens=9),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_tree_does_not_depend_on_the_order_of_completion(name: str) -> None:
    sampler = plan_from_config(SAMPLERS[name], judge_one)
    problems = [Problem(f"p{i}", "ab" + "a" * i, "a") for i in range(3)]
    usual = grow(sampler, problems=problems)
    for shuffle in range(4):
        other = grow(sampler, problems=problems, shuffle=shuffle)
        assert [tree.to_payload() for tree in usual] == [tree.to_payload() for tree in other]
    alone = [grow(sampler, problems=[problem])[0] for problem in problems]
    assert [tree.to_payload() for tree in usual] == [tree.to_payload() for tree in alone]


def uneven(path: tuple[int, ...]) -> Sequence[float]:
    """Four tokens whose order of likelihood depends on the whole path."""
    chances = np.roll([0.4, 0.3, 0.2, 0.1], sum((place + 1) * token for place, token in enumerate(path)))
    return (*chances.tolist(), 0.0, 0.0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_alternatives_stand_beside_their_tokens_whatever_grows(name: str) -> None:
    plan = plan_from_config(SAMPLERS[name], judge_one)
    (plain,) = grow(plan, uneven)
    (tree,) = grow(plan, uneven, top_k=TopK(2))
    assert plain.top_tokens is None
    assert tree.tokens.tolist() == plain.tokens.tolist()
    assert tree.top_tokens is not None
    assert tree.top_logprobs is not None
    seen = 0
    for node in range(tree.n_nodes):
        first, last = tree.token_offsets[node : node + 2]
        if node == 0 or tree.finish[node] == FinishReason.GIVEN:
            assert (tree.top_tokens[first:last] == -1).all()
            assert np.isnan(tree.top_logprobs[first:last]).all()
            continue
        above = [t for n in tree.path(node)[:-1] for t in tree.tokens[slice(*tree.token_offsets[n : n + 2])]]
        for place in range(first, last):
            chances = np.array(uneven((*above, *tree.tokens[first:place].tolist())))
            likely = np.argsort(-chances)[:2]
            assert tree.top_tokens[place].tolist() == likely.tolist()
            np.testing.assert_allclose(tree.top_logprobs[place], np.log(chances[likely]), rtol=1e-3)
            seen += 1
    assert seen


@pytest.mark.parametrize("name", SAMPLERS)
def test_whoever_watches_sees_what_was_asked_for_and_written_and_changes_nothing(name: str) -> None:
    plan, problems = plan_from_config(SAMPLERS[name], judge_one), [PROBLEM] * 8
    engine = ScriptedEngine(LETTERS, anything, value=guessed, shuffle=3)
    watch, usual = GrowthWatch(), grow(plan, problems=problems, shuffle=3)
    trees = engine.sample(
        problems, plan, seed=1, step=1, should_stop=lambda: False,
        on_progress=lambda _done, _total: None, watch=watch,
    )  # fmt: skip
    assert [tree.to_payload() for tree in trees] == [tree.to_payload() for tree in usual]
    assert len(watch.trees()) == 6  # the first ones
    for place, sketch in enumerate(watch.trees()):
        written = [segment for number, _, segment in engine.trace if number == place]
        assert sum(sketch.tokens) == sum(len(segment.tokens) for segment in written)
        assert sum(reason > 0 for reason in sketch.finish) == len(written)
        assert sketch.parent == sorted(sketch.parent)  # breadth-first
        assert all(parent < node for node, parent in enumerate(sketch.parent))
    # A sketch that is the tree tells its verdicts; any other has none.
    verified = verify_trees(trees, judge_one)
    watch.judged(verified)
    told = {place: sketch for place, sketch in enumerate(watch.trees()) if sketch.verdict}
    for place, sketch in told.items():
        assert sketch.parent == verified[place].parent.tolist()
        assert sketch.verdict == verified[place].verdict.tolist()
    assert len(told) == 6 or name not in ("flat", "segment tree")


def test_a_large_tree_is_watched_up_to_a_bound() -> None:
    sampler = FlatSampler(group_size=300, max_tokens=2)
    watch = GrowthWatch()
    ScriptedEngine(LETTERS, anything).sample(
        [PROBLEM], plan_from_config(sampler), seed=1, step=1, should_stop=lambda: False,
        on_progress=lambda _done, _total: None, watch=watch,
    )  # fmt: skip
    assert len(watch.trees()[0].parent) == 200


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


def descended(tree: RolloutTree, which: int) -> str:
    """The answer that is reached by always taking child number `which`."""
    node, answer = 0, ""
    while len(children := np.flatnonzero(tree.parent == node)):
        node = int(children[which])
        answer += outline(tree)[node - 1][1]
    return answer


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
            plan_from_config(SAMPLERS[name], judge_one),
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
        cut = None

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


# ------------------------------------------------------------------------------------ width-capped trees


def dictated(letters: str) -> Distribution:
    """Letter after letter, whoever asks: without shuffling, requests are written in the order of asking."""
    rest = iter(letters)

    def distribution(_path: tuple[int, ...]) -> Sequence[float]:
        letter = next(rest)
        return [float(letter == other) for other in LETTERS.letters]

    return distribution


def width_tree(**changes: Any) -> SegmentTreeSampler:
    """Segments of one token, two continuations each, up to 6 answers of up to 4 tokens."""
    shape = {"depth": 4, "branching_per_depth": (2,), "segment_tokens_per_depth": (1,), "max_width": 6}
    return SegmentTreeSampler(**(shape | {"split": "none"} | changes))


def test_places_of_ended_paths_go_to_the_live_ones() -> None:
    """TreePO's budget, worked by hand; w = 6, b = 2.

    1: a $          1 active, 1 finished (1 now): B = max(1, min(6-1, 2*1 + 2*1)) = 4, all to a
    2: b $ b a      3 active, 2 finished (1 now): B = max(3, min(6-2, 2*1 + 2*3)) = 4: 1, 1 and 2 to the last
    3: $ b a a      3 active, 3 finished (1 now): B = max(3, min(6-3, 2*1 + 2*3)) = 3: 1 each
    4: b $ a        the last level: all end; 6 finished.
    """
    tree = grow(width_tree(), dictated("a$b$ba$baab$a"))[0]
    assert outline(tree) == [
        (0, "a", "length"),
        (0, "$", "eos"),
        (1, "b", "length"),
        (1, "$", "eos"),
        (1, "b", "length"),
        (1, "a", "length"),
        (3, "$", "eos"),
        (5, "b", "length"),
        (6, "a", "length"),
        (6, "a", "length"),
        (8, "b", "length"),
        (9, "$", "eos"),
        (10, "a", "length"),
    ]
    assert tree.leaf_counts()[0] == 6


def test_without_transfer_a_path_only_doubles() -> None:
    """1: a $   B = max(1, min(5, 2*1)) = 2;  2: b a   B = max(2, min(5, 2*2)) = 4;
    3: $ $ a $  1 active, 4 finished: B = max(1, min(2, 2)) = 2;  4: a a. Six leaves."""
    tree = grow(width_tree(transfer_budget=False), dictated("a$ba$$a$aa"))[0]
    assert tree.parent.tolist() == [-1, 0, 0, 1, 1, 3, 3, 4, 4, 7, 7]
    # The same letters with transfer: the root's only live child gets four.
    other = grow(width_tree(), dictated("a$ba$$" + "b" * 20))[0]
    assert other.parent.tolist()[:7] == [-1, 0, 0, 1, 1, 1, 1]


def test_a_width_below_the_live_paths_still_lets_each_go_on() -> None:
    """w = 3: 1: a b, B = min(3, 4) = 3: 1 and 2.  2: a $ b: 2 active, 1 finished: B = max(2, min(2, 6)) = 2.
    3: a b: B = max(2, min(2, 4)) = 2.  4: b b."""
    tree = grow(width_tree(max_width=3), dictated("aba$babbb"))[0]
    assert tree.parent.tolist() == [-1, 0, 0, 1, 2, 2, 3, 5, 6, 7]


def test_fallback_starts_again_at_an_earlier_boundary() -> None:
    """1: a $  B = 4.  2: $ $ $ $  nothing is active, 5 of 6 are finished: one place. The first candidate in
    the random order goes back to the prompt, or to a if it is one of the four below it."""
    letters = "a$$$$$" + "b$"
    below = set()
    for step in range(1, 60):
        tree = grow(width_tree(fallback="random"), dictated(letters), step=step)[0]
        words = [(parent, word) for parent, word, _ in outline(tree)]
        fallen = next(parent for parent, word in words if word == "b")
        below.add(fallen)
        # From the prompt or from a, "b" goes on alone with "$": w - finished = 1.
        assert tree.leaf_counts()[0] == 6
        assert [word for _, word in words].count("b") == 1
        assert words[-1] == ([word for _, word in words].index("b") + 1, "$")
    assert below == {0, 1}
    # Without fallback five answers remain.
    assert grow(width_tree(), dictated(letters))[0].leaf_counts()[0] == 5


def test_fallback_without_a_complete_answer_starts_from_the_prompt() -> None:
    """Paths that repeat themselves or are cut off are no candidates: depth 1, w = 5: 2 + 2 + 1 answers."""
    sampler = width_tree(depth=1, max_width=5, fallback="random")
    tree = grow(sampler, dictated("abbab"))[0]
    assert outline(tree) == [(0, letter, "length") for letter in "abbab"]


def test_the_root_gets_a_random_number_of_children() -> None:
    problems = [Problem(f"p{i}", "ab", "") for i in range(400)]
    sampler = width_tree(root_branching_max=5, max_width=4)
    counts = [int(tree.child_counts()[0]) for tree in grow(sampler, anything, problems=problems)]
    # 2, 3, 4 and 5 with 1/4 each; at most the width, 4.
    seen = {str(count): counts.count(count) for count in set(counts)}
    assert chi_square(seen, {"2": 0.25, "3": 0.25, "4": 0.5}) > 0.001


def test_fallback_goes_back_to_every_boundary_alike() -> None:
    """All answers are aa$; 8 of 9 places are used by 2, 4, 8 of them. The last goes back to the prompt, or to
    one of two earlier boundaries: whoever has three children."""

    def twice(path: tuple[int, ...]) -> Sequence[float]:
        return (0, 0, 0, 1, 0, 0) if len(path) == 4 else (1, 0, 0, 0, 0, 0)

    sampler = width_tree(depth=3, max_width=9, fallback="random", transfer_budget=False)
    seen: dict[int, int] = {}
    for tree in grow(sampler, twice, problems=[Problem(f"p{i}", "ab", "") for i in range(600)]):
        (place,) = np.flatnonzero(tree.child_counts() == 3)
        depth = int(tree.depths()[place])
        seen[depth] = seen.get(depth, 0) + 1
    assert chi_square(seen, {0: 1 / 3, 1: 1 / 3, 2: 1 / 3}) > 0.001


Outline = tuple[tuple[int, str], ...]


def every_width_tree(width: int, depth: int) -> dict[Outline, float]:
    """The probability of every tree of width_tree(max_width=width, depth=depth, fallback="random") over `toy`
    letters after "b"-ended prompts: the algorithm once more, slowly, over all random choices at once.

    A state: nodes as (parent, letter), parents queued, finished paths, paths that ended with $.
    """
    found: dict[Outline, float] = {}

    def path_of(nodes: Outline, node: int) -> list[int]:
        return [] if node < 0 else [*path_of(nodes, nodes[node][0]), node]

    def write(nodes: Outline, queue: list[int], chance: float, start: int, finished: int) -> None:
        if len(nodes) - start < len(queue):
            parent = queue[len(nodes) - start]
            above = "b" if parent < 0 else nodes[parent][1]
            for letter, step in zip(LETTERS.letters, toy(tuple(LETTERS.encode(above))), strict=True):
                if step:
                    write((*nodes, (parent, letter)), queue, chance * step, start, finished)
            return
        new = range(start, len(nodes))
        active = [n for n in new if nodes[n][1] != "$" and len(path_of(nodes, n)) < depth]
        now = len(new) - len(active)
        finished += now
        if active:
            budget = max(len(active), min(width - finished, 2 * now + 2 * len(active)))
            each = budget // len(active)
            times = [each] * len(active)
            times[-1] += budget - each * len(active)
            queue = [n for n, count in zip(active, times, strict=True) for _ in range(count)]
            write(nodes, queue, chance, len(nodes), finished)
        elif finished < width:
            complete = [n for n in range(len(nodes)) if nodes[n][1] == "$"]
            if not complete:
                write(nodes, [-1] * min(2, width - finished), chance, len(nodes), finished)
                return
            shuffles = list(itertools.permutations(complete))
            for shuffle in shuffles:
                choices = [[-1, *path_of(nodes, n)[:-1]] for n in shuffle]
                size = math.prod(map(len, choices))
                for back in itertools.product(*choices):
                    queue = [n for n in back for _ in range(2)][: width - finished]
                    write(nodes, queue, chance / len(shuffles) / size, len(nodes), finished)
        else:
            # Name nodes by their place breadth-first, children in the order of writing.
            order, place = [-1], {-1: 0}
            for node in order:
                for child in range(len(nodes)):
                    if nodes[child][0] == node:
                        place[child] = len(order)
                        order.append(child)
            shape = tuple((place[nodes[n][0]], nodes[n][1]) for n in order[1:])
            found[shape] = found.get(shape, 0) + chance

    write((), [-1, -1], 1.0, 0, 0)
    return found


def test_width_trees_come_as_often_as_enumeration_says() -> None:
    expected = every_width_tree(3, 2)
    sampler = width_tree(max_width=3, depth=2, fallback="random")
    seen: dict[Outline, int] = {}
    for tree in grow(sampler, toy, problems=[Problem(f"p{i}", "ab", "") for i in range(3000)]):
        shape = tuple((parent, word) for parent, word, _ in outline(tree))
        seen[shape] = seen.get(shape, 0) + 1
    assert len(expected) > 100
    assert chi_square(seen, expected) > 0.001


# ------------------------------------------------------------------------------------------- fork trees


def staged(path: tuple[int, ...]) -> Sequence[float]:
    """Answers "a ? a ?? $": one of a, b where ? stands, one of a, b, newline where ?? stands. Whatever is
    sampled, the surprisals, and the entropies, are 0, ln 2, 0, ln 3, 0."""
    return (
        (1, 0, 0, 0, 0, 0),
        (0.5, 0.5, 0, 0, 0, 0),
        (1, 0, 0, 0, 0, 0),
        (1 / 3, 1 / 3, 1 / 3, 0, 0, 0),
        (0, 0, 0, 1, 0, 0),
    )[len(path) - 2]


def fork_tree(**changes: Any) -> ForkTreeSampler:
    shape = {"trees": 1, "rounds": 1, "forks": 1, "continuations": 1, "max_tokens": 5, "never_after": ""}
    return ForkTreeSampler(**(shape | changes))


def lengths(tree: RolloutTree) -> list[tuple[int, int]]:
    """(parent, tokens) of every node but the root."""
    return list(zip(tree.parent[1:].tolist(), tree.token_counts()[1:].tolist(), strict=True))


def test_forks_stand_before_the_most_surprising_tokens() -> None:
    """(1, 1, 3, 2), worked by hand. The first answer has surprisals 0, ln 2, 0, ln 3, 0.

    1: before its token 3 (ln 3): two answers of 2 tokens, whose first token is masked; their other is 0.
    2: token 3 was forked; before its token 1 (ln 2): two answers of 4 tokens, surprisals ln 2 (masked), 0,
       ln 3, 0.
    3: before token 2 of the first of those two.
    """
    tree = grow(fork_tree(rounds=3, continuations=2), staged)[0]
    assert lengths(tree) == [
        (0, 1),  # 1: the first answer up to the second fork
        (1, 2),  # 2: ... up to the first fork
        (1, 2),  # 3: the first answer of round 2, up to the third fork
        (1, 4),  # 4: its twin
        (2, 2),  # 5: the rest of the first answer, and two answers of round 1
        (2, 2),
        (2, 2),
        (3, 2),  # 8: the rest of node 3, and two answers of round 3
        (3, 2),
        (3, 2),
    ]
    assert [FinishReason(f).word for f in tree.finish[1:]] == ["fork"] * 3 + ["eos"] * 7


def test_entropy_forks_need_their_threshold() -> None:
    plan = fork_tree(forks=4, score=EntropyForks(threshold=0.7))
    assert lengths(grow(plan, staged)[0]) == [(0, 3), (1, 2), (1, 2)]  # ln 3 alone is above 0.7
    plan = fork_tree(forks=4, score=EntropyForks(threshold=0.6))
    assert lengths(grow(plan, staged)[0]) == [(0, 1), (1, 2), (1, 4), (2, 2), (2, 2)]
    # Above them all there is no fork, and the tree is one answer.
    plan = fork_tree(forks=4, rounds=5, score=EntropyForks(threshold=2.0))
    assert lengths(grow(plan, staged)[0]) == [(0, 5)]


def test_each_tree_of_the_forest_forks_for_itself() -> None:
    tree = grow(fork_tree(trees=3, forks=2, continuations=2), staged)[0]
    assert tree.leaf_counts()[0] == 3 * (1 + 2 * 2)
    for number in range(3):
        members = np.flatnonzero(tree.subgroup[1:] == number) + 1
        assert len(members) == 5 + 2
        assert all(tree.subgroup[tree.parent[n]] == number or tree.parent[n] == 0 for n in members)
        assert (tree.parent[members] == 0).sum() == 1


def test_a_path_is_not_forked_behind_a_word() -> None:
    # "aaa" or "aba" stands before token 3, the most surprising one: behind either word it is masked, but the
    # token that completes it is not.
    forked = fork_tree(forks=9, never_after="xyz, ABA,aaa ,")
    assert lengths(grow(forked, staged)[0]) == [(0, 1), (1, 1), (1, 4), (2, 3), (2, 4 - 1)]
    # One of both words only: where it is not written, all tokens but the first are forked.
    counts = {
        descended(tree, 0)[:3]: tree.leaf_counts()[0]
        for step in range(9)
        for tree in grow(fork_tree(forks=9, never_after="aba"), staged, step=step)
    }
    assert counts == {"aba": 1 + 2, "aaa": 1 + 4}


@pytest.mark.parametrize("score", [SurprisalForks(), EntropyForks(threshold=1.0)])
def test_fork_points_are_those_of_a_slow_search(score: Any) -> None:
    """Round by round, from what the engine wrote: the N best of all unmasked tokens of the tree."""

    def uneven(path: tuple[int, ...]) -> Sequence[float]:
        chance = 0.05 + 0.9 * (hash(path) % 97) / 97  # a hash of integers is the same in every process
        return (chance * 0.7, (1 - chance) * 0.9, 0, 0.1 * (1 - chance), 0, 0.3 * chance)

    sampler = fork_tree(trees=2, rounds=3, forks=2, continuations=2, max_tokens=12, score=score)
    forks = 0
    for step in range(12):
        engine = ScriptedEngine(LETTERS, uneven, shuffle=step)
        grow(sampler, engine=engine, step=step)
        written = {request.chain: segment for _, request, segment in engine.trace}
        asked = {request.chain: request for _, request, _ in engine.trace}
        for first in (1, 1 + 1 + 12):
            for turn in range(3):
                known = [c for c in range(first, first + 1 + 4 * turn) if c in written]
                used = {(asked[c].parent, asked[c].at) for c in known}
                candidates = [
                    (
                        -written[c].logprobs[i] if score.kind == "surprisal" else written[c].entropies[i],
                        -c,
                        -i,
                    )
                    for c in known
                    for i in range(1, len(written[c].tokens))
                    if (c, i) not in used and (score.kind == "surprisal" or written[c].entropies[i] > 1.0)
                ]
                best = [(-c, -i) for _, c, i in sorted(candidates, reverse=True)[:2]]
                new = [c for c in range(first + 1 + 4 * turn, first + 1 + 4 * (turn + 1)) if c in asked]
                assert [(asked[c].parent, asked[c].at) for c in new] == [p for p in best for _ in range(2)]
                forks += len(new)
    assert forks > 100


def test_fork_trees_come_as_often_as_enumeration_says() -> None:
    """(1, 1, 1, 1) with answers of up to 3 toy tokens: every answer, its most surprising token but the first,
    and every continuation from there."""
    expected: dict[tuple[str, str], float] = {}
    for answer, chance in exactly(3).items():
        surprisals = [
            -math.log(toy(tuple(LETTERS.encode("ab" + answer[:i])))[LETTERS.letters.index(answer[i])])
            for i in range(1, len(answer))
        ]
        if not surprisals:
            expected[answer, ""] = chance
            continue
        at = 1 + surprisals.index(max(surprisals))
        for other, also in exactly(3 - at, answer[:at]).items():
            expected[answer, answer[:at] + other] = chance * also
    seen: dict[tuple[str, str], int] = {}
    problems = [Problem(f"p{i}", "ab", "") for i in range(2500)]
    for tree in grow(fork_tree(max_tokens=3), toy, problems=problems):
        answers = (*answers_of(tree), "")[:2]
        pair = (answers[0], answers[1])
        seen[pair] = seen.get(pair, 0) + 1
    assert chi_square(seen, expected) > 0.001


def test_uniform_forks_come_as_often_as_enumeration_says() -> None:
    """Two draws, with replacement, from the root and the two inner pieces of "a / a / a", all answers alike
    but for where they start."""

    def lines(path: tuple[int, ...]) -> Sequence[float]:
        letter = "a\na\na$"[len(path) - 2]
        return [float(letter == other) for other in LETTERS.letters]

    sampler = fork_tree(forks=2, score=UniformForks(), max_tokens=9)
    seen: dict[tuple[int, ...], int] = {}
    for tree in grow(sampler, lines, problems=[Problem(f"p{i}", "ab", "") for i in range(900)]):
        assert set(answers_of(tree)) == {"a\na\na$"}
        starts = tuple(sorted((6 - tree.token_counts()[tree.is_leaf()]).tolist()))
        seen[starts] = seen.get(starts, 0) + 1
    # Leaves' last nodes start after 0, 2 or 4 letters; the first answer's where its last fork stands.
    expected = {
        (0, 0, 0): 1 / 9,
        (0, 2, 2): 2 / 9,
        (0, 4, 4): 2 / 9,
        (2, 2, 2): 1 / 9,
        (2, 4, 4): 2 / 9,
        (4, 4, 4): 1 / 9,
    }
    assert chi_square(seen, expected) > 0.001


# -------------------------------------------------------------------------------------- lookahead trees


def table(**rows: str) -> Distribution:
    """`aa="b.6 1.4"`: behind the answer "aa" come b with .6 and 1 with .4. The empty answer is `start`. A row
    that is not there: the end."""

    def distribution(path: tuple[int, ...]) -> Sequence[float]:
        answer = "".join(LETTERS.letters[t] for t in path[2:]) or "start"
        chances = {part[0]: float(part[1:] or 1) for part in rows.get(answer.replace("1", "_"), "$").split()}
        return [chances.get(letter, 0.0) for letter in LETTERS.letters]

    return distribution


def lookahead(**changes: Any) -> LookaheadSampler:
    shape = {
        "group_size": 3,
        "max_tokens": 8,
        "min_probability": 0.2,
        "max_gap": 0.5,
        "windows": (2,),
        "threshold": 0.4,
        "tree_tokens": 8,
        "tree_share_decay": 1.0,
    }
    return LookaheadSampler(**(shape | changes))


@dataclass(frozen=True)
class InChunks:
    """A lookahead plan with another chunk."""

    sampler: LookaheadSampler
    chunk: int
    temperature: float = 1.0
    most_tokens: int = 50
    most_positions: int = 50
    cut: None = None

    def growth(self, ground: Ground) -> LookaheadGrowth:
        return LookaheadGrowth(ground, self.sampler, self.chunk)


@pytest.mark.parametrize(
    ("overflow", "expected"),
    [
        ("probability", [(0, "aa1$", "eos"), (0, "b", "fork"), (2, "a1$", "eos"), (2, "11$", "eos")]),
        ("rank", [(0, "a", "fork"), (0, "ba1$", "eos"), (1, "a1$", "eos"), (1, "b1$", "eos")]),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_forks_open_where_the_gap_is_small_and_free_places_go_to_the_likeliest(
    overflow: str, expected: list[tuple[int, str, str]], chunk: int
) -> None:
    """LATR by hand, k = 3, windows (2).

    step 0: the trunk takes a (.5); b has .4 > .2, the gap .1 < .5: B1 opens.          branches a, b
    step 1: trunk a (.55), b has .45; B1 takes a (.52), 1 has .48. One place is free: by probability for
            "b1", by rank (both are second best) for "ab". B1 has two tokens, "ba" against "aa": 1/2, stays.
    step 2: all go on with 1, without a rival. The last one has two tokens: "11" against "a1", or "b1" against
            "a1": 1/2, stays. Three branches, none younger than 2: the tree phase ends after three steps.
    then:   each is finished by sampling: "$" has probability 1.
    """
    rows = {
        "start": "a.5 b.4 2.1",
        "a": "a.55 b.45",
        "b": "a.52 1.48",
        "aa": "1",
        "ab": "1",
        "ba": "1",
        "b_": "1",
    }
    engine = ScriptedEngine(LETTERS, table(**rows))
    tree = grow(InChunks(lookahead(overflow=overflow), chunk), engine=engine)[0]
    assert outline(tree) == expected
    assert [r.most_tokens for _, r, _ in engine.trace if not r.greedy] == [8 - 3] * 3


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_branches_that_come_to_the_same_are_removed_with_their_descendants(chunk: int) -> None:
    """LATR by hand, k = 3, windows (3), threshold .4, tree phase of 6 tokens.

    step 0: trunk a; b (.4) opens B1.
    step 1: trunk a; B1 a (.6), and 1 (.4) opens B2 from it.
    step 2: aaa, baa, b11. B1 has three tokens, "baa" against "aaa": 1/3 < .4, removed, and B2 with it.
    step 3: trunk b (.6), and 1 (.4) opens B3: the places are free again.
    step 4: aaabb, aaa12.  step 5: aaabbb, aaa122: "122" against "bbb" is 1, stays. 6 tokens: the phase ends.
    then:   both are finished, and the trunk once more for the third place.
    """
    rows = {
        "start": "a.6 b.4",
        "a": "a",
        "b": "a.6 1.4",
        "aa": "a",
        "ba": "a",
        "b_": "1",
        "aaa": "b.6 1.4",
        "aaab": "b",
        "aaabb": "b",
        "aaa_": "2",
        "aaa_2": "2",
        "aaabbb": "a.5 b.5",
        "baa": "2",
    }
    plan = InChunks(lookahead(windows=(3,), tree_tokens=6), chunk)
    engine = ScriptedEngine(LETTERS, table(**rows))
    tree = grow(plan, engine=engine)[0]
    endings = [word for _, word, _ in outline(tree)[-2:]]
    assert outline(tree)[:4] == [
        (0, "aaa", "fork"),
        (1, "bbb", "fork"),
        (1, "122$", "eos"),
        (2, endings[0], "eos"),
    ]
    assert len(outline(tree)) == 5
    assert set(endings) <= {"a$", "b$"}
    # Nothing of the removed branches is in the tree, but it was sampled.
    assert engine.spent.sampled >= tree.token_counts()[1:].sum() + len("baa" + "11")
    if chunk == 1:
        assert engine.spent.sampled == tree.token_counts()[1:].sum() + len("baa" + "11")


def test_pairs_in_which_one_has_ended_are_not_compared() -> None:
    """k = 4, m = 3, windows (3), threshold 1: whatever is not all different is removed.

    step 0: a; b and 1 open B1 and B2.  step 1: aa, b$, 1a.  step 2: aaa, 1aa: B1 has ended, it stays; "1aa"
    against "aaa": 1/3 < 1, removed. No branch opens any more; at step 3 the trunk ends too.
    Two places are free, and the trunk has ended: it counts three times.
    """
    rows = {"start": "a.4 b.35 1.25", "a": "a", "b": "$", "_": "a", "aa": "a", "_a": "a"}
    plan = lookahead(group_size=4, candidates=3, windows=(3,), threshold=1.0)
    tree = grow(plan, table(**rows))[0]
    assert outline(tree) == [(0, "aaa$", "eos"), (0, "b$", "eos")]
    assert tree.copies.tolist() == [0, 3, 1]
    # Where the trunk ends within the window, all three stay, and all have ended.
    rows |= {"aa": "$"}
    tree = grow(plan, table(**rows))[0]
    assert outline(tree) == [(0, "aa$", "eos"), (0, "b$", "eos"), (0, "1aa$", "eos")]
    assert tree.copies.tolist() == [0, 2, 1, 1]


def test_a_branch_may_open_with_the_end() -> None:
    # The end is the runner-up at step 1, when the last place is free: "a$" has ended at once.
    tree = grow(lookahead(group_size=2), table(start="a", a="b.6 $.4", ab="b.9 a.1", abb="1"))[0]
    assert outline(tree) == [(0, "a", "fork"), (1, "bb1$", "eos"), (1, "$", "eos")]


def test_the_tree_phase_is_cut_by_the_answer_length() -> None:
    rows = {"start": "a.6 b.4", "a": "a", "aa": "a", "b": "1", "b_": "1"}
    tree = grow(lookahead(max_tokens=3), table(**rows))[0]
    # Two branches of three tokens, cut off; the first counts for the place that stayed free.
    assert outline(tree) == [(0, "aaa", "length"), (0, "b11", "length")]
    assert tree.copies.tolist() == [0, 2, 1]


def test_the_share_of_the_tree_fades() -> None:
    """eta gamma^(step - 1) of 8 answers; the others are ordinary samples, as a flat sampler's."""
    sampler = lookahead(group_size=8, tree_share=0.5, tree_share_decay=0.5, max_tokens=5, tree_tokens=2)
    flat = table(start="a.5 b.3 1.2", a="a.5 b.5", b="b.5 $.5", _="$")
    for step, width in ((1, 4), (2, 2), (3, 1), (4, 0)):  # 4, 2, 1, and .5 rounds to 0
        engine = ScriptedEngine(LETTERS, flat)
        tree = grow(sampler, engine=engine, step=step)[0]
        ordinary = [r for _, r, _ in engine.trace if r.parent == PROMPT and not r.greedy]
        assert len(ordinary) == 8 - width
        assert tree.answer_counts()[0] == 8


def test_the_share_of_the_tree_fades_by_a_table() -> None:
    """The released code's: from a step on so much, instead of gamma^i."""
    sampler = lookahead(
        tree_share=0.5, tree_share_decay=0.5, tree_share_steps=(0, 10, 20), tree_share_values=(1, 0.75, 0)
    )
    shares = [sampler.tree_share_at(step) for step in (1, 9, 10, 19, 20, 500)]
    assert shares == [0.5, 0.5, 0.375, 0.375, 0, 0]


@pytest.mark.parametrize(("steps", "shares"), [((0, 10), (1,)), ((5,), (1,)), ((0, 10, 10), (1, 1, 1))])
def test_a_table_with_gaps_is_refused(steps: tuple[int, ...], shares: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="tree_share_steps"):
        lookahead(tree_share_steps=steps, tree_share_values=shares)


def test_similarities_by_hand() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance([1, 2, 3], [1, 2, 3]) == 0
    assert edit_distance([1, 2, 3], []) == 3
    assert edit_distance([1, 2, 3, 4], [2, 3, 4, 5]) == 2  # drop the 1, add the 5
    assert suffix_match([9, 1, 2, 3], [1, 2, 3, 7]) == 3 / 4  # 1 2 3 ends the first and stands in the second
    assert suffix_match([1, 2, 3, 7], [9, 1, 2, 3]) == 3 / 4
    assert suffix_match([1, 2], [3, 4]) == 0
    assert suffix_match([1, 2, 3, 4], [1, 2, 3, 5]) == 0  # equal starts do not count
    assert rouge_l([1, 2, 3, 4], [1, 9, 3, 8]) == 2 / 4  # 1 3
    assert rouge_l([1, 2], [3, 4]) == 0
    alike, other = [1, 2, 3, 4], [9, 2, 3, 4]
    assert is_too_similar(lookahead(threshold=0.3), alike, other)  # 1/4 < .3
    assert not is_too_similar(lookahead(threshold=0.25), alike, other)
    assert is_too_similar(lookahead(similarity="suffix_match", threshold=0.7), alike, other)  # 3/4 > .7
    assert not is_too_similar(lookahead(similarity="suffix_match", threshold=0.75), alike, other)
    assert is_too_similar(lookahead(similarity="rouge_l", threshold=0.7), alike, other)
    assert not is_too_similar(lookahead(similarity="rouge_l", threshold=0.75), alike, other)


def slow_lookahead(
    sampler: LookaheadSampler, distribution: Distribution
) -> tuple[list[tuple[str, int]], int]:
    """The branches at the end of the tree phase, as (letters, birth), and its steps: the algorithm without
    any laziness."""
    branches: list[tuple[str, int, int]] = [("", 0, -1)]  # letters, birth, number of the parent
    numbers = [0]
    count = 1
    for step in range(min(sampler.tree_tokens, sampler.max_tokens)):
        grown, candidates = [], []
        for place, (word, birth, parent) in enumerate(branches):
            if word.endswith("$"):
                grown.append((word, birth, parent))
                continue
            chances = distribution(tuple(LETTERS.encode("ab" + word)))
            ranked = sorted(range(6), key=lambda token: (-chances[token], token))[: sampler.candidates]
            best = LETTERS.letters[ranked[0]]
            grown.append((word + best, birth, parent))
            for rank, token in enumerate(ranked[1:], 1):
                chance = chances[token]
                if chance > sampler.min_probability and chances[ranked[0]] - chance < sampler.max_gap:
                    candidates.append((-chance, place, rank, word + LETTERS.letters[token]))
        chosen = sorted(candidates)[: sampler.group_size - len(branches)]
        for _, place, _, word in sorted(chosen, key=lambda found: found[1:3]):
            grown.append((word, step, numbers[place]))
            numbers.append(count)
            count += 1
        removed: set[int] = set()
        for (word, birth, parent), number in zip(grown, numbers, strict=True):
            if parent >= 0:
                size = step + 1 - birth
                other = grown[numbers.index(parent)][0]
                pair = LETTERS.encode(word[birth:]), LETTERS.encode(other[birth:])
                ended = "$" in word + other
                if parent in removed or (
                    size in sampler.windows and not ended and is_too_similar(sampler, *pair)
                ):
                    removed.add(number)
        branches = [b for b, number in zip(grown, numbers, strict=True) if number not in removed]
        numbers = [number for number in numbers if number not in removed]
        ended_all = all(word.endswith("$") for word, _, _ in branches)
        is_old = all(step + 1 - birth >= max(sampler.windows) for _, birth, _ in branches)
        if ended_all or (len(branches) >= sampler.group_size and is_old):
            break
    return [(word, birth) for word, birth, _ in branches], step + 1


@pytest.mark.parametrize("similarity", ["edit", "suffix_match", "rouge_l"])
def test_lookahead_trees_are_those_of_a_slow_walk_for_every_chunk(similarity: str) -> None:
    sampler = lookahead(
        group_size=5, candidates=3, windows=(2, 4), similarity=similarity, threshold=0.55, max_tokens=14
    )
    sampler = sampler.model_copy(update={"tree_tokens": 11, "min_probability": 0.1, "max_gap": 0.4})
    opened = 0
    for seed in range(25):

        def random(path: tuple[int, ...], seed: int = seed) -> Sequence[float]:
            chance = np.random.default_rng((seed, *path)).dirichlet([0.7, 0.7, 0.3, 0.15, 0.5, 0.5])
            return chance.tolist()

        expected, steps = slow_lookahead(sampler, random)
        opened += len(expected)
        trees = []
        for chunk in (1, 2, 3, 8, 50):
            engine = ScriptedEngine(LETTERS, random, shuffle=None if chunk == 3 else chunk)
            trees += grow(InChunks(sampler, chunk), engine=engine)
            assert {r.most_tokens for _, r, _ in engine.trace if not r.greedy} <= {14 - steps}
        assert len({tree.to_payload() for tree in trees}) == 1
        answers = sorted(set(answers_of(trees[0])))
        for word, _ in expected:
            assert any(answer.startswith(word) for answer in answers)
        # Each place is one answer; the free ones are endings of the first branch.
        free = 5 - len(expected)
        starts = [
            next(w for w, _ in sorted(expected, key=lambda b: -b[1]) if a.startswith(w))
            for a in answers_of(trees[0])
        ]
        counted = {word: starts.count(word) for word, _ in expected}
        assert counted == {word: 1 + free * (number == 0) for number, (word, _) in enumerate(expected)}
    assert opened > 50


# ----------------------------------------------------------------------------------------- search trees


def judge_one(text: str, _has_ended: bool, _reference: str) -> Judgement:
    """Right where the answer ends with 1; no verdict where it ends with a line break."""
    if text.endswith("\n"):
        return Judgement(Verdict.ERROR, math.nan, "")
    return (
        Judgement(Verdict.CORRECT, 1.0, "") if text.endswith("1") else Judgement(Verdict.INCORRECT, 0.0, "")
    )


@dataclass
class Watched:
    """A search plan that keeps its growth."""

    sampler: SearchTreeSampler
    temperature: float = 1.0
    most_tokens: int = 50
    most_positions: int = 50
    cut: None = None
    grown: list[SearchTreeGrowth] = field(default_factory=list)

    def growth(self, ground: Ground) -> SearchTreeGrowth:
        self.grown.append(SearchTreeGrowth(ground, self.sampler, judge_one))
        return self.grown[-1]

    def figures(self, *names: str) -> dict[str, tuple[float, ...]]:
        """Of every node, by its answer so far."""
        growth = self.grown[-1]
        return {
            "".join(LETTERS.letters[t] for t in node.tokens): tuple(round(getattr(node, n), 4) for n in names)
            for node in [growth._root, *growth._nodes]
        }


def search(select: PuctSelect | UctSelect, **changes: Any) -> SearchTreeSampler:
    shape = {"iterations": 1, "expand": 2, "depth": 2, "segment_tokens": 1, "last_tokens": 2, "split": "none"}
    return SearchTreeSampler(select=select, **(shape | changes))


def test_puct_by_hand() -> None:
    """MCTS-DPO, every prior 1 (all letters are certain), w = 1, one iteration per decision.

    Prompt, 4 iterations. The first expands it: "a", completed "1$": right, score 1; "b", completed "2$": -1.
    Q = r: a 1, b -1.   N(root) 1: a 1 + 1/1 = 2, b -1 + 1/1 = 0: to a.  Expanded: "1$" right, r = 1 - 1 = 0;
    "2$" wrong, r = -2.  N(a) 1: 0 + 1, -2 + 1: to a1, a terminal.  V(a) = (0 - 2) / 2 = -1, Q(a) = 1 - 1 = 0.
    2: N(root) 2: a 0 + 1.414/2, b -1 + 1.414: to a; a1.   V(a) = (2*0 - 2)/3, Q(a) = .3333
    3: N(root) 3: a .3333 + 1.732/3 = .911, b -1 + 1.732 = .732: a; a1.   V(a) = -2/4, Q(a) = .5
    4: N(root) 4: a .5 + 2/4 = 1, b -1 + 2 = 1, the first: a; a1.   V(a) = -2/5, Q(a) = .6
       V(root) = (4*.6 - 1)/5 = .28
    Commit a (N 4 against 0). One iteration from there: a1 again, V(a) = (5*0 - 2)/6 = -.3333. Commit a1.
    """
    plan = Watched(search(PuctSelect(weight=1, length_power=1)))
    engine = ScriptedEngine(LETTERS, dictated("ab" + "1$" + "2$" + "1$" + "2$"))
    tree = grow(plan, engine=engine)[0]
    assert outline(tree) == [
        (0, "a", "length"),
        (0, "b", "pruned"),
        (1, "1$", "eos"),
        (1, "2$", "eos"),
    ]
    assert tree.visits.tolist() == [4, 5, 0, 5, 0]
    assert plan.figures("score", "q", "v") == {
        "": (0, 0.28, 0.28),
        "a": (1, 0.6667, -0.3333),
        "b": (-1, -1, 0),
        "a1$": (1, 0, 0),
        "a2$": (-1, -2, 0),
    }
    # Completions are sampled, but stand in no tree.
    assert engine.spent.sampled == tree.token_counts()[1:].sum() + 4


def test_bounds_of_search_by_numbers() -> None:
    def node(visits: int, q: float = 0.0, v: float = 0.0, prior: float = 1.0) -> SearchNode:
        return SearchNode(1, 0, visits=visits, q=q, v=v, prior=prior)

    assert puct(node(3, 0.5, prior=0.25), node(16), 2.0) == pytest.approx(0.5 + 2 * 0.25 * 4 / 4)
    assert puct(node(0, 0.5, prior=0.25), node(16), 2.0) == pytest.approx(0.5 + 2 * 0.25 * 4)
    # The decision: visits, then Q, then V.
    children = [node(3, 0.1), node(2, 0.9), node(3, 0.2), node(3, 0.2, 0.5), node(3, 0.2, 0.4)]
    assert committed(children) is children[3]
    # .3 + .7 sqrt(2 ln 8 / 2) = 1.309, .9 + .7 sqrt(2 ln 8 / 6) = 1.483; an unvisited one has .4 + 1.
    top = node(8)
    top.children = [node(2, v=0.3), node(6, v=0.9), node(0, v=0.4)]
    assert uct_best(top, 0.7) is top.children[1]
    assert uct_best(top, 0.1) is top.children[2]


def test_the_prior_of_puct_is_the_likelihood_over_a_power_of_the_length() -> None:
    def halves(path: tuple[int, ...]) -> Sequence[float]:
        return (0.5, 0.5, 0, 0, 0, 0) if len(path) < 5 else (0, 0, 0, 1, 0, 0)

    for power, expected in ((1.0, 0.5), (0.0, 0.125), (2.0, 0.5 ** (1 / 3))):
        plan = Watched(search(PuctSelect(length_power=power), segment_tokens=3))
        grow(plan, halves)
        assert {round(node.prior, 4) for node in plan.grown[-1]._nodes if node.depth == 1} == {
            round(expected, 4)
        }


def test_an_expansion_counts_equal_segments_once() -> None:
    plan = Watched(search(PuctSelect(), expand=3))
    tree = grow(plan, dictated("aba" + "11" + "22" + "1$" + "1$" + "2$"))[0]
    assert outline(tree) == [(0, "a", "length"), (0, "b", "pruned"), (1, "1$", "eos"), (1, "2$", "eos")]


VALUES = {"a": 0.4, "b": 0.6, "ba": 0.2, "a1": 0.3}


def test_uct_by_hand() -> None:
    """ReST-MCTS*, c = .7, alpha .5, one step forward, values from a value head, D = 3.

    1: the prompt is expanded: V(a) = .4, V(b) = .6. Best: b (1.6). Forward: "ba" has .2, so V(b) = .5*.6 +
       .5*.2 = .4, N(b) 1. N(root) 1, V(root) = .4.
    2: a is unvisited, .4 + 1, b .4 + .7 sqrt(2 ln 1 / 1) = .4: to a, expanded: "a1" .3, "a$" ended and wrong:
       0. Best: a1. Forward: "a11" is terminal and right: 1, V(a1) = .65. V(a) = .65, N(a) 1. N(root) 2,
       V(root) = (.65 + .4)/2 = .525.
    3: a .65 + .7 sqrt(2 ln 2) = 1.474, b 1.224: to a; a1 .65 + .7 sqrt(2 ln 1) = .65, a$ is unvisited, 0 + 1:
       to a$, a terminal that is not good enough. N(a$) 1; V(a) = (.65 + 0)/2 = .325, N(a) 2; N(root) 3,
       V(root) = (2*.325 + .4)/3 = .35.
    """
    sampler = search(
        UctSelect(weight=0.7, roll_forward=1, roll_share=0.5), iterations=3, depth=3, evaluator="value_head"
    )
    plan = Watched(sampler.model_copy(update={"last_tokens": 1}))
    engine = ScriptedEngine(
        LETTERS,
        dictated("ab" + "a" + "1$" + "1"),
        value=lambda path: VALUES["".join(LETTERS.letters[t] for t in path[2:])],
    )
    tree = grow(plan, engine=engine)[0]
    assert outline(tree) == [
        (0, "a", "length"),
        (0, "b", "pruned"),
        (1, "1", "pruned"),
        (1, "$", "eos"),
    ]
    assert tree.visits.tolist() == [3, 2, 1, 1, 1]
    assert plan.figures("v") == {"": (0.35,), "a": (0.325,), "b": (0.4,), "a1": (0.65,), "a$": (0.0,)}
    assert engine.spent.sampled == 6


def test_uct_ends_with_an_answer_that_is_good_enough() -> None:
    """Both children end at once, "1$" is right: V 1. Iteration 2 comes to it and ends the search, before it
    counts."""
    sampler = search(UctSelect(roll_forward=2), iterations=50, segment_tokens=2)
    tree = grow(Watched(sampler), dictated("1$" + "2$"))[0]
    assert tree.visits.tolist() == [1, 1, 0]
    # A wrong one does not: all iterations are made.
    tree = grow(Watched(sampler), dictated("2$" + "2b" + "$" * 200))[0]
    assert tree.visits[0] == 50


def test_a_node_whose_verifier_failed_keeps_its_parents_score() -> None:
    plan = Watched(search(PuctSelect(), segment_tokens=2))
    grow(plan, dictated("1$" + "ab" + "\n$" + "2$" * 9))
    assert plan.figures("score")["1$"] == (1,)
    assert plan.figures("score")["ab"] == (0,)  # its completion ended with a line break


def test_search_needs_a_judge() -> None:
    with pytest.raises(ValueError, match="with a judge"):
        grow(search(PuctSelect()))


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


def toy(path: tuple[int, ...]) -> Sequence[float]:
    """a, b, end with .5, .3, .2; behind an a with .1, .6, .3."""
    return (0.1, 0.6, 0, 0.3, 0, 0) if path[-1] == A else (0.5, 0.3, 0, 0.2, 0, 0)


def exactly(most_tokens: int, start: str = "") -> dict[str, float]:
    """The probability of every answer of up to so many tokens to the prompt "ab" and a start, by
    enumeration."""
    open_paths: dict[str, float] = {"": 1.0}
    ended: dict[str, float] = {}
    for _ in range(most_tokens):
        longer: dict[str, float] = {}
        for path, chance in open_paths.items():
            for letter, step in zip("ab\n$12", toy(tuple(LETTERS.encode("ab" + start + path))), strict=True):
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
        answer = descended(tree, -1)
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
