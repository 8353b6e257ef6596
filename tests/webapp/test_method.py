"""What a run's config does, in words: the preset's formula while it holds, else one made from the parts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.webapp.material import People, next_event
from trainer.config import RunConfig
from trainer.presets import PRESETS, Preset
from trainer.schema.sampler import FlatSampler
from webapp.runs.events import packing_words
from webapp.runs.method import changes_from, composed_formula, method_of, sampler_words, source_url
from webapp.runs.models import Run


def changed(slug: str, **sections: dict[str, Any]) -> RunConfig:
    data = PRESETS[slug].config.model_dump(mode="json")
    for name, values in sections.items():
        # Another kind has other knobs: then the section is given whole.
        data[name] = values if "kind" in values else data[name] | values
    return RunConfig.model_validate(data)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.slug)
def test_a_preset_shows_its_own_formula_and_no_changes(preset: Preset) -> None:
    method = method_of(preset.config)
    assert (method.formula, method.source, method.is_preset) == (preset.formula, preset.source, True)
    assert method.changes == ()
    assert method.title in preset.title
    assert "changed" not in method.title
    for words in (method.sampling, method.learning, composed_formula(preset.config)):
        assert words
        assert "  ," not in words
        assert "_" not in words.replace("m_batch", "").replace("σ_batch", "").replace("π_ref", "")


def test_a_change_of_steps_keeps_the_formula_and_is_told_but_not_the_seed() -> None:
    config = changed("grpo-tiny", training={"steps": 7}).model_copy(update={"seed": 99})
    method = method_of(config)
    assert method.is_preset
    assert [(one.path, one.before, one.after) for one in method.changes] == [("training.steps", "150", "7")]


def test_changed_credit_or_objective_shows_the_formula_of_its_parts() -> None:
    config = changed("treerpo-tiny", credit={"scale": {"kind": "none"}})
    method = method_of(config)
    assert (method.title, method.is_preset) == ("TreeRPO, changed", False)
    assert method.formula == "A = V − μ,  μ = mean V of the siblings"
    assert [one.path for one in method.changes] == ["credit.scale.kind"]
    clipped = method_of(changed("dapo-tiny", objective={"clip_high": 0.5}))
    assert not clipped.is_preset
    assert "clipped to 0.8 … 1.5" in clipped.learning


def test_of_another_kind_only_what_is_not_its_default_is_told() -> None:
    sampler = {"kind": "search_tree", "iterations": 4}
    found = list(changes_from(PRESETS["treerpo-tiny"].config, changed("treerpo-tiny", sampler=sampler)))
    assert [(one.path, one.before, one.after) for one in found] == [
        ("sampler.kind", "segment_tree", "search_tree"),
        ("sampler.iterations", "", "4"),
    ]


def test_objectives_without_advantages_show_their_loss() -> None:
    dpo = PRESETS["mcts-dpo-tiny"].config
    assert composed_formula(dpo).startswith("−log σ(βx)")
    ipo = changed("mcts-dpo-tiny", objective={"loss": "ipo", "beta": 0.5})
    assert composed_formula(ipo).startswith("(x − 1 / (2β))²")
    assert "β = 0.5" in composed_formula(ipo)
    rest = changed("rest-mcts-tiny", objective={"policy_weight": 0.5})
    assert composed_formula(rest) == "0.5 · cross-entropy on correct answers + (v − V)²"


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("arXiv:2506.05183 eq. 4", "https://arxiv.org/abs/2506.05183"),
        ("ours (docs/estimators.md)", ""),
        ("arXiv:javascript:alert(1)", ""),
    ],
)
def test_sources_lead_to_papers_and_nowhere_else(source: str, url: str) -> None:
    assert source_url(source) == url


def test_an_unknown_preset_is_named_by_its_slug() -> None:
    method = method_of(RunConfig(preset="of-another-time"))
    assert (method.title, method.source, method.changes) == ("of-another-time, changed", "", ())
    assert method.formula.startswith("A = ")


# ------------------------------------------------------------------------------------------------ packing


@pytest.mark.parametrize(
    ("difference", "packed", "flat", "text", "fine"),
    [
        (1.6e-6, 1000, 3100, "gradient difference 1.6e−6, 3.1× fewer tokens.", True),
        (0.0, 1000, 1000, "gradient difference 0.0e+0, as many tokens.", True),
        (2.5e-3, 10, 20, "2.5e−3, 2.0× fewer tokens. That is more than rounding.", False),
        ("NaN", 10, 20, "difference nan, 2.0× fewer tokens. That is more than rounding.", False),
    ],
)
def test_the_check_of_packing_in_words(
    difference: Any, packed: int, flat: int, text: str, fine: bool
) -> None:
    body = {"gradient_difference": difference, "packed_tokens": packed, "flat_tokens": flat}
    found = packing_words(body)
    assert found.text.startswith("Packed training checked against flat: ")
    assert found.text.endswith(text)
    assert found.is_rounding == fine


def test_coarser_numbers_may_differ_more() -> None:
    body = {"gradient_difference": 1e-2, "packed_tokens": 1, "flat_tokens": 2}
    assert packing_words(body, "bfloat16").is_rounding
    assert not packing_words(body, "float32").is_rounding


def test_the_run_page_tells_method_check_and_changes(run: Run, people: People) -> None:
    client = people.client("viewer")
    assert client.get(f"/r/{run.id}/").context["packing"] is None
    body = {"gradient_difference": 1.6e-6, "loss_difference": 0, "packed_tokens": 10, "flat_tokens": 31}
    next_event(run, "packing_checked", 1, body)
    config = changed("treerpo-tiny", training={"steps": 9}).model_dump(mode="json")
    Run.objects.filter(id=run.id).update(config=config)
    page = client.get(f"/r/{run.id}/").content.decode()
    assert "gradient difference 1.6e−6, 3.1× fewer tokens." in page
    assert "tree 4 · 2 · 2, segments of at most 16, 16, 64 tokens, split at line breaks" in page
    assert "1 change from the preset" in page
    assert 'href="https://arxiv.org/abs/2506.05183"' in page
    events = client.get(f"/r/{run.id}/events").context["events"]
    assert events[-1]["kind"] == "packing_checked"
    assert events[-1]["level"] == ""


def test_a_run_of_another_version_can_still_be_looked_at(run: Run, people: People) -> None:
    Run.objects.filter(id=run.id).update(config={"schema_version": 99, "training": {"steps": 9}})
    page = people.client("viewer").get(f"/r/{run.id}/")
    assert page.status_code == 200
    assert "of another version of Arborist" in page.content.decode()


def test_what_is_drawn_from_is_told() -> None:
    words = sampler_words(FlatSampler(temperature=0.8, top_k=50, top_p=0.95))
    assert words.endswith("temperature 0.8, top-k 50, top-p 0.95")
    assert sampler_words(FlatSampler(top_k=50)).endswith("tokens, top-k 50")
