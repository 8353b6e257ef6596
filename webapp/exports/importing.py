"""Trees that were made elsewhere become a run: one that was imported, says so, and pretends nothing else.

All or nothing: one transaction, from the first line of the file to the last.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

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
from webapp.projects.models import Project
from webapp.runs.models import Event, Run, RunOrigin, RunStatus
from webapp.runs.services import N_COLOURS, check_name
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
    project: Project, user: User, stream: Readable, *, name: str, file: str, most_memory: int | None = None
) -> Imported:
    """The trees of a JSONL file as a run of their own, called `name`. `file` is what people call it;
    most_memory: bytes that reading one line may take.

    Raises RequestError(400): a bad name, or the first line that cannot be used; then nothing was stored.
    """
    name = check_name(name)
    file = storable(file)[-MAX_FILE_LETTERS:]
    counted = _Counted(stream)
    try:
        with transaction.atomic():
            return _store(project, user, counted, name, file, most_memory)
    except TreeLineError as error:
        raise RequestError(
            400,
            f"{str(error)[:1000]} Nothing was imported.",
            [{"path": "file", "message": str(error)[:1000]}],
        ) from error


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
    project: Project, user: User, stream: _Counted, name: str, file: str, most_memory: int | None
) -> Imported:
    last = Run.objects.filter(project=project).order_by("-id").values_list("colour", flat=True).first()
    run = Run.objects.create(
        project=project,
        name=name,
        config={},
        config_sha256="",
        origin=RunOrigin.IMPORTED,
        preset="",
        seed=0,
        colour=(last or 0) % N_COLOURS + 1,
        created_by=user,
        status=RunStatus.SUCCEEDED,
        ended_at=Now(),
        steps_total=0,
    )
    rows = _Rows(run)
    told = _Told()
    for _, line in read_lines(stream, most_memory):
        told.add(line)
        rows.add(line)
    rows.flush()
    if not told.trees:
        raise TreeLineError("The file holds no tree.")
    estimator = told.estimator
    agrees = estimator is not None and told.plan is not None and not told.disagreement
    words = f"Imported from {file}: {_count(told.trees, 'tree')}."
    run.last_seq = append_status_event(run.id, 0, RunStatus.SUCCEEDED, words, actor=user.get_username())
    Run.objects.filter(id=run.id).update(
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
        preset=estimator.preset if agrees and estimator is not None else "",
        seed=estimator.seed if estimator is not None else 0,
        reason=words,
        step=max(told.steps),
        steps_total=max(told.steps),
    )
    run.refresh_from_db()
    return Imported(
        run, told.trees, told.nodes, len(told.steps), len(told.problems), estimator, agrees, told.disagreement
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
            self.runs.add(line.run)


class _Rows:
    """Trees and their events, some at a time. Event n brings tree n, as the recorder writes it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.seq = 0
        self.size = 0
        self.trees: list[StoredTree] = []
        self.events: list[Event] = []

    def add(self, line: TreeLine) -> None:
        self.seq += 1
        tree: RolloutTree = line.tree
        payload = tree.to_payload()
        columns: dict[str, Any] = summary_columns(summarise(tree))
        self.trees.append(
            StoredTree(
                run=self.run,
                seq=self.seq,
                epoch=0,
                step=tree.step,
                index=line.index,
                problem_id=tree.problem_id,
                prompt=tree.texts[0][:MAX_PROMPT_LETTERS],
                payload=payload,
                **columns,
            )
        )
        body = {"index": line.index, "problem_id": tree.problem_id}
        self.events.append(
            Event(
                run=self.run, seq=self.seq, epoch=0, kind="tree", step=tree.step, at=timezone.now(), body=body
            )
        )
        self.size += len(payload)
        if len(self.trees) >= BATCH_TREES or self.size >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        StoredTree.objects.bulk_create(self.trees)
        Event.objects.bulk_create(self.events)
        Run.objects.filter(id=self.run.id).update(last_seq=self.seq)
        self.trees, self.events, self.size = [], [], 0
