"""Reading without a group: a topic from its beginning, as a replay or for ever, and where topics begin and end."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from turnout.common.bus.kafka.connecting import Connecting
from turnout.common.bus.kafka.members import as_received
from turnout.common.bus.kafka.troubles import FAILURES, again, unavailable
from turnout.common.bus.port import Received
from turnout.common.errors import Unavailable

POLL_MILLISECONDS = 500
# Consumers kept for the next replay: to make one costs two connections and some round trips.
MAX_IDLE = 2


class Readers:
    """Consumers without a group, each lent to one reader at a time."""

    def __init__(self, connecting: Connecting) -> None:
        self._connecting = connecting
        self._idle: list[AIOKafkaConsumer] = []
        self._lent: dict[AIOKafkaConsumer, Unavailable | None] = {}
        self._closed = False

    async def replay(self, name: str, wire: str, partitions: int, *, compacted: bool) -> AsyncGenerator[Received]:
        """What is there at this moment; of a compacted topic each key's newest. Raises `Unavailable`."""
        async with self._lend() as consumer:
            async for received in self._replay(consumer, name, _all(wire, partitions), compacted):
                yield received

    async def follow(self, name: str, wire: str, partitions: int, *, compacted: bool) -> AsyncGenerator[Received]:
        """What is there at this moment, then what comes, for ever. Raises `Unavailable`."""
        async with self._lend() as consumer:
            async for received in self._replay(consumer, name, _all(wire, partitions), compacted):
                yield received
            while True:
                self._check(consumer)
                found: Mapping[Any, Sequence[Any]] = await consumer.getmany(timeout_ms=POLL_MILLISECONDS)
                for partition, records in found.items():
                    for received in as_received(name, partition.partition, records):
                        yield received

    async def bounds(
        self, partitions: Sequence[TopicPartition]
    ) -> tuple[Mapping[TopicPartition, int], Mapping[TopicPartition, int]]:
        """First offset and end of each partition. Raises `Unavailable`."""
        async with self._lend() as consumer:
            return await _bounds(consumer, partitions)

    def fail(self, problem: Unavailable) -> None:
        """Whoever reads now hears the problem."""
        for consumer in self._lent:
            self._lent[consumer] = problem

    async def close(self) -> None:
        """Stop every consumer; whoever reads hears of it."""
        self._closed = True
        self.fail(Unavailable(f"Kafka at {self._connecting.settings.servers}", "the bus is closed"))
        await asyncio.gather(*(self._connecting.stop(consumer) for consumer in [*self._idle, *self._lent]))
        self._idle.clear()

    def _check(self, consumer: AIOKafkaConsumer) -> None:
        problem = self._lent[consumer]
        if problem is not None:
            raise again(problem)

    @asynccontextmanager
    async def _lend(self) -> AsyncGenerator[AIOKafkaConsumer]:
        healthy = False
        try:
            consumer = self._idle.pop() if self._idle else await self._connecting.consumer()
        except FAILURES as error:
            raise unavailable(error, self._connecting.settings, "reading") from error
        self._lent[consumer] = None
        try:
            yield consumer
            healthy = True
        except GeneratorExit:
            healthy = True  # whoever read has seen enough
            raise
        except FAILURES as error:
            self._check(consumer)
            raise unavailable(error, self._connecting.settings, "reading") from error
        finally:
            self._lent.pop(consumer, None)
            if healthy and not self._closed and len(self._idle) < MAX_IDLE:
                consumer.pause(*consumer.assignment())
                self._idle.append(consumer)
            else:
                await self._connecting.stop(consumer)

    async def _replay(
        self, consumer: AIOKafkaConsumer, name: str, partitions: Sequence[TopicPartition], compacted: bool
    ) -> AsyncIterator[Received]:
        begin, end = await _bounds(consumer, partitions)
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, begin[partition])
        stream = self._merged(consumer, name, {p: end[p] for p in partitions if end[p] > begin[p]})
        if not compacted:
            async for received in stream:
                yield received
            return
        # The broker compacts late, so what is superseded is still among it.
        newest: dict[tuple[int, bytes | None], Received] = {}
        async for received in stream:
            place = (received.partition, received.record.key)
            newest.pop(place, None)
            newest[place] = received
        for received in newest.values():
            if received.record.value is not None:
                yield received

    async def _merged(
        self, consumer: AIOKafkaConsumer, name: str, ends: dict[TopicPartition, int]
    ) -> AsyncIterator[Received]:
        """Records before `ends`, in order of time across partitions, each partition in its own order."""
        heads: dict[TopicPartition, deque[Received]] = {partition: deque() for partition in ends}
        moved = time.monotonic()
        while heads:
            lacking = [p for p, head in heads.items() if not head]
            if not lacking:
                earliest = min(heads, key=lambda p: (heads[p][0].timestamp, p))
                yield heads[earliest].popleft()
                if not heads[earliest] and await consumer.position(earliest) >= ends[earliest]:
                    del heads[earliest]
                continue
            # Only what the next record may be in: the others' records wait in the client.
            found: Mapping[Any, Sequence[Any]] = await consumer.getmany(*lacking, timeout_ms=POLL_MILLISECONDS)
            for partition, records in found.items():
                number, end = partition.partition, ends[partition]
                heads[partition].extend(as_received(name, number, [r for r in records if r.offset < end]))
            for partition in lacking:
                # Behind the last record there may be offsets without one: markers, and what compaction took.
                if not heads[partition] and await consumer.position(partition) >= ends[partition]:
                    del heads[partition]
                    moved = time.monotonic()
            moved = time.monotonic() if found else moved
            self._check(consumer)
            if time.monotonic() - moved > self._connecting.settings.timeout_seconds:
                raise TimeoutError("no records came")


async def _bounds(
    consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    begin: dict[TopicPartition, int] = await consumer.beginning_offsets(list(partitions))
    end: dict[TopicPartition, int] = await consumer.end_offsets(list(partitions))
    return begin, end


def _all(wire: str, partitions: int) -> list[TopicPartition]:
    return [TopicPartition(wire, number) for number in range(partitions)]
