"""Whether the database's server gives any sign of life, asked beside the connection that waits for it.

A server that was stopped says so. One that is frozen, or that the network has swallowed, says nothing: its
statement timeout does not fire, and a socket that waits for it waits for ever. So whoever has waited for a
while asks by another way, and one that does not answer there either is taken for away until it does.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from webapp.limits import DATABASE_ANSWER_SECONDS, DATABASE_ASK_SECONDS

# "Do you speak TLS?" A server answers with one letter before it asks who we are, also when it is starting or
# has no connection to give (PostgreSQL: Message Flow, SSL Session Encryption).
_QUESTION = struct.pack("!ii", 8, 80877103)


@dataclass(frozen=True, slots=True)
class Address:
    """`host`: a name, an address, or the folder of a unix socket."""

    host: str
    port: int

    def is_one(self) -> bool:
        """Whether it names one server; libpq also takes lists, and nothing for its own default."""
        return bool(self.host) and "," not in self.host


def answers(address: Address, seconds: float = DATABASE_ANSWER_SECONDS) -> bool:
    """Whether a server is there that takes connections, whatever it says then."""
    with contextlib.suppress(OSError), _connected(address, seconds) as link:
        link.sendall(_QUESTION)
        return bool(link.recv(1))
    return False


def _connected(address: Address, seconds: float) -> socket.socket:
    if not address.host.startswith("/"):
        return socket.create_connection((address.host, address.port), timeout=seconds)
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(seconds)
        link.connect(str(Path(address.host) / f".s.PGSQL.{address.port}"))
    except OSError:
        link.close()
        raise
    return link


class Known:
    """What this process knows of the server: nothing is asked as long as all is well, and while it is away
    one question a second instead of everybody's waiting.

    Without locks: processes fork, and one question too many does no harm.
    """

    def __init__(self) -> None:
        self._away: Address | None = None
        self._ask_at = 0.0

    def note_away(self, address: Address) -> None:
        self._away, self._ask_at = address, time.monotonic() + DATABASE_ASK_SECONDS

    @property
    def is_away(self) -> bool:
        return self._away is not None

    def is_back(self) -> bool:
        """Whether one that was away answers now. Asks if that is due."""
        address = self._away
        if address is None:
            return True
        now = time.monotonic()
        if now < self._ask_at:
            return False
        self._ask_at = now + DATABASE_ANSWER_SECONDS + DATABASE_ASK_SECONDS  # others need not ask meanwhile
        if answers(address):
            self._away = None
            return True
        self._ask_at = time.monotonic() + DATABASE_ASK_SECONDS
        return False


known = Known()
