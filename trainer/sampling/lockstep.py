"""Ranks that are one engine write the same tokens; what parts them ends sampling before the next token.

Every random number and every choice is made on each rank alike. Where a defect, or a sum that one rank rounds
otherwise, makes one choose another token, their sequences differ from then on: the parts of the model would
compute for different ones, and no number would say so.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable

from trainer.ranks import ALONE, Ranks
from trainer.sampling.engine import EngineError


class Lockstep:
    """All that was written so far as one number, and whether it is everyone's. `ranks`: who writes together;
    one alone always does.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self._written = 0  # CRC-32

    def wrote(self, name: str, token: int) -> None:
        """Token `token` of the sequence `name`."""
        if self._ranks.size > 1:
            self._written = zlib.crc32(f"{name} {token}\n".encode(), self._written)

    def asks(self, should_stop: Callable[[], bool]) -> bool:
        """Whether any rank wants to stop; asked between two tokens, and after the last one. Collective.
        Raises EngineError, on all ranks alike, where they wrote different tokens.
        """
        if self._ranks.size == 1:
            return should_stop()
        asked, most, least = self._ranks.largest(int(should_stop()), self._written, -self._written)
        if most != -least:
            raise EngineError(_who_differs(self._ranks.exchange(self._written)))
        return bool(asked)


def _who_differs(written: list[int]) -> str:
    usual = Counter(written).most_common(1)[0][0]
    others = [rank for rank, own in enumerate(written) if own != usual]
    rest = [rank for rank, own in enumerate(written) if own == usual]
    return (
        f"The processes that are one engine (engine.tensor_parallel {len(written)}) chose different tokens: "
        f"{_named(others)} parted from {_named(rest)}. Their trees are not used. Set engine.tensor_parallel "
        "1, so that each process has an engine of its own, and report this."
    )


def _named(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
