"""What can be exported, and the knobs of each: one list for form, API, worker and docs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from webapp.errors import RequestError


class _Kind(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TreesExport(_Kind):
    kind: Literal["trees"] = "trees"


class NodesExport(_Kind):
    kind: Literal["nodes"] = "nodes"
    format: Literal["csv", "parquet"] = "csv"


class PairsExport(_Kind):
    kind: Literal["pairs"] = "pairs"
    gap: float = Field(0.5, gt=0, le=1000)
    answers: int = Field(1, ge=1, le=100_000)
    most: int = Field(1, ge=1, le=100)


class LabelsExport(_Kind):
    kind: Literal["labels"] = "labels"
    threshold: float = Field(0.5, ge=-1000, le=1000)


class ChatsExport(_Kind):
    kind: Literal["chats"] = "chats"
    most: int = Field(4, ge=1, le=1000)


class PageExport(_Kind):
    kind: Literal["page"] = "page"


Parameters = Annotated[
    TreesExport | NodesExport | PairsExport | LabelsExport | ChatsExport | PageExport,
    Field(discriminator="kind"),
]
_ADAPTER: TypeAdapter[Parameters] = TypeAdapter(Parameters)


@dataclass(frozen=True, slots=True)
class Knob:
    """One field of the form. `choices`: value -> label; without any a number is typed."""

    name: str
    label: str
    help: str
    choices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KindWords:
    """How pages call a kind. `row`: what one row of its file is, in the plural."""

    title: str
    form: str
    summary: str
    row: str
    knobs: tuple[Knob, ...] = ()


KINDS: Final[Mapping[str, KindWords]] = {
    "trees": KindWords(
        "Trees", "JSONL", "Everything of a tree, one tree per line. Can be imported again.", "trees"
    ),
    "nodes": KindWords(
        "Nodes",
        "CSV or Parquet",
        "One row per node with its text and numbers, for data frames.",
        "nodes",
        (Knob("format", "Format", "", {"csv": "CSV", "parquet": "Parquet"}),),
    ),
    "pairs": KindWords(
        "Preference pairs",
        "JSONL",
        "Siblings of which one is better, with all they share as the prompt. TRL's DPO columns.",
        "pairs",
        (
            Knob("gap", "Value gap, at least", "V of the better less V of the other."),
            Knob("answers", "Scored answers, at least", "Below each of the two."),
            Knob("most", "Pairs of one group, at most", "The widest first."),
        ),
    ),
    "labels": KindWords(
        "Step labels",
        "JSONL",
        "Every answer as steps with their values, for process reward models. TRL's PRM columns.",
        "answers",
        (Knob("threshold", "Good from a value of", "A step of at least this value is labelled true."),),
    ),
    "chats": KindWords(
        "Best answers",
        "JSONL",
        "Correct answers as chats, each text once, for supervised fine-tuning.",
        "answers",
        (Knob("most", "Answers to one problem, at most", "By reward, then newest, then shortest."),),
    ),
    "page": KindWords(
        "Page", "HTML", "One tree to read without Arborist: one file, no script, nothing loaded.", "pages"
    ),
}  # fmt: skip


def read_parameters(kind: str, given: Mapping[str, Any], *, strict: bool = True) -> Parameters:
    """The kind with its knobs; `strict` False takes numbers as text, as a form sends them. Raises
    RequestError(400) that names every wrong knob. `Any`: JSON.
    """
    if kind not in KINDS:
        raise RequestError(
            400,
            f"{kind[:80]!r} is no kind of export. Use one of: {', '.join(KINDS)}.",
            [{"path": "kind", "message": f"Use one of: {', '.join(KINDS)}."}],
        )
    try:
        return _ADAPTER.validate_python({**given, "kind": kind}, strict=strict)
    except ValidationError as error:
        labels = {knob.name: knob.label for knob in KINDS[kind].knobs}
        errors = [
            {
                "path": str(one["loc"][-1]),
                "message": f"{one['msg'].removeprefix('Input should be ').capitalize()}.",
            }
            for one in error.errors(include_url=False)
        ]
        first = errors[0]
        name = labels.get(first["path"], first["path"])
        raise RequestError(400, f"{name}: {first['message']}", errors) from error


def suffix(parameters: Parameters) -> str:
    """Of the file's name."""
    if isinstance(parameters, NodesExport):
        return parameters.format
    return "html" if isinstance(parameters, PageExport) else "jsonl"
