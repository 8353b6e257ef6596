"""Plays a seeded schedule of faults against the real system, heals, waits, and gathers what is left."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis

from tests.campaign import checker, material
from tests.campaign.evidence import Evidence, Twin
from tests.campaign.faults import Fault, catalogue
from tests.campaign.gathering import gather
from tests.campaign.material import Site, TwinInWork
from tests.campaign.stack import System
from tests.campaign.viewers import Audience, Viewer
from tests.campaign.watching import Asker, RunSeen, Watcher, ask
from webapp.embedded import processes

STEPS = 40
RUNS_AT_ONCE = 4  # two are worked on, the others wait for a worker, or for their back-off
FINISH_SECONDS = 50.0
CONVERGE_SECONDS = 10.0
TICK_SECONDS = 0.1
OWN_MODEL = "own model"  # the config of runs that start from a folder of their own
RETRIES = 2  # how often a person tries a run again


@dataclass(frozen=True, slots=True)
class Planned:
    """One entry of a schedule: `gap` seconds after the one before; `draw` decides what the fault hits."""

    number: int
    gap: float
    faults: tuple[str, ...]
    draw: int

    def __str__(self) -> str:
        return f"{self.number}: {' + '.join(self.faults)}"


def plan(seed: int, count: int, names: list[str], gap: tuple[float, float]) -> list[Planned]:
    """The schedule of a seed: always the same for the same seed, count and names."""
    rng = random.Random(seed)
    entries = []
    bag: list[str] = []
    number = 0
    while number < count:
        if not bag:
            bag = rng.sample(names, len(names))  # every fault comes before one comes again
        chosen = (bag.pop(),)
        if bag and rng.random() < 0.15 and number + 2 <= count:
            chosen += (bag.pop(),)  # F38
        number += len(chosen)
        entries.append(Planned(number, round(rng.uniform(*gap), 2), chosen, rng.getrandbits(32)))
    return entries


@dataclass
class Active:
    fault: Fault
    until: float


@dataclass
class Campaign:
    """What a fault may see and touch: the system, what is known of the runs, and the API."""

    system: System
    seed: int
    say: Callable[[str], None]
    site: Site = field(init=False)
    watcher: Watcher = field(init=False)
    audience: Audience = field(init=False)
    config_of: dict[int, str] = field(default_factory=dict)
    torn: set[tuple[int, int]] = field(default_factory=set)
    damaged: set[Path] = field(default_factory=set)
    retries: Counter[int] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)  # what a fault met, where that is left to chance
    spent: defaultdict[str, float] = field(
        default_factory=lambda: defaultdict(float)
    )  # seconds, by what the schedule waited for
    active: list[Active] = field(default_factory=list)

    def begin(self, steps: int = STEPS) -> None:
        self.configs = material.configs(steps)
        shutil.copytree(material.tiny_reasoner(), self.own_model)
        # Marked, so that they end with the rest whatever happens.
        env = self.system.env | {processes.MARK: self.system.folder.digest}
        self.twins_in_work: dict[str, TwinInWork] = {
            name: material.begin_twin(self.system.folder.root / "twins", name, config, env)
            for name, config in self.configs.items()
        }
        self.site = Site(self.own_model)
        # The same weights, so the same twin.
        own = self.configs["treerpo"].model_dump(mode="json")
        own["model"]["path"] = material.OWN_SLUG
        self.configs[OWN_MODEL] = type(self.configs["treerpo"]).model_validate(own)
        self.watcher = Watcher(self.system)
        self.watcher.start()
        front, slow = self.system.proxies["front"], self.system.proxies["slow"]
        headers = self.site.page_headers
        self.viewers = [
            Viewer("viewer", front, headers, self.system.history),
            Viewer("slow viewer", slow, headers, self.system.history, pace=0.5),
            Viewer("frozen viewer", self.system.proxies["frozen"], headers, self.system.history),
        ]
        self.audience = Audience(self.system.loop, self.viewers)
        self.asker = Asker(self.system, headers, ["/healthz", f"/p/{material.PROJECT}/", "/workers/"])
        self.asker.start()
        self.rng = random.Random(self.seed + 1)
        self.fill()

    # Runs

    def api(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """(status, JSON). Status 0: nobody answered."""
        content = None if body is None and method == "GET" else json.dumps(body or {}).encode()
        port = self.system.proxies["front"].port
        try:
            status, retry_after, answer = ask(port, method, f"/api/v1{path}", self.site.api_headers, content)
        except (OSError, http.client.HTTPException) as error:
            self.system.history.add("http", "fail", path=path, status=0, why=str(error))
            return 0, None
        self.system.history.add("http", "ok", path=path, status=status, retry_after=retry_after)
        try:
            return status, json.loads(answer)
        except ValueError:
            return status, None

    def fill(self) -> None:
        """As many runs as are wanted; a request that got no answer is made again with the same key."""
        alive = [run for run in self.config_of if self.run(run).status not in checker.ENDED]
        if len(alive) >= RUNS_AT_ONCE:
            return
        number = len(self.config_of)
        name = sorted(self.configs)[number % len(self.configs)]
        self.create(name, self.configs[name], f"run-{number}")

    def look_after(self) -> None:
        """What a person does: resume what is paused, try again what failed."""
        for run, seen in list(self.watcher.runs.items()):
            if run not in self.config_of:
                continue
            if seen.status == "paused":
                self.api("POST", f"/runs/{run}/resume")
            elif seen.status in ("failed", "stopped", "cancelled") and self.retries[run] < RETRIES:
                self.retries[run] += 1
                self.api("POST", f"/runs/{run}/retry")

    def create(self, name: str, config: Any, key: str) -> int | None:
        status, answer = self.api(
            "POST",
            f"/projects/{material.PROJECT}/runs",
            {"name": f"{name} {key}", "config": config.model_dump(mode="json"), "idempotency_key": key},
        )
        if status != 201:
            return None
        run = int(answer["id"])
        if run not in self.config_of:
            self.config_of[run] = name
            self.audience.watch(run)
        return run

    def run(self, run: int) -> RunSeen:
        return self.watcher.runs.get(run, RunSeen(run, "queued"))

    # What faults hit

    def run_of(self, worker: str) -> int:
        """The run that a worker holds; 0 if none."""
        return next((run.id for run in self.leased() if run.owner.partition("@")[0] == worker), 0)

    def processes_of(self, worker: str, *, trainers: bool) -> list[int]:
        """The worker's own processes, and if wanted those of its run."""
        child = self.system.pool_child(worker)
        found = [self.system.parts[worker].pid] + ([child.pid] if child else [])
        if trainers:
            held = self.run_of(worker)
            found += [pid for run, _, pid in self.watcher.trainers if run == held]
        return found

    def a_trainer(self, rng: random.Random) -> int:
        """The pid of a trainer; 0 if there is none."""
        found = [pid for _, _, pid in self.watcher.trainers if not is_verifier(pid)]
        return rng.choice(found) if found else 0

    def a_verifier(self, rng: random.Random) -> tuple[int, int]:
        """(pid, run) of a process that verifies answers; zeros if there is none."""
        found = [(pid, run) for run, _, pid in self.watcher.trainers if is_verifier(pid)]
        return rng.choice(found) if found else (0, 0)

    def sessions(self, name: str) -> list[int]:
        """Pids of the database sessions with this application name."""
        with contextlib.suppress(psycopg.Error), self.watcher.connect() as link:
            rows = link.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s", [name]
            ).fetchall()
            return [row[0] for row in rows]
        return []

    def terminate(self, name: str) -> int:
        """End these sessions. Returns how many."""
        with contextlib.suppress(psycopg.Error), self.watcher.connect() as link:
            rows = link.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE %s",
                [name],
            ).fetchall()
            return len(rows)
        return 0

    def tell_broker(self, *words: str) -> str:
        """The answer of the broker itself, or why there was none."""
        try:
            with redis.Redis(
                unix_socket_path=str(self.system.folder.broker_socket), socket_timeout=3
            ) as client:
                return str(client.execute_command(*words))
        except redis.RedisError as error:
            return str(error)

    def is_own_model(self, run: int) -> bool:
        return self.config_of.get(run) == OWN_MODEL

    @property
    def own_model(self) -> Path:
        """A copy of the tiny reasoner that faults may move."""
        return self.system.folder.root / "models" / "own"

    def leased(self) -> list[RunSeen]:
        """Runs that somebody works on, oldest first."""
        return [run for _, run in sorted(self.watcher.runs.items()) if run.status in checker.LEASED]

    # Playing

    def play(self, entries: list[Planned]) -> None:
        for entry in entries:
            with self.spending("gaps"):
                self.wait(entry.gap)
            faults = [
                catalogue()[name](self, random.Random(entry.draw + i)) for i, name in enumerate(entry.faults)
            ]
            touched = {part for fault in faults for part in fault.touches}
            with self.spending("other faults' ends"):
                self.wait(
                    40, until=lambda t=touched: not any(t & set(one.fault.touches) for one in self.active)
                )
            for fault in faults:
                self.inject(fault, entry)

    @contextlib.contextmanager
    def spending(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.spent[what] += time.monotonic() - began

    def inject(self, fault: Fault, entry: Planned) -> None:
        history = self.system.history
        if why_not := fault.impossible():
            history.add("fault", "fail", fault=fault.name, entry=str(entry), why=why_not)
            self.counts[f"{fault.name} not possible: {why_not}"] += 1
            return
        with self.spending("moments"):
            self.wait(fault.patience, until=fault.is_moment)
        history.add("fault", "invoke", fault=fault.name, entry=str(entry))
        with self.spending("injections"):
            what = fault.inject()
        history.add("fault", "ok", fault=fault.name, entry=str(entry), what=what)
        self.say(f"{history.now():6.1f} s  {entry.number:3d}  {fault.name:4s} {what}")
        self.counts[fault.name] += 1
        self.active.append(Active(fault, time.monotonic() + fault.hold))

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Meanwhile what is due is healed, what died is started again, and runs are made."""
        deadline = time.monotonic() + seconds
        while True:
            self.tick()
            if until() or time.monotonic() >= deadline:
                return
            time.sleep(TICK_SECONDS)

    def tick(self) -> None:
        self.watcher.raise_if_blind()
        for one in list(self.active):
            one.fault.go_on()
            if time.monotonic() >= one.until or one.fault.is_over():
                self.heal(one)
        self.system.keep_up()
        if time.monotonic() - getattr(self, "_filled", 0.0) > 1.5 and not self.system.is_ending:
            self._filled = time.monotonic()
            if self.is_filling:
                self.fill()
                self.look_after()
        self._look_at_wishes()

    is_filling = True

    def heal(self, one: Active) -> None:
        self.active.remove(one)
        with self.spending("heals"):
            one.fault.heal()
        self.system.history.add("fault", "info", fault=one.fault.name, text="healed")

    def _look_at_wishes(self) -> None:
        for run in list(self.wishes):
            if self.is_acknowledged(run):
                self.system.history.add("wish", "ok", run=run)
                self.wishes.remove(run)

    @property
    def wishes(self) -> set[int]:
        if not hasattr(self, "_wishes"):
            self._wishes: set[int] = set()
        return self._wishes

    def is_acknowledged(self, run: int) -> bool:
        seen = self.run(run)
        return seen.wish_seen or seen.status not in ("starting", "running", "stopping")

    def wish(self, run: int, what: str) -> bool:
        """Ask for it by the API. Returns whether it was taken."""
        self.system.history.add("wish", "invoke", run=run, wish=what)
        status, _ = self.api("POST", f"/runs/{run}/{what}")  # a moment later the row shows the wish
        if status != 200:
            self.system.history.add("wish", "fail", run=run, wish=what, status=status)
            return False
        self.wishes.add(run)
        return True

    # The end

    def finish(self, seconds: float = FINISH_SECONDS) -> tuple[Evidence, dict[str, Any]]:
        """Heal everything, let the runs end, compare."""
        history = self.system.history
        self.is_filling = False
        self.wait(90, until=lambda: not any(one.fault.ends_by_itself for one in self.active))
        for one in list(self.active):
            self.heal(one)
        for name in self.system.parts:
            self.system.launch(name)
        while not all(self.system.is_up(name) for name in self.system.parts):
            time.sleep(TICK_SECONDS)
        for proxy in self.system.proxies.values():
            proxy.mend()
        history.add("note", text="everything is healed")
        for viewer in self.viewers:
            viewer.pace = 0.0
        self.say(f"{history.now():6.1f} s  everything is healed; runs go on to their end")
        self.wait(3)
        self.look_after()
        self.wait(seconds, until=self.all_ended)
        for run in self.config_of:
            if self.run(run).status not in checker.ENDED:
                self.wish(run, "stop")
        self.wait(60, until=self.all_ended)
        self.wait(2)
        wanted = {run: (self.run(run).last_seq, self.run(run).status) for run in self.config_of}
        began = time.monotonic()
        self.wait(CONVERGE_SECONDS, until=lambda: not self.audience.has_seen(wanted))
        converged = time.monotonic() - began
        for behind in self.audience.has_seen(wanted):
            history.add("note", text=f"behind at the end: {behind}")
        self.wait(1)
        twins: dict[str, Twin] = {}
        for name, twin in self.twins_in_work.items():
            twins[name] = material.end_twin(twin)
        twins[OWN_MODEL] = twins["treerpo"]
        self.asker.end()
        self.watcher.end()
        from django.db import connections

        connections.close_all()  # they may have been cut since they were used
        left = gather(
            self.system.folder.root,
            self.system.folder.logs,
            self.system.temporary,
            twins,
            self.config_of,
            self.torn,
            self.damaged,
        )
        connections.close_all()
        return left, {"converged_s": round(converged, 1)}

    def all_ended(self) -> bool:
        return all(self.run(run).status in checker.ENDED for run in self.config_of)


def figures(campaign: Campaign, left: Evidence, more: dict[str, Any]) -> dict[str, Any]:
    """What a campaign measured."""
    history = campaign.system.history.lines
    spans = checker.false_spans(history)
    wishes = checker.acknowledged(history)
    outlived = checker.outlived(history)
    codes = Counter(line["status"] for line in checker.of(history, "http"))
    return {
        "seed": campaign.seed,
        "faults": dict(sorted(campaign.counts.items())),
        "faults_in_all": sum(n for name, n in campaign.counts.items() if "not possible" not in name),
        "seconds": round(campaign.system.history.now(), 1),
        "runs": dict(Counter(run.status for run in left.runs)),
        "attempts": len(left.attempts),
        "events": len(left.events),
        "equal_to_twin": sum(run.status == "succeeded" and run.config in left.twins for run in left.runs),
        "resumed_and_equal": sum(
            run.status == "succeeded" and run.config in left.twins and run.epoch > 1 for run in left.runs
        ),
        "worst_false_status_s": round(max((span.seconds for span in spans), default=0.0), 1),
        "worst_false_status_with_excuses_s": round(max((s.end - s.start for s in spans), default=0.0), 1),
        "worst_acknowledgement_s": round(max((seconds for _, _, seconds in wishes), default=0.0), 1),
        "wishes": len(wishes),
        "worst_orphan_s": round(max((seconds for _, _, seconds, _ in outlived), default=0.0), 1),
        "viewer_connections": {viewer.name: viewer.connects for viewer in campaign.viewers},
        "resyncs": sum(viewer.resyncs for viewer in campaign.viewers),
        "http": {str(code): n for code, n in sorted(codes.items())},
        "slowest_page_s": round(campaign.asker.slowest, 2),
        "memory_growth_mb": {f"{n} {pid}": round(mb, 1) for (n, pid), mb in checker.growth(history).items()},
        "hits": dict(sorted(campaign.hits.items())),
        "spent_s": {what: round(seconds) for what, seconds in campaign.spent.items()},
        "slowest_look_s": round(campaign.watcher.lag, 2),
    } | more


def is_verifier(pid: int) -> bool:
    try:
        return b"trainer.verifier_child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
