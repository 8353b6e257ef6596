"""The twelve invariants of a campaign, each a pure function of what was seen and what is left.

`check` runs all of them. None knows how a fault was made; all they are told is when a part of the system was
away, since nobody can tell the truth of a database that is not there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.campaign.content import chained
from tests.campaign.evidence import Evidence, StoredEvent
from tests.campaign.history import Line, of

LEASED = ("starting", "running", "stopping")
ENDED = ("succeeded", "stopped", "failed", "cancelled")
TRUE_WITHIN = 30.0  # a run whose worker died does not say "running" any longer than this
ENDED_WITHIN = 60.0  # no trainer of an ended run lives longer than this
ORPHAN_WITHIN = 30.0  # nor one of an attempt that is over
SEEN_WITHIN = 10.0  # a wish to stop or pause is acknowledged
LEASE = 20.0  # after a start of the database nobody is declared dead for so long
MEMORY_MB = 50.0
WARM_SECONDS = 15.0  # a process loads pages and templates when they are first asked for
KEPT_TEMPORARY = 1

# From reliability: what may follow on what. Written here by hand, and not taken from the product.
MOVES: dict[str, set[str]] = {
    "": {"queued"},
    "queued": {"starting", "cancelled", "paused"},
    "starting": {"running", "stopping", "recovering", "queued", "paused", *ENDED} - {"cancelled"},
    "running": {"stopping", "recovering", "queued", "paused", "succeeded", "stopped", "failed"},
    "stopping": {"paused", "succeeded", "stopped", "failed"},
    "recovering": {"starting", "running", "paused", "cancelled"},
    "paused": {"queued", "cancelled", "stopped"},
    "succeeded": set(),
    "stopped": {"queued"},  # resumed by a person
    "failed": {"queued"},  # tried again by a person
    "cancelled": {"queued"},
}


@dataclass(frozen=True, slots=True)
class Violation:
    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"


Check = Callable[[list[Line], Evidence], list[str]]


def check(history: list[Line], left: Evidence) -> list[Violation]:
    """Everything that is not as it must be."""
    return [Violation(name, what) for name, one in INVARIANTS.items() for what in one(history, left)]


# ---- 1


def stored_set(history: list[Line], left: Evidence) -> list[str]:
    """Acknowledged ⊆ stored, stored ⊆ emitted, in order, each once, without a gap."""
    found = []
    by_run = _events_by_run(left)
    for run in left.runs:
        seqs = [event.seq for event in by_run[run.id]]
        if len(set(seqs)) != len(seqs):
            twice = next(seq for seq in seqs if seqs.count(seq) > 1)
            found.append(f"run {run.id}: event {twice} is stored twice")
        missing = set(range(1, run.last_seq + 1)) - set(seqs)
        if missing:
            found.append(f"run {run.id}: event {min(missing)} of {run.last_seq} is missing")
        if seqs and max(seqs) > run.last_seq:
            found.append(f"run {run.id}: event {max(seqs)} is stored, last_seq is {run.last_seq}")
    emitted: dict[tuple[int, int], dict[int, str | None]] = defaultdict(dict)
    for line in of(history, "emit"):
        emitted[line["run"], line["epoch"]][line["n"]] = line["digest"]
    for attempt in left.attempts:
        key = (attempt.run, attempt.epoch)
        stored = [e for e in by_run[attempt.run] if e.epoch == attempt.epoch and _is_record(e)]
        found += _compared(key, stored, emitted[key], attempt.recorded_through)
    through = {(a.run, a.epoch): a.recorded_through for a in left.attempts}
    for line in of(history, "ack"):
        if line["through"] > through.get((line["run"], line["epoch"]), 0):
            found.append(
                f"run {line['run']} attempt {line['epoch']}: record {line['through']} was acknowledged, "
                f"but only {through.get((line['run'], line['epoch']), 0)} are stored"
            )
    return list(dict.fromkeys(found))


def _compared(
    key: tuple[int, int], stored: Sequence[StoredEvent], emitted: dict[int, str | None], through: int
) -> list[str]:
    """Stored events of one attempt against what it emitted, as far as that was seen."""
    name = f"run {key[0]} attempt {key[1]}"
    wanted = []
    for n in range(1, through + 1):
        if n not in emitted:
            break  # the spool was gone before it was looked at
        if (digest := emitted[n]) is not None:
            wanted.append((n, digest))
    have = [event.digest for event in stored]
    seen_all = not through or through in emitted
    for place, (n, digest) in enumerate(wanted):
        if place >= len(have):
            return [f"{name}: record {n} was acknowledged and is not stored"]
        if have[place] != digest:
            if digest in have:
                return [f"{name}: record {n} is not stored in its place: events are swapped, lost or doubled"]
            return [f"{name}: record {n} was acknowledged and is not stored"]
    if seen_all and len(have) > len(wanted):
        return [f"{name}: event {stored[len(wanted)].seq} is stored and was never emitted"]
    return []


def _is_record(event: StoredEvent) -> bool:
    return event.kind != "status"


def _events_by_run(left: Evidence) -> dict[int, list[StoredEvent]]:
    by_run: dict[int, list[StoredEvent]] = defaultdict(list)
    for event in sorted(left.events, key=lambda event: (event.run, event.seq)):
        by_run[event.run].append(event)
    return by_run


# ---- 2, 3


def told_chain(events: Iterable[StoredEvent]) -> dict[int, str]:
    """seq -> digest of all that a reader was told up to it."""
    chain = {0: ""}
    for event in events:
        chain[event.seq] = chained(chain.get(event.seq - 1, "gap"), event.told)
    return chain


def prefix(history: list[Line], left: Evidence) -> list[str]:
    """What every reader saw is a growing beginning of the final sequence."""
    found = []
    chains = {run: told_chain(events) for run, events in _events_by_run(left).items()}
    at: dict[tuple[str, int], int] = {}
    for line in of(history, "read"):
        key = (line["reader"], line["run"])
        name = f"reader {key[0]} of run {key[1]}"
        if line.get("reset"):
            at.pop(key, None)
        if line["seq"] < at.get(key, 0):
            found.append(f"{name} went back from event {at[key]} to {line['seq']} without a word")
        at[key] = line["seq"]
        if chains.get(key[1], {}).get(line["seq"]) != line["told"]:
            found.append(f"{name} saw other events up to {line['seq']} than are stored")
        if line.get("gap"):
            found.append(f"{name} was sent a frame that does not follow event {line['gap']}")
    return found


def convergence(history: list[Line], left: Evidence) -> list[str]:
    """In the end every reader has all, and the true status."""
    chains = {run: told_chain(events) for run, events in _events_by_run(left).items()}
    runs = {run.id: run for run in left.runs}
    last: dict[tuple[str, int], Line] = {}
    for line in of(history, "read"):
        last[line["reader"], line["run"]] = line
    found = []
    for (reader, run_id), line in last.items():
        run = runs.get(run_id)
        if run is None:
            continue
        if line["seq"] != run.last_seq or line["told"] != chains[run_id].get(run.last_seq):
            found.append(f"reader {reader} of run {run_id} stopped at event {line['seq']} of {run.last_seq}")
        elif line.get("status") not in (None, run.status):
            found.append(f"reader {reader} of run {run_id} shows {line['status']}; it is {run.status}")
    return found


# ---- 4


def single_writer(history: list[Line], left: Evidence) -> list[str]:
    """Epochs never fall: not of records, not of status events, not of the row, not of checkpoint pointers."""
    found = []
    for run, events in _events_by_run(left).items():
        for kind, chosen in (
            ("record", [e for e in events if _is_record(e)]),
            ("status event", [e for e in events if not _is_record(e)]),
        ):
            for before, event in pairwise(chosen):
                if event.epoch < before.epoch:
                    found.append(
                        f"run {run}: {kind} {event.seq} of attempt {event.epoch} was accepted after one of "
                        f"attempt {before.epoch}"
                    )
    for op, what in (("run", "lease epoch"), ("pointer", "epoch of the checkpoint")):
        at: dict[int, int] = {}
        for line in of(history, op):
            if line["epoch"] < at.get(line["run"], 0):
                found.append(f"run {line['run']}: the {what} fell from {at[line['run']]} to {line['epoch']}")
            at[line["run"]] = line["epoch"]
    return found


# ---- 5


@dataclass(frozen=True, slots=True)
class FalseSpan:
    """A run said that it is worked on, and nobody worked on it: `seconds` of it that nothing excuses."""

    run: int
    epoch: int
    status: str
    start: float
    end: float
    seconds: float


def excuses(history: list[Line], *whats: str, after_database: float = LEASE) -> list[tuple[float, float]]:
    """When the parts that tell the truth were away; the database's absence counts one lease longer."""
    end = history[-1]["t"] if history else 0.0
    began: dict[str, float] = {}
    spans = []
    for line in of(history, "away"):
        if line["what"] not in whats:
            continue
        if line["type"] == "invoke":
            began.setdefault(line["what"], line["t"])
        elif (start := began.pop(line["what"], None)) is not None:
            spans.append((start, line["t"] + (after_database if line["what"] == "database" else 0.0)))
    return spans + [(start, end) for start in began.values()]


def unexcused(start: float, end: float, spans: Sequence[tuple[float, float]]) -> float:
    """Seconds of [start, end] outside all spans."""
    left, at = 0.0, start
    for a, b in sorted(spans):
        if b <= at:
            continue
        if a >= end:
            break
        left += max(0.0, a - at)
        at = min(max(at, b), end)
    return left + max(0.0, end - at)


def false_spans(history: list[Line]) -> list[FalseSpan]:
    """Every time a run's status was not true, however short: nobody worked on it, or nobody who could say
    so.
    """
    spans = excuses(history, "database", "sweeper", "lock")
    status: dict[int, tuple[str, int]] = {}
    alive: dict[tuple[int, int], bool] = {}
    since: dict[int, float] = {}
    owner: dict[int, str] = {}
    cut_off: set[str] = set()
    found = []
    end = history[-1]["t"] if history else 0.0

    def look(run: int, t: float) -> None:
        said, epoch = status.get(run, ("", 0))
        is_gone = alive.get((run, epoch)) is False or owner.get(run) in cut_off
        is_false = said in LEASED and is_gone
        if is_false and run not in since:
            since[run] = t
        elif not is_false and run in since:
            close(run, t)

    def close(run: int, t: float) -> None:
        start = since.pop(run)
        said, epoch = before.get(run, status[run])
        found.append(FalseSpan(run, epoch, said, start, t, unexcused(start, t, spans)))

    before: dict[int, tuple[str, int]] = {}
    for line in history:
        if line["op"] == "run":
            before[line["run"]] = status.get(line["run"], ("", 0))
            status[line["run"]] = (line["status"], line["epoch"])
            owner[line["run"]] = line.get("owner", "").partition("@")[0]
            look(line["run"], line["t"])
        elif line["op"] == "link":
            (cut_off.add if line["type"] == "invoke" else cut_off.discard)(line["worker"])
            for run in owner:
                before.pop(run, None)
                look(run, line["t"])
        elif line["op"] == "holder":
            alive[line["run"], line["epoch"]] = line["alive"]
            before.pop(line["run"], None)
            look(line["run"], line["t"])
    for run in list(since):
        before.pop(run, None)
        close(run, end)
    return found


def status_is_true(history: list[Line], left: Evidence) -> list[str]:
    """Nothing says "running" for longer than 30 s without a worker; no trainer outlives its run by 60 s."""
    found = [
        f"run {span.run} said {span.status} for {span.seconds:.0f} s after the worker of attempt "
        f"{span.epoch} was gone or cut off (from {span.start:.0f} s to {span.end:.0f} s)"
        for span in false_spans(history)
        if span.seconds > TRUE_WITHIN
    ]
    return found + [
        f"trainer {pid} of run {run} lived for {seconds:.0f} s after the run had ended"
        for run, pid, seconds, why in outlived(history)
        if why == "ended" and seconds > ENDED_WITHIN
    ]


def outlived(history: list[Line]) -> list[tuple[int, int, float, str]]:
    """(run, pid, seconds, "ended" or "superseded") of trainers that lived on after their attempt."""
    spans = excuses(history, "database", "worker")
    status: dict[int, tuple[str, int]] = {}
    since: dict[tuple[int, int, int], tuple[float, str]] = {}
    living: set[tuple[int, int, int]] = set()
    found: list[tuple[int, int, float, str]] = []

    def look(t: float) -> None:
        for key in living | set(since):
            run, epoch, pid = key
            said, now = status.get(run, ("", epoch))
            why = "ended" if said in ENDED else "superseded" if now > epoch else ""
            if key in living and why and key not in since:
                since[key] = (t, why)
            elif key in since and (key not in living or not why):
                start, was = since.pop(key)
                found.append((run, pid, unexcused(start, t, spans), was))

    for line in history:
        if line["op"] == "run":
            status[line["run"]] = (line["status"], line["epoch"])
            look(line["t"])
        elif line["op"] == "trainers":
            living = {(run, epoch, pid) for run, epoch, pid in line["alive"]}
            look(line["t"])
    end = history[-1]["t"] if history else 0.0
    found += [(run, pid, unexcused(start, end, spans), why) for (run, _, pid), (start, why) in since.items()]
    return found


# ---- 6


def state_machine(history: list[Line], left: Evidence) -> list[str]:
    """The status events of a run are a path of the allowed graph, and end where the row stands."""
    found = []
    by_run = _events_by_run(left)
    for run in left.runs:
        at = ""
        for event in by_run[run.id]:
            if event.kind != "status" or event.status == at:
                continue
            if event.status not in MOVES.get(at, set()):
                found.append(
                    f"run {run.id}: event {event.seq} moves it from {at or 'nothing'} to {event.status}"
                )
            at = event.status
        if at != run.status:
            found.append(f"run {run.id} is {run.status}, its last status event says {at}")
    return found


# ---- 7


def trees(history: list[Line], left: Evidence) -> list[str]:
    """Every tree is one, and its values follow from its leaves."""
    return list(left.bad_trees)


# ---- 8


def checkpoints(history: list[Line], left: Evidence) -> list[str]:
    """What is listed is whole; nothing is left over."""
    found = [
        f"run {one.run}: {one.path} {'is listed and ' if one.is_listed else ''}is damaged: {one.problem}"
        for one in left.checkpoints
        if one.problem and not one.damaged
    ]
    return found + left.checkpoint_trouble


# ---- 9


def resume_equality(history: list[Line], left: Evidence) -> list[str]:
    """Whatever happened to a run, it is the run that nothing happened to."""
    found = []
    for run in left.runs:
        twin = left.twins.get(run.config)
        if twin is None:
            continue
        found += _unequal(f"run {run.id}: metric", run.metrics, twin.metrics)
        found += _unequal(f"run {run.id}: tree", run.trees, twin.trees)
        if run.status == "succeeded":
            if missing := twin.metrics.keys() - run.metrics.keys():
                found.append(f"run {run.id} lacks {len(missing)} metrics of its twin, first {min(missing)}")
            if missing_trees := twin.trees.keys() - run.trees.keys():
                found.append(
                    f"run {run.id} lacks {len(missing_trees)} trees of its twin, first {min(missing_trees)}"
                )
            if run.weights != twin.weights:
                names = sorted(n for n in twin.weights if run.weights.get(n) != twin.weights[n])
                found.append(
                    f"run {run.id} ended with other state than its twin: {', '.join(names) or 'more files'}"
                )
        else:
            last = max((step for step, _ in run.metrics), default=0)
            lacking = {key for key in twin.metrics if key[0] < last} - run.metrics.keys()
            if lacking:
                found.append(f"run {run.id} came to step {last} without {min(lacking)}")
    return found


def _unequal(what: str, have: dict, wanted: dict) -> list[str]:  # type: ignore[type-arg]
    for key in sorted(have):
        if key not in wanted:
            return [f"{what} {key} is not in its twin"]
        if have[key] != wanted[key]:
            return [f"{what} {key} is {have[key]}, its twin's is {wanted[key]}"]
    return []


# ---- 10


def processes(history: list[Line], left: Evidence) -> list[str]:
    """Nothing of a dead attempt lives on."""
    return [
        f"trainer {pid} of run {run} lived for {seconds:.0f} s after its attempt was over"
        for run, pid, seconds, why in outlived(history)
        if why == "superseded" and seconds > ORPHAN_WITHIN
    ] + [*left.processes_left, *left.files_left]


# ---- 11


def no_errors(history: list[Line], left: Evidence) -> list[str]:
    """No answer of 500 and above but 503 with Retry-After, nothing unhandled in a log."""
    found = []
    for line in of(history, "http"):
        if line["status"] >= 500 and line["status"] != 503:
            found.append(f"{line['path']} was answered with {line['status']} at {line['t']:.0f} s")
        elif line["status"] == 503 and not line.get("retry_after"):
            found.append(f"{line['path']} was answered with 503 without Retry-After at {line['t']:.0f} s")
    return found + left.log_trouble


# ---- 12


def growth(history: list[Line]) -> dict[tuple[str, int], float]:
    """MB that each process took at the end beyond what it took once it was warm."""
    first_seen: dict[tuple[str, int], float] = {}
    base: dict[tuple[str, int], float] = {}
    grown: dict[tuple[str, int], float] = {}
    for line in of(history, "memory"):
        key = (line["name"], line["pid"])
        if line["t"] - first_seen.setdefault(key, line["t"]) < WARM_SECONDS:
            continue
        grown[key] = line["mb"] - base.setdefault(key, line["mb"])
    return grown


def memory(history: list[Line], left: Evidence) -> list[str]:
    """Web and sweeper do not grow."""
    return [
        f"{name} (process {pid}) grew by {mb:.0f} MB"
        for (name, pid), mb in growth(history).items()
        if mb > MEMORY_MB
    ]


# ---- promises that the twelve do not name


def controls(history: list[Line], left: Evidence) -> list[str]:
    """A living worker acknowledges a person's wish within 10 s."""
    return [
        f"the wish to {what} run {run} was acknowledged after {seconds:.0f} s"
        for run, what, seconds in acknowledged(history)
        if seconds > SEEN_WITHIN
    ]


def acknowledged(history: list[Line]) -> list[tuple[int, str, float]]:
    """(run, wish, seconds until it was acknowledged in which somebody could have done it).

    A run whose worker is dead or frozen has nobody who could, nor has one whose worker is cut off; what the
    sweeper does about those is another invariant's matter.
    """
    able = spans_held(history)
    away = excuses(history, "database", "web", "lock", after_database=0.0)
    asked: dict[int, Line] = {}
    found = []

    def close(run: int, until: float) -> None:
        line = asked.pop(run)
        seconds = sum(
            unexcused(max(start, line["t"]), min(end, until), away)
            for start, end in able[run]
            if start < until and end > line["t"]
        )
        found.append((run, str(line["wish"]), seconds))

    for line in of(history, "wish"):
        if line["type"] == "invoke":
            asked.setdefault(line["run"], line)
        elif line["type"] == "fail":
            asked.pop(line["run"], None)
        elif line["run"] in asked:
            close(line["run"], line["t"])
    end = history[-1]["t"] if history else 0.0
    for run in list(asked):
        close(run, end)
    return found


def spans_held(history: list[Line]) -> dict[int, list[tuple[float, float]]]:
    """When each run had a living, unfrozen worker with a way to the database."""
    row: dict[int, tuple[str, int, str]] = {}
    alive: dict[tuple[int, int], bool] = {}
    cut_off: set[str] = set()
    since: dict[int, float] = {}
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for line in history:
        match line["op"]:
            case "run":
                worker = line.get("owner", "").partition("@")[0]
                row[line["run"]] = line["status"], line["epoch"], worker
            case "holder":
                alive[line["run"], line["epoch"]] = line["alive"]
            case "link":
                (cut_off.add if line["type"] == "invoke" else cut_off.discard)(line["worker"])
            case _:
                continue
        for run, (status, epoch, worker) in row.items():
            is_held = status in LEASED and bool(alive.get((run, epoch))) and worker not in cut_off
            if is_held and run not in since:
                since[run] = line["t"]
            elif not is_held and run in since:
                found[run].append((since.pop(run), line["t"]))
    end = history[-1]["t"] if history else 0.0
    for run, start in since.items():
        found[run].append((start, end))
    return found


def ends(history: list[Line], left: Evidence) -> list[str]:
    """A run that failed says why in words of the product, and no defect of ours ends any."""
    found = []
    for line in of(history, "run"):
        if line["status"] != "failed":
            continue
        if not line.get("reason"):
            found.append(f"run {line['run']} failed at {line['t']:.0f} s and does not say why")
        elif any(words in line["reason"] for words in OUR_FAULT):
            found.append(f"run {line['run']} failed at {line['t']:.0f} s: {line['reason'][:200]}")
    return found


# How the product begins a sentence about what it did not foresee.
OUR_FAULT = ("The worker failed", "could not be stored", "Unexpected ", "Traceback")

INVARIANTS: dict[str, Check] = {
    "1 set": stored_set,
    "2 prefix": prefix,
    "3 convergence": convergence,
    "4 single writer": single_writer,
    "5 status": status_is_true,
    "6 state machine": state_machine,
    "7 tree": trees,
    "8 checkpoints": checkpoints,
    "9 resume equality": resume_equality,
    "10 processes": processes,
    "11 no errors": no_errors,
    "12 memory": memory,
    "controls": controls,
    "ends": ends,
}
