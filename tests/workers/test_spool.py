from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.limits import MAX_LINE_BYTES
from workers.spool import Spool, SpoolReader

RECORDS = [b'{"kind":"log"}', b"x", "Grün \U0001f333".encode(), b"{}" * 40]


def fill(path: Path, records: list[bytes]) -> None:
    spool = Spool(path)
    for record in records:
        spool.append(record)
    spool.close()


def everything(path: Path) -> list[bytes]:
    reader = SpoolReader(path)
    try:
        return [record.payload for record in reader.take(reader.size(), 10**6, 10**9)]
    finally:
        reader.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def test_records_come_back_in_order_and_numbered_from_one(path: Path) -> None:
    spool = Spool(path)
    assert [spool.append(record) for record in RECORDS] == [1, 2, 3, 4]
    spool.close()
    assert everything(path) == RECORDS


def test_file_format_is_length_checksum_payload(path: Path) -> None:
    fill(path, [b"ab"])
    # crc32(b"ab") = 0x9e83486d
    assert path.read_bytes() == bytes.fromhex("02000000 6d48839e") + b"ab"


def test_reopened_spool_continues(path: Path) -> None:
    fill(path, RECORDS[:2])
    spool = Spool(path)
    assert (spool.count, spool.torn_bytes) == (2, 0)
    assert spool.append(RECORDS[2]) == 3
    spool.close()
    assert everything(path) == RECORDS[:3]


def test_spool_torn_at_every_byte_keeps_every_whole_record(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    fill(whole, RECORDS)
    data = whole.read_bytes()
    ends = [0]
    for record in RECORDS:
        ends.append(ends[-1] + 8 + len(record))
    for size in range(len(data) + 1):
        torn = tmp_path / "torn"
        torn.write_bytes(data[:size])
        kept = sum(end <= size for end in ends) - 1
        assert everything(torn) == RECORDS[:kept]
        spool = Spool(torn)
        assert (spool.count, spool.torn_bytes) == (kept, size - ends[kept])
        assert spool.append(b"next") == kept + 1
        spool.close()
        assert everything(torn) == [*RECORDS[:kept], b"next"]


def test_flipped_bit_ends_the_spool_there(path: Path) -> None:
    fill(path, RECORDS)
    data = bytearray(path.read_bytes())
    data[8 + len(RECORDS[0]) + 8] ^= 1
    path.write_bytes(bytes(data))
    assert everything(path) == RECORDS[:1]


def test_hole_of_zeros_is_no_record(path: Path) -> None:
    fill(path, RECORDS[:1])
    with path.open("ab") as file:
        file.write(bytes(64))
    spool = Spool(path)
    assert (spool.count, spool.torn_bytes) == (1, 64)
    spool.close()


def test_claimed_length_beyond_the_limit_is_not_believed(path: Path) -> None:
    path.write_bytes((MAX_LINE_BYTES + 1).to_bytes(4, "little") + bytes(4) + b"x" * 100)
    assert everything(path) == []


@pytest.mark.parametrize("size", [0, MAX_LINE_BYTES + 1])
def test_record_must_fit(path: Path, size: int) -> None:
    spool = Spool(path)
    with pytest.raises(ValueError, match="can be kept"):
        spool.append(bytes(size))
    spool.close()


def test_full_disk_leaves_the_file_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(path)
    spool.append(b"first")
    real = os.pwrite

    def half(fd: int, data: memoryview, offset: int) -> int:
        if len(data) > 4:
            return real(fd, data[:4], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(OSError, match="No space"):
        spool.append(b"abcd")
    monkeypatch.undo()
    assert spool.append(b"second") == 2
    spool.close()
    assert everything(path) == [b"first", b"second"]


def test_reader_sees_nothing_beyond_the_end_it_is_given(path: Path) -> None:
    spool = Spool(path)
    spool.append(b"one")
    end = spool.end
    spool.append(b"two")
    reader = SpoolReader(path)
    (record,) = reader.take(end, 10, 100)
    assert record.payload == b"one"
    reader.advance(record)
    assert [r.payload for r in reader.take(spool.end, 10, 100)] == [b"two"]
    reader.close()
    spool.remove()
    assert not path.exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=30), max_size=20), st.data())
def test_any_split_of_reads_gives_every_record_once(
    tmp_path: Path, records: list[bytes], data: st.DataObject
) -> None:
    path = tmp_path / "spool"
    if path.exists():
        path.unlink()
    fill(path, records)
    reader = SpoolReader(path)
    seen: list[bytes] = []
    while True:
        taken = reader.take(reader.size(), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 60)))
        if not taken:
            break
        # Only some of what was taken is done with: the rest comes again.
        done = taken[: data.draw(st.integers(1, len(taken)))]
        reader.advance(done[-1])
        assert [record.n for record in done] == list(range(len(seen) + 1, len(seen) + len(done) + 1))
        seen += [record.payload for record in done]
    reader.close()
    assert seen == records
