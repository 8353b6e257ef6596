"""The form of a new run, whatever it starts from: a preset, the config of a run, a checkpoint of one."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods
from pydantic import ValidationError

from trainer.config import RunConfig
from trainer.presets import PRESETS
from webapp.errors import RequestError
from webapp.projects.access import Role, get_project, get_run, require, user_of
from webapp.projects.models import Dataset, ModelSource
from webapp.queue.capacity import check_capacity
from webapp.runs import services
from webapp.runs.clones import clone, free_name
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
from webapp.runs.estimate import estimate
from webapp.runs.forks import fork, forkable, misfits
from webapp.runs.method import method_of, source_url
from webapp.runs.models import Run
from webapp.runs.origin import config_of
from webapp.runs.pace import pace_of
from webapp.runs.picker import preset_groups
from webapp.runs.starting import Start, of_checkpoint, of_preset, of_run

if TYPE_CHECKING:
    from webapp.projects.access import ProjectSeen

DEFAULT_PRESET = "treerpo-tiny"
PLUGIN_GROUP = "arborist.verifiers"  # entry points, as `trainer.judges` asks for them
GENERATED = ("chain", "graph")
DATA_KINDS = {
    "chain": "Chain (generated)",
    "graph": "Graph (generated)",
    "jsonl": "JSONL file",
    "parquet": "Parquet",
    "datasets": "Data set by name",
}

Options = dict[str, list[tuple[str, str]]]


@require_http_methods(["GET", "HEAD", "POST"])
def run_new(request: HttpRequest, slug: str) -> HttpResponseBase:
    """The form, filled from a preset or, with `from`, from a run's config, and from what the address or the
    form says; a POST queues the run.
    """
    project = get_project(request, slug)
    require(request.user, project, Role.EDITOR)
    sent = request.POST if request.method == "POST" else request.GET
    number = sent.get("from", request.GET.get("from", ""))
    if not number:
        preset = PRESETS.get(sent.get("preset", request.GET.get("preset", DEFAULT_PRESET)))
        if preset is None:
            raise Http404
        return _form(request, project, of_preset(preset))
    run = get_run(request, _number(number))
    if run.project_id != project.id:
        raise Http404
    config = config_of(run)
    if config is None:
        messages.warning(request, f"{run.name} cannot be copied: {_why_not(run)} Start from a preset.")
        return redirect("run-new", project.slug)
    return _form(request, project, of_run(run, config))


@require_http_methods(["GET", "HEAD", "POST"])
def run_fork(request: HttpRequest, run_id: int) -> HttpResponseBase:
    """The same form for a run that begins with a checkpoint: what its weights depend on is fixed."""
    run = get_run(request, run_id)
    require(request.user, run.project, Role.EDITOR)
    config = config_of(run)
    kept = [] if config is None else list(forkable(run))
    if config is None or not kept:
        why = "No checkpoint of it is kept." if config is not None else _why_not(run)
        messages.warning(request, f"{run.name} cannot be forked: {why}")
        return redirect("run-detail", run.id)
    sent = request.POST if request.method == "POST" else request.GET
    chosen = _number(sent.get("checkpoint", ""))
    project = get_project(request, run.project.slug)
    start = of_checkpoint(run, config, kept, chosen)
    gone = []
    if request.method == "POST" and start.chosen is not None and start.chosen.id != chosen:
        message = f"That checkpoint is not kept any more. Step {start.chosen.step} is chosen instead."
        gone = [ConfigError("checkpoint", message)]
    return _form(request, project, start, gone)


def _why_not(run: Run) -> str:
    if run.is_imported:
        return "it was imported, and no config or model came with it."
    return "its config is of another version of Arborist."


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else 0


def _form(
    request: HttpRequest, project: ProjectSeen, start: Start, known: Sequence[ConfigError] = ()
) -> HttpResponseBase:
    """Show what was typed so far, with what is wrong with it, `known` or found; a POST without a fault makes
    the run.
    """
    is_final = request.method == "POST"
    sent = request.POST if is_final else request.GET
    typed = {key: value for key, value in sent.items() if isinstance(value, str) and not start.is_fixed(key)}
    if not is_final:
        typed = {**start.proposed, **typed}
    options = _options(project, typed, start.config)
    name = typed.get("name", _name(project, start))
    key = typed.get("idempotency_key", secrets.token_urlsafe(16))
    config, errors = _read(start, typed, options, is_final=is_final)
    errors = [*known, *errors]
    if config is not None and not errors:
        try:
            wanted = config.resources
            check_capacity(wanted.queue, wanted.processes, wanted.engine_processes)
            if not is_final:
                return _show(request, project, start, typed, options, name, key, config, errors)
            return redirect("run-detail", _make(request, project, start, config, name, key).id)
        except RequestError as refused:
            errors = [ConfigError(error["path"], error["message"]) for error in refused.errors]
            errors = errors or [ConfigError("", refused.detail)]
    return _show(request, project, start, typed, options, name, key, config, errors)


def _name(project: ProjectSeen, start: Start) -> str:
    """One that no run of the project has yet, as a rule."""
    if start.run is None:
        return free_name(project, f"{start.config.preset}-1")
    return free_name(project, start.run.name if start.chosen is None else f"{start.run.name[:100]} fork")


def _make(
    request: HttpRequest, project: ProjectSeen, start: Start, config: RunConfig, name: str, key: str
) -> Run:
    user = user_of(request)
    if start.run is None:
        return services.create_run(project, user, config, name, key)
    if start.chosen is None:
        return clone(start.run, user, config, name, key)
    return fork(start.run, user, start.chosen.id, config, name, key)


def _options(project: ProjectSeen, typed: Mapping[str, str], config: RunConfig) -> Options:
    """What the text fields of a form may name here: base models, the project's data, installed verifiers.
    Two queries.
    """
    models = [(source.slug, source.name) for source in ModelSource.objects.all()[:200]]
    sources: dict[str, list[tuple[str, str]]] = {}
    for dataset in Dataset.objects.filter(project=project).order_by("name"):
        source = str(dataset.spec.get("path") or dataset.spec.get("name") or "")
        sources.setdefault(str(dataset.spec.get("kind")), []).append((source, dataset.name))
    plugins = sorted(entry.name for entry in entry_points(group=PLUGIN_GROUP))
    kind = typed.get("data.kind", config.data.kind)
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
    start: Start, typed: Mapping[str, str], options: Options, *, is_final: bool
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
            for item in unseen_fields(start.config, typed, options)
            if not start.is_fixed(item.path)
        ]
    try:
        config = RunConfig.model_validate(read_form(start.config, typed, options))
    except ValidationError as error:
        return None, config_errors(error)
    if start.chosen is not None:
        errors += [ConfigError(path, why) for path, why in misfits(start.config, start.chosen, config)]
    return config, errors


def _show(
    request: HttpRequest,
    project: ProjectSeen,
    start: Start,
    typed: Mapping[str, str],
    options: Options,
    name: str,
    key: str,
    config: RunConfig | None,
    errors: list[ConfigError],
) -> HttpResponse:
    sections = build_form(start.config, typed=typed, options=options, errors=errors, fixed=start.fixed)
    own = _own_fields(start, name, {error.path: error.message for error in reversed(errors)})
    fields = [*own, *(item for section in sections for item in (*section.fields, *section.advanced))]
    by_path = {item.path: item for item in fields}
    told = [_told(error, sections, by_path) for error in errors]
    from_step = 0 if start.chosen is None else start.chosen.step
    pace = None if config is None else pace_of(config, from_step)
    context = {
        "project": project,
        "role": project.role,
        "start": start,
        "address": request.path,
        "preset": start.preset,
        "method": method_of(start.config),
        "source_url": source_url(start.preset.source) if start.preset else "",
        "unverified": [(path, _field_id(path, fields)) for path in start.preset.unverified]
        if start.preset
        else [],
        "preset_groups": preset_groups(PRESETS.values(), start.preset)
        if start.run is None and start.preset
        else [],
        "n_algorithms": len({one.algorithm for one in PRESETS.values()}),
        "sections": sections,
        "errors": [(error.path, error.message, _field_id(error.path, fields)) for error in errors],
        "told": told,
        "general": [one for one in told if one["general"]],
        "is_final": request.method == "POST",
        "estimate": asdict(estimate(config, from_step)) if config is not None else None,
        "pace": asdict(pace) if pace is not None else None,
        "pace_basis": pace.basis(config) if pace is not None and config is not None else "",
        "own_fields": own,
        "idempotency_key": key,
    }
    return render(request, "runs/form.html", context, status=400 if request.method == "POST" else 200)


def _own_fields(start: Start, name: str, errors: Mapping[str, str]) -> list[FormField]:
    """What the form asks beside the config."""
    fields = [
        FormField(
            path="name",
            id="field-name",
            label="Name",
            help="Shown in lists and charts.",
            unit="",
            kind="text",
            value=name,
            error=errors.get("name", ""),
        )
    ]
    if start.chosen is not None:
        choices = [(str(one.id), f"step {one.step}") for one in start.checkpoints]
        fields.append(
            FormField(
                path="checkpoint",
                id="field-checkpoint",
                label="Checkpoint",
                help="Its weights and its optimiser are what the fork begins with.",
                unit="",
                kind="choice",
                value=str(start.chosen.id),
                choices=choices,
                error=errors.get("checkpoint", ""),
            )
        )
    return fields


def _told(
    error: ConfigError, sections: Sequence[FormSection], fields: Mapping[str, FormField]
) -> dict[str, Any]:
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


def _field_id(path: str, fields: Sequence[FormField]) -> str:
    """The field an error belongs to: the field itself, its list, or the first one of its section."""
    for item in fields:
        if item.path == path or path.startswith(f"{item.path}."):
            return item.id
    return next((item.id for item in fields if path and item.path.startswith(f"{path}.")), "")
