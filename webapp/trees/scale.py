"""How large the advantages of a run are, so that the colours of all its trees mean the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
from django.core.cache import cache
from django.db import connection

from trainer.payload import advantages_in
from trainer.tree import RolloutTree
from webapp.runs.models import Run
from webapp.trees.models import StoredTree

SAMPLED_TREES = 48
MOST_NODES = 20_000  # of trees that are read, all together; one tree is read whatever its size
PERCENTILE = 98
KEPT_SECONDS = 3600


def _spread_evenly(run: Run) -> list[tuple[int, int]]:
    """Ids and sizes of up to 48 trees, by their event numbers. Probes of an index, however long the run."""
    trees = StoredTree.objects.filter(run=run, superseded=False)
    first = trees.order_by("seq").values_list("seq", flat=True).first()
    last = trees.order_by("-seq").values_list("seq", flat=True).first()
    if first is None or last is None:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT DISTINCT t.id, t.n_nodes FROM generate_series(0, %(n)s - 1) AS place (i)
            CROSS JOIN LATERAL (
                SELECT id, n_nodes FROM arborist_tree
                WHERE run_id = %(run)s AND NOT superseded
                  AND seq >= %(first)s + (%(last)s - %(first)s) * i / (%(n)s - 1)
                ORDER BY seq LIMIT 1
            ) t ORDER BY t.id
            """,
            {"run": run.id, "first": first, "last": last, "n": SAMPLED_TREES},
        )
        return [(tree_id, n_nodes) for tree_id, n_nodes in cursor.fetchall()]


def coarse_first(n: int) -> list[int]:
    """The places 0..n-1, each once, in an order whose every beginning lies spread over all of them: however
    many of the trees fit, they are not those of the first steps alone. (Bits of the place in reverse.)
    """
    bits = max(n - 1, 0).bit_length()
    return sorted(range(n), key=lambda place: int(f"{place:0{bits}b}"[::-1], 2))


def advantage_limit(run: Run, at_hand: Mapping[int, RolloutTree] | None = None) -> tuple[float, int] | None:
    """The 98th percentile of |A| over up to 48 trees spread evenly over the run, and how many they were. None
    where no node of them has an advantage. Estimators differ in size: TreeRPO reaches 8 with eight children.
    at_hand: trees that need not be read, by id.
    """
    # Asked again as the run grows by a fifth, not at every tree.
    key = f"advantage-limit:{run.id}:{int(4 * math.log2(run.last_seq + 1))}"
    found: tuple[float, int] | str | None = cache.get(key, "unknown")
    if not isinstance(found, str):
        return found
    chosen: list[int] = []
    nodes = 0
    spread = _spread_evenly(run)
    for tree_id, n_nodes in (spread[place] for place in coarse_first(len(spread))):
        if not chosen or nodes + n_nodes <= MOST_NODES:
            chosen.append(tree_id)
            nodes += n_nodes
    known = {tree_id: tree.advantage for tree_id, tree in (at_hand or {}).items() if tree_id in chosen}
    others = StoredTree.objects.filter(id__in=set(chosen) - set(known))
    for tree_id, payload in others.values_list("id", "payload"):
        with suppress(ValueError):  # damaged; its own page says so
            known[tree_id] = advantages_in(bytes(payload))
    sizes = [
        np.abs(advantage[np.isfinite(advantage) & (advantage != 0)]) for _, advantage in sorted(known.items())
    ]
    every = np.concatenate(sizes) if sizes else np.zeros(0)
    limit = (float(np.percentile(every, PERCENTILE)), len(sizes)) if len(every) else None
    cache.set(key, limit, KEPT_SECONDS)
    return limit
