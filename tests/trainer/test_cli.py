from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.trees import tree_of
from trainer.cli import configured, main, preset_called
from trainer.credit import credit_plan, credit_trees
from trainer.presets import PRESETS
from trainer.token_counts import count_fork_tokens, count_tokens
from trainer.tree_lines import TreeLine, write_line

T1: dict[str, Any] = {"parents": [-1, 0, 0, 1, 1, 2, 2], "leaf_rewards": {"3": 1, "4": 0, "5": 0, "6": 0}}
STAR: dict[str, Any] = {"parents": [-1, 0, 0, 0, 0], "leaf_rewards": {"1": 1, "2": 0, "3": 0, "4": 0}}


class _Stdin:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str, document: Any = None, raw: bytes | None = None) -> tuple[int, str, str]:
        content = raw if raw is not None else json.dumps(document).encode()
        monkeypatch.setattr("sys.stdin", _Stdin(content))
        status = main(list(arguments))
        out, err = capsys.readouterr()
        return status, out, err

    return call


def credit(
    run: Any, preset: str, *trees: dict[str, Any], settings: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    given = [part for setting in settings for part in ("--set", setting)]
    status, out, err = run("credit", "--preset", preset, *given, document={"trees": list(trees)})
    assert status == 0, err
    found: list[dict[str, Any]] = json.loads(out)["trees"]
    return found


def test_treerpo_of_t1(run: Any) -> None:
    (tree,) = credit(run, "treerpo", T1)
    assert tree["value"] == {"0": 0.25, "1": 0.5, "2": 0, "3": 1, "4": 0, "5": 0, "6": 0}
    assert tree["advantage"] == {
        "1": pytest.approx(4 / 3), "2": pytest.approx(-4 / 3), "3": 2, "4": -2, "5": None, "6": None,
    }  # fmt: skip
    assert tree["group_kept"] == {"0": True, "1": True, "2": False}


def test_trajectory_presets_report_leaves(run: Any) -> None:
    (tree,) = credit(run, "grpo", STAR, settings=("ddof=0", "eps=0"))
    assert tree["advantage"]["1"] == pytest.approx(math.sqrt(3))
    assert tree["group_kept"] == {"0": True}
    (deep,) = credit(run, "grpo", T1)
    assert deep["advantage"]["1"] is None
    assert deep["advantage"]["3"] == pytest.approx(1.4997, abs=1e-4)


def test_the_batch_counts_where_the_scale_says_so(run: Any) -> None:
    other = {"parents": [-1, 0, 0, 0, 0], "leaf_rewards": {"1": 1, "2": 1, "3": 1, "4": 0}}
    first, second = credit(run, "lite-ppo", STAR, other, settings=("eps=0",))
    assert first["advantage"]["1"] == pytest.approx(1.4031, abs=1e-4)
    assert second["advantage"]["4"] == pytest.approx(-1.4031, abs=1e-4)


def test_token_counts_weigh_a_whitening(run: Any) -> None:
    counts = {"1": 0, "2": 0, "3": 1, "4": 1, "5": 2, "6": 4}
    (tree,) = credit(run, "treepo", T1 | {"token_counts": counts}, settings=("eps=0",))
    found = [tree["advantage"][node] for node in "3456"]
    assert found == pytest.approx([2.3606, -1.0730, -0.2146, -0.2146], abs=1e-4)


def test_branches_of_the_root_are_the_trees_of_a_forest(run: Any) -> None:
    forest = {
        "parents": [-1, 0, 0, 1, 1, 1, 2, 2, 2],
        "leaf_rewards": {"3": 1, "4": 0, "5": 0, "6": 1, "7": 1, "8": 0},
    }
    (tree,) = credit(run, "tree-grpo", forest, settings=("eps=0",))
    found = [tree["advantage"][node] for node in "345678"]
    assert found == pytest.approx([2.0676, -1.4902, -1.4902, 1.4902, 1.4902, -2.0676], abs=1e-4)


def test_a_trie_with_copies(run: Any) -> None:
    # ab -> 1 twice, ac -> 0, de -> 0.
    trie = {"parents": [-1, 0, 0, 1, 1, 2], "leaf_rewards": {"3": 1, "4": 0, "5": 0}, "copies": {"3": 2}}
    (tree,) = credit(run, "step-grpo+", trie)
    assert tree["advantage"]["1"] == pytest.approx(0.5772 + 0.3333, abs=1e-4)
    assert tree["advantage"]["5"] == pytest.approx(-0.9998, abs=1e-4)
    (plain,) = credit(run, "step-grpo", trie)
    assert plain["advantage"]["5"] is None


def test_nodes_may_come_in_any_order(run: Any) -> None:
    rng = np.random.default_rng(0)
    (expected,) = credit(run, "treerpo", T1)
    for _ in range(5):
        names = rng.permutation(7).tolist()  # node i of T1 is node names[i] here
        parents = [0] * 7
        for node, parent in enumerate([-1, 0, 0, 1, 1, 2, 2]):
            parents[names[node]] = -1 if parent < 0 else names[parent]
        rewards = {str(names[int(node)]): reward for node, reward in T1["leaf_rewards"].items()}
        (found,) = credit(run, "treerpo", {"parents": parents, "leaf_rewards": rewards})
        assert found["value"] == {str(names[int(n)]): v for n, v in expected["value"].items()}
        assert found["advantage"] == {str(names[int(n)]): a for n, a in expected["advantage"].items()}


def test_a_failed_verifier_is_null_and_enters_no_mean(run: Any) -> None:
    tree = {"parents": [-1, 0, 0, 0], "leaf_rewards": {"1": 1, "2": 0, "3": None}}
    (found,) = credit(run, "dr-grpo", tree)
    assert found["advantage"] == {"1": 0.5, "2": -0.5, "3": None}
    assert found["value"]["3"] is None


@pytest.mark.parametrize("slug", PRESETS)
def test_every_preset_takes_a_tree_and_a_star(run: Any, slug: str) -> None:
    budgets = {"subgroup": {"1": 0, "2": 1, "3": 2, "4": 3}}
    star = STAR | budgets if slug.startswith("hbpo") else STAR
    trees = (star,) if slug.startswith("hbpo") else (star, T1)
    for tree in credit(run, slug, *trees):
        assert set(tree) == {"value", "advantage", "group_kept"}


def test_explain_prints_formula_numbers_group_and_filter(run: Any) -> None:
    status, out, _ = run("credit", "--preset", "treerpo", "--explain", "1", document={"trees": [T1]})
    assert status == 0
    assert "A = (V − μ) / (μ (1 − μ))" in out
    assert "A = (0.5 − 0.25) / (0.25 × 0.75) = 1.3333" in out
    assert "node 2: V = 0.0000" in out
    assert "Kept: max V − min V = 0.5 > τ = 0.1." in out
    _, out, _ = run("credit", "--preset", "treerpo", "--explain", "6", document={"trees": [T1]})
    assert "Dropped" in out
    assert "No credit" in out


@pytest.mark.parametrize("slug", ["treerpo-tiny", "lite-ppo-tiny"])
def test_trees_as_the_site_exports_them_are_credited_as_they_were(run: Any, slug: str) -> None:
    config = PRESETS[slug].config
    batch = credit_trees(
        [tree_of(nested) for nested in ([[1, 0], [0, 0]], [[1, 1], [1, 0]])], credit_plan(config)
    )
    exported = b"\n".join(write_line(TreeLine("a run", i, None, tree)) for i, tree in enumerate(batch))
    status, out, err = run("credit", "--preset", slug, raw=exported)
    assert status == 0, err
    for found, tree in zip(json.loads(out)["trees"], batch, strict=True):
        for node in range(1, tree.n_nodes):
            told = found["advantage"][tree.name(node)]  # called as on its page
            recorded = tree.advantage[node]
            assert told == (pytest.approx(recorded) if math.isfinite(recorded) else None)
    _, out, _ = run("credit", "--preset", slug, "--explain", "2.1", "--tree", "1", raw=exported)
    assert out.startswith("node 2.1\n")
    status, out, err = run("credit", "--preset", slug, raw=exported.replace(b'"parent":0', b'"parent":99', 1))
    assert (status, out) == (2, "")
    assert "Line 1, node 1: parent 99" in err


BAD = [
    ({"parents": [-1, 2, 1], "leaf_rewards": {}}, "node 1: it is part of a cycle"),
    ({"parents": [-1, -1], "leaf_rewards": {}}, "two roots, nodes 0 and 1"),
    ({"parents": [0, 0], "leaf_rewards": {}}, "no root"),
    ({"parents": [-1, 5], "leaf_rewards": {}}, "node 1: parent 5"),
    ({"parents": [-1, 0.5], "leaf_rewards": {}}, "node 1: parent 0.5"),
    ({"parents": [-1, True], "leaf_rewards": {}}, "node 1: parent True"),
    ({"parents": [-1, 0, 1], "leaf_rewards": {"1": 1, "2": 1}}, "node 1: it has children"),
    ({"parents": [-1, 0, 0], "leaf_rewards": {"1": 1}}, "node 2: a leaf without a reward"),
    ({"parents": [-1, 0], "leaf_rewards": {"1": "x"}}, "node 1: leaf_rewards is 'x'"),
    ({"parents": [-1, 0], "leaf_rewards": {"7": 1}}, "names node '7'"),
    ({"parents": [-1, 0, 0], "leaf_rewards": {"1": 1, "2": 2}}, "reward of 2"),
    ({"parents": [-1, 0, 0], "leaf_rewards": {"1": 1, "2": -1}}, "reward of -1"),
    ({"parents": [-1, 0], "leaf_rewards": {"1": 1}, "token_counts": {"1": -3}}, "node 1: token_counts is -3"),
    ({"parents": [-1, 0], "leaf_rewards": {"1": 1}, "token_counts": {"1": 1e300}}, "node 1"),
    ({"parents": [-1, 0], "leaf_rewards": {"1": 1}, "copies": {"1": 0}}, "copies is 0"),
    ({"parents": [-1, 0], "leaf_rewards": {"1": 1}, "colour": 1}, "unknown key 'colour'"),
    ({"parents": [], "leaf_rewards": {}}, 'needs "parents"'),
    ([], "no object"),
    ({"parents": [-1, 0], "leaf_rewards": {"1": 10**400}}, "node 1: leaf_rewards is 1000"),
    ({"parents": [-1, 0], "leaf_rewards": {"1": 2e6}}, "from -1,000,000 to 1,000,000"),
    ({"parents": [-1, 0], "leaf_rewards": {"1": 1, "01": 0}}, "node '01', which is no whole number"),
    ({"parents": [-1, 0], "leaf_rewards": {"1": 1, "-1": 0}}, "node '-1'"),
    ({"parents": [-1], "leaf_rewards": {"0": 1}}, "node 0: the root is the prompt"),
    (
        {"parents": [-1, 0, 1], "leaf_rewards": {"2": 1}, "copies": {"1": 2}},
        "node 1: it has children, so its answers are those of the leaves below",
    ),
    ({"parents": [-1, 0], "leaf_rewards": {"1": 1}, "copies": {"1": 10**12}}, "node 1: copies is"),
    ({"parents": [-1, 0], "leaf_rewards": {"1": 1}, "given": [3]}, "given names node '3'"),
    ({"parents": [-1, 0], "leaf_rewards": {"1": 1}, "correct": {"1": 1}}, "node 1: correct is 1, not true"),
    ({"parents": [-1, 0], "leaf_rewards": {"1": 1}, "correct": [1]}, '"correct" must be an object'),
    ({"parents": [-1, 10**30], "leaf_rewards": {}}, "node 1: parent 1000000"),
]


@pytest.mark.parametrize(("tree", "sentence"), BAD)
def test_bad_trees_are_refused_by_node(run: Any, tree: Any, sentence: str) -> None:
    status, out, err = run("credit", "--preset", "treerpo", document={"trees": [T1, tree]})
    assert status == 2
    assert out == ""
    assert sentence in err


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"{", "no JSON"),
        (b'{"trees": [{"parents": [-1, 0], "leaf_rewards": {"1": NaN}}]}', "NaN is not a JSON value"),
        (b'{"trees": [], "trees": []}', "comes twice"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"7", 'a list "trees"'),
    ],
)
def test_what_is_no_document_is_refused(run: Any, raw: bytes, sentence: str) -> None:
    status, out, err = run("credit", "--preset", "grpo", raw=raw)
    assert (status, out) == (2, "")
    assert sentence in err


def test_a_reward_out_of_range_is_named_by_the_callers_node(run: Any) -> None:
    # Node 1 is the first child of node 3, which is a child of the root 4.
    tree = {"parents": [4, 3, 3, 4, -1], "leaf_rewards": {"0": 1, "1": -1, "2": 0}}
    status, out, err = run("credit", "--preset", "treerpo", document={"trees": [T1, tree]})
    assert (status, out) == (2, "")
    assert "Tree 1, node 1: a reward of -1; bernoulli_variance needs rewards from 0 to 1" in err
    assert run("credit", "--preset", "dapo", document={"trees": [tree]})[0] == 0


def test_dynamic_sampling_goes_by_verdicts_where_they_are_given(run: Any) -> None:
    # All right, one too long: DAPO drops the prompt. Without verdicts there are only rewards to go by.
    tree = {"parents": [-1, 0, 0], "leaf_rewards": {"1": 1, "2": 0.5}}
    (by_reward,) = credit(run, "dapo", tree)
    assert by_reward["group_kept"] == {"0": True}
    (by_verdict,) = credit(run, "dapo", tree | {"correct": {"1": True, "2": True}})
    assert by_verdict["group_kept"] == {"0": False}
    assert by_verdict["advantage"] == {"1": None, "2": None}
    (mixed,) = credit(run, "dapo", tree | {"correct": {"1": True, "2": False}})
    assert mixed["group_kept"] == {"0": True}


def test_large_trees_take_time_in_proportion(run: Any) -> None:
    n = 20_000
    fan = {
        "parents": [-1, *[0] * n, *range(1, n + 1)],
        "leaf_rewards": {str(i): i % 2 for i in range(n + 1, 2 * n + 1)},
    }
    chain = {"parents": list(range(-1, n)), "leaf_rewards": {str(n): 1}}
    start = time.process_time()
    for slug in ("treerpo", "treepo", "tree-grpo"):
        assert run("credit", "--preset", slug, document={"trees": [fan, chain]})[0] == 0
    assert time.process_time() - start < 20


def test_presets_may_be_listed_from_credit_too(run: Any) -> None:
    status, out, _ = run("credit", "--list")
    assert status == 0
    assert "treerl" in out
    with pytest.raises(SystemExit):
        run("credit", document={"trees": []})


def test_unknown_presets_and_settings_name_those_there_are(run: Any) -> None:
    _, _, err = run("credit", "--preset", "magic", document={"trees": []})
    assert "there are treerpo, grpo" in err
    _, _, err = run("credit", "--preset", "grpo", "--set", "tau=1", document={"trees": []})
    assert "no setting 'tau'" in err
    _, _, err = run("credit", "--preset", "treerl", "--set", "form=code", document={"trees": []})
    assert "Set scale to none" in err


def test_settings_by_path_by_name_and_by_kind() -> None:
    config = configured(preset_called("TreeRPO"), ["tau=0.3"])
    assert config.credit.filter.tau == 0.3
    config = configured(preset_called("treerl"), ["form=code", "credit.scale.kind=none"])
    assert config.credit.scale.kind == "none"
    config = configured(preset_called("treerl"), ["form=code", "scale=none", "filter=nonzero"])
    assert (config.credit.scale.kind, config.credit.filter.kind) == ("none", "nonzero")


# ------------------------------------------------------------------------------------------------ tokens


@pytest.mark.parametrize(
    ("branching", "segment", "prompt", "width", "expected"),
    [
        # nodes, leaves, U, F, F/U, packed, flattened, ratio, attention ratio: the papers' settings
        ([8] * 3, 384, 512, 0, (584, 512, 224256, 589824, 2.630, 224768, 851968, 3.790, 2.227)),
        ([8] * 3, 384, 128, 0, (584, 512, 224256, 589824, 2.630, 224384, 655360, 2.921, 1.807)),
        ([2] * 14, 512, 1024, 16, (190, 16, 97280, 114688, 1.179, 98304, 131072, 1.333, 1.075)),
        ([2] * 28, 256, 1024, 16, (414, 16, 105984, 114688, 1.082, 107008, 131072, 1.225, 1.038)),
        ([2] * 7, 1024, 1024, 16, (78, 16, 79872, 114688, 1.436, 80896, 131072, 1.620, 1.203)),
        ([2] * 8, 2048, 1024, 16, (94, 16, 192512, 262144, 1.362, 193536, 278528, 1.439, 1.124)),
        ([4] * 8, 2048, 1024, 16, (116, 16, 237568, 262144, 1.103, 238592, 278528, 1.167, 1.025)),
        ([8] * 8, 2048, 1024, 16, (120, 16, 245760, 262144, 1.067, 246784, 278528, 1.129, 1.017)),
    ],
)
def test_token_counts_of_the_papers_settings(
    branching: list[int], segment: int, prompt: int, width: int, expected: tuple[float, ...]
) -> None:
    found = count_tokens(branching, [segment] * len(branching), prompt, width)
    nodes, leaves, unique, flat, ratio, packed, trained, training, attention = expected
    assert (found.nodes, found.leaves, found.sampled_unique, found.sampled_flat) == (
        nodes,
        leaves,
        unique,
        flat,
    )
    assert (found.trained_packed, found.trained_flat) == (packed, trained)
    assert found.sampling_ratio == pytest.approx(ratio, abs=6e-4)
    assert found.training_ratio == pytest.approx(training, abs=6e-4)
    assert found.attention_ratio == pytest.approx(attention, abs=6e-4)


def test_per_node_rows_of_treerpo_and_a_shared_prompt_of_grpo() -> None:
    assert count_tokens([8] * 3, [384] * 3, 512).trained_per_node == 941056
    assert count_tokens([8] * 3, [384] * 3, 128).trained_per_node == 716800
    flat = count_tokens([8], [1152], 512)
    assert (flat.trained_packed, flat.trained_flat) == (9728, 13312)
    spo = count_tokens([6] * 3, [600, 600, 648], 200)
    assert (spo.nodes, spo.sampled_unique, spo.sampled_flat, spo.trained_flat) == (
        258,
        165168,
        399168,
        442368,
    )


@pytest.mark.parametrize(
    ("b", "d", "length", "leaves", "nodes", "tokens", "flat", "saving"),
    [
        (2, 6, 128, 64, 126, 16128, 49152, 67),
        (4, 3, 256, 64, 84, 21504, 49152, 56),
        (4, 4, 192, 256, 340, 65280, 196608, 67),
        (8, 3, 384, 512, 584, 224256, 589824, 62),
    ],
)
def test_estimate_table(
    b: int, d: int, length: int, leaves: int, nodes: int, tokens: int, flat: int, saving: int
) -> None:
    found = count_tokens([b] * d, [length] * d)
    assert (found.leaves, found.nodes, found.sampled_unique, found.sampled_flat) == (
        leaves,
        nodes,
        tokens,
        flat,
    )
    assert round(100 * found.saving) == saving


@pytest.mark.parametrize(
    ("trees", "forks", "continuations", "leaves", "lengths", "ratio"),
    [(6, 2, 2, 30, 18, 1.667), (2, 2, 1, 6, 4, 1.5)],  # TreeRL's, Tree-GRPO's
)
def test_fork_trees_are_expected_to_cost(
    trees: int, forks: int, continuations: int, leaves: int, lengths: int, ratio: float
) -> None:
    found = count_fork_tokens(trees, forks, continuations, 100)
    assert found.is_expected
    assert (found.leaves, found.sampled_unique, found.sampled_flat) == (leaves, 100 * lengths, 100 * leaves)
    assert found.sampling_ratio == pytest.approx(ratio, abs=6e-4)
    assert found.nodes == leaves + trees * forks


def test_fork_trees_cost_what_sampled_shapes_cost_on_the_mean() -> None:
    """Every fork point u of 0 to T - 1 tokens, once each: the sums are those of the closed formulas."""
    prompt, answer, trees, continuations = 7, 400, 2, 3

    def pairs(first: int, last: int) -> int:
        return sum(range(first + 1, last + 1))

    packed, per_node = [], []
    for u in range(answer + 1):
        new = trees * continuations
        ends = pairs(0, prompt) + trees * pairs(prompt, prompt + answer)
        packed.append(ends + new * pairs(prompt + u, prompt + answer))
        per_node.append((trees + new) * (prompt + answer) + trees * (prompt + u))
    found = count_fork_tokens(trees, 1, continuations, answer, prompt)
    assert found.attention_packed == pytest.approx(np.mean(packed), rel=2e-3)
    assert found.trained_per_node == pytest.approx(np.mean(per_node))


def test_shapes_without_bound_are_refused(run: Any) -> None:
    status, out, err = run("tokens", "--branching", ",".join(["64"] * 64), "--segment", "1")
    assert (status, out) == (2, "")
    assert "Lower the branching" in err
    assert run("tokens", "--preset", "grpo", "--branching", "2", "--segment", "3")[0] == 2


def test_tokens_prints_a_table_or_json(run: Any) -> None:
    status, out, _ = run("tokens", "--branching", "8,8,8", "--segment", "384", "--prompt", "512")
    assert status == 0
    assert "224,256" in out
    assert "3.790" in out
    _, out, _ = run("tokens", "--preset", "treerpo", "--json")
    assert json.loads(out)["leaves"] == 512
    _, out, _ = run("tokens", "--preset", "treerl", "--json")
    assert json.loads(out)["sampled_unique"] == 18 * 8192
    status, out, err = run("tokens", "--preset", "latr")
    assert (status, out) == (2, "")
    assert "no planned shape" in err
    assert run("tokens", "--branching", "8,x", "--segment", "3")[0] == 2
    assert run("tokens", "--branching", "8,8", "--segment", "1,2,3")[0] == 2


def test_presets_are_listed_with_their_formulas(run: Any) -> None:
    _, out, _ = run("presets")
    assert all(slug in out for slug in PRESETS)


def test_the_console_script_starts_without_torch() -> None:
    code = "import sys; import trainer.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
