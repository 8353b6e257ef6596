"""Trees as JSON lines: one tree per line, for people and for other programs, out and back in.

The schema is in docs/exports.md. `write_line` and `read_lines` are each other's inverse: what was written and
read is written as the same bytes. A file may come from anywhere, so everything in it is checked, and a
mistake is told with its line and node. Torch-free.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from trainer.config import RunConfig
from trainer.credit import CreditPlan, credit_of, credit_plan
from trainer.presets import PRESETS
from trainer.text import storable
from trainer.tree import MOST_TOP, ROOT, CreditState, FinishReason, RolloutTree, Verdict
from trainer.tree_json import TreeJsonError, breadth_first

FORMAT: Final = "arborist.tree"
VERSION: Final = 1
MOST_LINE_BYTES: Final = 64 * 2**20
MOST_TREES: Final = 100_000
MOST_NODES: Final = 200_000  # of one tree
MOST_TOKENS: Final = 10_000_000  # of one tree
MOST_ANSWERS: Final = 200_000  # of one tree, with merged ones: no more than without them
MOST_DEPTH: Final = 1000
MOST_NUMBER: Final = 1e6  # size of a reward, value, advantage or logprob
MOST_CLIP: Final = 7  # all of `clipping.Clip`
MOST_COUNT: Final = 2**31 - 1
MOST_STEP: Final = 2**53
MOST_ID_LETTERS: Final = 200
AGREES_WITHIN: Final = 1e-6  # absolute and relative

_TREE_KEYS: Final = (
    "format", "version", "run", "step", "index", "problem_id", "reference_answer", "policy_version",
    "temperature", "stream", "estimator", "batch_mean", "batch_std", "loss_share", "update",
    "updates", "token_texts", "nodes",
)  # fmt: skip
_NODE_KEYS: Final = (
    "parent", "text", "tokens", "logprobs", "entropies", "mismatch", "log_ratio", "clip",
    "top_tokens", "top_logprobs", "finish",
    "verdict", "answer", "reward", "value", "advantage", "credit_state", "copies", "visits", "subgroup",
)  # fmt: skip
_OPTIONAL: Final = ("mismatch", "log_ratio", "clip", "top_tokens", "top_logprobs")  # that not every tree has
_ESTIMATOR_KEYS: Final = ("preset", "seed", "formula")
_FINISH: Final = {one.word: one for one in FinishReason}
_VERDICTS: Final = {one.word: one for one in Verdict}
_CREDIT_STATES: Final = {one.word: one for one in CreditState}


class Readable(Protocol):
    """What lines are read from: an open file, or something like one."""

    def readline(self, limit: int, /) -> bytes: ...


class TreeLineError(ValueError):
    """A line that cannot be used; the message names line and node."""


@dataclass(frozen=True, slots=True)
class Estimator:
    """What made the values and advantages. `preset` None: the credit of no preset, or unknown; `seed` is the
    run's, which decides where leaves are chosen by chance; `formula` is for people.
    """

    preset: str | None = None
    seed: int = 0
    formula: str = ""

    def plan(self) -> CreditPlan | None:
        """The plan to compute the numbers again, or None when no preset of ours is named."""
        preset = PRESETS.get(self.preset or "")
        return None if preset is None else credit_plan(preset.config.model_copy(update={"seed": self.seed}))


@dataclass(frozen=True, slots=True)
class TreeLine:
    """A tree and where it came from: the run's name, and its place in the step's batch."""

    run: str
    index: int
    estimator: Estimator | None
    tree: RolloutTree


def estimator_of(config: RunConfig, formula: str) -> Estimator:
    """What a run's lines say of their numbers: its preset, where the credit is just the preset's."""
    named = Estimator(config.preset, config.seed, formula)
    return named if named.plan() == credit_plan(config) else Estimator(None, config.seed, formula)


def disagreement(tree: RolloutTree, plan: CreditPlan) -> str | None:
    """Where `plan` does not come to the tree's values and advantages, in a sentence; None: it does."""
    try:
        credit = credit_of(tree, plan)
    except ValueError as error:  # rewards out of range; figures of the batch that the tree does not have
        return str(error)
    for what, computed, given in (
        ("value", credit.scores.value, tree.value),
        ("advantage", credit.advantage, tree.advantage),
    ):
        equal = np.isclose(computed, given, rtol=AGREES_WITHIN, atol=AGREES_WITHIN, equal_nan=True)
        if not equal.all():
            node = int(np.flatnonzero(~equal)[0])
            return f"Node {tree.name(node)}: its {what} is {given[node]:g}, computed {computed[node]:g}."
    return None


# ------------------------------------------------------------------------------------------------ writing


def write_line(line: TreeLine) -> bytes:
    """One line, with its line break. What is missing is null; NaN does not occur."""
    return orjson.dumps(tree_object(line), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def tree_object(line: TreeLine) -> dict[str, Any]:
    """The object of a line; token columns are numpy arrays. `Any`: JSON."""
    tree, estimator = line.tree, line.estimator
    offsets = tree.token_offsets.tolist()
    rewards, values, advantages = (_nulls(x) for x in (tree.reward, tree.value, tree.advantage))
    columns = zip(
        tree.parent.tolist(), tree.finish.tolist(), tree.verdict.tolist(), tree.credit_state.tolist(),
        tree.copies.tolist(), tree.visits.tolist(), tree.subgroup.tolist(), strict=True,
    )  # fmt: skip
    optional = {name: column for name in _OPTIONAL if (column := getattr(tree, name)) is not None}
    finish, verdicts, states = ([one.word for one in words] for words in (FinishReason, Verdict, CreditState))
    return {
        "format": FORMAT,
        "version": VERSION,
        "run": storable(line.run),
        "step": tree.step,
        "index": line.index,
        "problem_id": storable(tree.problem_id),
        "reference_answer": storable(tree.reference_answer),
        "policy_version": tree.policy_version,
        "temperature": _null(tree.temperature),
        "stream": None if tree.stream is None else str(tree.stream),
        "estimator": None
        if estimator is None
        else {
            "preset": estimator.preset,
            "seed": estimator.seed,
            "formula": storable(estimator.formula),
        },
        "batch_mean": _null(tree.batch_mean),
        "batch_std": _null(tree.batch_std),
        "loss_share": _null(tree.loss_share),
        "update": tree.update,
        "updates": tree.updates,
        "token_texts": {str(token): _text_of(raw) for token, raw in sorted(tree.token_bytes.items())},
        "nodes": [
            {
                "parent": None if node == ROOT else parent,
                "text": storable(tree.texts[node]),
                "tokens": tree.tokens[offsets[node] : offsets[node + 1]],
                "logprobs": tree.logprobs[offsets[node] : offsets[node + 1]],
                "entropies": tree.entropies[offsets[node] : offsets[node + 1]],
                **{name: column[offsets[node] : offsets[node + 1]] for name, column in optional.items()},
                "finish": finish[end],
                "verdict": verdicts[verdict],
                "answer": storable(tree.answers[node]),
                "reward": rewards[node],
                "value": values[node],
                "advantage": advantages[node],
                "credit_state": states[state],
                "copies": copies,
                "visits": visits,
                "subgroup": subgroup,
            }
            for node, (parent, end, verdict, state, copies, visits, subgroup) in enumerate(columns)
        ],
    }


def _text_of(raw: bytes) -> str | dict[str, str]:
    """A token's text; a part of a character is no text, so its bytes are written."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"hex": raw.hex()}


def _null(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _nulls(numbers: NDArray[np.float64]) -> list[float | None]:
    return [_null(number) for number in numbers.tolist()]


# ------------------------------------------------------------------------------------------------ reading


def read_lines(
    stream: Readable,
    most_memory: int | None = None,
    refuse: Callable[[TreeLineError], None] | None = None,
) -> Iterator[tuple[int, TreeLine]]:
    """(line number from 1, the tree of it) of every line that is not blank; one line at a time is in memory.

    most_memory: bytes that reading one line may take; None: no bound. Raises TreeLineError at the first line
    that cannot be used; with `refuse` that is called instead, and the next line is read. A line that is too
    long is the last one either way.
    """
    number = found = 0
    while raw := stream.readline(MOST_LINE_BYTES + 1):
        number += 1
        if len(raw) > MOST_LINE_BYTES:
            raise TreeLineError(f"Line {number} is longer than {MOST_LINE_BYTES:,} bytes.")
        if not raw.strip():
            continue
        found += 1
        if found > MOST_TREES:
            raise TreeLineError(f"Line {number}: at most {MOST_TREES:,} trees are read from one file.")
        try:
            yield number, _within(raw, found - 1, most_memory)
        except TreeLineError as error:
            told = TreeLineError(f"Line {number}{error}")
            if refuse is None:
                raise told from error
            refuse(told)


def _within(raw: bytes, index: int, most_memory: int | None) -> TreeLine:
    if most_memory is not None and (needed := memory_of(raw)) > most_memory:
        raise TreeLineError(
            f" holds so many values that reading it may take {needed // 2**20:,} MiB; at most "
            f"{most_memory // 2**20:,} are used here. Import the file with manage.py import_trees."
        )
    return read_line(raw, index)


def read_line(raw: bytes, index: int = 0) -> TreeLine:
    """The tree of one line. `index`: its place, where the line does not say one. Raises TreeLineError whose
    message goes on after `Line 3`.
    """
    given = _loads(raw)
    if not isinstance(given, dict):
        raise TreeLineError(" is no JSON object. Each line holds one tree.")
    if given.get("format") != FORMAT:
        raise TreeLineError(f': "format" is {reprlib.repr(given.get("format"))}; expected "{FORMAT}".')
    if type(given.get("version")) is not int or given["version"] != VERSION:
        raise TreeLineError(
            f': "version" is {reprlib.repr(given.get("version"))}; this Arborist reads {VERSION}.'
        )
    if unknown := sorted(set(given) - set(_TREE_KEYS)):
        raise TreeLineError(f": unknown key {unknown[0][:80]!r}. Known are {', '.join(_TREE_KEYS)}.")
    nodes = given.get("nodes")
    if not isinstance(nodes, list) or not nodes:
        raise TreeLineError(': "nodes" must be a list of at least one node, the prompt.')
    if len(nodes) > MOST_NODES:
        raise TreeLineError(f": {len(nodes):,} nodes; at most {MOST_NODES:,} are read.")
    problem_id = _text(given, "problem_id", "")
    if not problem_id.strip() or len(problem_id) > MOST_ID_LETTERS:
        raise TreeLineError(f': "problem_id" must be a text of 1 to {MOST_ID_LETTERS} letters.')
    try:
        tree = _tree(given, nodes, problem_id)
    except TreeLineError:
        raise
    except ValueError as error:  # an invariant of RolloutTree itself
        raise TreeLineError(f": {error}") from error
    return TreeLine(
        run=_text(given, "run", ""),
        index=_whole(given, "index", index, MOST_COUNT),
        estimator=_estimator(given.get("estimator")),
        tree=tree,
    )


def _tree(given: Mapping[str, Any], nodes: list[Any], problem_id: str) -> RolloutTree:
    for number, node in enumerate(nodes):
        if not isinstance(node, dict):
            raise TreeLineError(f", node {number}: it is no JSON object.")
        if unknown := sorted(set(node) - set(_NODE_KEYS)):
            known = ", ".join(_NODE_KEYS)
            raise TreeLineError(f", node {number}: unknown key {unknown[0][:80]!r}. Known are {known}.")
        if "parent" not in node:
            raise TreeLineError(f', node {number}: it has no "parent"; the root says null.')
        parent = node["parent"]
        if parent is not None and not (type(parent) is int and 0 <= parent < len(nodes)):
            raise TreeLineError(
                f", node {number}: parent {reprlib.repr(parent)} is no node; expected null or 0 to "
                f"{len(nodes) - 1}."
            )
    roots = [number for number, node in enumerate(nodes) if node["parent"] is None]
    if len(roots) != 1:
        found = "no root" if not roots else f"two roots, nodes {roots[0]} and {roots[1]}"
        raise TreeLineError(f" has {found}; exactly one node has the parent null.")
    try:
        order = breadth_first("", [-1 if node["parent"] is None else node["parent"] for node in nodes])
    except TreeJsonError as error:  # a cycle
        raise TreeLineError(str(error)) from error
    place = [0] * len(nodes)
    for new, old in enumerate(order):
        place[old] = new
    parent = [-1, *(place[nodes[old]["parent"]] for old in order[1:])]
    depth = [0] * len(order)
    for new in range(1, len(order)):
        depth[new] = depth[parent[new]] + 1
    if depth[-1] > MOST_DEPTH:
        raise TreeLineError(f", node {order[-1]}: it is {depth[-1]:,} deep; at most {MOST_DEPTH:,} are read.")
    inner = np.zeros(len(order), np.bool_)
    inner[parent[1:]] = True
    inner[ROOT] = True
    rows = [
        _Node(old, nodes[old], is_inner, len(order))
        for old, is_inner in zip(order, inner.tolist(), strict=True)
    ]
    answers = sum(row.copies for row in rows)
    if answers > MOST_ANSWERS:
        raise TreeLineError(f": its copies are {answers:,} answers; at most {MOST_ANSWERS:,} are read.")
    counts = [len(row.tokens) for row in rows]
    if sum(counts) > MOST_TOKENS:
        raise TreeLineError(f": {sum(counts):,} tokens; at most {MOST_TOKENS:,} are read.")
    return RolloutTree(
        problem_id=problem_id,
        reference_answer=_text(given, "reference_answer", ""),
        step=_whole(given, "step", 0, MOST_STEP),
        policy_version=_whole(given, "policy_version", 0, MOST_STEP),
        parent=np.array(parent, np.int32),
        token_offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        tokens=np.concatenate([row.tokens for row in rows]),
        logprobs=np.concatenate([row.logprobs for row in rows]),
        entropies=np.concatenate([row.entropies for row in rows]),
        finish=np.array([row.finish for row in rows], np.uint8),
        verdict=np.array([row.verdict for row in rows], np.uint8),
        copies=np.array([row.copies for row in rows], np.int32),
        subgroup=np.array([row.subgroup for row in rows], np.int32),
        visits=np.array([row.visits for row in rows], np.int32),
        reward=np.array([row.reward for row in rows]),
        value=np.array([row.value for row in rows]),
        advantage=np.array([row.advantage for row in rows]),
        credit_state=np.array([row.credit_state for row in rows], np.uint8),
        texts=tuple(row.text for row in rows),
        answers=tuple(row.answer for row in rows),
        batch_mean=_number("", given, "batch_mean"),
        batch_std=_number("", given, "batch_std"),
        temperature=_number("", given, "temperature"),
        stream=_stream(given.get("stream")),
        loss_share=_number("", given, "loss_share"),
        update=_whole(given, "update", 0, MOST_COUNT),
        updates=_whole(given, "updates", 0, MOST_COUNT),
        token_bytes=_token_texts(given.get("token_texts")),
        **_optional(order, nodes, counts),
    )


def _all_tokens(order: list[int], nodes: list[Any], counts: list[int], key: str) -> NDArray[np.float32]:
    """[T] `key` of all nodes in their order; NaN where a node has none. `Any`: JSON."""
    return np.concatenate(
        [_per_token(f", node {old}", nodes[old], key, n) for old, n in zip(order, counts, strict=True)]
    )


def _optional(order: list[int], nodes: list[Any], counts: list[int]) -> dict[str, Any]:
    """The columns that a tree may be without: those that any of its nodes has. `Any`: arrays, and JSON."""
    found: dict[str, Any] = {}
    has = {name for node in nodes for name in _OPTIONAL if node.get(name) is not None}
    for name in ("mismatch", "log_ratio"):
        if name in has:
            found[name] = _all_tokens(order, nodes, counts, name).astype(np.float16)
    if "clip" in has:
        clip = np.nan_to_num(_all_tokens(order, nodes, counts, "clip"), nan=0)
        if not np.isin(clip, range(MOST_CLIP + 1)).all():
            raise TreeLineError(f": clip must be whole numbers from 0 to {MOST_CLIP}.")
        found["clip"] = clip.astype(np.uint8)
    if has & {"top_tokens", "top_logprobs"}:
        width = _width(nodes)
        tokens, logprobs = [], []
        for old, n in zip(order, counts, strict=True):
            tokens.append(_table(f", node {old}", nodes[old], "top_tokens", n, width))
            logprobs.append(_table(f", node {old}", nodes[old], "top_logprobs", n, width))
        found["top_tokens"] = np.nan_to_num(np.concatenate(tokens), nan=-1).astype(np.int32)
        found["top_logprobs"] = np.concatenate(logprobs).astype(np.float16)
    return found


def _width(nodes: list[Any]) -> int:
    """How many alternatives each token has, by the first that has any."""
    for number, node in enumerate(nodes):
        rows = node.get("top_tokens")
        if rows and isinstance(rows, list):
            if not isinstance(rows[0], list) or not 1 <= len(rows[0]) <= MOST_TOP:
                raise TreeLineError(f", node {number}: top_tokens must be lists of 1 to {MOST_TOP} tokens.")
            return len(rows[0])
    return 1


def _table(where: str, given: Mapping[str, Any], key: str, n: int, width: int) -> NDArray[np.float64]:
    """[T, K]; NaN where the file does not say. Token ids are exact in float64."""
    rows = given.get(key)
    if rows is None:
        return np.full((n, width), np.nan)
    if not isinstance(rows, list) or len(rows) != n:
        raise TreeLineError(f"{where}: {key} must be a list of one list for each of its {n:,} tokens.")
    for row in rows:
        if not isinstance(row, list) or len(row) != width:
            raise TreeLineError(f"{where}: every list of {key} must have {width} entries.")
    flat = [value for row in rows for value in row]
    kinds = {int, type(None)} if key == "top_tokens" else {int, float, type(None)}
    known = [value for value in flat if value is not None]
    most = MOST_COUNT if key == "top_tokens" else MOST_NUMBER
    if not set(map(type, flat)) <= kinds or (known and not (min(known) >= -most and max(known) <= most)):
        raise TreeLineError(f"{where}: {key} must hold numbers, of at most {most:,.0f}.")
    return np.array([math.nan if value is None else value for value in flat], np.float64).reshape(n, width)


def _stream(given: Any) -> int | None:
    """Digits, since JSON readers elsewhere round so large a number. `Any`: JSON."""
    if given is None:
        return None
    is_number = isinstance(given, str) and given.isascii() and given.isdecimal() and len(given) <= 20
    if not (is_number and int(given) < 2**64):
        raise TreeLineError(': "stream" must be null or a whole number below 2^64, as a text of digits.')
    return int(given)


def _token_texts(given: Any) -> dict[int, bytes]:
    """id -> text of a token, as bytes. `Any`: JSON."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise TreeLineError(': "token_texts" must be an object from token id to text.')
    found = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10 and int(key) <= MOST_COUNT):
            raise TreeLineError(f': "token_texts" names {key[:20]!r}, which is no token id.')
        try:
            raw = value.encode() if isinstance(value, str) else bytes.fromhex(value["hex"])
        except (UnicodeEncodeError, TypeError, KeyError, ValueError) as error:
            raise TreeLineError(f': "token_texts" of {key} is neither text nor {{"hex": …}}.') from error
        found[int(key)] = raw
    return found


class _Node:
    """One node of a line, checked."""

    __slots__ = (
        "advantage",
        "answer",
        "copies",
        "credit_state",
        "entropies",
        "finish",
        "logprobs",
        "reward",
        "subgroup",
        "text",
        "tokens",
        "value",
        "verdict",
        "visits",
    )  # fmt: skip

    def __init__(self, number: int, given: Mapping[str, Any], is_inner: bool, n_nodes: int) -> None:
        where = f", node {number}"
        is_root = given["parent"] is None
        self.text = _text(given, "text", "", where)
        self.answer = _text(given, "answer", "", where)
        self.tokens = _token_ids(where, given.get("tokens"))
        self.logprobs = _per_token(where, given, "logprobs", len(self.tokens))
        self.entropies = _per_token(where, given, "entropies", len(self.tokens))
        usual = "none" if is_root else "split" if is_inner else "eos"
        self.finish = _word(where, given, "finish", usual, _FINISH)
        self.verdict = _word(where, given, "verdict", "none", _VERDICTS)
        self.reward = _number(where, given, "reward")
        self.value = _number(where, given, "value")
        self.advantage = _number(where, given, "advantage")
        has_credit = not math.isnan(self.advantage)
        self.credit_state = _word(
            where, given, "credit_state", "credited" if has_credit else "none", _CREDIT_STATES
        )
        self.copies = _whole(given, "copies", 0 if is_inner else 1, MOST_COUNT, where)
        self.visits = _whole(given, "visits", 0, MOST_COUNT, where)
        # Groups are counted up to the largest number, so it must be one that nodes can have.
        self.subgroup = _whole(given, "subgroup", 0, n_nodes - 1, where)
        if is_inner and (not math.isnan(self.reward) or self.verdict != Verdict.NONE):
            raise TreeLineError(f"{where}: it is no leaf, so it has no reward and no verdict of its own.")
        if is_inner and self.copies:
            raise TreeLineError(f"{where}: it is no leaf, so its copies are 0; those of its leaves count.")
        if has_credit and self.credit_state != CreditState.CREDITED:
            raise TreeLineError(
                f'{where}: it has an advantage, and its credit_state is "{given["credit_state"]}". Say '
                '"credited", or null for the advantage.'
            )


def _estimator(given: Any) -> Estimator | None:
    if given is None:
        return None
    if not isinstance(given, dict) or set(given) - set(_ESTIMATOR_KEYS):
        raise TreeLineError(f': "estimator" must be null or an object of {", ".join(_ESTIMATOR_KEYS)}.')
    where = ', "estimator"'
    preset = None if given.get("preset") is None else _text(given, "preset", "", where)[:64]
    return Estimator(
        preset, _whole(given, "seed", 0, MOST_COUNT, where), _text(given, "formula", "", where)[:2000]
    )


# ---- values of JSON, checked. `where` goes on after `Line 3`.


def _text(given: Mapping[str, Any], key: str, default: str, where: str = "") -> str:
    value = given.get(key, default)
    if not isinstance(value, str):
        raise TreeLineError(f"{where}: {key} is {reprlib.repr(value)}, no text.")
    if value != storable(value):
        raise TreeLineError(f"{where}: {key} holds a NUL or half a surrogate pair. Remove it.")
    return value


def _whole(given: Mapping[str, Any], key: str, default: int, most: int, where: str = "") -> int:
    value = given.get(key, default)
    if type(value) is not int or not 0 <= value <= most:
        raise TreeLineError(
            f"{where}: {key} is {reprlib.repr(value)}; expected a whole number from 0 to {most:,}."
        )
    return value


def _number(where: str, given: Mapping[str, Any], key: str) -> float:
    """A number, or NaN for null."""
    value = given.get(key)
    if value is None:
        return math.nan
    # Compared before it is made a float, for which an integer may be too large.
    if type(value) not in (int, float) or not -MOST_NUMBER <= value <= MOST_NUMBER:
        raise TreeLineError(
            f"{where}: {key} is {reprlib.repr(value)}; expected null or a number from {-MOST_NUMBER:,.0f} to "
            f"{MOST_NUMBER:,.0f}."
        )
    return float(value)


def _word(where: str, given: Mapping[str, Any], key: str, default: str, words: Mapping[str, int]) -> int:
    value = given.get(key, default)
    if not isinstance(value, str) or value not in words:
        raise TreeLineError(f"{where}: {key} is {reprlib.repr(value)}; expected one of {', '.join(words)}.")
    return words[value]


def _token_ids(where: str, given: Any) -> NDArray[np.int32]:
    """[T]; none where the file has no tokens."""
    if given is None:
        return np.zeros(0, np.int32)
    if not isinstance(given, list) or not set(map(type, given)) <= {int}:
        raise TreeLineError(f"{where}: tokens must be a list of whole numbers.")
    if given and not (min(given) >= 0 and max(given) <= MOST_COUNT):
        raise TreeLineError(f"{where}: a token's id is not within 0 to {MOST_COUNT:,}.")
    return np.array(given, np.int32)


def _per_token(where: str, given: Mapping[str, Any], key: str, n: int) -> NDArray[np.float32]:
    """[T]; NaN where the file does not say."""
    values: Sequence[Any] | None = given.get(key)
    if values is None:
        return np.full(n, np.nan, np.float32)
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float, type(None)}:
        raise TreeLineError(f"{where}: {key} must be a list of numbers.")
    if len(values) != n:
        raise TreeLineError(f"{where}: {len(values):,} {key} for {n:,} tokens.")
    known = [value for value in values if value is not None]
    if known and not (min(known) >= -MOST_NUMBER and max(known) <= MOST_NUMBER):
        raise TreeLineError(f"{where}: one of its {key} is larger than {MOST_NUMBER:,.0f}.")
    return np.array([math.nan if value is None else value for value in values], np.float32)


def memory_of(raw: bytes) -> int:
    """Bytes that a line may take while it is read, told from its signs before anything is made of it: the
    line, its text and the parts of it, a Python object for each value, and the arrays made of them. Signs
    within texts count, too.
    """
    text = len(raw) * (1 if raw.isascii() else 4)
    return (
        len(raw) + 2 * text + 72 * raw.count(b"{") + 64 * raw.count(b"[") + 112 * raw.count(b":")
        + 48 * raw.count(b",") + 26 * raw.count(b'"')
    )  # fmt: skip


def _loads(raw: bytes) -> Any:
    """`Any`: JSON. Refuses what is ambiguous: a key twice, NaN and infinity."""
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant, parse_float=_float
        )
    except UnicodeDecodeError as error:
        raise TreeLineError(f" is not UTF-8: byte {error.start + 1} cannot be read.") from error
    except json.JSONDecodeError as error:
        raise TreeLineError(f" is no JSON: {error.msg} at column {error.colno}.") from error
    except RecursionError as error:
        raise TreeLineError(" is nested too deeply. Nodes are a list with parents, not nested.") from error
    except TreeLineError:
        raise
    except ValueError as error:  # Python's limit on the digits of a whole number
        raise TreeLineError(": a number has too many digits.") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        # One walk: counting each key would take hours over a line of a million keys.
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add gives None: false
        raise TreeLineError(f": the key {twice[:80]!r} stands twice in one object. Keep one.")
    return found


def _constant(word: str) -> NoReturn:
    raise TreeLineError(f": {word} is not JSON. Use null for a number that is missing.")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise TreeLineError(f": the number {text[:40]} is too large.")
    return number
