"""Stored trees as the rows of an export's file. The rows themselves are made by `trainer.tree_rows`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from trainer.tree import RolloutTree
from trainer.tree_lines import Estimator, TreeLine, tree_object
from trainer.tree_rows import BestAnswers, Row, node_rows, preference_pairs, step_labels
from webapp.exports.found import FoundNodes
from webapp.exports.kinds import (
    ChatsExport,
    LabelsExport,
    NodesExport,
    PairsExport,
    Parameters,
    TreesExport,
)
from webapp.runs.models import Run
from webapp.runs.origin import estimator_of_run
from webapp.trees.models import StoredTree


class RowMaker:
    """Rows of one export, tree by tree: `of` each tree in order, then `rest`. `left_out` counts what became
    no row, by reason.
    """

    def __init__(self, parameters: Parameters, only: FoundNodes | None = None) -> None:
        """`only`: of nodes, these."""
        self.parameters = parameters
        self._only = only
        self.left_out: Counter[str] = Counter()
        self._runs: dict[int, tuple[str, Estimator | None]] = {}
        self._problem = ""
        self._best: BestAnswers | None = None

    @property
    def by_problem(self) -> bool:
        """Whether the trees must come problem by problem."""
        return isinstance(self.parameters, ChatsExport)

    def of(self, stored: StoredTree) -> Iterator[Row]:
        """The rows that this tree completes. A tree that cannot be read has none."""
        try:
            tree = RolloutTree.from_payload(bytes(stored.payload))
        except ValueError:
            self.left_out["damaged trees"] += 1
            return
        run, estimator = self._run(stored.run_id)
        where = {
            "run": run,
            "run_id": stored.run_id,
            "step": stored.step,
            "index": stored.index,
            "tree": stored.id,
            "problem_id": stored.problem_id,
        }
        match self.parameters:
            case TreesExport():
                yield tree_object(TreeLine(run, stored.index, estimator, tree))
            case NodesExport():
                names = None if self._only is None else self._only.of(stored.id)
                yield from node_rows(tree, where, names)
            case PairsExport(gap=gap, answers=answers, most=most):
                yield from preference_pairs(
                    tree, where, gap=gap, answers=answers, most=most, left_out=self.left_out
                )
            case LabelsExport(threshold=threshold):
                yield from step_labels(tree, where, threshold=threshold, left_out=self.left_out)
            case ChatsExport(most=most):
                if self._best is None or stored.problem_id != self._problem:
                    yield from self.rest()
                    self._problem = stored.problem_id
                    self._best = BestAnswers(most, self.left_out)
                self._best.add(tree, where)
            case _:
                raise TypeError(f"{self.parameters.kind} has no rows")

    def rest(self) -> Iterator[Row]:
        """What is complete only when no further tree comes."""
        if self._best is not None:
            yield from self._best.rows()
            self._best = None

    def _run(self, run_id: int) -> tuple[str, Estimator | None]:
        if run_id not in self._runs:
            run = Run.objects.get(id=run_id)
            self._runs[run_id] = (run.name, estimator_of_run(run))
        return self._runs[run_id]
