"""Writing to Kafka: one idempotent producer, and for each partition one prebuilt batch after the other.

What arrives while a partition's batch is on its way becomes the next one, so many small publications share a round
trip; batches of one partition never overtake each other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from aiokafka import AIOKafkaProducer, errors
from aiokafka.partitioner import DefaultPartitioner, murmur2
from aiokafka.producer.message_accumulator import BatchBuilder

from turnout.common.bus.kafka.connecting import Connecting, abandon, fill
from turnout.common.bus.kafka.troubles import FAILURES, Refusals, unavailable
from turnout.common.bus.port import Record
from turnout.common.errors import Invalid, Unavailable

# Records that may wait for their batch; beyond it the producer's memory would grow without end.
MAX_WAITING = 50_000
_hash = lru_cache(maxsize=65_536)(murmur2)
_PRODUCER = "write"
_anywhere = DefaultPartitioner()


@dataclass
class _Part:
    """The records of one publication for one partition, and who waits for them."""

    records: Sequence[Record]
    written: asyncio.Future[None]
    sent: int = 0
    """How many of them are in a batch already."""


@dataclass
class _Lane:
    """One partition's queue; `task` runs while there is something in it."""

    topic: str
    partition: int
    waiting: deque[_Part]
    task: asyncio.Task[None] | None = None


class Names(Protocol):
    """What a writer needs to know of topics."""

    def wire(self, name: str) -> str:
        """The name on the cluster."""
        ...

    def forget(self, name: str) -> None:
        """Look at the topic again before its next use."""
        ...


class Writer:
    """Appends records to topics that are known to be there. Raises `Unavailable`, then some may have been written."""

    def __init__(self, connecting: Connecting, refusals: Refusals, topics: Names) -> None:
        self._connecting = connecting
        self._refusals = refusals
        self._topics = topics
        self._producer: asyncio.Task[AIOKafkaProducer] | None = None
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._count = 0
        self._ending: set[asyncio.Task[None]] = set()

    async def append(self, records: Sequence[Record]) -> None:
        """Write the records; all replicas in sync have them when it returns."""
        self._refusals.check(_PRODUCER)
        for name in {record.topic for record in records}:
            self._refusals.check(f"write {name}")
        if self._count + len(records) > MAX_WAITING and self._count:
            raise Unavailable(
                f"Kafka at {self._connecting.settings.servers}", f"more than {MAX_WAITING} records wait for it"
            )
        self._count += len(records)
        try:
            await self._append(records)
        finally:
            self._count -= len(records)

    async def close(self) -> None:
        """Let go of the producer; who still waits hears `Unavailable`."""
        task, self._producer = self._producer, None
        if task is not None:
            task.cancel()
            for producer in await asyncio.gather(task, return_exceptions=True):
                if isinstance(producer, AIOKafkaProducer):
                    await abandon(producer)
        lanes = [lane.task for lane in self._lanes.values() if lane.task is not None]
        for running in lanes:
            running.cancel()
        await asyncio.gather(*lanes, *self._ending, return_exceptions=True)

    async def _append(self, records: Sequence[Record]) -> None:
        await self._connecting.ready()  # while Kafka is known to be away, nobody waits to hear it
        producer = await self._opened()
        try:
            numbers = {
                name: sorted(await _partitions(producer, self._topics.wire(name)))
                for name in {r.topic for r in records}
            }
        except FAILURES as error:
            self._discard(producer)
            raise self._connecting.failed(error, "writing") from error
        loop = asyncio.get_running_loop()
        waiting = [
            self._enqueue(place, _Part(part, loop.create_future())) for place, part in _placed(records, numbers).items()
        ]
        await _all(waiting)

    def _enqueue(self, place: tuple[str, int], part: _Part) -> asyncio.Future[None]:
        lane = self._lanes.get(place)
        if lane is None:
            lane = self._lanes[place] = _Lane(*place, deque())
        lane.waiting.append(part)
        if lane.task is None:
            lane.task = asyncio.create_task(self._drain(lane))
        return part.written

    async def _drain(self, lane: _Lane) -> None:
        sent: list[_Part] = []
        try:
            while lane.waiting:
                producer = await self._opened()
                batch = producer.create_batch()
                sent = _fill(batch, lane.waiting)
                if not sent:
                    continue  # all that waited was refused
                try:
                    async with asyncio.timeout(self._connecting.settings.timeout_seconds):
                        acknowledged = await producer.send_batch(
                            batch, self._topics.wire(lane.topic), partition=lane.partition
                        )
                        await acknowledged
                except FAILURES as error:
                    _refuse(sent, self._refused(producer, lane, error))
                _settle(sent)
        except Unavailable as error:
            _refuse([*sent, *lane.waiting], error)
            lane.waiting.clear()
        except asyncio.CancelledError:
            _refuse(
                [*sent, *lane.waiting],
                Unavailable(f"Kafka at {self._connecting.settings.servers}", "the bus is closed"),
            )
            lane.waiting.clear()
            raise
        finally:
            lane.task = None

    def _refused(self, producer: AIOKafkaProducer, lane: _Lane, error: BaseException) -> Exception:
        """What a batch's writers hear."""
        self._discard(producer)
        doing = f"writing to {self._topics.wire(lane.topic)}"
        match error:
            case errors.MessageSizeTooLargeError() | errors.InvalidMessageError() | errors.RecordListTooLargeError():
                return Invalid(lane.topic, f"Kafka refuses the record ({error})", fix="a smaller one, with a key")
            case errors.TopicAuthorizationFailedError():
                said = unavailable(error, self._connecting.settings, doing)
                self._refusals.note(f"write {lane.topic}", said)
                return said
            case _:
                self._topics.forget(lane.topic)
                return self._connecting.failed(error, doing)

    async def _opened(self) -> AIOKafkaProducer:
        if self._producer is None:
            self._producer = asyncio.create_task(self._connecting.producer())
        opening = self._producer
        try:
            return await asyncio.shield(opening)
        except BaseException as error:
            if opening.done() and self._producer is opening:
                self._producer = None
            if isinstance(error, FAILURES):
                said = unavailable(error, self._connecting.settings, "writing")
                self._refusals.note(_PRODUCER, said)
                raise said from error
            raise

    def _discard(self, producer: AIOKafkaProducer) -> None:
        """Take another one from now on: this one's numbering has a gap, and brokers would refuse what follows."""
        current = self._producer
        if current is None or not current.done() or current.cancelled() or current.exception() is not None:
            return
        if current.result() is producer:
            self._producer = None
            ending = asyncio.create_task(abandon(producer))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)


async def _partitions(producer: AIOKafkaProducer, wire: str) -> set[int]:
    return await producer.partitions_for(wire)


def _placed(
    records: Sequence[Record], numbers: Mapping[str, Sequence[int]]
) -> Mapping[tuple[str, int], Sequence[Record]]:
    """The records by topic and partition, `numbers` being the partitions of each topic."""
    placed = {(topic, number): list[Record]() for topic, found in numbers.items() for number in found}
    for record in records:
        topic, key, _, _ = record
        found = numbers[topic]
        # As Java's client does it, so that others who write the same key reach the same partition.
        number = _anywhere(None, found, found) if key is None else found[(_hash(key) & 0x7FFFFFFF) % len(found)]
        placed[topic, number].append(record)
    return {place: part for place, part in placed.items() if part}


def _fill(batch: BatchBuilder, waiting: deque[_Part]) -> list[_Part]:
    """Move records into the batch until it is full; the parts that have records in it."""
    sent: list[_Part] = []
    while waiting:
        part = waiting[0]
        begun, part.sent = part.sent, fill(batch, part.records, part.sent)
        if part.sent > begun:
            sent.append(part)
        if part.sent < len(part.records):
            return sent
        waiting.popleft()
    batch.close()
    return sent


def _settle(sent: Sequence[_Part]) -> None:
    for part in sent:
        if part.sent == len(part.records) and not part.written.done():
            part.written.set_result(None)


def _refuse(parts: Sequence[_Part], error: Exception) -> None:
    for part in parts:
        part.sent = len(part.records)
        if not part.written.done():
            part.written.set_exception(error)


async def _all(waiting: Sequence[Awaitable[None]]) -> None:
    """Wait for each; then raise the first error."""
    if len(waiting) == 1:
        await waiting[0]
        return
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
