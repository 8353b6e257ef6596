"""What can go wrong with a run, in words: the sentences that end, pause or delay it. `docs/troubles.md` is
written from `TROUBLES`. Pure and torch-free.
"""

from __future__ import annotations

import errno
import math
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NoReturn

Then = Literal["failed", "paused", "goes on", "queued again"]
MOST_LETTERS = 2000  # of a reason

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_WORDS = ("No space left on device", "File too large", "Disk quota exceeded")


@dataclass(frozen=True, slots=True)
class Trouble:
    """`cause`: for the docs. `says`: its sentence, `{…}` filled in where it happens. `do`: the next action.
    `then`: what becomes of the run.
    """

    cause: str
    says: str
    do: str
    then: Then

    def sentence(self, step: int, checkpoint: int | None, /, **values: object) -> str:
        """What happened, where the run stands and what to do: the reason that a run shows.

        step: the last complete one; checkpoint: the step of the last one that is whole, None without any.
        """
        return told(self.said(**values), step, checkpoint, self.do)

    def said(self, **values: object) -> str:
        """Only what happened."""
        return self.says.format(**values)

    def advice(self, **values: object) -> str:
        """What happened and what to do, where whoever passes it on says where the run stands."""
        return f"{_closed(self.said(**values))} {self.do}"


TROUBLES: dict[str, Trouble] = {
    "not finite": Trouble(
        "Loss, gradient norm, a reward or a logprob is NaN or infinite, three updates in a row.",
        "{what} became {value} at step {at}, for the third update in a row ({where})",
        "The checkpoint has the weights from before the three. Fork the run from it or an earlier one, "
        "with a lower training.learning_rate or training.max_grad_norm.",
        "failed",
    ),
    "skipped": Trouble(
        "Loss, gradient norm, a reward or a logprob is NaN or infinite, once or twice in a row.",
        "Step {at}: an update was skipped, {what} is {value} ({where})",
        "Nothing: weights and optimiser are as before. `policy/skipped_updates` counts them; if they come "
        "often, training.learning_rate is too high.",
        "goes on",
    ),
    "diverged": Trouble(
        "The weights themselves are no longer finite, or an evaluation with them is not.",
        "The run diverged: {what}",
        "Fork the run from the last checkpoint or an earlier one, with a lower training.learning_rate.",
        "failed",
    ),
    "gpu memory once": Trouble(
        "The GPU has no memory left, for the first time.",
        "Step {at}: out of memory ({place}) while {doing} with {size}; going on with {smaller}",
        "Nothing: the effective batch is the same. Begin the next run with a lower "
        "training.microbatch_tokens.",
        "goes on",
    ),
    "gpu memory": Trouble(
        "The GPU has no memory left with half of the micro-batch (or of the rows sampled at once) either.",
        "Out of memory ({place}) while {doing}; tried {sizes}",
        "Retry on a GPU that nothing else uses, or fork the run with a lower training.microbatch_tokens, "
        "shorter answers, training.gradient_checkpointing, or less engine.kv_memory_mib of vLLM.",
        "failed",
    ),
    "rank's memory": Trouble(
        "One of the processes that train a run together has no memory left, for the first time. The others "
        "are in the middle of the same micro-batch with it, so all begin again.",
        "{which}; the run goes on from its last checkpoint with micro-batches of {smaller:,} tokens",
        "Nothing: the effective batch is the same. Begin the next run with a lower "
        "training.microbatch_tokens.",
        "queued again",
    ),
    "smaller from the start": Trouble(
        "An earlier attempt of a run of several processes had no memory left.",
        "Memory ran out in an earlier attempt: this one begins with micro-batches of {smaller:,} tokens",
        "Nothing: the effective batch is the same. Where it is still too much the run fails with both sizes; "
        "a retry then begins with the size of its last checkpoint, or without one with the config's.",
        "goes on",
    ),
    "host memory": Trouble(
        "The trainer could not get memory from the machine, or the kernel ended it for lack of it.",
        "Out of memory (host): {what}",
        "Retry on a larger machine, or fork the run with fewer training.problems_per_step, less branching "
        "or a lower training.microbatch_tokens.",
        "failed",
    ),
    "disk full": Trouble(
        "There is no room for a checkpoint, even after the keep policy was applied; or the disk filled up "
        "in the middle of saving one.",
        "Disk full: {what}",
        "Make room on the worker's disk, then resume.",
        "paused",
    ),
    "spool full": Trouble(
        "There is no room on the worker's disk for events that wait for the database.",
        "Disk full: the worker could not keep the run's events ({what}); all that it had kept is stored",
        "Make room on the worker's disk, then resume.",
        "paused",
    ),
    "damaged checkpoint": Trouble(
        "A file of a checkpoint is missing or does not match its SHA-256. Nothing of it is loaded.",
        "The checkpoint of step {at} is damaged and was not loaded: {what}",
        "Nothing: the run goes on from the one before it. Look after the disk.",
        "goes on",
    ),
    "no checkpoint": Trouble(
        "All checkpoints of a run are damaged, or on another machine. Starting again at step 0 would "
        "throw work away without a word, so a person decides.",
        "None of the run's {count} checkpoints can be loaded here: {what}",
        "Put the files back or let a worker of the machine that has them take the run, then resume; or "
        "make a new run with its config to start at step 0.",
        "paused",
    ),
    "no first checkpoint": Trouble(
        "The checkpoint that a fork begins with is damaged, deleted, or on another machine.",
        "The checkpoint of step {at} that this fork begins with {what}",
        "Put its files back or let a worker of the machine that trained that run take this one, then "
        "resume; or fork another checkpoint.",
        "paused",
    ),
    "no model": Trouble(
        "The folder of the base model is missing or damaged, or holds no model that Arborist can train.",
        "The model in {folder} did not load: {what}",
        "Put the model's files right, then retry; or make a new run with another model.",
        "failed",
    ),
    "other model": Trouble(
        "The folder of the base model was moved or changed since the run started.",
        "The base model in {folder} is not the one that the run started from: {what}",
        "Put the old files back and retry, or fork the run: its checkpoints hold a model of their own.",
        "failed",
    ),
    "other data": Trouble(
        "The training problems changed since the run started.",
        "The training problems are not those that the run started with (SHA-256 {before}, now {now})",
        "Put the old ones back and retry, or fork the run.",
        "failed",
    ),
    "died": Trouble(
        "A signal ended the trainer: a driver or a library crashed, somebody killed it, or memory ran out "
        "where the kernel does not say so.",
        "Its trainer was ended by signal {number} ({name})",
        "Nothing the first time: the run goes on from its last checkpoint. If it comes again, look at its "
        "log "
        "under Events and at the machine's, then retry or fork the run.",
        "queued again",
    ),
    "engine hangs": Trouble(
        "A computation of the vLLM engine never came back: a driver or a library hangs.",
        "The engine did not come back from one step of sampling within {seconds:g} s, and the trainer ended "
        "itself",
        "Nothing the first time: the run goes on from its last checkpoint. If it comes again, look at the "
        "machine and its GPU and retry, or fork the run with engine.kind local.",
        "queued again",
    ),
    "rank died": Trouble(
        "One of the processes that make a run together was killed, crashed, or stood still. The others "
        "wait for it all the time, so they are ended, too.",
        "{which}",
        "Nothing the first time: the run goes on from its last checkpoint. If it comes again, look at its "
        "log under Events, where each line names its process, and at the machine's, then retry or fork the "
        "run.",
        "queued again",
    ),
    "silent": Trouble(
        "The trainer's process ended without its last event.",
        "The trainer left without saying how it went",
        "The last lines of its log are under Events. Retry; if it comes again, report it.",
        "failed",
    ),
    "status": Trouble(
        "The trainer's process ended without its last event and with an exit status of its own.",
        "The trainer ended with exit status {status}",
        "The last lines of its log are under Events. Retry; if it comes again, report it.",
        "failed",
    ),
    "error": Trouble(
        "An error that nobody foresaw, in the trainer or in a library of it.",
        "The trainer failed: {error}",
        "The last lines of its log are under Events. Mend what they name, then retry.",
        "failed",
    ),
    "import": Trouble(
        "A package that the trainer needs is missing or broken on that worker.",
        "The trainer could not be loaded on this worker: {error}",
        "Install the worker again (`pip install` from the lock file), then retry.",
        "failed",
    ),
    "config": Trouble(
        "The run was created by a newer or older version than the worker's.",
        "The run's config is not valid for this worker's version: {error}",
        "Bring web and workers to the same version and retry, or make a new run.",
        "failed",
    ),
    "unreadable": Trouble(
        "What the trainer printed is no event. Single lines that are none become warnings and change "
        "nothing.",
        "The trainer wrote an event that cannot be read: {error}",
        "Bring web and workers to the same version, then retry; if it comes again, report it.",
        "failed",
    ),
    "endless line": Trouble(
        "The trainer wrote one event of unreasonable size.",
        "The trainer wrote a line of more than {megabytes} MiB",
        "Fork the run with a lower recording.top_k or less branching.",
        "failed",
    ),
    "not started": Trouble(
        "The worker could not start the trainer's process.",
        "The trainer could not be started: {error}",
        "Look at the worker's machine, then retry.",
        "failed",
    ),
    "unknown model": Trouble(
        "The base model was removed from Arborist's list.",
        "The base model {slug!r} is not known any more",
        "Register it again with `manage.py add_model`, then retry.",
        "failed",
    ),
    "not stored": Trouble(
        "The database refused rows for another reason than being away. A defect of Arborist, or a damaged "
        "disk.",
        "The results could not be stored: {error}",
        "The worker's log has the traceback. Retry; if it comes again, report it.",
        "failed",
    ),
    "torn spool": Trouble(
        "A machine died while an event was being written to the worker's spool.",
        "The last event of attempt {epoch} was cut off by its end and dropped ({size} bytes); the {count} "
        "before it are stored",
        "Nothing: what it held is made again.",
        "goes on",
    ),
    "damaged spool": Trouble(
        "The worker's spool is damaged in the middle: a failing disk.",
        "Attempt {epoch}: {size} bytes after event {count} of its spool cannot be read; what came before "
        "is stored, the rest is kept in {file} and is made again from the checkpoint",
        "Look after the disk.",
        "goes on",
    ),
    "unfit spool": Trouble(
        "A dead attempt's spool does not go on where the database stands: it was changed, or lost its "
        "beginning.",
        "What attempt {epoch} had not yet sent is not stored ({error}); it is kept in {file} and is made "
        "again from the checkpoint",
        "Look after the disk.",
        "goes on",
    ),
    "deaf": Trouble(
        "A stop was asked for and the trainer did not answer, as when it hangs in a driver.",
        "The trainer did not stop within {seconds:g} s and was ended",
        "Resume or retry from the last checkpoint, or leave it.",
        "goes on",
    ),
    "lost worker": Trouble(
        "The worker's machine or its main process died, or it was cut off from the database for longer "
        "than a lease.",
        "Contact with its worker was lost {where}; a free worker goes on with it after {seconds} s",
        "Nothing: the run goes on from its last checkpoint by itself.",
        "queued again",
    ),
    "crash loop": Trouble(
        "The worker or the trainer died with the run more often than can be chance: twice at one step, or "
        "four times.",
        "Contact with its worker was lost {count} times at the same place, {where}",
        "Look at the worker's machine (memory, disk, log), then retry the run.",
        "failed",
    ),
    "verifier": Trouble(
        "An answer hangs the verifier, eats its memory or crashes it.",
        "Step {at}: {count} answers have no verdict and no reward: {what}",
        "Nothing: such an answer has no reward and counts in `sampling/error_share`. If there are many, "
        "look at the answers: the policy may have found the verifier's weak point.",
        "goes on",
    ),
}


def told(what: str, step: int, checkpoint: int | None, do: str = "") -> str:
    """One sentence that ends with a full stop or not, then where the run stands, then the next action."""
    if step == 0 and checkpoint is None:
        stands = "No step was complete."
    elif checkpoint is None:
        stands = f"Last complete step: {step}; no checkpoint."
    else:
        stands = f"Last complete step: {step}; last checkpoint: step {checkpoint}."
    what = what.strip()
    room = MOST_LETTERS - len(stands) - len(do) - 4
    if len(what) > room:
        what = what[: room - 1] + "…"
    return f"{_closed(what)} {stands} {do}".strip()


def _closed(sentence: str) -> str:
    sentence = sentence.strip()
    return sentence if sentence.endswith((".", "!", "?", "…")) else f"{sentence}."


def places(trouble: Trouble) -> set[str]:
    """Names of what is filled in."""
    return {name for _, name, _, _ in string.Formatter().parse(trouble.says) if name}


# ---------------------------------------------------------------------------------------------- not finite


@dataclass(frozen=True, slots=True)
class NotFinite:
    """A number that is NaN or infinite: `what` it is, its `value`, and `where` it was first seen."""

    what: Literal["loss", "gradient norm", "reward", "logprob"]
    value: float
    where: str

    @property
    def value_in_words(self) -> str:
        return "NaN" if math.isnan(self.value) else "infinite"

    def skipped(self, step: int) -> str:
        """The warning for one update."""
        name = {"reward": "a reward", "logprob": "a logprob"}.get(self.what, f"the {self.what}")
        said = TROUBLES["skipped"].said(at=step, what=name, value=self.value_in_words, where=self.where)
        return f"{said}."

    def ended(self, step: int, checkpoint: int | None) -> str:
        """The reason of the run that it ended."""
        return TROUBLES["not finite"].sentence(
            step,
            checkpoint,
            what=self.what.capitalize(),
            value=self.value_in_words,
            at=step,
            where=self.where,
        )


class NotFiniteError(FloatingPointError):
    """A step cannot be made: `found` is not finite. Weights and optimiser are as they were before it."""

    def __init__(self, found: NotFinite) -> None:
        self.found = found
        super().__init__(f"{found.what} is {found.value_in_words} ({found.where})")


# ------------------------------------------------------------------------------------------------- memory


def is_host_memory(error: BaseException) -> bool:
    """Whether the machine had no memory to give: torch's CPU allocator says so in a RuntimeError."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def is_gpu_memory(error: BaseException) -> bool:
    """Whether the GPU had no memory to give. By name, since nothing here loads torch."""
    return type(error).__name__ == "OutOfMemoryError"


def is_memory(error: BaseException) -> bool:
    """Whether there was no memory, of either."""
    return is_gpu_memory(error) or is_host_memory(error)


class MemoryBesideError(RuntimeError):
    """Memory ran out on one of several ranks while it sampled beside training; all sample once more. The
    message is whose memory it was.
    """


class OutOfRoomError(RuntimeError):
    """Memory ran out with half of the size too; the message says what was tried and what to do."""


class BeginSmallerError(RuntimeError):
    """Memory ran out on one of several ranks, where none can try again alone: all can begin again with
    micro-batches of `tokens`. The message says what happened, and how to.
    """

    HOW: ClassVar = "; go on from the last checkpoint with --microbatch-tokens "

    def __init__(self, what: str, tokens: int) -> None:
        self.what, self.tokens = what, tokens
        super().__init__(f"{what}{self.HOW}{tokens}")

    @classmethod
    def read(cls, line: str) -> BeginSmallerError | None:
        """Back from a line that ends with its message; `what` is then all that stands before."""
        what, how, tokens = line.strip().rpartition(cls.HOW)
        return cls(what, int(tokens)) if how and tokens.isdecimal() and int(tokens) else None


@dataclass(slots=True)
class Size:
    """Something that is done with less at a time where memory is short: `tried`, largest first, in units like
    "micro-batches of {:,} tokens". `halve` halves it and returns what it was and what it is; `least`: that a
    config may ask for.
    """

    unit: str
    halve: Callable[[], tuple[int, int]]
    least: int = 1
    tried: list[int] = field(default_factory=list)

    def begin_smaller(self, error: Exception, doing: str) -> NoReturn:
        """Raise BeginSmallerError, where only all ranks can begin again. Raises OutOfRoomError when that was
        done before.
        """
        if self.tried:
            self.refuse(error, doing)
        before, now = self.halve()
        what = f"Out of memory ({memory_of(error)}) while {doing} with {self.unit.format(before)}"
        raise BeginSmallerError(what, now) from error

    def smaller(self, error: Exception, step: int, doing: str) -> str:
        """Halve it and return what to say. Raises OutOfRoomError when that was done before."""
        if self.tried:
            self.refuse(error, doing)
        self.tried = list(self.halve())
        size, smaller = (self.unit.format(size) for size in self.tried)
        trouble = TROUBLES["gpu memory once"]
        return trouble.said(at=step, place=memory_of(error), doing=doing, size=size, smaller=smaller) + "."

    def refuse(self, error: Exception, doing: str) -> NoReturn:
        """Raise OutOfRoomError, with what was tried."""
        self.tried = self.tried or [self.halve()[0]]
        sizes = " and ".join(self.unit.format(size) for size in self.tried)
        if (half := self.tried[-1] // 2) >= self.least:
            sizes += f", and not yet {half:,}"
        trouble = TROUBLES["gpu memory"]
        raise OutOfRoomError(trouble.advice(place=memory_of(error), doing=doing, sizes=sizes)) from error


def memory_of(error: BaseException) -> str:
    """Whose memory it was that ran out."""
    if isinstance(error, MemoryBesideError):
        return str(error)
    return "GPU" if is_gpu_memory(error) else "host"


# ------------------------------------------------------------------------------------------------ full disk


def is_full(error: BaseException) -> bool:
    """Whether a write failed for lack of room. Libraries that write for us only quote the system's words."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        if any(words in str(seen) for words in _FULL_WORDS):
            return True
        seen = seen.__cause__
    return False
