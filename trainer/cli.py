"""`arborist`: what the estimators make of trees, and what a tree costs, from a shell.

    arborist credit --preset treerpo < batch.json          values and advantages, by node
    arborist credit --preset grpo --set ddof=0 --explain 3 < batch.json
    arborist credit --preset grpo --explain 2.1 < exported-trees.jsonl
    arborist tokens --branching 8,8,8 --segment 384 --prompt 512
    arborist credit --list                                  the presets, with their formulas
    arborist probe CHECKPOINT                               which method's gradient says most

`credit` calls the function that the trainer calls. Exit status 2 with one sentence on stderr, and nothing on
stdout, when the input cannot be used. Torch-free but for `probe`.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from trainer.config import RunConfig
from trainer.config_file import ConfigError, config_from_mapping, parse_yaml
from trainer.credit import CreditPlan, RewardRangeError, credit_plan, credit_trees, refuse_rewards
from trainer.explanation import Explanation, explain, formula
from trainer.presets import PRESETS, Preset, find_preset
from trainer.token_counts import TokenCounts, count_fork_tokens, count_tokens
from trainer.tree import ROOT, CreditState, RolloutTree
from trainer.tree_json import NumberedTree, TreeJsonError, read_trees
from trainer.tree_lines import FORMAT, TreeLineError, read_lines

MOST_BYTES: Final = 256 * 2**20


class CommandError(Exception):
    """One sentence for people."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, do, print. Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        lines = options.run(options)
    except (CommandError, TreeJsonError, TreeLineError, RewardRangeError, ConfigError, ValueError) as error:
        print(f"arborist {options.command}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        for line in lines:
            print(line)  # noqa: T201
        sys.stdout.flush()
    except BrokenPipeError:  # `arborist … | head`
        sys.stderr.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="arborist", description="Tree-RL estimators from a shell.")
    commands = parser.add_subparsers(dest="command", required=True)

    credit = commands.add_parser(
        "credit",
        help="values and advantages of trees, read from stdin: JSON, or lines as the site exports them",
    )
    which = credit.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", metavar="NAME", help="an algorithm, such as treerpo or step-grpo+")
    which.add_argument("--list", action="store_true", help="the algorithms there are, with their formulas")
    credit.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="credit.scale.ddof=0, or ddof=0 for short",
    )
    credit.add_argument(
        "--explain",
        metavar="NODE",
        help="one node in words instead of all in numbers: 3, or 2.1 of an exported tree",
    )
    credit.add_argument(
        "--tree", type=int, default=0, metavar="N", help="which tree --explain looks at (from 0)"
    )
    credit.set_defaults(run=_credit)

    tokens = commands.add_parser("tokens", help="nodes and tokens of a tree by its shape")
    tokens.add_argument("--preset", help="the shape of a preset's tree")
    tokens.add_argument("--branching", help="children at every depth: 8,8,8")
    tokens.add_argument("--segment", help="tokens of a segment: one number, or one for every depth")
    tokens.add_argument("--prompt", type=int, default=0, help="tokens of the prompt (default: 0)")
    tokens.add_argument("--width", type=int, default=0, help="most leaves (default: no limit)")
    tokens.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    tokens.set_defaults(run=_tokens)

    presets = commands.add_parser("presets", help="the algorithms there are, with their formulas")
    presets.set_defaults(run=_presets)

    probe = commands.add_parser("probe", help="signal and noise of every method's gradient at a checkpoint")
    probe.add_argument("checkpoint", help="a model folder, a checkpoint, or tiny-reasoner")
    probe.add_argument(
        "--presets", nargs="+", metavar="NAME", help="which methods (default: all tiny presets)"
    )
    probe.add_argument("--operations", type=int, default=5, help="of the chain problems (default: 5)")
    probe.add_argument("--batches", type=int, default=12, help="independent batches per method (default: 12)")
    probe.add_argument("--tokens", type=int, default=4000, help="sampled tokens per batch (default: 4000)")
    probe.add_argument("--seed", type=int, default=0)
    probe.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    probe.set_defaults(run=_probe)
    return parser


# ------------------------------------------------------------------------------------------------ credit


def _credit(options: argparse.Namespace) -> list[str]:
    if options.list:
        return _presets(options)
    config = configured(preset_called(options.preset), options.set)
    plan = credit_plan(config)
    numbered = _trees()
    for number, one in enumerate(numbered):
        try:
            refuse_rewards(one.tree, plan.credit)
        except RewardRangeError as error:  # again, by the caller's name of the node
            raise CommandError(
                f"Tree {number}, node {one.names[error.node]}: a reward of {one.tree.reward[error.node]:g}; "
                f"{error.what} needs rewards from 0 to 1."
            ) from None
    rule = plan.credit.filter
    if rule.kind == "zero_variance" and not all(one.has_verdicts for one in numbered):
        # Rewards say nothing certain about verdicts, so equal means equal in reward.
        by_reward = rule.model_copy(update={"equal": "reward"})
        plan = replace(plan, credit=plan.credit.model_copy(update={"filter": by_reward}))
    credited = credit_trees([one.tree for one in numbered], plan)
    both = [NumberedTree(tree, one.names) for tree, one in zip(credited, numbered, strict=True)]
    if options.explain is None:
        return [json.dumps({"trees": [credit_json(one, plan) for one in both]}, allow_nan=False)]
    if not 0 <= options.tree < len(both):
        raise CommandError(f"There is no tree {options.tree}; there are {len(both)}, from 0 on.")
    chosen = both[options.tree]
    if options.explain not in chosen.names:
        raise CommandError(
            f"Tree {options.tree} has no node {options.explain!r}. Its nodes are "
            f"{chosen.names[0]} … {chosen.names[-1]}."
        )
    node = chosen.names.index(options.explain)
    return list(_in_words(explain(chosen.tree, node, plan), chosen))


def _trees() -> list[NumberedTree]:
    """What stdin holds: one JSON document, or a tree per line as the site exports them, whose nodes are then
    called as on their page.
    """
    content = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise CommandError(f"More than {MOST_BYTES:,} bytes on stdin.")
    if not _is_exported(content):
        return read_trees(_document(content))
    trees = [line.tree for _, line in read_lines(io.BytesIO(content))]
    return [
        NumberedTree(tree, [tree.name(node) for node in range(tree.n_nodes)], has_verdicts=True)
        for tree in trees
    ]


def _is_exported(content: bytes) -> bool:
    first = content.lstrip().split(b"\n", 1)[0]
    if f'"{FORMAT}"'.encode() not in first:
        return False
    try:
        found = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


def _document(content: bytes) -> Any:
    try:
        return json.loads(content, parse_constant=_refuse_constant, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"stdin is no JSON: {error}") from error


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON value; write null for a verifier that failed")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice!r} comes twice in one object")
    return found


def preset_called(name: str) -> Preset:
    """Raises CommandError with the names there are."""
    try:
        return find_preset(name)
    except KeyError as error:
        raise CommandError(str(error.args[0])) from None


def configured(preset: Preset, settings: Sequence[str]) -> RunConfig:
    """The preset with some values changed. A key is a path, or the last part of one that is unique in what
    decides credit. Raises CommandError and ConfigError.
    """
    values = preset.config.model_dump(mode="json")
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise CommandError(f"--set {setting!r} is not of the form key=value.")
        path = _full_path(values, key.strip())
        here = values
        for part in path[:-1]:
            if not isinstance(here.get(part), dict):
                here[part] = {}
            here = here[part]
        value = parse_yaml(f"value: {text}")["value"]
        if isinstance(value, str) and isinstance(here.get(path[-1]), dict):  # scale=none: the kind
            value = {"kind": value}
        here[path[-1]] = value
        if path[-1] == "kind":  # another kind starts from its own defaults
            for other in [name for name in here if name != "kind"]:
                del here[other]
    return config_from_mapping(values)


def _full_path(values: dict[str, Any], key: str) -> list[str]:
    if "." in key:
        return key.split(".")
    areas = ("credit", "reward", "objective", "sampler")
    found = [path for area in areas for path in _paths(values[area], [area]) if path[-1] == key]
    if not found:
        known = sorted({path[-1] for path in _paths(values["credit"], []) if path[-1] != "kind"})
        raise CommandError(f"There is no setting {key!r} in this preset. Its credit has {', '.join(known)}.")
    in_credit = [path for path in found if path[0] == "credit"]
    if len(in_credit) == 1:
        return in_credit[0]
    if len(found) > 1:
        raise CommandError(
            f"{key!r} could be {' or '.join('.'.join(path) for path in found)}. Write the whole path."
        )
    return found[0]


def _paths(values: dict[str, Any], above: list[str]) -> Iterator[list[str]]:
    """Every value, and every part that has a kind."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _paths(value, [*above, name])
        if not isinstance(value, dict) or "kind" in value:
            yield [*above, name]


def credit_json(numbered: NumberedTree, plan: CreditPlan) -> dict[str, dict[str, Any]]:
    """{"value", "advantage", "group_kept"} of a credited tree, keyed by the caller's node. null: no value, no
    credit. A group is known by the node above it: a parent, or the root where answers are compared.
    """
    tree = numbered.tree
    names = numbered.names
    return {
        "value": {names[node]: _number(tree.value[node]) for node in range(tree.n_nodes)},
        "advantage": {names[node]: _number(tree.advantage[node]) for node in range(1, tree.n_nodes)},
        "group_kept": {names[node]: kept for node, kept in groups_kept(tree, plan).items()},
    }


def groups_kept(tree: RolloutTree, plan: CreditPlan) -> dict[int, bool]:
    """{node above a group: whether any member of it trains}."""
    credited = tree.credit_state == CreditState.CREDITED
    if plan.credit.spread != "node" or plan.credit.baseline.kind == "none":
        return {ROOT: bool(credited.any())}
    training = np.bincount(tree.parent[1:], credited[1:], minlength=tree.n_nodes)
    return {node: bool(training[node]) for node in np.unique(tree.parent[1:]).tolist()}


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _in_words(told: Explanation, numbered: NumberedTree) -> Iterator[str]:
    name = numbered.names[told.node]
    yield f"node {name}"
    yield f"  {told.value_formula}"
    if told.value_numbers:
        yield f"  {told.value_numbers}"
    yield f"  {told.formula}"
    if told.numbers:
        yield f"  {told.numbers}"
    for row in told.group:
        value = "no value" if math.isnan(row.value) else f"V = {row.value:.4f}"
        times = "" if row.weight in (0, 1) else f", counts {row.weight:g} times"
        mark = "  <-" if row.node == told.node else "" if row.in_group else "  not in the group"
        yield f"    node {numbered.names[row.node]}: {value}{times}{mark}"
    if told.filter:
        yield f"  {told.filter}"
    if told.reason:
        yield f"  {told.reason}"


# ------------------------------------------------------------------------------------------------ the others


def _tokens(options: argparse.Namespace) -> list[str]:
    if options.preset and (options.branching or options.segment):
        raise CommandError("Give --preset, or --branching and --segment; not both.")
    if options.preset:
        counts = _preset_counts(preset_called(options.preset), options.prompt)
    elif options.branching and options.segment:
        branching = _whole_numbers("--branching", options.branching)
        segment = _whole_numbers("--segment", options.segment)
        if len(segment) == 1:
            segment = segment * len(branching)
        counts = count_tokens(branching, segment, options.prompt, options.width)
    else:
        raise CommandError("Give --preset, or --branching and --segment.")
    return [json.dumps(counts.as_dict())] if options.json else list(_table(counts))


def _preset_counts(preset: Preset, prompt: int) -> TokenCounts:
    """Of the tree that a preset's sampler plans. Raises CommandError where it plans none."""
    sampler = preset.config.sampler
    if sampler.kind == "flat":
        return count_tokens([sampler.group_size], [sampler.max_tokens], prompt)
    if sampler.kind == "segment_tree":
        return count_tokens(sampler.branching, sampler.segment_tokens, prompt, sampler.max_width)
    if sampler.kind == "fork_tree":
        forks = sampler.rounds * sampler.forks
        return count_fork_tokens(sampler.trees, forks, sampler.continuations, sampler.max_tokens, prompt)
    raise CommandError(
        f"The tree of sampler {sampler.kind} has no planned shape: its forks are where the policy puts them. "
        f"At most {sampler.bounds.leaves} leaves of {sampler.bounds.answer_tokens} tokens."
    )


def _whole_numbers(name: str, text: str) -> list[int]:
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and len(part.strip()) < 10 for part in parts):
        raise CommandError(f"{name} {text!r} is no list of whole numbers, such as 8,8,8.")
    return [int(part) for part in parts]


def _table(counts: TokenCounts) -> Iterator[str]:
    expected = ", on the mean over fork points" if counts.is_expected else ""
    yield f"nodes {counts.nodes:,}, leaves {counts.leaves:,}{expected}"
    rows: tuple[tuple[str | int | float, ...], ...] = (
        ("", "unique", "flattened", "ratio", "per node", "ratio"),
        ("sampled tokens", counts.sampled_unique, counts.sampled_flat, counts.sampling_ratio, "-", "-"),
        (
            "trained tokens",
            counts.trained_packed,
            counts.trained_flat,
            counts.training_ratio,
            counts.trained_per_node,
            counts.per_node_ratio,
        ),
        ("attention pairs", counts.attention_packed, counts.attention_flat, counts.attention_ratio, "-", "-"),
    )
    for name, *cells in rows:
        yield f"{name:18}" + "".join(
            f"{_cell(cell):>{width}}" for cell, width in zip(cells, (16, 16, 8, 16, 8), strict=True)
        )
    yield f"sampling saves {counts.saving:.1%} of the tokens"


def _cell(value: str | int | float) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _presets(_options: argparse.Namespace) -> list[str]:
    lines = []
    for preset in PRESETS.values():
        lines += [
            f"{preset.slug:<18}{preset.title}  ({preset.source})",
            f"{'':18}{formula(preset.config.credit)}",
        ]
    return lines


def _probe(options: argparse.Namespace) -> list[str]:
    from trainer.probe import probe_lines  # torch comes with it

    names = options.presets or [slug for slug, preset in PRESETS.items() if preset.scale == "tiny"]
    return probe_lines(
        options.checkpoint,
        [PRESETS[f"{preset_called(name).algorithm}-tiny"] for name in names],
        operations=options.operations,
        batches=options.batches,
        tokens=options.tokens,
        seed=options.seed,
        as_json=options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
