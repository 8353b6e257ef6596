"""The demo on top of a running stack: its content, the link to enter by, and one line that says how the run
goes.

Import it only when the database is up: it speaks to Django's models.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from django.conf import settings
from django.db import DatabaseError, connection

from webapp.accounts.services import create_login_link
from webapp.embedded.stack import Stack
from webapp.projects.demo import DemoContent, ensure_demo
from webapp.runs.models import Run
from webapp.runs.querysets import run_states

STATUS_SECONDS = 2.0


def prepare(stack: Stack) -> DemoContent:
    """Make what is missing of the demo's project, data, model and run; step 6 of `manage.py demo`."""
    # The settings were read before the stack had made its key.
    settings.SECRET_KEY = stack.secret_key
    with stack.terminal.step("demo project and run"):
        return ensure_demo()


def login_url(stack: Stack, content: DemoContent) -> str:
    """A link that logs the demo's admin in once."""
    return stack.url + create_login_link(content.admin)


@dataclass
class StatusLine:
    """Writes the run's state to the terminal every few seconds. Called at every tick, and mostly does
    nothing.
    """

    stack: Stack
    run_id: int
    _due: float = field(default=0.0)

    def __call__(self) -> bool:
        """Always False: it is used as the condition of `Stack.watch`, and the demo ends by Ctrl-C alone."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + STATUS_SECONDS
            self.stack.terminal.status(self.text())
        return False

    def text(self) -> str:
        try:
            run = Run.objects.filter(id=self.run_id).first()
            if run is None:
                return "the demo's run was deleted"
            (state,) = run_states([run])
        except DatabaseError:
            # The stack is starting it again; the next look opens a new connection.
            connection.close()
            return "the database does not answer at the moment"
        return describe(state)


def describe(state: dict[str, object]) -> str:
    """One line from a run's state as the API gives it."""
    parts = [f"{state['name']}", f"{state['status']}", f"step {state['step']}/{state['steps_total']}"]
    if state.get("phase"):
        parts.append(f"{state['phase']} {state['phase_done']}/{state['phase_total']}")
    latest = state["latest"]
    if isinstance(latest, dict):
        for name, title, form in (
            ("reward/mean", "reward", "{:.2f}"),
            ("eval/pass1_sampled", "pass@1", "{:.2f}"),
            ("speed/tokens_per_second", "tokens/s", "{:,.0f}"),
        ):
            if isinstance(value := latest.get(name), int | float):
                parts.append(f"{title} {form.format(value)}")
    if isinstance(eta := state.get("eta_s"), int | float):
        parts.append(f"{duration(eta)} left")
    if state.get("reason") and state["status"] != "running":
        parts.append(str(state["reason"]))
    return " · ".join(parts)


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
