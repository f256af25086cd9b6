"""Reading records whose header names are not UTF-8: brokers take them, aiokafka's parser stops at them for ever.

Such a batch is read once more by aiokafka's slow parser, over bytes that turn into text whatever they are. The names
come out with replacement characters, everything else as it was; what to do with the record is its reader's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import (
    _DefaultRecordBatchPy as SlowBatch,  # pyright: ignore[reportPrivateUsage]
)
from aiokafka.record.memory_records import MemoryRecords

# A batch begins with its first offset (8 bytes) and the number of bytes that follow (4).
_OVERHEAD = 12


def tolerate() -> None:
    """Let every consumer of this process read what others cannot."""
    setattr(fetcher, "MemoryRecords", TolerantRecords)  # noqa: B010 (it is not said to be replaceable)


class TolerantRecords:
    """The batches of one fetched partition."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._fast = MemoryRecords(raw)
        self._read = 0

    def has_next(self) -> bool:
        """Whether a batch is left."""
        return self._fast.has_next()

    def size_in_bytes(self) -> int:
        """The bytes of all."""
        return self._fast.size_in_bytes()

    def next_batch(self) -> Any:
        """The next batch."""
        self._read += 1
        return _TolerantBatch(self._fast.next_batch(), self._raw, self._read)


class _TolerantBatch:
    """A batch as aiokafka's, but for what its records do when they are iterated over."""

    def __init__(self, fast: Any, raw: bytes, number: int) -> None:
        self._fast = fast
        self._raw = raw
        self._number = number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fast, name)

    def __next__(self) -> Any:
        return next(self._fast)

    def __iter__(self) -> Iterator[Any]:
        read = 0
        try:
            for record in self._fast:
                yield record
                read += 1
        except UnicodeDecodeError:
            yield from self._slowly(read)

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


class _Forgiving(bytes):
    """Bytes that become text whatever they are, and so do their slices."""

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return _Forgiving(found) if isinstance(place, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:  # noqa: ARG002
        """The text, with replacement characters."""
        return super().decode(encoding, "replace")
