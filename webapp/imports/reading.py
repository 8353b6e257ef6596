"""Trees that were made elsewhere become a run: one that was imported, says so, and pretends nothing else.

All or nothing: the whole file is read and checked first, into a file of our own beside it, and then stored in
one transaction.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import IO

import msgpack
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from trainer.credit import CreditPlan
from trainer.summary import summarise
from trainer.text import storable
from trainer.tree import RolloutTree
from trainer.tree_lines import Estimator, Readable, TreeLine, TreeLineError, disagreement, read_lines
from webapp.accounts.models import User
from webapp.errors import RequestError
from webapp.limits import MAX_IMPORT_ERRORS
from webapp.projects.models import Project
from webapp.runs.models import Event, Run, RunOrigin, RunStatus
from webapp.runs.services import MAX_NAME_LETTERS, N_COLOURS, check_name
from webapp.runs.states import append_status_event
from webapp.trees.models import StoredTree, summary_columns

BATCH_TREES = 50
BATCH_BYTES = 16 * 2**20
MAX_PROMPT_LETTERS = 100_000  # that lists keep beside the payload
MAX_FILE_LETTERS = 200
MAX_NAMED_RUNS = 20


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a file. `estimator`: what all of its lines say, None where they say nothing or differ;
    `agrees`: it is a preset of ours that comes to every value and advantage; `disagreement`: the first place
    where it does not.
    """

    run: Run
    trees: int
    nodes: int
    steps: int
    problems: int
    estimator: Estimator | None
    agrees: bool
    disagreement: str


class _Counted:
    """A stream that knows the hash and the size of what was read of it."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.hash = hashlib.sha256()
        self.size = 0

    def readline(self, limit: int, /) -> bytes:
        line = self._stream.readline(limit)
        self.hash.update(line)
        self.size += len(line)
        return line


def import_trees(
    project: Project,
    user: User,
    stream: Readable,
    *,
    name: str,
    file: str,
    most_memory: int | None = None,
    progress: Callable[[int, int], None] = lambda _size, _trees: None,
    before_storing: Callable[[], None] = lambda: None,
    in_the_end: Callable[[Imported], None] = lambda _done: None,
) -> Imported:
    """The trees of a JSONL file as a run of their own, called `name`. `file` is what people call it;
    most_memory: bytes that reading one line may take.

    `progress` is told bytes and trees after each line, outside of any transaction; `before_storing` is called
    when all lines are good, and `in_the_end` inside the transaction that stores them. What they raise ends
    the import, and nothing is stored.

    Raises RequestError(400): a bad name, or lines that cannot be used, the first `MAX_IMPORT_ERRORS` of which
    are its errors; then nothing was stored.
    """
    name = check_name(name)
    file = storable(file)[-MAX_FILE_LETTERS:]
    counted = _Counted(stream)
    with tempfile.TemporaryFile() as space:
        staged = _Staged(space)
        told = _read(counted, staged, most_memory, progress)
        before_storing()
        with transaction.atomic():
            done = _store(project, user, counted, staged, told, name, file)
            in_the_end(done)
            return done


def _read(
    stream: _Counted, staged: _Staged, most_memory: int | None, progress: Callable[[int, int], None]
) -> _Told:
    """Every line is checked; what is to be stored of it is put by. Raises RequestError(400)."""
    told = _Told()
    refused: list[str] = []

    def refuse(error: TreeLineError) -> None:
        refused.append(str(error)[:1000])
        if len(refused) >= MAX_IMPORT_ERRORS:
            raise error

    try:
        for _, line in read_lines(stream, most_memory, refuse):
            told.add(line)
            if not refused:
                staged.add(line)
            progress(stream.size, told.trees)
    except TreeLineError as error:
        if len(refused) < MAX_IMPORT_ERRORS:
            refused.append(str(error)[:1000])
    if not told.trees and not refused:
        refused.append("The file holds no tree.")
    if refused:
        more = len(refused) - 1
        others = f" {_count(more, 'more line')} cannot be used either." if more else ""
        if len(refused) >= MAX_IMPORT_ERRORS:
            others = f"{others} Reading stopped there."
        raise RequestError(
            400,
            f"{refused[0]}{others} Nothing was imported.",
            [{"path": "file", "message": message} for message in refused],
        )
    return told


def told(done: Imported) -> str:
    """The report of an import, in sentences."""
    words = (
        f"Run {done.run.id}: {_count(done.trees, 'tree')} with {_count(done.nodes, 'node')}, of "
        f"{_count(done.steps, 'step')} and {_count(done.problems, 'problem')}."
    )
    if done.agrees and done.estimator is not None:
        return f"{words} Computed again with {done.estimator.preset}, every value and advantage agrees."
    if done.disagreement:
        return (
            f"{words} Computed again, the numbers do not agree, so they are shown as given. "
            f"{done.disagreement}"
        )
    return f"{words} The estimator is not known here, so values and advantages are shown as given."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _store(
    project: Project, user: User, stream: _Counted, staged: _Staged, told: _Told, name: str, file: str
) -> Imported:
    last = Run.objects.filter(project=project).order_by("-id").values_list("colour", flat=True).first()
    estimator = told.estimator
    agrees = estimator is not None and told.plan is not None and not told.disagreement
    words = f"Imported from {file}: {_count(told.trees, 'tree')}."
    run = Run.objects.create(
        project=project,
        name=name,
        config={
            "file": file,
            "sha256": stream.hash.hexdigest(),
            "bytes": stream.size,
            "trees": told.trees,
            "nodes": told.nodes,
            "runs": sorted(told.runs)[:MAX_NAMED_RUNS],
            "estimator": None if estimator is None else asdict(estimator),
            "agrees": agrees,
            "disagreement": told.disagreement,
        },
        config_sha256=stream.hash.hexdigest(),
        origin=RunOrigin.IMPORTED,
        preset=(estimator.preset or "") if agrees and estimator is not None else "",
        seed=estimator.seed if estimator is not None else 0,
        colour=(last or 0) % N_COLOURS + 1,
        created_by=user,
        status=RunStatus.SUCCEEDED,
        reason=words,
        ended_at=Now(),
        step=max(told.steps),
        steps_total=max(told.steps),
    )
    for trees in staged.batches(run):
        StoredTree.objects.bulk_create(trees)
        Event.objects.bulk_create(_event_of(tree) for tree in trees)
    Run.objects.filter(id=run.id).update(last_seq=told.trees)
    last_seq = append_status_event(run.id, 0, RunStatus.SUCCEEDED, words, actor=user.get_username())
    Run.objects.filter(id=run.id).update(last_seq=last_seq)
    run.refresh_from_db()
    return Imported(
        run, told.trees, told.nodes, len(told.steps), len(told.problems), estimator, agrees, told.disagreement
    )


def _event_of(tree: StoredTree) -> Event:
    """Event n brings tree n, as the recorder writes it."""
    body = {"index": tree.index, "problem_id": tree.problem_id}
    return Event(
        run=tree.run, seq=tree.seq, epoch=0, kind="tree", step=tree.step, at=timezone.now(), body=body
    )


class _Told:
    """What all lines of a file say together."""

    def __init__(self) -> None:
        self.trees = self.nodes = 0
        self.steps: set[int] = set()
        self.problems: set[str] = set()
        self.runs: set[str] = set()
        self.estimator: Estimator | None = None
        self.plan: CreditPlan | None = None
        self.disagreement = ""

    def add(self, line: TreeLine) -> None:
        if not self.trees:
            self.estimator = line.estimator
            self.plan = None if line.estimator is None else line.estimator.plan()
        elif line.estimator != self.estimator:
            self.estimator, self.plan, self.disagreement = None, None, ""
        tree = line.tree
        if self.plan is not None and not self.disagreement:
            found = disagreement(tree, self.plan)
            if found:
                self.disagreement = f"Step {tree.step}, {tree.problem_id}: {found}"[:500]
        self.trees += 1
        self.nodes += tree.n_nodes
        self.steps.add(tree.step)
        self.problems.add(tree.problem_id)
        if line.run:
            self.runs.add(line.run[:MAX_NAME_LETTERS])


class _Staged:
    """Rows that wait in a file until it is known that all lines are good."""

    def __init__(self, space: IO[bytes]) -> None:
        self._space = space

    def add(self, line: TreeLine) -> None:
        tree: RolloutTree = line.tree
        row = {
            "step": tree.step,
            "index": line.index,
            "problem_id": tree.problem_id,
            "prompt": tree.texts[0][:MAX_PROMPT_LETTERS],
            "payload": tree.to_payload(),
            **summary_columns(summarise(tree)),
        }
        packed: bytes = msgpack.packb(row)
        self._space.write(len(packed).to_bytes(8, "little"))
        self._space.write(packed)

    def batches(self, run: Run) -> Iterator[list[StoredTree]]:
        """All of them in order, as rows of `run`, some at a time."""
        self._space.seek(0)
        trees: list[StoredTree] = []
        size = seq = 0
        while head := self._space.read(8):
            packed = self._space.read(int.from_bytes(head, "little"))
            seq += 1
            size += len(packed)
            trees.append(StoredTree(run=run, seq=seq, epoch=0, **msgpack.unpackb(packed)))
            if len(trees) >= BATCH_TREES or size >= BATCH_BYTES:
                yield trees
                trees, size = [], 0
        if trees:
            yield trees
