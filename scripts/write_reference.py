"""Writes `docs/reference.md` from the words themselves: config fields, metrics, event kinds; and the list of
algorithms in `docs/estimators.md`, from the presets.

`python scripts/write_reference.py` rewrites both; `--check` only says whether they are current, and exits
with 1 if not.
"""

from __future__ import annotations

import sys
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainer import config, events
from trainer.explanation import formula
from trainer.metrics import METRICS
from trainer.presets import PRESETS

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "reference.md"
ESTIMATORS = DOCS / "estimators.md"
BEGIN, END = "<!-- algorithms: written by scripts/write_reference.py -->", "<!-- end of algorithms -->"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Every pydantic model named in a type, in order. `Any`: a type annotation has no type of its own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


def _bounds(field: FieldInfo) -> str:
    words = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(m, name):,.10g}"
        for m in field.metadata
        for name, sign in words.items()
        if hasattr(m, name)
    ]
    choices = [repr(c).strip("'") for c in typing.get_args(field.annotation) if isinstance(c, str | int)]
    return ", ".join(found) or " · ".join(f"`{c}`" for c in choices)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value}`" if value != "" else ""


def _rows(model: type[BaseModel], prefix: str) -> list[str]:
    rows: list[str] = []
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        sections = _models_in(field.annotation)
        if sections:
            for section in sections:
                kind = section.model_fields.get("kind")
                label = f"{path} ({kind.default})" if kind and len(sections) > 1 else path
                rows.append(f"| **`{label}`** | | | {' '.join((section.__doc__ or '').split())} |")
                rows += _rows(section, f"{path}.")
        elif name != "kind":
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            unit = f" ({extra['unit']})" if extra.get("unit") else ""
            text = field.description or "Version of this schema."
            rows.append(f"| `{path}` | {_default(field)} | {_bounds(field)}{unit} | {text} |")
    return rows


def _cell(text: str) -> str:
    """Text for a table's cell, where a bare bar would end it."""
    return text.replace("|", "\\|")


def render() -> str:
    """The whole page as Markdown."""
    lines = [
        "# Reference",
        "",
        "Written by `scripts/write_reference.py` from the code; a test fails when it is out of date.",
        "",
        "## Config",
        "",
        (
            "What the form, a YAML file and the API all fill in. Defaults are those of the schema; a preset "
            "sets its own."
        ),
        "",
        "| field | default | bounds | meaning |",
        "|---|---|---|---|",
        *_rows(config.RunConfig, ""),
        "",
        "## Metrics",
        "",
        "| metric | title | unit | how it is computed |",
        "|---|---|---|---|",
        *(f"| `{m.name}` | {_cell(m.title)} | {m.unit} | {_cell(m.formula)} |" for m in METRICS.values()),
        "",
        "## Events",
        "",
        (
            "One JSON line each, as printed by `python -m trainer`. Every event has `kind` and `time` (Unix "
            "seconds)."
        ),
        "",
        "| kind | fields | meaning |",
        "|---|---|---|",
    ]
    for model in _models_in(events.Event):
        fields = ", ".join(f"`{name}`" for name in model.model_fields if name not in ("time", "kind"))
        kind = model.model_fields["kind"].default
        lines.append(f"| `{kind}` | {fields} | {' '.join((model.__doc__ or '').split())} |")
    return "\n".join(lines) + "\n"


def algorithms() -> str:
    """A section for every algorithm."""
    lines: list[str] = []
    for slug in dict.fromkeys(preset.algorithm for preset in PRESETS.values()):
        both = [preset for preset in PRESETS.values() if preset.algorithm == slug]
        first = both[0]
        config, credit = first.config, first.config.credit
        title = first.title.removesuffix(" · tiny")
        names = ", ".join(f"`{preset.slug}`" for preset in both)
        lines += [
            f"### {title}",
            "",
            f"Presets {names}. Source: {first.source}. {first.summary}",
            "",
            f"    {first.formula}",
            f"    {formula(credit)}",
            "",
            "| part | choice |",
            "|---|---|",
            f"| sampler | {_choice(config.sampler)} |",
            (
                f"| reward | {config.reward.correct:g} / {config.reward.incorrect:g}, shaping "
                f"{config.reward.shaping.kind} |"
            ),
            (
                f"| credit | backup {credit.backup}; baseline {_choice(credit.baseline)}; "
                f"scale {_choice(credit.scale)}; spread {credit.spread}; filter {_choice(credit.filter)}; "
                f"leaves {_choice(credit.leaves)} |"
            ),
            f"| objective | {_choice(config.objective)} |",
            "",
        ]
        if first.differences:
            lines += [f"*Paper and code:* {first.differences}", ""]
        if first.unverified:
            lines += [f"*Our choice:* {', '.join(f'`{path}`' for path in first.unverified)}.", ""]
    return "\n".join(lines)


def _choice(section: BaseModel) -> str:
    """`group_mean (group prompt)`: the kind, and what differs from the kind's own defaults."""
    values = section.model_dump(mode="json")
    kind = values.pop("kind")
    defaults = {name: field.default for name, field in type(section).model_fields.items()}
    told = []
    for name, value in values.items():
        default = defaults[name]
        plain = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
        plain = list(plain) if isinstance(plain, tuple) else plain
        if value != plain:
            told.append(f"{name} {_told(value)}")
    return _cell(f"{kind} ({', '.join(told)})" if told else kind)


def _told(value: Any) -> str:
    """A value for people. `Any`: JSON."""
    if isinstance(value, dict):
        rest = ", ".join(f"{name} {_told(part)}" for name, part in value.items() if name != "kind")
        return f"{value['kind']} ({rest})" if rest else str(value["kind"])
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def estimators() -> str:
    """The page of estimators with its list of algorithms."""
    before, _, rest = ESTIMATORS.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{algorithms()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    pages = {PAGE: render(), ESTIMATORS: estimators()}
    stale = [page for page, text in pages.items() if not page.exists() or page.read_text() != text]
    if "--check" in sys.argv:
        for page in stale:
            print(f"docs/{page.name} is out of date: run python scripts/write_reference.py")
        sys.exit(1 if stale else 0)
    for page, text in pages.items():
        page.write_text(text)
        print(f"Wrote {page.name}: {len(text.splitlines())} lines.")
