"""One answer judged again, with what a verdict alone does not tell: how both sides were compared, and how
long that took. Of the run it changes nothing. Torch-free.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from trainer.answer_forms import FORMS
from trainer.schema.verifier import Verifier
from trainer.tree import Verdict
from trainer.verifier_pool import Answer, VerifierPool
from trainer.verifiers import VERDICTS

MAX_WORDS = 400


@dataclass(frozen=True, slots=True)
class Verification:
    """`answer` is what was read, `normalised` and `expected` what was compared: "" where nothing could be
    read, None where it is not known. `words` say why there is no verdict, or what could not be told.
    """

    verdict: Verdict
    answer: str
    normalised: str | None
    expected: str | None
    seconds: float
    words: str = ""


def verify_again(
    config: Verifier, answer: Answer, *, should_stop: Callable[[], bool] = lambda: False
) -> Verification:
    """Judged in a process that is ended at the verifier's limits, as in training. Raises VerifierError when
    it cannot be used, and JudgingStopped soon after `should_stop` says so.
    """
    settings = config.model_dump(mode="json")
    with VerifierPool(settings, children=1) as pool:
        pool.start()
        started = time.monotonic()
        ((word, said),) = pool.judge([answer], should_stop=should_stop)
        seconds = time.monotonic() - started
    verdict = VERDICTS[word]
    if verdict is Verdict.ERROR:
        return Verification(verdict, "", None, None, seconds, f"No verdict: {_trouble(said, config)}")
    # Apart from the verdict, so that no trouble with the forms can change it.
    with VerifierPool({**settings, "forms": True}, children=1) as pool:
        ((word, forms),) = pool.judge([answer], should_stop=should_stop)
    if word != FORMS:
        return Verification(
            verdict, said, None, None, seconds, f"How it was compared: {_trouble(forms, config)}"
        )
    normalised, expected = json.loads(forms)
    return Verification(verdict, said, normalised, expected, seconds)


def _trouble(said: str, config: Verifier) -> str:
    """One sentence on what a judge could not do."""
    known = {
        "timeout": f"it took longer than {config.timeout_seconds:g} s and was ended.",
        "memory": f"it needed more than {config.memory_mb} MB and was ended.",
        "crashed": "it ended the verifier's process.",
    }
    return known.get(said) or f"the verifier failed ({said[:MAX_WORDS].rstrip('.')})."
