from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from webapp import broker
from webapp.embedded import processes
from webapp.embedded.broker import BrokerServer
from webapp.embedded.folder import DataFolder
from webapp.embedded.processes import Child

pytestmark = pytest.mark.process


@pytest.fixture
def own_broker(tmp_path: Path, settings: Any) -> Iterator[Child]:
    """A broker that the test may mistreat."""
    folder = DataFolder.at(tmp_path / "broker")
    folder.prepare()
    settings.BROKER_URL = folder.broker_url
    server = BrokerServer(folder)
    child = server.start("test")
    assert processes.wait_until(server.is_ready, 20)
    yield child
    child.signal(signal.SIGCONT)
    server.stop(child)
    folder.remove()


def timed(do: Callable[[], Any]) -> tuple[Any, float]:
    began = time.monotonic()
    return do(), time.monotonic() - began


def test_message_waits_in_its_queue(own_broker: Child) -> None:
    assert broker.is_reachable()
    assert broker.waiting("cpu") == 0
    assert broker.send_train_run(7, "cpu")
    assert (broker.waiting("cpu"), broker.waiting("gpu")) == (1, 0)


def test_frozen_broker_costs_at_most_two_seconds(own_broker: Child) -> None:
    assert broker.send_train_run(7, "cpu")
    os.kill(own_broker.popen.pid, signal.SIGSTOP)
    for do in (lambda: broker.send_train_run(8, "cpu"), broker.is_reachable):
        answer, seconds = timed(do)
        assert not answer
        assert seconds < 2
    os.kill(own_broker.popen.pid, signal.SIGCONT)
    assert processes.wait_until(broker.is_reachable, 5)
    assert broker.send_train_run(9, "cpu")


def test_dead_broker_is_no_error(own_broker: Child) -> None:
    own_broker.popen.kill()
    own_broker.end()
    assert timed(lambda: broker.send_train_run(7, "cpu"))[0] is False
    assert timed(lambda: broker.waiting("cpu"))[1] < 2
    assert broker.waiting("cpu") is None
    assert not broker.is_reachable()


def test_full_broker_is_no_error(own_broker: Child, settings: Any) -> None:
    client = redis.Redis.from_url(settings.BROKER_URL.replace("redis+socket://", "unix://"))
    client.config_set("maxmemory", "1")
    assert not broker.send_train_run(7, "cpu")
    client.close()


def test_without_a_broker_runs_wait_for_the_sweeper(settings: Any) -> None:
    settings.BROKER_URL = ""
    assert not broker.send_train_run(7, "cpu")
    assert broker.waiting("cpu") is None


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("rediss://u:p@host/1", "rediss://u:p@host/1"),
        ("redis+socket:///run/b.sock", "redis+socket:///run/b.sock"),
        ("unix:///run/b.sock", "redis+socket:///run/b.sock"),
    ],
)
def test_broker_urls(given: str, read: str) -> None:
    assert broker.celery_url(given) == read
