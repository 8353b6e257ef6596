"""Writes `docs/reference.md` from the words themselves: config fields, metrics, event kinds.

`python scripts/write_reference.py` rewrites the page; `--check` only says whether it is current, and exits
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
from trainer.metrics import METRICS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"


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


if __name__ == "__main__":
    page = render()
    if "--check" in sys.argv:
        current = PAGE.exists() and PAGE.read_text() == page
        print(
            "docs/reference.md is current."
            if current
            else "docs/reference.md is out of date: run python scripts/write_reference.py"
        )
        sys.exit(0 if current else 1)
    PAGE.write_text(page)
    print(f"Wrote {PAGE.name}: {len(page.splitlines())} lines.")
