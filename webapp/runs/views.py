"""Pages of runs. Views parse, call, render."""

from __future__ import annotations

import io
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import content_disposition_header
from django.utils.text import slugify
from django.views.decorators.http import require_GET, require_POST
from ruamel.yaml import YAML

from trainer.presets import PRESETS
from webapp.errors import RequestError
from webapp.limits import PAGE_SIZE
from webapp.projects.access import Role, get_project, get_run, may, require, runs_for, user_of
from webapp.runs.controls import Action, control, done_words
from webapp.runs.events import devices_of, packing_check, told_events
from webapp.runs.forks import forkable, kept_because
from webapp.runs.models import Run
from webapp.runs.origin import config_of, imported, method_of_run
from webapp.runs.panels import panels
from webapp.runs.querysets import (
    attempts_of,
    has_overwritten,
    idle_of,
    outcome_of,
    resumes_of,
    run_states,
    runs_page,
)

FIRST_PRESETS = ("treerpo-tiny", "grpo-tiny", "treepo-tiny")  # what an empty project offers
MAX_OVERLAYS = 9
MAX_ANCESTORS = 8  # of a fork of a fork of …, whose curves are drawn


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
        "idle": idle_of(run) if state["is_idle"] else None,
    }


@require_GET
def run_detail(request: HttpRequest, run_id: int) -> HttpResponse:
    context = run_context(request, run_id, "curves")
    context["catalogue"] = panels()
    context["resumes"] = resumes_of(context["run"])
    context["has_overwritten"] = has_overwritten(context["run"])
    context["overlay_runs"] = _overlays(request, context["run"])
    context["ancestors"] = _ancestors(request, context["run"])
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


def _ancestors(request: HttpRequest, run: Run) -> list[dict[str, Any]]:
    """The runs that a fork's curves go on from, the nearest first, each with the step up to which it does; as
    far back as the user may see them. One query each.
    """
    found: list[dict[str, Any]] = []
    while run.parent_id is not None and run.parent_step is not None and len(found) < MAX_ANCESTORS:
        parent = runs_for(request.user).filter(id=run.parent_id).defer("config").first()
        if parent is None:
            break
        found.append(
            {
                "id": parent.id,
                "name": parent.name,
                "colour": parent.colour,
                "url": reverse("run-detail", args=[parent.id]),
                "to_step": run.parent_step,
            }
        )
        run = parent
    return found


@require_GET
def run_config(request: HttpRequest, run_id: int) -> HttpResponse:
    context = run_context(request, run_id, "config")
    if not context["imported"]:
        context["config_yaml"] = config_yaml(context["run"])
        context["config_file"] = config_name(context["run"])
        context["is_readable"] = config_of(context["run"]) is not None
    return render(request, "runs/config.html", context)


@require_GET
def run_config_file(request: HttpRequest, run_id: int) -> HttpResponse:
    """The config as the file that `python -m trainer` and `arborist run create` take. Raises Http404 for an
    imported run, which has none.
    """
    run = get_run(request, run_id)
    if run.is_imported:
        raise Http404
    response = HttpResponse(config_yaml(run), content_type="application/yaml; charset=utf-8")
    response["Content-Disposition"] = content_disposition_header(True, config_name(run)) or ""
    return response


def config_name(run: Run) -> str:
    """What the file is called where it is saved: letters, digits and hyphens alone."""
    words = slugify(run.name)[:60].strip("-_")
    return f"{words or 'run'}-{run.id}.yaml"


def config_yaml(run: Run) -> str:
    """A run's config as YAML 1.2 that `python -m trainer` reads; one of another version as it was stored."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None  # groups as blocks, lists of numbers on one line
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # the order of RunConfig's fields
    yaml.allow_unicode = True
    config = config_of(run)
    # jsonb forgets the order of keys; RunConfig knows it.
    yaml.dump(run.config if config is None else config.model_dump(mode="json"), stream)
    return stream.getvalue()


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
    devices = devices_of(run)
    context["attempts"] = [one | {"devices": devices.get(one["epoch"], "")} for one in attempts_of(run)]
    config = config_of(run)
    context["checkpoints"] = kept_because(config, forkable(run))
    context["keep"] = None if config is None else config.checkpoint
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
