"""Writes `docs/reference.md` from the words themselves: config fields, metrics, event kinds;
`docs/troubles.md` from `trainer.guards`; the list of algorithms in `docs/estimators.md` from the presets.

`python scripts/write_reference.py` rewrites them; `--check` only says whether they are current, and exits
with 1 if not.
"""

from __future__ import annotations

import re
import sys
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainer import config, events
from trainer.explanation import formula
from trainer.guards import TROUBLES
from trainer.metrics import METRICS
from trainer.presets import PRESETS

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "reference.md"
TROUBLES_PAGE = DOCS / "troubles.md"
ESTIMATORS = DOCS / "estimators.md"
ORDER = ("failed", "paused", "queued again", "goes on")
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


def troubles() -> str:
    """What went wrong, what one sees, what to do."""
    lines = [
        "# Troubles",
        "",
        (
            "What can go wrong with a run, the sentence that it then shows, and what to do. A run that ends "
            "or pauses also says its last complete step and the step of its last checkpoint. Written by "
            "`scripts/write_reference.py` from `trainer/guards.py`; a test fails when it is out of date."
        ),
        "",
        (
            "`failed` ends the run: Retry goes on from its last checkpoint with the same config, Fork with "
            "another one. `paused` waits for a person, who presses Resume. What goes on needs nobody."
        ),
        "",
        "| what went wrong | the run | what you see | what to do |",
        "|---|---|---|---|",
    ]
    for trouble in sorted(TROUBLES.values(), key=lambda trouble: ORDER.index(trouble.then)):
        says = re.sub(r"\{(\w+)[^}]*\}", "…", trouble.says)
        lines.append(f"| {_cell(trouble.cause)} | {trouble.then} | {_cell(says)} | {_cell(trouble.do)} |")
    return "\n".join(lines) + "\n"


def algorithms() -> str:
    """A section for every algorithm."""
    lines: list[str] = []
    for slug in dict.fromkeys(preset.algorithm for preset in PRESETS.values()):
        scales = [preset for preset in PRESETS.values() if preset.algorithm == slug]
        first = scales[0]
        columns = [_parts(preset.config) for preset in scales]
        choices = [" | ".join(told) for told in zip(*(column.values() for column in columns), strict=True)]
        unverified = dict.fromkeys(path for preset in scales for path in preset.unverified)
        metrics = dict.fromkeys(name for preset in scales for name in _metrics(preset.config))
        lines += [
            f"### {first.title.removesuffix(' · tiny')}",
            "",
            f"Source: {first.source}. {first.summary}",
            "",
            f"    {first.formula}",
            f"    {formula(first.config.credit)}",
            "",
            f"| part | function | {' | '.join(f'`{preset.slug}`' for preset in scales)} |",
            f"|---|---|{'---|' * len(scales)}",
            *(
                f"| {part} | {_function(part, first.config)} | {told} |"
                for part, told in zip(columns[0], choices, strict=True)
            ),
            "",
            f"*Metrics:* {', '.join(f'`{name}`' for name in metrics)}.",
            "",
            f"*Tests:* {', '.join(f'`{test}`' for test in EXAMPLES[slug])}.",
            "",
        ]
        if first.differences:
            lines += [f"*Paper and code:* {first.differences}", ""]
        if unverified:
            lines += [f"*Our choice:* {', '.join(f'`{path}`' for path in unverified)}.", ""]
    return "\n".join(lines)


def _parts(values: config.RunConfig) -> dict[str, str]:
    """{part: the choice, and what differs from its own defaults}."""
    credit, reward, training = values.credit, values.reward, values.training
    kl = f", KL {reward.kl_coefficient:g}" if reward.kl_coefficient else ""
    return {
        "sampler": _choice(values.sampler),
        "reward": f"{reward.correct:g} / {reward.incorrect:g}, shaping {_choice(reward.shaping)}{kl}",
        "value backup": credit.backup,
        "baseline": _choice(credit.baseline),
        "scale": _choice(credit.scale),
        "spread": credit.spread,
        "filter, leaves": f"{_choice(credit.filter)}; {_choice(credit.leaves)}",
        "objective": _choice(values.objective),
        "step": (
            f"{training.problems_per_step} problems, {training.updates_per_step} "
            f"update{'s' * (training.updates_per_step > 1)}, learning rate {training.learning_rate:g}"
        ),
    }


# What computes each choice.
FUNCTIONS = {
    "flat": "`trainer/sampling/flat.py`",
    "segment_tree": "`trainer/sampling/segment_tree.py`, `trainer/sampling/width_tree.py`",
    "fork_tree": "`trainer/sampling/fork_tree.py`",
    "lookahead": "`trainer/sampling/lookahead.py`",
    "search_tree": "`trainer/sampling/search_tree.py`",
    "group_mean": "`advantages.against_group`",
    "leave_one_out": "`advantages.against_group`",
    "log_avg_exp": "`advantages.against_group`",
    "parent_value": "`advantages.compare`",
    "ancestor_mean": "`advantages.against_ancestors`",
    "root_and_parent": "`advantages.compare`, `advantages.root_and_parent_terms`",
    "tree_and_prompt": "`advantages.standardised`",
    "state": "`advantages.against_state`",
    "budget": "`advantages.against_budget`",
    "policy": "`loss_weights.weigh`, `losses.policy_loss`",
    "preference": "`loss_weights.preference_pairs`, `losses.preference_loss`",
    "supervised": "`loss_weights.weigh`, `losses.supervised_loss`, `losses.value_loss`",
}

# Worked by hand, or limits. All presets also stand in test_credit_parts.py (every combination of parts
# against a slow version), test_packing.py (packed gradient = flat) and test_presets.py (five real steps).
_BY_HAND = "tests/trainer/test_estimators.py::test_"
_TREERPO = "tests/trainer/test_credit.py::test_"
_PACKING = "tests/trainer/test_packing.py::test_"
_LOSSES = "tests/trainer/test_losses.py::test_"
_FLAT_GROUP = f"{_BY_HAND}flat_group_by_hand"
EXAMPLES = {
    "treerpo": (f"{_TREERPO}t1_treerpo_by_hand", f"{_TREERPO}t2_treerpo_by_hand", f"{_BY_HAND}treerpo_scale"),
    "grpo": (_FLAT_GROUP, f"{_TREERPO}grpo_equals_the_slow_version"),
    "dr-grpo": (
        _FLAT_GROUP,
        f"{_BY_HAND}depth_one_limits",
        f"{_PACKING}normalisers_count_answers_written_out",
    ),
    "dapo": (
        _FLAT_GROUP,
        "tests/trainer/test_rewards.py::test_overlong_penalty_by_hand",
        "tests/trainer/test_rollouts.py::test_as_many_as_fell_out_are_sampled_until_the_batch_is_full",
    ),
    "lite-ppo": (
        f"{_BY_HAND}lite_ppo_divides_by_the_deviation_of_the_batch",
        f"{_BY_HAND}lite_ppo_may_take_the_deviation_of_centred_rewards",
    ),
    "rloo": (_FLAT_GROUP, f"{_LOSSES}sequence_and_geometric_ratios_by_hand"),
    "gspo": (_FLAT_GROUP, f"{_LOSSES}sequence_and_geometric_ratios_by_hand"),
    "opmd": (_FLAT_GROUP, f"{_LOSSES}regularizers_by_hand"),
    "asymre": (_FLAT_GROUP, f"{_BY_HAND}all_equal_rewards"),
    "treepo": (
        f"{_BY_HAND}treepo_by_hand",
        f"{_BY_HAND}treepo_whitened_counts_tokens",
        f"{_BY_HAND}a_chain_node_counts_its_group_twice_in_treepo",
    ),
    "latr": (_FLAT_GROUP,),
    "treerl": (
        f"{_BY_HAND}treerl_paper_by_hand",
        f"{_BY_HAND}treerl_code_by_hand",
        f"{_BY_HAND}some_leaves_train_and_one_of_them_is_correct",
    ),
    "spo-tree": (
        f"{_BY_HAND}spo_tree_drops_edges_without_advantage",
        f"{_PACKING}given_and_sure_tokens_do_not_train",
    ),
    "tree-grpo": (f"{_BY_HAND}tree_grpo_by_hand", f"{_BY_HAND}leaves_per_tree"),
    "treeadv": (
        f"{_BY_HAND}treeadv_gives_segments_the_mean_of_their_leaves",
        f"{_BY_HAND}treeadv_weighted_by_leaves_is_what_broadcasting_does",
    ),
    "d-treerpo": (f"{_BY_HAND}d_treerpo_by_hand",),
    "chord": (
        f"{_PACKING}mu_rises_then_falls_by_a_cosine",
        f"{_PACKING}experts_weigh_mu_over_all_their_tokens",
        f"{_LOSSES}token_weights_of_the_expert_by_hand",
    ),
    "hbpo": (f"{_BY_HAND}hbpo_by_hand", "tests/trainer/test_rewards.py::test_budget_rewards_by_hand"),
    "mcts-dpo": (
        f"{_PACKING}pairs_by_hand",
        f"{_LOSSES}preferences_by_hand",
        f"{_BY_HAND}visit_weighted_values",
    ),
    "rest-mcts": (f"{_BY_HAND}quality_by_hand", f"{_LOSSES}values_and_entropy_by_hand"),
    "step-grpo": (f"{_BY_HAND}step_grpo_by_hand", f"{_PACKING}step_grpo_weights_by_hand"),
    "step-grpo+": (f"{_BY_HAND}step_grpo_by_hand", f"{_PACKING}step_grpo_weights_by_hand"),
}


def _function(part: str, values: config.RunConfig) -> str:
    """What computes a part, as it is chosen."""
    if part == "reward":
        return "`rewards.rewards_of`"
    if part == "value backup":
        return "`values.quality_values`" if values.credit.backup == "quality" else "`values.backed_up_values`"
    if part in ("scale", "spread"):
        return "`advantages.divisors`" if part == "scale" else "`credit.credit_of`"
    if part == "filter, leaves":
        return "`advantages.filtered`, `credit.selected_leaves`, `rollouts.collect`"
    if part == "baseline":
        return FUNCTIONS.get(values.credit.baseline.kind, "–")
    if part == "sampler":
        return FUNCTIONS[values.sampler.kind]
    return FUNCTIONS[values.objective.kind] if part == "objective" else "`optim.Optimiser`"


def _metrics(values: config.RunConfig) -> list[str]:
    """Those to look at first."""
    names = ["reward/mean"]
    objective = values.objective
    if objective.kind == "policy":
        names += ["credit/credited_share", "credit/zero_variance_share", "credit/advantage_mean_abs"]
        names += ["policy/clip_fraction"] if objective.clip != "none" else []
        names += ["policy/kl"] if objective.regularizer.kind == "k3" else []
        names += ["expert/mu", "expert/loss"] if objective.expert.kind == "chord" else []
    else:
        names += [name for name in METRICS if name.startswith(f"{objective.kind}/")]
    if values.credit.filter.kind == "zero_variance":
        names += ["sampling/resample_rounds", "sampling/dropped_problems"]
    if values.sampler.kind == "flat" and values.sampler.merge != "none":
        names += ["tree/merged_share"]
    return names


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
    if isinstance(value, str) and not value.isidentifier():
        return f"`{value!r}`"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def estimators() -> str:
    """The page of estimators with its list of algorithms."""
    before, _, rest = ESTIMATORS.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{algorithms()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    pages = {PAGE: render(), TROUBLES_PAGE: troubles(), ESTIMATORS: estimators()}
    stale = [page for page, text in pages.items() if not page.exists() or page.read_text() != text]
    if "--check" in sys.argv:
        for page in stale:
            print(f"docs/{page.name} is out of date: run python scripts/write_reference.py")
        sys.exit(1 if stale else 0)
    for page, text in pages.items():
        page.write_text(text)
        print(f"Wrote {page.name}: {len(text.splitlines())} lines.")
