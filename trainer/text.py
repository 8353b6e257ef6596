"""Text that databases and JSON can hold. Token ids are the record; text is for people."""

from __future__ import annotations

_NUL, _NUL_PICTURE, _REPLACEMENT = "\x00", "\u2400", "\ufffd"


def storable(text: str) -> str:
    """`text` with NUL shown as U+2400 and lone surrogates as U+FFFD; everything else unchanged.

    PostgreSQL refuses the first, UTF-8 the second. Returns the same object when nothing had to change.
    """
    if _NUL in text:
        text = text.replace(_NUL, _NUL_PICTURE)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "".join(_REPLACEMENT if "\ud800" <= letter <= "\udfff" else letter for letter in text)
    return text
