"""In which order waiting runs come, and when they may start, played forward from who works on what. Pure;
times are seconds from now.

The rule is `order`'s, a second time: what the claims of workers do in SQL is foreseen here. What is not known
stays unknown: a run whose duration nobody can tell holds its worker for ever here.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Place = tuple[int, str]  # a project, and a class or "" for all classes together


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one run at a worker. `free_in`: 0 now, None when nobody can tell."""

    queues: frozenset[str]
    free_in: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Occupant:
    """A run that counts towards its project's share and limits, but not against itself, until `ends_in`; None
    when nobody can tell.
    """

    run: int
    project: int
    queue: str
    ends_in: float | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run that waits; of one project and class those that come first stand first. `seconds`: how long it
    will be worked on, if that is known. `ready_in`: its back-off. `goes_on`: it was at work already.
    """

    run: int
    project: int
    queue: str
    seconds: float | None
    ready_in: float = 0.0
    goes_on: bool = False


def line(
    waiting: Sequence[Waiting], occupants: Iterable[Occupant], turns: Mapping[Place, float]
) -> list[int]:
    """The runs in the order in which workers would take them if none ended and nothing held them back."""
    state = _State(occupants, {}, turns)
    for place, run in enumerate(waiting):
        state.wait(run, place)
    order = []
    for queue in sorted({run.queue for run in waiting}):
        while (taken := state.take(queue, 0.0)) is not None:
            order.append(taken.run)
    return order


def starts(
    slots: Sequence[Slot],
    occupants: Sequence[Occupant],
    waiting: Sequence[Waiting],
    limits: Mapping[Place, int],
    turns: Mapping[Place, float] | None = None,
) -> dict[int, float]:
    """Run -> seconds until a worker may take it; those that nobody can tell are left out.

    `limits`: (project, class or "" for all) -> most at once. `turns`: (project, class) -> when it had its
    last turn, in seconds from now, so below 0.
    """
    state = _State(occupants, limits, turns or {})
    free: Counter[frozenset[str]] = Counter()
    # (when, what): a number decides between equal times, so that nothing else is compared.
    events: list[tuple[float, int, Slot | Occupant | Waiting]] = []

    def later(when: float | None, what: Slot | Occupant | Waiting) -> None:
        if when is not None:
            heapq.heappush(events, (when, next_number(), what))

    numbers = iter(range(2**62))
    next_number = numbers.__next__
    for slot in slots:
        later(slot.free_in, slot)
    for one in occupants:
        later(one.ends_in, one)
    for run in waiting:
        later(run.ready_in, run)
    places = {run.run: place for place, run in enumerate(waiting)}
    found: dict[int, float] = {}
    while events:
        now = events[0][0]
        while events and events[0][0] <= now:
            what = heapq.heappop(events)[2]
            if isinstance(what, Slot):
                free[what.queues] += 1
            elif isinstance(what, Occupant):
                state.end(what)
            else:
                state.wait(what, places[what.run])
        for queues in sorted((queues for queues in free if free[queues]), key=sorted):
            for queue in sorted(queues):
                while free[queues] and (taken := state.take(queue, now)) is not None:
                    free[queues] -= 1
                    found[taken.run] = now
                    if taken.seconds is not None:
                        ends = now + taken.seconds
                        later(ends, Slot(queues, ends))
                        later(ends, Occupant(taken.run, taken.project, taken.queue, ends))
    return found


@dataclass(slots=True)
class _Line:
    """What waits in one class. `again`: runs that were at work already, by their place in the queue."""

    again: list[tuple[int, Waiting]] = field(default_factory=list)
    projects: dict[int, deque[Waiting]] = field(default_factory=lambda: defaultdict(deque))


class _State:
    """Who is at work, who waits, and whose turn it is."""

    def __init__(
        self, occupants: Iterable[Occupant], limits: Mapping[Place, int], turns: Mapping[Place, float]
    ) -> None:
        self.limits, self.turns = limits, {place: (at, 0) for place, at in turns.items()}
        self.at_work: Counter[Place] = Counter()
        self.occupying: set[int] = set()
        self.lines: dict[str, _Line] = defaultdict(_Line)
        self.n_taken = 0
        for one in occupants:
            self._begin(one.run, one.project, one.queue)

    def wait(self, run: Waiting, place: int) -> None:
        if run.goes_on:
            heapq.heappush(self.lines[run.queue].again, (place, run))
        else:
            self.lines[run.queue].projects[run.project].append(run)

    def end(self, one: Occupant) -> None:
        if one.run in self.occupying:
            self.occupying.discard(one.run)
            self.at_work[one.project, one.queue] -= 1
            self.at_work[one.project, ""] -= 1

    def take(self, queue: str, now: float) -> Waiting | None:
        """The next run of the class that the limits let through; it is at work from now on."""
        line = self.lines[queue]
        for place, (_, run) in enumerate(line.again):
            if not self._is_full(run.project, queue, own=run.run in self.occupying):
                del line.again[place]
                heapq.heapify(line.again)
                self._begin(run.run, run.project, queue)
                return run
        may = [
            project for project, runs in line.projects.items() if runs and not self._is_full(project, queue)
        ]
        if not may:
            return None
        project = min(
            may, key=lambda one: (self.at_work[one, queue], self.turns.get((one, queue), NEVER), one)
        )
        run = line.projects[project].popleft()
        self._begin(run.run, project, queue)
        self.n_taken += 1
        self.turns[project, queue] = (now, self.n_taken)
        return run

    def _begin(self, run: int, project: int, queue: str) -> None:
        if run not in self.occupying:
            self.occupying.add(run)
            self.at_work[project, queue] += 1
            self.at_work[project, ""] += 1

    def _is_full(self, project: int, queue: str, *, own: bool = False) -> bool:
        """Whether the project has all the runs that it may have at once, `own` one not counted."""
        return any(
            self.at_work[project, name] - own >= self.limits.get((project, name), math.inf)
            for name in ("", queue)
        )


NEVER = (-math.inf, 0)
