"""Append-only file of one attempt's events; it outlives a lost database, and a worker that dies.

A record is its length (uint32), its CRC-32 (uint32), both little-endian, and that many bytes of JSON. Records
are numbered 1, 2, 3 … by their place. A record cut off by a crash, and anything after it, is dropped at the
next opening and counted. It knows nothing of what the JSON means.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workers.limits import MAX_LINE_BYTES, SPOOL_SYNC_SECONDS

_HEADER = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Record:
    """Record number `n`; `end` is the offset just after it, `checksum` that of all headers up to there."""

    n: int
    end: int
    payload: bytes
    checksum: int


def _scan(fd: int, n: int, offset: int, end: int, through: int = 0) -> Iterator[Record]:
    """Whole records after record `n`, which ended at `offset`, up to `end` or the first that is not whole.
    `through`: the checksum of the file up to `offset`.
    """
    while offset + _HEADER.size <= end:
        header = os.pread(fd, _HEADER.size, offset)
        length, checksum = _HEADER.unpack(header)
        # A crash may leave a hole of zeros; an empty record would have a matching checksum.
        if not 0 < length <= MAX_LINE_BYTES or offset + _HEADER.size + length > end:
            return
        payload = os.pread(fd, length, offset + _HEADER.size)
        if len(payload) != length or zlib.crc32(payload) != checksum:
            return
        n, offset = n + 1, offset + _HEADER.size + length
        through = zlib.crc32(header, through)  # which holds the payload's checksum
        yield Record(n, offset, payload, through)


class Spool:
    """The file, for the one thread that appends. Opening it again continues it."""

    def __init__(self, path: Path) -> None:
        """Opens or makes `path`; a torn tail is cut off, `torn_bytes` long. Raises OSError."""
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = os.fstat(self._fd).st_size
        self.count = self.end = 0
        for record in _scan(self._fd, 0, 0, size):
            self.count, self.end = record.n, record.end
        self.torn_bytes = size - self.end
        if self.torn_bytes:
            os.ftruncate(self._fd, self.end)
            os.fsync(self._fd)
        self._synced_end = self.end
        self._synced_at = time.monotonic()

    def append(self, payload: bytes) -> int:
        """Add one record and return its number. Raises OSError (disk full); the file stays whole."""
        if not 0 < len(payload) <= MAX_LINE_BYTES:
            raise ValueError(f"A record of {len(payload)} bytes; 1 to {MAX_LINE_BYTES} can be kept.")
        data = memoryview(_HEADER.pack(len(payload), zlib.crc32(payload)) + payload)
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._fd, data[written:], self.end + written)
        except OSError:
            os.ftruncate(self._fd, self.end)
            raise
        # In this order: a reader in another thread looks at `end` first.
        self.count += 1
        self.end += len(data)
        return self.count

    def sync(self) -> None:
        """Make what was appended survive a crash of the machine."""
        if self._synced_end != self.end:
            os.fdatasync(self._fd)
            self._synced_end = self.end
        self._synced_at = time.monotonic()

    def sync_if_due(self) -> None:
        if time.monotonic() - self._synced_at >= SPOOL_SYNC_SECONDS:
            self.sync()

    def close(self) -> None:
        try:
            self.sync()
        finally:
            os.close(self._fd)

    def remove(self) -> None:
        """Everything in it is stored elsewhere."""
        os.close(self._fd)
        self.path.unlink(missing_ok=True)


class SpoolReader:
    """Reads a spool in order from its first record, also while another thread appends to it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.n = self.offset = self.checksum = 0

    def take(self, end: int, max_records: int, max_bytes: int) -> list[Record]:
        """The next whole records before the offset `end`: at least one if there is one, within both limits.

        They are not passed over until `advance` says so.
        """
        taken: list[Record] = []
        for record in _scan(self._fd, self.n, self.offset, end, self.checksum):
            taken.append(record)
            if len(taken) >= max_records or record.end - self.offset >= max_bytes:
                break
        return taken

    def advance(self, record: Record) -> None:
        """Everything up to `record` is done with."""
        self.n, self.offset, self.checksum = record.n, record.end, record.checksum

    def is_torn(self) -> bool:
        """Whether what follows is what a crash leaves: the beginning of one record, or a hole of zeros.
        Anything else that cannot be read is damage.
        """
        rest = self.size() - self.offset
        if rest <= 0:
            return False
        head = os.pread(self._fd, _HEADER.size, self.offset)
        if len(head) < _HEADER.size:
            return True
        length, _ = _HEADER.unpack(head)
        if not length:
            return not any(os.pread(self._fd, MAX_LINE_BYTES, self.offset))
        is_cut_off: bool = 0 < length <= MAX_LINE_BYTES and rest < _HEADER.size + length
        return is_cut_off

    def size(self) -> int:
        """Bytes in the file now."""
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        os.close(self._fd)
