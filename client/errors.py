"""What can go wrong, by exit status."""

from __future__ import annotations


class ClientError(Exception):
    """One sentence for people; `status` is the exit status."""

    status = 1


class UsageError(ClientError):
    """What was typed, or set, cannot be used."""

    status = 2


class RefusedError(ClientError):
    """The server understood and said no: not allowed, not there, not possible now."""

    status = 3


class UnreachableError(ClientError):
    """The server cannot be reached, or is not able to answer now. Trying again may help."""

    status = 4
