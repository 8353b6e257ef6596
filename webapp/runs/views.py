"""Pages of runs. Views parse, call, render."""

from __future__ import annotations

import io
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from pydantic import ValidationError
from ruamel.yaml import YAML

from trainer.config import RunConfig, stored_config
from trainer.presets import PRESETS, Preset
from webapp.errors import RequestError
from webapp.limits import PAGE_SIZE
from webapp.projects.access import Role, get_project, get_run, may, require, runs_for, user_of
from webapp.projects.models import Dataset, ModelSource, Project
from webapp.runs import services
from webapp.runs.config_form import (
    ConfigError,
    FormField,
    FormSection,
    build_form,
    config_errors,
    kinds_of,
    linked_message,
    read_form,
    unseen_fields,
)
from webapp.runs.controls import Action, control, done_words
from webapp.runs.estimate import estimate
from webapp.runs.events import packing_check, told_events
from webapp.runs.forks import changed, fork, fork_fields, forkable, typed_changes
from webapp.runs.method import source_url
from webapp.runs.models import Run
from webapp.runs.origin import config_of, imported, method_of_run
from webapp.runs.panels import panels
from webapp.runs.picker import preset_groups
from webapp.runs.querysets import attempts_of, outcome_of, resumes_of, run_states, runs_page

if TYPE_CHECKING:
    from webapp.projects.access import ProjectSeen

DEFAULT_PRESET = "treerpo-tiny"
FIRST_PRESETS = ("treerpo-tiny", "grpo-tiny", "treepo-tiny")  # what an empty project offers
PLUGIN_GROUP = "arborist.verifiers"  # entry points, as `trainer.judges` asks for them
GENERATED = ("chain", "graph")
DATA_KINDS = {
    "chain": "Chain (generated)",
    "graph": "Graph (generated)",
    "jsonl": "JSONL file",
    "parquet": "Parquet",
    "datasets": "Data set by name",
}
MAX_OVERLAYS = 9


@require_GET
def run_list(request: HttpRequest, slug: str) -> HttpResponse:
    project = get_project(request, slug)
    runs, next_before = runs_page(project, page_cursor(request, "before"), PAGE_SIZE)
    context = {
        "project": project,
        "role": project.role,
        "can_control": may(project.role, Role.EDITOR),
        "runs": runs,
        "next_before": next_before,
        "presets": [PRESETS[slug] for slug in FIRST_PRESETS if slug in PRESETS],
        "n_presets": len(PRESETS),
    }
    return render(request, "runs/list.html", context)


def page_cursor(request: HttpRequest, name: str) -> int | None:
    """A number from the query string; None when it is absent. Nonsense is no page: Http404."""
    text = request.GET.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise Http404
    return int(text)


# ------------------------------------------------------------------------------------------------ create


@require_http_methods(["GET", "HEAD", "POST"])
def run_new(request: HttpRequest, slug: str) -> HttpResponseBase:
    """The form, filled from a preset and from what the address or the form says; a POST queues the run."""
    project = get_project(request, slug)
    require(request.user, project, Role.EDITOR)
    sent = request.POST if request.method == "POST" else request.GET
    preset = PRESETS.get(sent.get("preset", request.GET.get("preset", DEFAULT_PRESET)))
    if preset is None:
        raise Http404
    typed = {key: value for key, value in sent.items() if isinstance(value, str)}
    options = _options(project, typed, preset)
    name = typed.get("name", f"{preset.slug}-{Run.objects.filter(project=project).count() + 1}")
    key = typed.get("idempotency_key", secrets.token_urlsafe(16))
    config, errors = _read(preset, typed, options, is_final=request.method == "POST")
    if request.method == "POST" and config is not None and not errors:
        try:
            run = services.create_run(project, user_of(request), config, name, key)
        except RequestError as refused:
            errors = [ConfigError(error["path"], error["message"]) for error in refused.errors]
            errors = errors or [ConfigError("", refused.detail)]
        else:
            return redirect("run-detail", run.id)
    return _show_form(request, project, preset, typed, options, name, key, config, errors)


def _options(project: Project, typed: Mapping[str, str], preset: Preset) -> dict[str, list[tuple[str, str]]]:
    """What the text fields of a form may name here: base models, the project's data, installed verifiers.
    Two queries.
    """
    models = [(source.slug, source.name) for source in ModelSource.objects.all()[:200]]
    sources: dict[str, list[tuple[str, str]]] = {}
    for dataset in Dataset.objects.filter(project=project).order_by("name"):
        source = str(dataset.spec.get("path") or dataset.spec.get("name") or "")
        sources.setdefault(str(dataset.spec.get("kind")), []).append((source, dataset.name))
    plugins = sorted(entry.name for entry in entry_points(group=PLUGIN_GROUP))
    kind = typed.get("data.kind", preset.config.data.kind)
    kinds = [*GENERATED, *(name for name in ("jsonl", "parquet", "datasets") if name in sources)]
    return {
        "model.path": models,
        "data.kind": [(name, DATA_KINDS[name]) for name in kinds],
        "data.path": sources.get(kind, []),
        "data.name": sources.get(kind, []),
        "verifier.kind": [one for one in kinds_of("verifier") if plugins or one[0] != "plugin"],
        "verifier.name": [(name, name) for name in plugins],
    }


def _read(
    preset: Preset, typed: Mapping[str, str], options: Mapping[str, list[tuple[str, str]]], *, is_final: bool
) -> tuple[RunConfig | None, list[ConfigError]]:
    """The config that was typed, if it is one, and what is wrong with it. `is_final`: it is meant to be
    queued.
    """
    errors = []
    if is_final:
        errors = [
            ConfigError(
                item.path, f"{item.label} came with another choice. Look at it, then queue the run again."
            )
            for item in unseen_fields(preset.config, typed, options)
        ]
    try:
        return RunConfig.model_validate(read_form(preset.config, typed, options)), errors
    except ValidationError as error:
        return None, config_errors(error)


def _show_form(
    request: HttpRequest,
    project: ProjectSeen,
    preset: Preset,
    typed: Mapping[str, str],
    options: Mapping[str, list[tuple[str, str]]],
    name: str,
    key: str,
    config: RunConfig | None,
    errors: list[ConfigError],
) -> HttpResponse:
    sections = build_form(preset.config, typed=typed, options=options, errors=errors)
    name_error = next((error.message for error in errors if error.path == "name"), "")
    name_field = FormField(
        path="name",
        id="field-name",
        label="Name",
        help="Shown in lists and charts.",
        unit="",
        kind="text",
        value=name,
        error=name_error,
    )
    fields = [name_field, *(item for section in sections for item in (*section.fields, *section.advanced))]
    by_path = {item.path: item for item in fields}
    told = [_told(error, sections, by_path) for error in errors]
    context = {
        "project": project,
        "role": project.role,
        "preset": preset,
        "source_url": source_url(preset.source),
        "unverified": [(path, _field_id(path, fields)) for path in preset.unverified],
        "preset_groups": preset_groups(PRESETS.values(), preset),
        "n_algorithms": len({one.algorithm for one in PRESETS.values()}),
        "sections": sections,
        "errors": [(error.path, error.message, _field_id(error.path, fields)) for error in errors],
        "told": told,
        "general": [one for one in told if one["general"]],
        "is_final": request.method == "POST",
        "estimate": asdict(estimate(config)) if config is not None else None,
        "name_field": name_field,
        "idempotency_key": key,
    }
    return render(request, "runs/form.html", context, status=400 if request.method == "POST" else 200)


def _told(error: ConfigError, sections: list[FormSection], fields: Mapping[str, FormField]) -> dict[str, Any]:
    """An error as the page tells it. `general`: it stands beside no field, so the top of the form tells it,
    with links to all that it names.
    """
    place = _field_id(error.path, list(fields.values()))
    general = error.path not in fields and not any(error.path.startswith(f"{path}.") for path in fields)
    return {
        "path": error.path,
        "field_id": place,
        "general": general,
        "pieces": linked_message(error, sections) if general else [(error.message, "")],
    }


def _field_id(path: str, fields: list[FormField]) -> str:
    """The field an error belongs to: the field itself, its list, or the first one of its section."""
    for item in fields:
        if item.path == path or path.startswith(f"{item.path}."):
            return item.id
    return next((item.id for item in fields if path and item.path.startswith(f"{path}.")), "")


# ------------------------------------------------------------------------------------------------ one run


def run_context(request: HttpRequest, run_id: int, tab: str) -> dict[str, Any]:
    """What every tab of a run's page shows above the tab. Raises Http404 for strangers."""
    run = get_run(request, run_id)
    (state,) = run_states([run])
    config = config_of(run)
    return {
        "project": run.project,
        "role": run.role,
        "run": run,
        "state": state,
        "tab": tab,
        "method": method_of_run(run),
        "imported": imported(run),
        "packing": None if config is None else packing_check(run, config.training.precision),
        "can_control": may(run.role, Role.EDITOR),
        "outcome": outcome_of(run),
    }


@require_GET
def run_detail(request: HttpRequest, run_id: int) -> HttpResponse:
    context = run_context(request, run_id, "curves")
    context["catalogue"] = panels()
    context["resumes"] = resumes_of(context["run"])
    context["overlay_runs"] = _overlays(request, context["run"])
    return render(request, "runs/detail.html", context)


def _overlays(request: HttpRequest, run: Run) -> list[dict[str, Any]]:
    """The states of the runs that `?with=3,5` asks for, in that order, as far as the user may see them."""
    asked = [
        part
        for part in request.GET.get("with", "").split(",")[: MAX_OVERLAYS + 1]
        if part.isdecimal() and len(part) <= 18
    ]
    ids = list(dict.fromkeys(int(part) for part in asked))
    found = {
        one.id: one for one in runs_for(request.user).filter(id__in=ids).exclude(id=run.id).defer("config")
    }
    chosen = [found[run_id] for run_id in ids if run_id in found]
    return [
        {**state, "colour": one.colour, "url": reverse("run-detail", args=[one.id])}
        for one, state in zip(chosen, run_states(chosen), strict=True)
    ]


@require_GET
def run_config(request: HttpRequest, run_id: int) -> HttpResponse:
    context = run_context(request, run_id, "config")
    context["config_yaml"] = "" if context["imported"] else config_yaml(context["run"].config)
    return render(request, "runs/config.html", context)


def config_yaml(config: Mapping[str, Any]) -> str:
    """A stored config as YAML 1.2 that `python -m trainer` reads."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None  # groups as blocks, lists of numbers on one line
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # the order of RunConfig's fields
    yaml.allow_unicode = True
    yaml.dump(_in_schema_order(config), stream)
    return stream.getvalue()


def _in_schema_order(config: Mapping[str, Any]) -> dict[str, Any]:
    """jsonb forgets the order of keys; RunConfig knows it."""
    return stored_config(config).model_dump(mode="json")


@require_GET
def run_events(request: HttpRequest, run_id: int) -> HttpResponse:
    context = run_context(request, run_id, "events")
    context["events"], context["next"] = told_events(
        context["run"], page_cursor(request, "after") or 0, PAGE_SIZE
    )
    return render(request, "runs/events.html", context)


@require_GET
def run_attempts(request: HttpRequest, run_id: int) -> HttpResponse:
    """Every period in which a worker held the run, and the checkpoints that are left of them."""
    context = run_context(request, run_id, "attempts")
    run = context["run"]
    context["attempts"] = attempts_of(run)
    context["checkpoints"] = forkable(run)
    return render(request, "runs/attempts.html", context)


@require_POST
def run_control(request: HttpRequest, run_id: int) -> HttpResponseBase:
    """Pause, resume, stop, stop now, retry: the form's word. Back to where it was pressed."""
    run = get_run(request, run_id)
    require(request.user, run.project, Role.EDITOR)
    try:
        action = Action(request.POST.get("action", ""))
        control(run, user_of(request), action)
    except ValueError:
        messages.warning(request, "That is no control of a run. Press one of its buttons.")
    except RequestError as refused:
        messages.warning(request, refused.detail)
    else:
        messages.success(request, done_words(run, action))
    if request.POST.get("next") == "list":
        return redirect("run-list", run.project.slug)
    return redirect("run-detail", run.id)


@require_http_methods(["GET", "HEAD", "POST"])
def run_fork(request: HttpRequest, run_id: int) -> HttpResponseBase:
    """A few knobs of the run, and one of its checkpoints; a POST queues the fork. All knobs are the API's."""
    run = get_run(request, run_id)
    require(request.user, run.project, Role.EDITOR)
    config = config_of(run)
    kept = [] if config is None else list(forkable(run))
    sent = request.POST if request.method == "POST" else request.GET
    fields = [] if config is None else fork_fields(config, kept, sent)
    errors: list[ConfigError] = []
    if request.method == "POST" and config is not None:
        try:
            new = fork(
                run,
                user_of(request),
                _number(sent.get("checkpoint", "")),
                RunConfig.model_validate(changed(config.model_dump(mode="json"), typed_changes(sent))),
                sent.get("name", ""),
                sent.get("idempotency_key") or None,
            )
        except ValidationError as invalid:
            errors = config_errors(invalid)
        except RequestError as refused:
            errors = [ConfigError(error["path"], error["message"]) for error in refused.errors]
            errors = errors or [ConfigError("", refused.detail)]
        else:
            return redirect("run-detail", new.id)
    by_path = {error.path: error.message for error in errors}
    context = run_context(request, run_id, "attempts") | {
        "checkpoints": kept,
        "chosen": _number(sent.get("checkpoint", "")) or (kept[0].id if kept else 0),
        "name": sent.get("name", f"{run.name[:100]} fork"),
        "name_error": by_path.get("name", ""),
        "fields": [field | {"error": by_path.get(field["path"], "")} for field in fields],
        "general": [error for error in errors if error.path not in {"name", *(f["path"] for f in fields)}],
        "idempotency_key": sent.get("idempotency_key", secrets.token_urlsafe(16)),
    }
    return render(request, "runs/fork.html", context, status=400 if errors else 200)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else 0


# ------------------------------------------------------------------------------------------------ workers
