from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import OperationalError, connection
from django.test import Client

from tests.live.page import Open, Page, cookie_of
from tests.workers.factories import log, make_project, make_run, make_user, metrics, numbered, started, tree
from webapp import limits
from webapp.accounts.models import User
from webapp.live import access, catch_up, consumers, feeds, listener
from webapp.live.feeds import Hub
from webapp.projects.models import Membership, Project
from webapp.runs.models import Run
from workers import lease
from workers.lease import Lease
from workers.recorder import Recorder


class Writer:
    """A worker's recorder, from a test."""

    def __init__(self, run: Run) -> None:
        held = lease.claim(run.id, "w")
        assert held is not None
        self.held: Lease = held
        self.recorder = Recorder(held)
        self.n = 0

    def write(self, *events: Any) -> int:
        recorded = self.recorder.record(numbered(list(events), self.n + 1))
        self.n += len(events)
        return recorded.last_seq


async def writer(run: Run) -> tuple[Writer, Callable[..., Any]]:
    made = await sync_to_async(Writer)(run)
    return made, sync_to_async(made.write)


async def test_page_sees_events_from_its_cursor_on(run: Run, user: User, connect: Open) -> None:
    _, write = await writer(run)
    last = await write(started(), metrics(1, reward__mean=0.5))
    page = await connect(user)
    subscribed = await page.watch(run)
    assert abs(subscribed.pop("now") - time.time()) < 5
    assert subscribed == {"type": "subscribed", "run": run.id, "last_seq": last}
    frame = await page.hear()
    assert (frame["type"], frame["run"], frame["first_seq"], frame["last_seq"]) == ("frame", run.id, 1, last)
    assert [event["seq"] for event in frame["events"]] == list(range(1, last + 1))
    assert frame["state"]["status"] == "running"

    await write(metrics(2, reward__mean=0.6), tree(2))
    frame = await page.hear("frame")
    assert frame["first_seq"] == last + 1
    assert [event["kind"] for event in frame["events"]] == ["metrics", "tree"]
    assert frame["events"][0]["values"] == {"reward/mean": 0.6}
    assert frame["events"][1]["tree"]["n_nodes"] == 7


async def test_poke_brings_news_at_once(run: Run, user: User, connect: Open) -> None:
    _, write = await writer(run)
    page = await connect(user)
    await page.watch(run, from_seq=2)
    await page.hear("state")
    await _until(lambda: Hub.here().is_listening)
    clock = asyncio.get_running_loop().time
    asked = clock()
    await write(log("now"))
    await page.hear("frame")
    assert clock() - asked < 1


async def test_lost_poke_costs_five_seconds(
    run: Run, user: User, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "SOCKET_POLL_SECONDS", 0.3)
    monkeypatch.setattr(listener, "parse", lambda _text: None)
    _, write = await writer(run)
    page = await connect(user)
    await page.watch(run, from_seq=2)
    await write(log("unheard"))
    frame = await page.hear("frame", seconds=5)
    assert frame["events"][0]["message"] == "unheard"


async def test_listener_comes_back_after_its_session_is_cut(run: Run, user: User, connect: Open) -> None:
    _, write = await writer(run)
    page = await connect(user)
    await page.watch(run, from_seq=2)
    hub = Hub.here()
    await _until(lambda: hub.is_listening)

    def cut() -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'arborist-live'"
            )

    await sync_to_async(cut)()
    await _until(lambda: not hub.is_listening)
    await write(log("while it was away"))
    frame = await page.hear("frame")
    assert frame["events"][0]["message"] == "while it was away"
    await _until(lambda: hub.is_listening)


async def _until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (a condition of the tested code, not an event)
            await asyncio.sleep(0.02)


async def test_every_page_gets_every_event_whatever_its_cursor(run: Run, user: User, connect: Open) -> None:
    _, write = await writer(run)
    await write(started())
    pages = [await connect(user) for _ in range(5)]
    for cursor, page in enumerate(pages):
        await page.watch(run, from_seq=cursor)
    total = 4
    for step in range(1, 31):
        total = await write(metrics(step, reward__mean=step / 100), tree(step))
    for cursor, page in enumerate(pages):
        seen: list[int] = []
        while not seen or seen[-1] < total:
            frame = await page.hear("frame")
            assert frame["first_seq"] == (seen[-1] if seen else cursor) + 1
            seen += [event["seq"] for event in frame["events"]]
        assert seen == list(range(cursor + 1, total + 1))


async def test_rows_are_read_once_for_all_pages(
    run: Run, user: User, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, write = await writer(run)
    pages = [await connect(user) for _ in range(10)]
    for page in pages:
        await page.watch(run, from_seq=2)
        await page.hear("state")
    reads: list[int] = []
    real = catch_up.since

    def counted(run_id: int, seq: int | None, limit: int) -> Any:
        reads.append(run_id)
        return real(run_id, seq, limit)

    monkeypatch.setattr(catch_up, "since", counted)
    await write(log("once"))
    for page in pages:
        assert (await page.hear("frame"))["events"][0]["message"] == "once"
    assert len(reads) <= 2


@pytest.mark.parametrize(("extra", "answer"), [(0, "frame"), (1, "resync")])
async def test_more_than_500_waiting_events_resync(
    run: Run, user: User, connect: Open, extra: int, answer: str
) -> None:
    assert limits.SOCKET_RESYNC_EVENTS == 500
    _, write = await writer(run)
    last = await write(*[log(str(i)) for i in range(498 + extra)])
    assert last == 500 + extra
    page = await connect(user)
    await page.watch(run)
    message = await page.hear()
    assert message["type"] == answer
    assert message["last_seq"] == last
    await write(log("next"))
    frame = await page.hear("frame")
    assert frame["first_seq"] == last + 1


async def test_burst_while_watching_resyncs_and_goes_on(run: Run, user: User, connect: Open) -> None:
    _, write = await writer(run)
    page = await connect(user)
    await page.watch(run, from_seq=2)
    last = await write(*[log(str(i)) for i in range(700)])
    assert (await page.hear("resync"))["last_seq"] == last
    await write(log("next"))
    assert (await page.hear("frame"))["first_seq"] == last + 1


async def test_page_that_knows_more_than_there_is_resyncs(run: Run, user: User, connect: Open) -> None:
    """The database was restored from a backup."""
    page = await connect(user)
    await page.watch(run, from_seq=900)
    assert await page.hear() == {"type": "resync", "run": run.id, "last_seq": 1}


async def test_subscribing_again_moves_the_cursor(run: Run, user: User, connect: Open) -> None:
    _, write = await writer(run)
    last = await write(started())
    page = await connect(user)
    await page.watch(run, from_seq=last)
    await page.watch(run, from_seq=1)
    assert (await page.hear("frame"))["first_seq"] == 2


async def test_frames_are_gathered(run: Run, user: User, connect: Open) -> None:
    assert limits.SOCKET_FRAMES_PER_SECOND == 10
    _, write = await writer(run)
    page = await connect(user)
    await page.watch(run, from_seq=2)
    loop = asyncio.get_running_loop()
    started_at, written = loop.time(), 0
    while loop.time() - started_at < 1.0:
        await write(log("x"))
        written += 1
    frames, seen = 0, 2
    while seen < 2 + written:
        seen = (await page.hear("frame"))["last_seq"]
        frames += 1
    assert written > 30
    assert frames <= 12


async def test_progress_without_events_is_a_state(run: Run, user: User, connect: Open) -> None:
    from trainer.events import Progress

    made, _ = await writer(run)
    page = await connect(user)
    await page.watch(run, from_seq=2)
    await page.hear("state")
    progress = Progress(time=1.0, step=1, phase="sampling", done=7, total=48)
    await sync_to_async(made.recorder.show)(progress)
    state = (await page.hear("state"))["state"]
    assert (state["phase"], state["phase_done"], state["phase_total"]) == ("sampling", 7, 48)


async def test_project_page_gets_changed_runs_only(
    run: Run, project: Project, user: User, connect: Open
) -> None:
    other = await sync_to_async(make_run)(project)
    _, write = await writer(run)
    page = await connect(user)
    await page.say(type="subscribe", project=project.slug)
    subscribed = await page.hear()
    assert (subscribed["type"], subscribed["project"]) == ("subscribed", project.slug)
    summary = await page.hear("summary")
    assert summary["project"] == project.slug
    assert sorted(state["id"] for state in summary["runs"]) == [run.id, other.id]
    await write(started(), metrics(1, reward__mean=0.5))
    summary = await page.hear("summary")
    assert [state["id"] for state in summary["runs"]] == [run.id]
    assert summary["runs"][0]["status"] == "running"
    new = await sync_to_async(make_run)(project)
    summary = await page.hear("summary")
    assert [state["id"] for state in summary["runs"]] == [new.id]


# Rights


async def test_foreign_origin_is_refused(user: User, connect: Open) -> None:
    for origin in (b"https://evil.example", b"http://localhost:81", b"https://localhost", b"null", None):
        with pytest.raises(PermissionError):
            await connect(user, origin=origin)


async def test_socket_without_login_is_closed(connect: Open) -> None:
    assert await (await connect(None)).closed() == 4401
    assert await (await connect(None, cookie="f" * 32)).closed() == 4401


async def test_run_of_another_project_does_not_exist(run: Run, project: Project, connect: Open) -> None:
    stranger = await sync_to_async(lambda: make_user("admin", make_project()))()
    page = await connect(stranger)
    await page.say(type="subscribe", run=run.id)
    foreign = await page.hear()
    await page.say(type="subscribe", run=10**9)
    missing = await page.hear()
    assert (foreign["type"], foreign["code"]) == ("error", "not_found")
    assert foreign["message"].replace(str(run.id), "N") == missing["message"].replace(str(10**9), "N")
    await page.say(type="subscribe", project=project.slug)
    assert (await page.hear())["code"] == "not_found"


async def test_role_that_is_removed_ends_the_subscription(
    run: Run, project: Project, user: User, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limits.SOCKET_RECHECK_SECONDS == 10
    monkeypatch.setattr(consumers, "SOCKET_RECHECK_SECONDS", 0.3)
    _, write = await writer(run)
    page = await connect(user)
    await page.watch(run, from_seq=2)
    await page.say(type="subscribe", project=project.slug)
    await page.hear("summary")
    await sync_to_async(Membership.objects.filter(user=user).delete)()
    assert (await page.hear("error"))["code"] == "not_found"
    await write(log("secret"))
    assert await page.communicator.receive_nothing(1)


@pytest.mark.parametrize("how", ["logout", "password", "deactivated"])
async def test_session_that_ends_closes_the_socket(
    run: Run, user: User, connect: Open, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(consumers, "SOCKET_RECHECK_SECONDS", 0.3)
    page = await connect(user)
    await page.watch(run, from_seq=1)

    def end() -> None:
        if how == "logout":
            Session.objects.all().delete()
        elif how == "password":
            user.set_password("another long password")
            user.save()
        else:
            User.objects.filter(id=user.id).update(is_active=False)

    await sync_to_async(end)()
    assert await page.closed() == 4401


# Bad input


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{not json", "bad_message"),
        ("[]", "bad_message"),
        ("[" * 30_000, "bad_message"),
        ('"subscribe"', "bad_message"),
        ("{}", "bad_message"),
        ('{"type":"run.event.broadcast","payload":{}}', "bad_message"),
        ('{"type":["subscribe"],"run":1}', "bad_message"),
        ('{"type":"subscribe"}', "bad_message"),
        ('{"type":"subscribe","run":1,"project":"lab"}', "bad_message"),
        ('{"type":"subscribe","run":1,"extra":1}', "bad_message"),
        ('{"type":"subscribe","run":"1"}', "bad_id"),
        ('{"type":"subscribe","run":true}', "bad_id"),
        ('{"type":"subscribe","run":0}', "bad_id"),
        ('{"type":"subscribe","run":1.5}', "bad_id"),
        ('{"type":"subscribe","run":9223372036854775808}', "bad_id"),
        ('{"type":"subscribe","run":"run_1\\r\\nX"}', "bad_id"),
        ('{"type":"subscribe","run":1,"from_seq":-1}', "bad_cursor"),
        ('{"type":"subscribe","run":1,"from_seq":1e30}', "bad_cursor"),
        ('{"type":"subscribe","run":1,"from_seq":NaN}', "bad_cursor"),
        ('{"type":"subscribe","run":1,"from_seq":9007199254740993}', "bad_cursor"),
        ('{"type":"subscribe","project":"a b"}', "bad_id"),
        ('{"type":"subscribe","project":"a\\u0000"}', "bad_id"),
        ('{"type":"subscribe","project":5}', "bad_id"),
    ],
)
async def test_bad_message_is_answered(user: User, connect: Open, text: str, code: str) -> None:
    page = await connect(user)
    await page.send(text=text)
    answer = await page.hear()
    assert (answer["type"], answer["code"]) == ("error", code)


async def test_ten_bad_messages_in_a_row_close(run: Run, user: User, connect: Open) -> None:
    page = await connect(user)
    for _ in range(9):
        await page.send(text="{")
        await page.hear("error")
    await page.watch(run)
    for _ in range(10):
        await page.send(text="{")
    assert await page.closed() == 1008


async def test_large_message_closes(user: User, connect: Open) -> None:
    fits = '{"type":"pong"}'.ljust(limits.SOCKET_MESSAGE_BYTES)
    page = await connect(user)
    await page.send(text=fits)
    await page.send(text=fits + " ")
    assert await page.closed() == 1009
    page = await connect(user)
    await page.send(text="ä" * (limits.SOCKET_MESSAGE_BYTES // 2 + 1))
    assert await page.closed() == 1009


async def test_binary_message_closes(user: User, connect: Open) -> None:
    page = await connect(user)
    await page.send(bytes=b"\x00\xff")
    assert await page.closed() == 1003


async def test_subscriptions_are_limited(
    project: Project, user: User, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limits.SOCKET_SUBSCRIPTIONS == 50
    monkeypatch.setattr(consumers, "SOCKET_SUBSCRIPTIONS", 2)
    runs = [await sync_to_async(make_run)(project) for _ in range(3)]
    page = await connect(user)
    for run in runs[:2]:
        await page.watch(run, from_seq=1)
    await page.watch(runs[0], from_seq=1)  # again is not more
    await page.say(type="subscribe", run=runs[2].id)
    assert (await page.hear("error"))["code"] == "too_many"
    await page.say(type="unsubscribe", run=runs[0].id)
    await page.watch(runs[2], from_seq=1)


# Life signs


async def test_silent_client_is_dropped(user: User, connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.SOCKET_PING_SECONDS == 20
    monkeypatch.setattr(consumers, "SOCKET_PING_SECONDS", 0.4)
    page = await connect(user)
    for _ in range(4):
        await page.hear("ping")
        await page.say(type="pong")
    assert await page.closed(5) == 1001


async def test_client_that_takes_nothing_is_closed_and_others_go_on(
    run: Run, user: User, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limits.SOCKET_SEND_SECONDS == 10
    monkeypatch.setattr(consumers, "SOCKET_SEND_SECONDS", 0.5)
    _, write = await writer(run)
    page = await connect(user)
    await page.watch(run, from_seq=2)
    await page.hear("state")

    cookie = await sync_to_async(cookie_of)(user)
    sent: list[dict[str, Any]] = []
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "websocket.connect"})
    subscribe = json.dumps({"type": "subscribe", "run": run.id, "from_seq": 2})
    incoming.put_nowait({"type": "websocket.receive", "text": subscribe})

    async def stuck(message: dict[str, Any]) -> None:
        sent.append(message)
        if '"frame"' in message.get("text", ""):
            await asyncio.sleep(3600)

    scope = {"cookies": {settings.SESSION_COOKIE_NAME: cookie}}
    task = asyncio.ensure_future(consumers.live(scope, incoming.get, stuck))
    await _until(lambda: len(sent) >= 2)
    await write(log("one"))
    await page.hear("frame")
    await _until(task.done)
    assert sent[-1] == {"type": "websocket.close", "code": 1013}
    await write(log("two"))
    assert (await page.hear("frame"))["events"][0]["message"] == "two"


async def test_deleted_run_is_said_to_be_gone(run: Run, user: User, connect: Open) -> None:
    page: Page = await connect(user)
    await page.watch(run, from_seq=1)
    await page.hear("state")
    feed = Hub.here().runs[run.id]
    await sync_to_async(run.delete)()
    feed.poke()
    assert (await page.hear("error"))["code"] == "not_found"


# Outages


async def test_page_is_told_of_an_outage_waits_and_goes_on(
    run: Run, user: User, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "SOCKET_ASK_SECONDS", 0.1)
    monkeypatch.setattr(feeds, "SOCKET_POLL_SECONDS", 0.3)
    _, write = await writer(run)
    page = await connect(user)
    await page.watch(run, from_seq=2)
    await page.hear("state")
    is_away = True

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if is_away:
                raise OperationalError("no route to the database")
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(catch_up, "since", failing(catch_up.since))
    monkeypatch.setattr(access, "visible", failing(access.visible))
    monkeypatch.setattr(feeds, "ping", failing(feeds.ping))
    await write(log("while it was away"))
    assert (await page.hear("database"))["answers"] is False
    # One that comes now is told, too, and waits for its answer instead of being sent away.
    late = await connect(user)
    await late.say(type="subscribe", run=run.id, from_seq=2)
    assert (await late.hear("database"))["answers"] is False
    await asyncio.sleep(0.5)
    is_away = False
    assert (await page.hear("database"))["answers"] is True
    assert (await page.hear("frame"))["events"][0]["message"] == "while it was away"
    await late.hear("subscribed")
    assert (await late.hear("frame"))["events"][0]["message"] == "while it was away"


async def test_one_read_that_fails_is_no_outage(
    run: Run, user: User, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "SOCKET_ASK_SECONDS", 0.1)
    _, write = await writer(run)
    page = await connect(user)
    await page.watch(run, from_seq=2)
    await page.hear("state")
    real, failures = catch_up.since, [OperationalError("canceling statement due to statement timeout")]

    def once(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*arguments)

    monkeypatch.setattr(catch_up, "since", once)
    await write(log("late"))
    assert (await page.hear("frame", "database"))["type"] == "frame"


def test_news_over_http_are_what_a_socket_says(run: Run, user: User) -> None:
    made = Writer(run)
    last = made.write(started(), metrics(1, reward__mean=float("inf")))
    client = Client()
    client.force_login(user)

    def news(after: int) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = client.get(f"/api/v1/runs/{run.id}/news?after={after}").json()[
            "messages"
        ]
        return said

    (frame,) = news(1)
    assert (frame["type"], frame["first_seq"], frame["last_seq"]) == ("frame", 2, last)
    assert frame["events"][-1]["seq"] == last
    (state,) = news(last)
    assert (state["type"], state["state"]["last_seq"]) == ("state", last)
    made.write(*[log("x") for _ in range(500)])
    assert [message["type"] for message in news(last - 1)] == ["resync", "state"]
    assert [message["type"] for message in news(last + 9999)] == ["resync", "state"]
