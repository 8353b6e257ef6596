from __future__ import annotations

import importlib.util
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest
from django.db.models.functions import Now

from webapp.runs.models import Worker

SCRIPT = Path(__file__).resolve().parents[2] / "docker" / "worker_health.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("worker_health", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.django_db(transaction=True)
def test_a_worker_is_healthy_while_it_is_seen(database_url: str) -> None:
    is_seen = load().is_seen
    Worker.objects.create(name="worker@here", queues="cpu")
    assert is_seen(database_url, "worker@here")
    assert not is_seen(database_url, "worker@elsewhere")
    Worker.objects.update(heartbeat_at=Now() - timedelta(seconds=91))
    assert not is_seen(database_url, "worker@here")
