from __future__ import annotations


class EmbeddedError(Exception):
    """The local stack cannot start or go on. The message is one sentence for the person at the terminal."""
