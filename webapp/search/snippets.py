"""The part of a text around what was found, with the finds marked. Pure: pieces of text, no markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What stands between the signs that the index takes for punctuation (migration 0001).
SIGNS = "\u00a0-\u00b6\u00b8-\u00bf\u00d7\u00f7\u2000-\u206f\u2190-\u2bff\u3000-\u3020"
WORD = re.compile(rf"(?:(?![{SIGNS}])[^\W_])+")
MAX_WORD_BYTES = 2046  # PostgreSQL leaves longer ones out
BEFORE = 70  # letters ahead of the first find
LETTERS = 260

Piece = tuple[str, bool]  # text, and whether it is a find


def finds(text: str, phrases: Sequence[str]) -> list[tuple[int, int]]:
    """Where the phrases stand, in order and without overlap. Words are compared as the index does."""
    wanted = [phrase for phrase in ([*_words(one)] for one in phrases) if phrase]
    there = [(match.group().lower(), *match.span()) for match in WORD.finditer(text)]
    found: list[tuple[int, int]] = []
    place = 0
    while place < len(there):
        length = max(
            (
                len(phrase)
                for phrase in wanted
                if [word for word, _, _ in there[place : place + len(phrase)]] == phrase
            ),
            default=0,
        )
        if length:
            found.append((there[place][1], there[place + length - 1][2]))
        place += length or 1
    return found


def _words(text: str) -> list[str]:
    return [match.group().lower() for match in WORD.finditer(text)]


def snippet(text: str, marked: Sequence[tuple[int, int]]) -> list[Piece]:
    """At most some 260 letters from around the first find, cut at words where there are any."""
    first = marked[0][0] if marked else 0
    start = max(0, first - BEFORE)
    if start:
        blank = text.find(" ", start, first)
        start = blank + 1 if blank >= 0 else start
    end = min(len(text), start + LETTERS)
    if end < len(text):
        blank = text.rfind(" ", max(start, end - 30), end)
        end = blank if blank > start else end
    pieces: list[Piece] = [("… ", False)] if start else []
    at = start
    for low, high in marked:
        low, high = max(low, start), min(high, end)
        if low >= high:
            continue
        if low > at:
            pieces.append((text[at:low], False))
        pieces.append((text[low:high], True))
        at = high
    if at < end:
        pieces.append((text[at:end], False))
    if end < len(text):
        pieces.append((" …", False))
    return pieces
