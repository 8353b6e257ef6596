"""The runs of a campaign: small, with frequent checkpoints and fixed seeds, so that each config has a twin to
which nothing happens. Import it once the environment stands: it speaks to Django's models.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaign import content
from tests.campaign.evidence import Twin
from trainer.config import RunConfig
from trainer.config_file import config_to_yaml
from trainer.events import Finished, Metrics, TreeSampled, parse_line
from trainer.presets import PRESETS
from webapp.embedded.stack import REPOSITORY

PROJECT = "campaign"
OWN_SLUG = "own-model"


def small(preset: str, seed: int, steps: int, every: int) -> RunConfig:
    values = PRESETS[preset].config.model_dump(mode="json")
    values["seed"] = seed
    values["training"] |= {"steps": steps, "problems_per_step": 3, "learning_rate": 1e-3, "warmup_steps": 5}
    values["evaluation"] |= {"every_steps": 10, "problems": 4, "samples": 1}
    # So that a loaded machine is no verifier's bomb: a judgement that took too long has no twin.
    values["verifier"] |= {"timeout_seconds": 8.0}
    values["checkpoint"] |= {"every_steps": every, "keep_last": 3}
    values["recording"] |= {"trees_per_step": 2}
    return RunConfig.model_validate(values)


def configs(steps: int) -> dict[str, RunConfig]:
    """By name; the name is that of the twin."""
    return {
        "treerpo": small("treerpo-tiny", 11, steps, 4),
        "grpo": small("grpo-tiny", 12, steps, 5),
    }


@dataclass
class TwinInWork:
    popen: subprocess.Popen[bytes]
    events: Path
    folder: Path


def begin_twin(folder: Path, name: str, config: RunConfig, env: dict[str, str]) -> TwinInWork:
    """The same config from a shell, by itself, with nothing around it."""
    home = folder / name
    home.mkdir(parents=True)
    (home / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    events = home / "events.jsonl"
    with events.open("wb") as output, (home / "log").open("wb") as log:
        popen = subprocess.Popen(
            [
                "nice",
                "-n",
                "10",
                sys.executable,
                "-m",
                "trainer",
                str(home / "config.yaml"),
                "--output",
                str(home),
            ],
            stdout=output,
            stderr=log,
            cwd=REPOSITORY,
            env=env | {"HF_HUB_OFFLINE": "1", "TMPDIR": str(home)},
        )
    return TwinInWork(popen, events, home)


def end_twin(twin: TwinInWork, seconds: float = 240) -> Twin:
    """Wait for it. Raises RuntimeError if it did not succeed."""
    twin.popen.wait(seconds)
    metrics: dict[tuple[int, str], str] = {}
    trees: dict[tuple[int, int], str] = {}
    outcome = ""
    for line in twin.events.read_bytes().splitlines():
        match parse_line(line):
            case Metrics() as event:
                metrics |= of_metrics(event.step, event.values)
            case TreeSampled() as event:
                trees[event.step, event.index] = content.payload_digest(event.payload)
            case Finished() as event:
                outcome = event.outcome
    if outcome != "succeeded":
        raise RuntimeError(f"The twin in {twin.folder} did not succeed: {outcome or 'it did not finish'}.")
    return Twin(metrics, trees, last_state(twin.folder))


def of_metrics(step: int, values: dict[str, float]) -> dict[tuple[int, str], str]:
    """To the bit, clocks left out."""
    return {
        (step, name): float(value).hex()
        for name, value in values.items()
        if not name.startswith(content.TIMED)
    }


def last_state(run_dir: Path) -> dict[str, str]:
    """`state_of` the last checkpoint under `run_dir`."""
    found = [p for p in (run_dir / "checkpoints").glob("step-*") if (p / "manifest.json").is_file()]
    named = [p for p in found if p.name.removeprefix("step-").isdecimal()]
    if not named:
        return {}
    return state_of(max(named, key=lambda path: int(path.name.removeprefix("step-"))))


def state_of(checkpoint: Path) -> dict[str, str]:
    """File -> SHA-256: weights, optimiser, and the counters without the clock. What is damaged has none."""
    try:
        manifest: dict[str, Any] = json.loads((checkpoint / "manifest.json").read_bytes())
        state = json.loads((checkpoint / "state.json").read_bytes())
    except (OSError, ValueError):
        return {}
    state.pop("cpu_seconds", None)
    files = {
        name: str(entry["sha256"])
        for name, entry in manifest["files"].items()
        if name.endswith(".safetensors")
    }
    return files | {"state.json": hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()}


def tiny_reasoner() -> Path:
    """The packaged model's folder."""
    return REPOSITORY / "trainer" / "assets" / "tiny-reasoner"


class Site:
    """A user, a project and a model, made directly; then everything goes through the API."""

    def __init__(self, own_model: Path) -> None:
        from django.conf import settings
        from django.test import Client

        from webapp.accounts.models import ApiToken, User
        from webapp.accounts.services import create_token
        from webapp.projects.demo import ensure_tiny_reasoner
        from webapp.projects.models import Membership, ModelSource, Project

        self.user = User.objects.create_user("campaigner", password=None)
        project = Project.objects.create(slug=PROJECT, name="Campaign")
        Membership.objects.create(project=project, user=self.user, role="admin")
        ensure_tiny_reasoner()
        ModelSource.objects.create(slug=OWN_SLUG, name="Own", path=str(own_model))
        client = Client()
        client.force_login(self.user)
        self.cookie = f"{settings.SESSION_COOKIE_NAME}={client.cookies[settings.SESSION_COOKIE_NAME].value}"
        self.token = create_token(self.user, "campaign", *ApiToken.Scope)

    @property
    def page_headers(self) -> dict[str, str]:
        return {"Cookie": self.cookie}

    @property
    def api_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}


def begin_django() -> None:
    """Set Django up in this process, which speaks to the database directly."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "webapp.settings"
    import django

    django.setup()
