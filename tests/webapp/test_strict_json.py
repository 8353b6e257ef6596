"""Strict JSON costs about what plain JSON costs, whatever the body holds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from webapp import strict_json
from webapp.errors import RequestError


def seconds(do: Callable[[], object]) -> float:
    """CPU time of the fastest of three."""
    found = []
    for _ in range(3):
        started = time.process_time()
        do()
        found.append(time.process_time() - started)
    return min(found)


def test_a_repeated_key_is_found_in_one_pass() -> None:
    keys = [f"key-{n}" for n in range(20_000)]
    body = ("{" + ",".join(f'"{key}":1' for key in [*keys, keys[-1]]) + "}").encode()

    def refused() -> None:
        with pytest.raises(RequestError, match="'key-19999' stands twice"):
            strict_json.loads(body)

    assert seconds(refused) < 40 * seconds(lambda: json.loads(body))


def test_the_key_named_is_the_first_that_comes_again() -> None:
    with pytest.raises(RequestError, match="'b' stands twice"):
        strict_json.loads(b'{"a": 1, "b": 2, "b": 3, "a": 4}')
    assert strict_json.loads(b'{"a": {"a": 1}}') == {"a": {"a": 1}}
