"""One verification, from the claim to its last row: the answer is judged in a process of its own, which is
ended at the verifier's limits; this one keeps the lease meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from django.db.models.functions import Now
from pydantic import TypeAdapter

from trainer.schema.verifier import Verifier
from trainer.text import storable
from trainer.tree import FinishReason, RolloutTree
from trainer.verification import verify_again
from trainer.verifier_pool import Answer, VerifierError
from trainer.verifiers import answers_of
from webapp.jobs import JobStatus
from webapp.trees.models import StoredTree
from webapp.verifications.models import Verification
from workers import jobs
from workers.jobs import Held, JobFailedError

VERIFIER: TypeAdapter[Verifier] = TypeAdapter(Verifier)
MAX_WORDS = 600


def claim(verification_id: int, owner: str, told_to_leave: Callable[[], bool]) -> Held[Verification] | None:
    """Take the verification if it waits. None: it does not, which is no error."""
    return jobs.claim(Verification, verification_id, owner, told_to_leave)


def work_off(held: Held[Verification]) -> None:
    """Judge the answer and store what was said. Database errors pass: the lease runs out and the sweeper
    brings it back.
    """
    jobs.work_off(held, _judge, lambda error: f"The verifier's process could not be started: {error}.")


def _judge(held: Held[Verification]) -> None:
    asked = held.job()
    answer = _answer(asked)

    def should_stop() -> bool:
        held.report()  # which raises when there is a reason to
        return False

    try:
        found = verify_again(VERIFIER.validate_python(asked.verifier), answer, should_stop=should_stop)
    except VerifierError as error:
        raise JobFailedError(str(error)) from error
    held.update(
        status=JobStatus.SUCCEEDED,
        verdict=found.verdict.word,
        answer=storable(found.answer),
        normalised=None if found.normalised is None else storable(found.normalised),
        expected=None if found.expected is None else storable(found.expected),
        seconds=found.seconds,
        words=storable(found.words)[:MAX_WORDS],
        ended_at=Now(),
        lease_until=None,
        lease_owner="",
    )


def _answer(asked: Verification) -> Answer:
    """As the trainer judged it."""
    payload = StoredTree.objects.values_list("payload", flat=True).get(id=asked.tree_id)
    tree = RolloutTree.from_payload(bytes(payload))
    node = tree.find(asked.node)
    _, texts = answers_of(tree)
    return texts[node], bool(tree.finish[node] == FinishReason.EOS), tree.reference_answer
