"""When waiting runs may start, played forward from who works on what. Pure; times are seconds from now.

What is not known stays unknown: a run whose duration nobody can tell holds its worker for ever here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one run at a worker. `free_in`: 0 now, None when nobody can tell."""

    queues: frozenset[str]
    free_in: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Occupant:
    """A run that counts towards its project's limits, but not against itself, until `ends_in`; None when
    nobody can tell.
    """

    run: int
    project: int
    queue: str
    ends_in: float | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run that waits, in the order of the queue. `seconds`: how long it will be worked on, if that is
    known. `ready_in`: its back-off.
    """

    run: int
    project: int
    queue: str
    seconds: float | None
    ready_in: float = 0.0


def starts(
    slots: Sequence[Slot],
    occupants: Sequence[Occupant],
    waiting: Sequence[Waiting],
    limits: Mapping[tuple[int, str], int],
) -> dict[int, float]:
    """Run -> seconds until a worker may take it; those that nobody can tell are left out.

    `limits`: (project, class or "" for all) -> most at once.
    """
    free = [(slot.queues, slot.free_in) for slot in slots if slot.free_in is not None]
    held = list(occupants)
    left, found, now = list(waiting), dict[int, float](), 0.0
    while left:
        place = _first_fit(left, free, held, limits, now)
        if place is not None:
            run, slot = place
            left.remove(run)
            queues, _ = free.pop(slot)
            found[run.run] = now
            ends = None if run.seconds is None else now + run.seconds
            held = [one for one in held if one.run != run.run]
            held.append(Occupant(run.run, run.project, run.queue, ends))
            if ends is not None:
                free.append((queues, ends))
            continue
        moments = [at for _, at in free] + [one.ends_in for one in held if one.ends_in is not None]
        later = [at for at in (*moments, *(run.ready_in for run in left)) if at > now]
        if not later:
            return found
        now = min(later)
    return found


def _first_fit(
    left: Sequence[Waiting],
    free: Sequence[tuple[frozenset[str], float]],
    held: Sequence[Occupant],
    limits: Mapping[tuple[int, str], int],
    now: float,
) -> tuple[Waiting, int] | None:
    """The first run that may be taken now, and the slot that takes it."""
    for run in left:
        if run.ready_in > now:
            continue
        if any(_is_full(run, name, held, limits, now) for name in ("", run.queue)):
            continue
        for index, (queues, at) in enumerate(free):
            if at <= now and run.queue in queues:
                return run, index
    return None


def _is_full(
    run: Waiting, name: str, held: Sequence[Occupant], limits: Mapping[tuple[int, str], int], now: float
) -> bool:
    """Whether its project has all the runs of that class, or "" of all, that it may have at once."""
    most = limits.get((run.project, name))
    if most is None:
        return False
    at_work = sum(
        one.run != run.run
        and one.project == run.project
        and name in ("", one.queue)
        and (one.ends_in is None or one.ends_in > now)
        for one in held
    )
    return at_work >= most
