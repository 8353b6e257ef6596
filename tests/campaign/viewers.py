"""Readers of the live view, as a page reads it: a cursor per run, reconnects, and trust in numbers alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

import websockets

from tests.campaign.content import chained, of_message
from tests.campaign.history import History
from tests.campaign.proxy import Loop, Proxy
from tests.campaign.watching import ask

SILENCE_SECONDS = 40.0  # then a page takes the connection for dead
BACK_OFF = (0.5, 15.0)  # seconds, doubling, ± 50 %


@dataclass
class Reading:
    """How far a reader came in one run, and the digest of all that it was told."""

    seq: int = 0
    told: str = ""
    status: str | None = None


@dataclass
class Viewer:
    """One open page. `pace`: seconds that it takes over each message; `is_frozen`: it takes none."""

    name: str
    proxy: Proxy
    headers: dict[str, str]
    history: History
    pace: float = 0.0
    readings: dict[int, Reading] = field(default_factory=dict)
    is_frozen: bool = False
    connects: int = 0
    resyncs: int = 0
    _socket: Any = None  # websockets' connection, under whichever name its release has it

    async def live(self) -> None:
        """For ever."""
        wait = BACK_OFF[0]
        while True:
            began = time.monotonic()
            # A cut is what the campaign makes; what was seen until then is in `readings`.
            with contextlib.suppress(OSError, websockets.WebSocketException, json.JSONDecodeError):
                await self._visit()
            self._socket = None
            wait = BACK_OFF[0] if time.monotonic() - began > 10 else min(wait * 2, BACK_OFF[1])
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))

    async def _visit(self) -> None:
        port = self.proxy.port
        async with websockets.connect(
            f"ws://127.0.0.1:{port}/ws/v1",
            additional_headers={"Cookie": self.headers["Cookie"]},
            origin=websockets.Origin(f"http://127.0.0.1:{port}"),
            open_timeout=10,
            close_timeout=1,
            ping_interval=None,
            max_size=None,
            max_queue=4,
        ) as socket:
            self.connects += 1
            self._socket = socket
            for run in list(self.readings):
                await self._subscribe(run)
            while True:
                while self.is_frozen:  # noqa: ASYNC110 (set by another thread)
                    await asyncio.sleep(0.1)
                text = await asyncio.wait_for(socket.recv(), SILENCE_SECONDS)
                await self._take(json.loads(text))
                if self.pace:
                    await asyncio.sleep(self.pace)

    async def watch(self, run: int) -> None:
        if run not in self.readings:
            self.readings[run] = Reading()
            if self._socket is not None:
                try:
                    await self._subscribe(run)
                except websockets.WebSocketException:
                    return  # it subscribes again when it is back

    async def _subscribe(self, run: int) -> None:
        await self._socket.send(
            json.dumps({"type": "subscribe", "run": run, "from_seq": self.readings[run].seq})
        )

    async def _take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "ping":
                await self._socket.send('{"type":"pong"}')
            case "frame":
                await self._take_frame(message)
            case "state":
                self.readings[message["run"]].status = message["state"]["status"]
                self._note(message["run"])
            case "resync":
                self.resyncs += 1
                await self._read_again(message["run"], message["last_seq"])
            case "error":
                self.history.add("note", text=f"{self.name}: {message.get('code')} {message.get('message')}")

    async def _take_frame(self, message: dict[str, Any]) -> None:
        run = message["run"]
        reading = self.readings[run]
        if message["first_seq"] > reading.seq + 1:
            await self._subscribe(run)  # a page asks again for what it lacks
            return
        self._add(reading, message["events"])
        if reading.seq < message["last_seq"]:
            self.history.add(
                "read", reader=self.name, run=run, seq=reading.seq, told=reading.told, gap=reading.seq
            )
        reading.status = message["state"]["status"]
        self._note(run)

    def _add(self, reading: Reading, events: list[dict[str, Any]]) -> None:
        for event in events:
            if event["seq"] == reading.seq + 1:
                reading.seq = event["seq"]
                reading.told = chained(reading.told, of_message(event))

    async def _read_again(self, run: int, through: int) -> None:
        """Far behind: the events come by the API, page by page."""
        reading = self.readings[run]
        while reading.seq < through:
            path = f"/api/v1/runs/{run}/events?after={reading.seq}&limit=200"
            status, _, body = await asyncio.to_thread(ask, self.proxy.port, "GET", path, self.headers)
            if status != 200:
                raise OSError(f"{path} was answered with {status}")
            before = reading.seq
            self._add(reading, json.loads(body)["events"])
            if reading.seq == before:
                break
        self._note(run)

    def _note(self, run: int) -> None:
        reading = self.readings[run]
        self.history.add(
            "read", reader=self.name, run=run, seq=reading.seq, told=reading.told, status=reading.status
        )


class Audience:
    """All viewers, on the campaign's loop."""

    def __init__(self, loop: Loop, viewers: list[Viewer]) -> None:
        self.loop, self.viewers = loop, viewers
        for viewer in viewers:
            loop.start(viewer.live())

    def watch(self, run: int) -> None:
        for viewer in self.viewers:
            self.loop.do(viewer.watch(run))

    def has_seen(self, last_seqs: dict[int, tuple[int, str]]) -> list[str]:
        """Who has not come to the end yet. `last_seqs`: run -> last seq, status."""
        behind = []
        for viewer in self.viewers:
            for run, (seq, status) in last_seqs.items():
                reading = viewer.readings.get(run)
                if reading is not None and (reading.seq, reading.status) != (seq, status):
                    behind.append(f"{viewer.name} of run {run} at {reading.seq} of {seq}, {reading.status}")
        return behind
