"""Records out of a fetched batch: as many as asked for, no more bytes than there is room, each once and in order."""

from __future__ import annotations

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from turnout.common.bus.kafka.tolerating import Fetched, TolerantRecords

ROOM = 1_000_000
GZIP = 1


def fetched(*values: bytes | None, begin: int = 0, compression: int = 0, header: bytes = b"name") -> Fetched:
    """A batch as a member gets it; `header` names the second record's header."""
    builder = DefaultRecordBatchBuilder(
        2, compression, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=10_000_000
    )
    for offset, value in enumerate(values):
        builder.append(offset, 1_700_000_000_000, b"key", value, [("NAME", b"x")] if offset == 1 else [])
    records = TolerantRecords(bytes(builder.build()).replace(b"NAME", header))
    records.whole = True
    [batch] = records.next_batch()
    batch.begin = begin
    return batch


def taken(batch: Fetched, count: int, room: int = ROOM) -> list[list[int]]:
    """The offsets of what comes at each time, until nothing does."""
    found: list[list[int]] = []
    while records := batch.take(count, room)[0]:
        found.append([record.offset for record in records])
    return found


@pytest.mark.parametrize(("compression", "header"), [(0, b"name"), (GZIP, b"NAME"), (0, b"\xff\xfe\xfd\xfc")])
def test_each_record_comes_once_and_in_order(compression: int, header: bytes) -> None:
    batch = fetched(*[b"value"] * 7, compression=compression, header=header)
    assert taken(batch, 3) == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_fetch_from_the_middle_of_a_batch_leaves_out_what_was_read() -> None:
    assert taken(fetched(*[b"value"] * 7, begin=4), 3) == [[4, 5], [6]]


@pytest.mark.parametrize("compression", [0, GZIP])
def test_no_more_bytes_than_there_is_room_but_for_one_record(compression: int) -> None:
    batch = fetched(b"x" * 40, b"x" * 40, b"x" * 40, None, b"x" * 500, b"x", b"x", compression=compression)
    assert taken(batch, 5, room=100) == [[0, 1], [2, 3], [4], [5, 6]]


def test_what_was_left_for_want_of_room_counts_for_the_next() -> None:
    batch = fetched(*[b"x" * 10] * 6)
    records, size = batch.take(6, 25)
    assert ([record.offset for record in records], size) == ([0, 1], 20)
    records, size = batch.take(1, ROOM)
    assert ([record.offset for record in records], size) == ([2], 10)
    assert taken(batch, 9) == [[3, 4, 5]]
