"""How consumers of this process read what they fetched, where aiokafka's own way will not do.

Records whose header names are not UTF-8: brokers take them, aiokafka's parser stops at them for ever. Such a batch is
read once more by aiokafka's slow parser, over bytes that turn into text whatever they are. The names come out with
replacement characters, everything else as it was; what to do with the record is its reader's business.

Whole batches: a consumer made with `WHOLE` gets one `Fetched` for each batch instead of a record for each record, and
takes the records out when it needs them. That costs a third of the time, and what waits is one object and not
thousands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import (
    _DefaultRecordBatchPy as SlowBatch,  # pyright: ignore[reportPrivateUsage]
)
from aiokafka.record.memory_records import MemoryRecords

# A batch begins with its first offset (8 bytes) and the number of bytes that follow (4).
_OVERHEAD = 12
_AT_ONCE = 500


def WHOLE(value: bytes) -> bytes:  # noqa: N802 (a mark more than a function)
    """As a consumer's `value_deserializer`: leave its batches whole. Without `tolerate` it changes nothing."""
    return value


def tolerate() -> None:
    """Let every consumer of this process read what others cannot."""
    # They are not said to be replaceable.
    setattr(fetcher, "MemoryRecords", TolerantRecords)  # noqa: B010
    setattr(fetcher, "PartitionRecords", _PartitionRecords)  # noqa: B010


class Fetched:
    """A batch of which no record was looked at yet."""

    def __init__(self, batch: _TolerantBatch) -> None:
        self.offset: int = batch.next_offset - 1
        """The batch's last offset; there may be no record at it."""
        self.begin = 0
        """Records before this offset were read already."""
        self._batch = batch
        self._ahead: Sequence[Any] = ()

    def take(self, count: int, room: int) -> tuple[Sequence[Any], int]:
        """The next records and the bytes of their values: at most `count`, and no more than `room` bytes but for one
        record. None are left when none come."""
        records = self._ahead or self._next(count)
        within, size = min(count, len(records)), sum([len(record.value or b"") for record in records])
        if size > room or within < len(records):
            within, size = _within(records[:count], room)
        self._ahead = records[within:]
        return records[:within], size

    def _next(self, count: int) -> Sequence[Any]:
        if self._batch.base_offset >= self.begin:
            return self._batch.take(count)
        # A fetch from the middle of a batch brings all of it.
        while found := self._batch.take(count):
            if kept := [record for record in found if record.offset >= self.begin]:
                return kept
        return ()


def _within(records: Sequence[Any], room: int) -> tuple[int, int]:
    """How many records have no more than `room` bytes (the first counts whatever it has), and how many they have."""
    size = 0
    for index, record in enumerate(records):
        more = size + len(record.value or b"")
        if index and more > room:
            return index, size
        size = more
    return len(records), size


class TolerantRecords:
    """The batches of one fetched partition."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._fast = MemoryRecords(raw)
        self._read = 0
        self.whole = False

    def has_next(self) -> bool:
        """Whether a batch is left."""
        return self._fast.has_next()

    def size_in_bytes(self) -> int:
        """The bytes of all."""
        return self._fast.size_in_bytes()

    def next_batch(self) -> Any:
        """The next batch."""
        self._read += 1
        return _TolerantBatch(self._fast.next_batch(), self._raw, self._read, whole=self.whole)


class _TolerantBatch:
    """A batch as aiokafka's, but for what comes when it is iterated over."""

    def __init__(self, fast: Any, raw: bytes, number: int, *, whole: bool) -> None:
        self._fast = fast
        self._raw = raw
        self._number = number
        self._whole = whole
        self._taken = 0
        self._iterator: Iterator[Any] | None = None
        self._slow: Iterator[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fast, name)

    def __next__(self) -> Any:
        return next(self._fast)

    def __iter__(self) -> Iterator[Any]:
        return iter((Fetched(self),)) if self._whole else self.records()

    def records(self) -> Iterator[Any]:
        """Its records, once."""
        while found := self.take(_AT_ONCE):
            yield from found

    def take(self, count: int) -> Sequence[Any]:
        """The next records, at most `count`; none when there are no more."""
        found: list[Any] = []
        if self._slow is None:
            # The batch itself can be iterated over only from its beginning.
            self._iterator = self._iterator or islice(self._fast, None)
            try:
                # On an error the list keeps what came before it.
                found.extend(islice(self._iterator, count))
            except UnicodeDecodeError:
                self._slow = self._slowly(self._taken + len(found))
            self._taken += len(found)
        if self._slow is not None:
            found.extend(islice(self._slow, count - len(found)))
        return found

    def _slowly(self, read: int) -> Iterator[Any]:
        """The batch's records but for the first ones, which were read already."""
        begin = end = 0
        for _ in range(self._number):
            begin, end = end, end + _OVERHEAD + int.from_bytes(self._raw[end + 8 : end + _OVERHEAD], "big")
        slow: Any = SlowBatch(self._raw[begin:end])
        slow._maybe_uncompress()  # noqa: SLF001
        slow._buffer = _Forgiving(slow._buffer)  # noqa: SLF001
        for index, record in enumerate(slow):
            if index >= read:
                yield record


class _PartitionRecords(fetcher.PartitionRecords):
    """What was fetched of one partition; aiokafka's, which looks after offsets, control batches and checksums."""

    def __init__(self, tp: TopicPartition, records: Any, *rest: Any) -> None:
        super().__init__(tp, records, *rest)
        records.whole = self._value_deserializer is WHOLE

    def _consumer_record(self, tp: TopicPartition, record: Any) -> Any:
        if not isinstance(record, Fetched):
            return super()._consumer_record(tp, record)
        record.begin = self.next_fetch_offset
        return record


class _Forgiving(bytes):
    """Bytes that become text whatever they are, and so do their slices."""

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return _Forgiving(found) if isinstance(place, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:  # noqa: ARG002
        """The text, with replacement characters."""
        return super().decode(encoding, "replace")
