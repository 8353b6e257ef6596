"""The worker's word for `webapp.embedded.leftovers`: trainers are written down when they are started, and
ended by that record when nobody watches over them any more.
"""

from __future__ import annotations

from webapp.embedded.leftovers import Record, here, read, reap, write

__all__ = ["Record", "here", "read", "reap", "write"]
