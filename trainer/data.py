"""Problems: where they come from, which are held out, and in which order they are trained on.

Generated tasks (`trainer.tasks`), JSONL files here, Parquet files and data sets by name in `data_sources`.
Nothing here knows tokens or models. Torch-free: the web app checks an uploaded file with `validate_jsonl`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from trainer.schema.data import ChainData, Data, GraphData, HubData, JsonlData, ParquetData
from trainer.seeding import generator
from trainer.tasks import chain, graph
from trainer.text import storable

ANSWER_MARK = "#### "
QUESTION_COLUMN, ANSWER_COLUMN = "question", "answer"
QUESTION_MARK = "{question}"
MAX_LINE_BYTES = 4 * 2**20  # also the letters that one column of a row may have
MOST_LETTERS = 2**32  # of all problems together
MAX_REPORTED_LINES = 1000
EXAMPLES_IN_MESSAGE = 5
EVALUATION_SEED = 0  # the same held-out problems for every run, so that runs can be compared


class DataError(ValueError):
    """A data set cannot be used; the message says what was wrong, where, and what was expected."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a reference answer. `prompt` is exactly what the policy continues; `solution` a worked
    one as a policy would write it, "" if the source has none.
    """

    problem_id: str
    prompt: str
    reference_answer: str
    solution: str = ""


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What reading a whole JSONL file found. `rows`: usable rows; `bad`: (line number from 1, what was
    wrong), the first `MAX_REPORTED_LINES` of `bad_rows`; `sha256` of the file's bytes; `examples`: the first
    few problems.
    """

    rows: int
    bad_rows: int
    bad: tuple[tuple[int, str], ...]
    sha256: str
    bytes: int
    examples: tuple[Problem, ...]


class TrainingProblems(Protocol):
    """What a step trains on: a function of the step alone, so that a resumed run goes on where it was."""

    count: int | None

    def batch(self, step: int, size: int) -> list[Problem]:
        """The problems of step 1, 2, 3, ..."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Training problems, held-out problems (no text is in both), and what people should know about the
    source. `sha256`: of what is trained on, so that a resumed run knows whether it goes on with the same.
    `longest_prompt`: tokens that no prompt has more of; 0 where none were counted.
    """

    training: TrainingProblems
    evaluation: tuple[Problem, ...]
    warnings: tuple[str, ...] = field(default=())
    sha256: str = ""
    longest_prompt: int = 0


def load_data(
    config: Data,
    *,
    seed: int,
    evaluation_problems: int,
    prompt_tokens: Callable[[Problem], int] | None = None,
    most_prompt: int | None = None,
    most_evaluation_prompt: int | None = None,
) -> Dataset:
    """The run's problems. `seed` is the run's and decides order; the held-out problems do not depend on it.

    `prompt_tokens` counts those of a problem's prompt. Problems of a source that have more than the config
    allows, or than the model has positions for beside the longest answer (`most_prompt`; of held-out ones
    `most_evaluation_prompt`, if given, so that how a run is evaluated does not decide what it is trained on),
    are left out, and counted in a warning. Raises DataError.
    """
    if isinstance(config, ChainData | GraphData):
        task = _chain_problem if isinstance(config, ChainData) else _graph_problem
        size = config.operations if isinstance(config, ChainData) else config.people
        held_out = tuple(
            task(EVALUATION_SEED, "evaluation", index, size) for index in range(evaluation_problems)
        )
        stream = ChainStream(seed, size) if isinstance(config, ChainData) else GraphStream(seed, size)
        # A token of text is a byte or more; around it stands what an empty prompt has, and perhaps a blank.
        letters = (chain if isinstance(config, ChainData) else graph).longest_prompt(size)
        longest = letters + 1 + prompt_tokens(Problem("", "", "")) if prompt_tokens else 0
        # Text of a generated task never changes; should a release change it all the same, it shows here.
        return Dataset(stream, held_out, (), _hash_of(stream.batch(1, 8)), longest)
    form = RowForm.of(config)
    if isinstance(config, JsonlData):
        file = Path(config.path)
        validate_jsonl(file, form)
        name, rows = file.name, ((f"line {number}", content) for number, content, _ in _rows(file, form))
    else:
        from trainer.data_sources import hub_rows, parquet_rows  # heavy, and only where it is asked for

        if isinstance(config, ParquetData):
            name = Path(config.path).name
            source = parquet_rows(Path(config.path), form)
        else:
            name = config.name
            source = hub_rows(config.name, config.subset, config.split, form)
        rows = (
            (f"row {number}", row if isinstance(row, str) else _problem(row, form)) for number, row in source
        )
    limits = (most_prompt, most_prompt if most_evaluation_prompt is None else most_evaluation_prompt)
    return _split(name, rows, config, form, seed, evaluation_problems, prompt_tokens, limits)


def _hash_of(problems: Iterable[Problem]) -> str:
    """SHA-256 of problems and their order."""
    hashed = sha256()
    for problem in problems:
        for text in (problem.prompt, problem.reference_answer, problem.solution):
            encoded = text.encode("utf-8", "replace")
            hashed.update(len(encoded).to_bytes(8, "little") + encoded)
    return hashed.hexdigest()


@dataclass(frozen=True, slots=True)
class RowForm:
    """How a row becomes a problem: its columns, the answer's form, the prompt's template."""

    question: str = QUESTION_COLUMN
    answer: str = ANSWER_COLUMN
    is_gsm8k: bool = True
    solution: str = ""
    template: str = chain.PROMPT_TEMPLATE

    @classmethod
    def of(cls, config: JsonlData | ParquetData | HubData) -> RowForm:
        """The form that a config describes."""
        return cls(
            config.question_column,
            config.answer_column,
            config.answer_form == "gsm8k",
            config.solution_column,
            config.template,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(filter(None, (self.question, self.answer, self.solution))))

    def question_of(self, prompt: str) -> str:
        """The question in a prompt; the whole prompt when the template shows it more than once."""
        before, mark, after = self.template.partition(QUESTION_MARK)
        return prompt if not mark or mark in after else prompt[len(before) : len(prompt) - len(after)]


GSM8K_FORM = RowForm()


# ---------------------------------------------------------------------------------------------------- chain


class ChainStream:
    """Generated problems without end; step s takes the indices from (s - 1) * size on."""

    count: int | None = None

    def __init__(self, seed: int, operations: int) -> None:
        self._seed, self._operations = seed, operations

    def batch(self, step: int, size: int) -> list[Problem]:
        first = (step - 1) * size
        return [_chain_problem(self._seed, "train", first + place, self._operations) for place in range(size)]


def _chain_problem(seed: int, split: str, index: int, operations: int) -> Problem:
    problem = chain.problem_at(seed, split, index, operations)
    name = f"chain-{operations}-{split}-{seed}-{index}"
    return Problem(name, problem.prompt, str(problem.answer), problem.solution)


class GraphStream:
    """Generated problems of `tasks.graph` without end, as `ChainStream`."""

    count: int | None = None

    def __init__(self, seed: int, people: int) -> None:
        self._seed, self._people = seed, people

    def batch(self, step: int, size: int) -> list[Problem]:
        first = (step - 1) * size
        return [_graph_problem(self._seed, "train", first + place, self._people) for place in range(size)]


def _graph_problem(seed: int, split: str, index: int, people: int) -> Problem:
    problem = graph.problem_at(seed, split, index, people)
    name = f"graph-{people}-{split}-{seed}-{index}"
    return Problem(name, problem.prompt, str(problem.answer), problem.solution)


# ---------------------------------------------------------------------------------------------------- rows


class ShuffledProblems:
    """A finite set in a new seeded order every epoch. A batch may run over the end of an epoch, and still has
    no problem twice, unless it is larger than the set: the new epoch then begins with problems that the old
    one did not end with.
    """

    def __init__(self, problems: list[Problem], seed: int) -> None:
        self._problems, self._seed = problems, seed
        self._known: tuple[int, int, list[int]] = (0, -1, [])  # size of a batch, epoch, its order
        self.count: int | None = len(problems)

    def batch(self, step: int, size: int) -> list[Problem]:
        count = len(self._problems)
        found = []
        for place in range((step - 1) * size, step * size):
            epoch, index = divmod(place, count)
            found.append(self._problems[self._order(epoch, size)[index]])
        return found

    def _order(self, epoch: int, size: int) -> list[int]:
        """Of an epoch, in batches of `size`. What it begins with hangs on the end of the one before, so
        orders are made one after the other, from where batches and epochs end together.
        """
        count = len(self._problems)
        known_size, known_epoch, order = self._known
        if (known_size, known_epoch) == (size, epoch):
            return order
        # The last epoch up to this one that shares no batch with the one before it.
        period = size // math.gcd(size, count)
        start = epoch - epoch % period
        if known_size == size and start <= known_epoch < epoch:
            start = known_epoch + 1
        else:
            order = []
        for number in range(start, epoch + 1):
            drawn = generator(self._seed, "epoch", number).random(count).argsort(kind="stable").tolist()
            shared = (
                number * count % size
            )  # places of the old epoch in the batch that it shares with this one
            order = _begun_otherwise(drawn, set(order[count - shared :]), size - shared) if shared else drawn
        self._known = (size, epoch, order)
        return order


def _begun_otherwise(order: list[int], taken: set[int], places: int) -> list[int]:
    """The order, its first `places` filled with what is not `taken`; as it is when there is too little."""
    if len(order) - len(taken) < places:
        return order
    first: list[int] = []
    later: list[int] = []
    for number in order:
        (later if number in taken or len(first) == places else first).append(number)
    return first + later


def is_held_out(question: str, share: float) -> bool:
    """Whether a question is an evaluation problem: by its hash, so that equal texts always fall on the same
    side.
    """
    digest = blake2b(question.strip().encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64 < share


def validate_jsonl(path: str | Path, form: RowForm = GSM8K_FORM) -> DatasetReport:
    """Read a whole file and say what is in it. Raises DataError when it cannot be used at all.

    A file is refused when it is no readable text file, holds no usable row, or half of its rows or more are
    bad; else the bad rows are listed and training skips them.
    """
    hashed = sha256()
    rows = bad_rows = size = 0
    bad: list[tuple[int, str]] = []
    examples: list[Problem] = []
    file = Path(path)
    for number, content, line in _rows(file, form):
        hashed.update(line)
        size += len(line)
        if isinstance(content, Problem):
            rows += 1
            if len(examples) < EXAMPLES_IN_MESSAGE:
                examples.append(content)
        elif content is not None:
            bad_rows += 1
            if len(bad) < MAX_REPORTED_LINES:
                bad.append((number, content))
    if not rows and not bad_rows:
        raise DataError(
            f"{file.name} is empty. Expected one JSON object per line with `{form.question}` and "
            f"`{form.answer}`."
        )
    if bad_rows >= rows:
        shown = "; ".join(f"line {number}: {message}" for number, message in bad[:EXAMPLES_IN_MESSAGE])
        more = f"; and {bad_rows - EXAMPLES_IN_MESSAGE} more" if bad_rows > EXAMPLES_IN_MESSAGE else ""
        raise DataError(f"{file.name}: {bad_rows} of {rows + bad_rows} rows cannot be used: {shown}{more}.")
    return DatasetReport(rows, bad_rows, tuple(bad), hashed.hexdigest(), size, tuple(examples))


def _split(
    name: str,
    rows: Iterable[tuple[str, Problem | str | None]],
    config: JsonlData | ParquetData | HubData,
    form: RowForm,
    seed: int,
    evaluation_problems: int,
    prompt_tokens: Callable[[Problem], int] | None,
    limits: tuple[int | None, int | None],
) -> Dataset:
    """Usable rows to the side that the hash of their question says; what was left out is counted and told.
    `limits`: most tokens of a prompt of training, and of evaluation.
    """
    training: list[Problem] = []
    held_out: list[Problem] = []
    seen: set[str] = set()
    usable = bad = too_long = over_limit = twice = letters = longest = 0
    first_bad = ""
    for place, content in rows:
        if content is None:
            continue
        if isinstance(content, str):
            bad += 1
            first_bad = first_bad or f"{place}: {content}"
            continue
        usable += 1
        letters += len(content.prompt) + len(content.reference_answer) + len(content.solution)
        if letters > MOST_LETTERS:
            raise DataError(f"{name} has more than {MOST_LETTERS // 2**30} GiB of text. Use a part of it.")
        is_evaluation = is_held_out(form.question_of(content.prompt), config.evaluation_share)
        limit = limits[is_evaluation]
        tokens = prompt_tokens(content) if prompt_tokens else 0
        if config.max_prompt_tokens and tokens > config.max_prompt_tokens:
            over_limit += 1
        elif limit is not None and tokens > limit:
            too_long += 1
        elif content.problem_id in seen:
            twice += 1
        else:
            (held_out if is_evaluation else training).append(content)
            longest = max(longest, tokens)
        seen.add(content.problem_id)
    if not usable:
        raise DataError(
            f"{name} has no usable row." + (f" The first that is not: {first_bad}." if bad else "")
        )
    if bad >= usable:
        raise DataError(f"{name}: {bad} of {usable + bad} rows cannot be used; the first is {first_bad}.")
    if too_long + over_limit == usable:
        raise DataError(
            f"{name}: not one of its {usable} questions fits the model together with an answer. "
            "Use a model with more positions, or lower the answer or segment length."
        )
    # Spelled alike but for blanks and capitals: hashes tell such questions apart, people and models do not.
    held_out_questions = {_spelled(form.question_of(problem.prompt)) for problem in held_out}
    overlapping = [
        problem for problem in training if _spelled(form.question_of(problem.prompt)) in held_out_questions
    ]
    if overlapping:
        leaked = {problem.problem_id for problem in overlapping}
        training = [problem for problem in training if problem.problem_id not in leaked]
    if not training or not held_out:
        raise DataError(
            f"{name} has {usable} usable rows, of which {len(held_out)} fall to evaluation and "
            f"{len(training)} to "
            f"training; both need at least one. Add rows, or change data.evaluation_share "
            f"({config.evaluation_share})."
        )
    warnings = []
    if bad:
        warnings.append(f"{name}: skipped {bad} of {usable + bad} rows; the first is {first_bad}.")
    if too_long:
        warnings.append(
            f"{name}: left out {too_long} of {usable} problems, whose question and longest answer "
            "do not fit the model's positions."
        )
    if over_limit:
        warnings.append(
            f"{name}: left out {over_limit} of {usable} problems, whose prompt is longer than "
            f"{config.max_prompt_tokens} tokens."
        )
    if twice:
        warnings.append(f"{name}: {twice} of {usable} rows repeat an earlier question; each is used once.")
    if overlapping:
        warnings.append(
            f"{name}: {len(overlapping)} training problems are held-out ones but for blanks and capitals, "
            "and were left out of training."
        )
    if len(held_out) < evaluation_problems:
        warnings.append(
            f"{name}: {len(held_out)} problems are held out, fewer than the {evaluation_problems} asked "
            f"for; all are used."
        )
    # By hash again, not by place in the source: the same problems whatever the order of the rows.
    held_out.sort(key=lambda problem: problem.problem_id)
    return Dataset(
        ShuffledProblems(training, seed),
        tuple(held_out[:evaluation_problems]),
        tuple(warnings),
        _hash_of(training),
        longest,
    )


def _spelled(text: str) -> str:
    return " ".join(text.casefold().split())


def _rows(file: Path, form: RowForm) -> Iterator[tuple[int, Problem | str | None, bytes]]:
    """Line by line: (line number, the problem or what is wrong with the line or None if it is blank, the
    line's bytes).

    Raises DataError when the file as a whole is not readable text.
    """
    try:
        if not file.is_file():
            what = "a folder" if file.is_dir() else "not there" if not file.exists() else "not a regular file"
            raise DataError(f"{file} is {what}. Expected a JSONL file.")
        with file.open("rb") as stream:
            _refuse_other_formats(file, stream.read(4))
            stream.seek(0)
            for number, line, is_start in _lines(stream):
                yield number, _parse(number, line, form) if is_start else None, line
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """(number, bytes, whether they are the start of a line). Only an overlong line comes in pieces."""
    number, is_start = 0, True
    while piece := stream.readline(MAX_LINE_BYTES):
        number += is_start
        yield number, piece, is_start
        is_start = piece.endswith(b"\n") or len(piece) < MAX_LINE_BYTES


def _refuse_other_formats(file: Path, head: bytes) -> None:
    for start, what in (
        (b"\xff\xfe", "UTF-16 text (it starts with a byte-order mark FF FE)"),
        (b"\xfe\xff", "UTF-16 text (it starts with a byte-order mark FE FF)"),
        (b"\x80\x02", "a Python pickle"),
        (b"\x80\x03", "a Python pickle"),
        (b"\x80\x04", "a Python pickle"),
        (b"\x80\x05", "a Python pickle"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x1f\x8b", "gzip-compressed"),
        (b"PAR1", "a Parquet file"),
    ):
        if head.startswith(start):
            raise DataError(
                f"{file.name} is {what}. Expected a JSONL file in UTF-8; it was not opened any further."
            )


def _parse(number: int, line: bytes, form: RowForm) -> Problem | str | None:
    """The problem on a line, a sentence on what is wrong with it, or None for a blank line."""
    if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
        return f"longer than {MAX_LINE_BYTES:,} bytes"
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    if not line.strip():
        return None
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte {error.start + 1} is {line[error.start]:#04x})"
    except json.JSONDecodeError as error:
        if not line.endswith(b"\n"):
            return f"the last line is cut off: {error.msg} (column {error.colno})"
        return f"not JSON: {error.msg} (column {error.colno})"
    except (
        ValueError,
        RecursionError,
    ) as error:  # NaN, an integer of thousands of digits, nesting without end
        return f"not JSON: {error}" if isinstance(error, ValueError) else "not JSON: nested too deep"
    return _problem(row, form)


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON value")


def _problem(row: Any, form: RowForm) -> Problem | str:
    """The problem of a row, or what is wrong with it. `Any`: whatever JSON or a column holds."""
    if not isinstance(row, dict):
        return f"a JSON {_kind(row)}, expected an object with `{form.question}` and `{form.answer}`"
    missing = [name for name in form.columns if name not in row]
    if missing:
        found = ", ".join(f"`{storable(str(name))[:40]}`" for name in list(row)[:10]) or "none"
        return f"columns found: {found}; needed: {', '.join(f'`{name}`' for name in form.columns)}"
    texts: dict[str, str] = {}
    for name in form.columns:
        value = row[name]
        if name == form.answer and not form.is_gsm8k and _is_number(value):
            value = _number_text(value)
            if value is None:
                return f"`{name}` is {row[name]}, expected a finite number"
        if not isinstance(value, str):
            return f"`{name}` is a JSON {_kind(value)}, expected text"
        if len(value) > MAX_LINE_BYTES:
            return f"`{name}` is longer than {MAX_LINE_BYTES:,} letters"
        texts[name] = storable(value)
    question = texts[form.question].strip()
    if not question:
        return f"`{form.question}` is blank"
    answer = texts[form.answer]
    solution = texts[form.solution].strip() if form.solution else ""
    if form.is_gsm8k:
        whole, (_, mark, answer) = answer.strip(), answer.rpartition(ANSWER_MARK.rstrip())
        if not mark:
            return f"`{form.answer}` has no `{ANSWER_MARK}` with the reference answer after it"
        if not answer.strip():
            return f"`{form.answer}` has nothing after its last `{ANSWER_MARK}`"
        if "\n" in answer.strip():
            return f"`{form.answer}` has more than one line after its last `{ANSWER_MARK}`"
        solution = solution or whole
    elif not answer.strip():
        return f"`{form.answer}` is blank"
    return Problem(
        sha256(question.encode()).hexdigest()[:16],
        form.template.replace(QUESTION_MARK, question),
        answer.strip(),
        solution,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _number_text(value: int | float | Decimal) -> str | None:
    """Its digits, never with an exponent; None unless it is finite."""
    if isinstance(value, int):
        return str(value)
    exact = Decimal(repr(value)) if isinstance(value, float) else value
    return f"{exact:f}" if exact.is_finite() else None


def _kind(value: Any) -> str:
    names = {
        bytes: "binary value",
        dict: "object",
        list: "array",
        str: "string",
        bool: "boolean",
        int: "number",
        float: "number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
