"""Which metrics share a chart, and in which order the charts stand. Every known metric has its place."""

from __future__ import annotations

from typing import Any

from trainer.metrics import METRICS

# Charts of their own kind; a band is drawn around its metric. All other metrics get a chart each, after
# these, with the band of their `_low` and `_high` where there are such. Pinned charts stand there before
# anything is logged; the others come with their metrics.
_TOP: tuple[dict[str, Any], ...] = (
    {"section": "Learning", "pinned": True, "metrics": ["reward/mean"]},
    {
        "section": "Learning",
        "pinned": True,
        "title": "pass@1",
        "metrics": ["eval/pass1_sampled", "eval/pass1_greedy"],
        "bands": {
            "eval/pass1_sampled": ["eval/pass1_sampled_low", "eval/pass1_sampled_high"],
            "eval/pass1_greedy": ["eval/pass1_greedy_low", "eval/pass1_greedy_high"],
        },
    },
    {"section": "Learning", "pinned": True, "metrics": ["sampling/response_tokens"]},
    {"section": "Learning", "pinned": True, "metrics": ["policy/entropy"]},
    {"section": "Learning", "pinned": True, "metrics": ["speed/tokens_per_second"]},
    {"section": "Learning", "pinned": True, "metrics": ["credit/zero_variance_share"]},
    {
        "section": "Tree",
        "title": "Tokens, unique and flat",
        "metrics": ["tree/unique_tokens", "tree/flat_tokens"],
    },
)
_SECTIONS = {
    "reward": "Learning",
    "eval": "Learning",
    "tree": "Tree",
    "search": "Tree",
    "credit": "Credit",
    "policy": "Policy",
    "preference": "Policy",
    "value": "Policy",
    "expert": "Policy",
    "importance": "Policy",
    "supervised": "Policy",
    "sampling": "Sampling health",
    "data": "Sampling health",
    "verifier": "Sampling health",
    "speed": "Speed",
    "engine": "Engine",
}

_SYSTEM = ("engine/", "importance/", "sampling/staleness", "policy/logprob_gap", "speed/")


def system_panels() -> list[dict[str, Any]]:
    """Those of the engine and of where time goes, as `panels` describes them."""
    return [
        {**panel, "section": "Speed" if name.startswith("speed/") else "Engine", "pinned": False}
        for panel in sorted(panels(), key=lambda panel: str(panel["metrics"][0]).startswith("speed/"))
        if (name := str(panel["metrics"][0])).startswith(_SYSTEM)
    ]


def panels() -> list[dict[str, Any]]:
    """`{title, section, pinned, unit, metrics: [name], titles: {name: title}, formulas: {name: formula},
    bands: {name: [low, high]}}`.
    """
    placed = {name for panel in _TOP for name in panel["metrics"]}
    placed |= {name for panel in _TOP for band in panel.get("bands", {}).values() for name in band}
    bands = {name: [f"{name}_low", f"{name}_high"] for name in METRICS if f"{name}_low" in METRICS}
    placed |= {edge for band in bands.values() for edge in band}
    rest = [
        {
            "section": _SECTIONS.get(name.partition("/")[0], "Other"),
            "metrics": [name],
            "bands": {name: bands[name]} if name in bands else {},
        }
        for name in METRICS
        if name not in placed
    ]
    order = list(dict.fromkeys([*_SECTIONS.values(), "Other"]))
    everything = [*_TOP, *sorted(rest, key=lambda panel: order.index(str(panel["section"])))]
    return [
        {
            "title": panel.get("title", METRICS[panel["metrics"][0]].title),
            "section": panel["section"],
            "pinned": panel.get("pinned", False),
            "unit": METRICS[panel["metrics"][0]].unit,
            "metrics": panel["metrics"],
            "titles": {name: METRICS[name].title for name in panel["metrics"]},
            "formulas": {name: METRICS[name].formula for name in panel["metrics"]},
            "bands": panel.get("bands", {}),
        }
        for panel in everything
    ]
