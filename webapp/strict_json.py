"""JSON bodies read strictly: what is ambiguous or cannot be stored is refused with a sentence, and nothing
becomes a 500.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from webapp.errors import RequestError

MAX_NUMBER_LETTERS = 40


def loads(body: bytes) -> Any:
    """The value in `body`. Raises RequestError(400): not UTF-8, not JSON, a key twice, NaN, a number too long
    or too large, nested too deeply, a NUL or half a surrogate pair in a text.
    """
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_float,
        )
        # Also finds what UTF-8 cannot hold: a lone surrogate.
        compact = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise RequestError(400, f"The body is not UTF-8: byte {error.start} cannot be read.") from error
    except UnicodeEncodeError as error:
        raise RequestError(
            400, "A text in the body holds half a surrogate pair (\\ud800 to \\udfff alone). Remove it."
        ) from error
    except json.JSONDecodeError as error:
        raise RequestError(
            400, f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except RecursionError as error:
        raise RequestError(400, "The body is nested too deeply.") from error
    if b"\\u0000" in compact:
        raise RequestError(400, "A text in the body holds a NUL character. Remove it.")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add gives None: false
        raise RequestError(400, f"The key {twice[:80]!r} stands twice in one object. Keep one.")
    return found


def _constant(word: str) -> NoReturn:
    raise RequestError(400, f"{word} is not JSON. Send a finite number.")


def _integer(digits: str) -> int:
    if len(digits) > MAX_NUMBER_LETTERS:
        raise RequestError(
            400, f"A number of {len(digits)} digits was sent; at most {MAX_NUMBER_LETTERS} are read."
        )
    return int(digits)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise RequestError(400, f"The number {text[:40]} is too large. Send a finite number.")
    return number
