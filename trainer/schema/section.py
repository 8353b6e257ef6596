"""What every part of the config is made of. Torch-free."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen group of knobs that refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=4096)


def knob(default: Any = ..., *, unit: str = "", advanced: bool = False, **constraints: Any) -> Any:
    """A pydantic field with what the form needs beside bounds: its unit, and whether it hides under
    "Advanced".

    `Any` because pydantic's own `Field` is typed so: the value is a default or a field description.
    """
    return Field(default, json_schema_extra={"unit": unit, "advanced": advanced}, **constraints)
