"""How a log line is written: no live secret in it, and nothing that steers a terminal or forges a line."""

from __future__ import annotations

import logging
import re

from webapp.embedded.terminal import visible

_LOGIN_SECRET = re.compile(r"/login/[^/?\s]+")


class LineFormatter(logging.Formatter):
    """Login links lose their secret; control characters are written out, line ends of a message too."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return _LOGIN_SECRET.sub("/login/…", visible(super().formatMessage(record)))

    # `Any` in logging's own signature: the three parts of sys.exc_info().
    def formatException(self, ei: object) -> str:  # noqa: N802 (logging's name)
        lines = super().formatException(ei).split("\n")  # type: ignore[arg-type]  # passed on as it came
        return _LOGIN_SECRET.sub("/login/…", "\n".join(map(visible, lines)))
