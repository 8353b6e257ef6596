"""Presets as a list to choose from: one row per algorithm, grouped by how it samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trainer.presets import Preset
from webapp.runs.method import algorithm_name

FAMILIES = {"flat": "Flat answers", "tree": "Trees", "search": "Search and preference"}


@dataclass(frozen=True, slots=True)
class PresetRow:
    """One algorithm. `first`: what its name leads to; `others`: its further scales as (scale, slug).

    `text`: what a filter looks in.
    """

    name: str
    first: str
    others: tuple[tuple[str, str], ...]
    current: str
    text: str


@dataclass(frozen=True, slots=True)
class PresetGroup:
    title: str
    rows: tuple[PresetRow, ...]


def preset_groups(presets: Iterable[Preset], current: Preset) -> list[PresetGroup]:
    """The families in a fixed order, each with its algorithms in the order of the presets."""
    by_family: dict[str, dict[str, list[Preset]]] = {}
    for preset in presets:
        by_family.setdefault(preset.family, {}).setdefault(preset.algorithm, []).append(preset)
    order = [*FAMILIES, *(family for family in by_family if family not in FAMILIES)]
    return [
        PresetGroup(
            FAMILIES.get(family, family.capitalize()),
            tuple(_row(scales, current) for scales in by_family[family].values()),
        )
        for family in order
        if family in by_family
    ]


def _row(scales: list[Preset], current: Preset) -> PresetRow:
    first = scales[0]
    return PresetRow(
        name=algorithm_name(first),
        first=first.slug,
        others=tuple((one.scale, one.slug) for one in scales[1:]),
        current=current.slug if any(one.slug == current.slug for one in scales) else "",
        text=" ".join((first.title, *(one.slug for one in scales), first.summary, first.source)).lower(),
    )
