"""Writing to Kafka: one idempotent producer, and for each partition one prebuilt batch after the other.

What arrives while a partition's batch is on its way becomes the next one, so many small publications share a round
trip; batches of one partition never overtake each other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
MAX_HASHES = 65_536
_PRODUCER = "write"
_anywhere = DefaultPartitioner()


class _Publication:
    """Who waits for the parts of a publication, one for each partition."""

    def __init__(self) -> None:
        self.written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = 0
        self._error: Exception | None = None

    def part(self, records: Sequence[Record]) -> _Part:
        """One more to wait for."""
        self._left += 1
        return _Part(records, self)

    def settle(self, error: Exception | None) -> None:
        """A part is written, or not; when it was the last, the first error is raised."""
        self._left -= 1
        self._error = self._error or error
        if self._left or self.written.done():
            return
        if self._error is None:
            self.written.set_result(None)
        else:
            self.written.set_exception(self._error)


@dataclass
class _Part:
    """The records of one publication for one partition."""

    records: Sequence[Record]
    publication: _Publication
    sent: int = 0
    """How many of them are in a batch already."""
    settled: bool = False

    def settle(self, error: Exception | None = None) -> None:
        """All of it is written, or some of it will not be."""
        if not self.settled:
            self.settled = True
            self.publication.settle(error)


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

    async def append(self, records: Mapping[str, Sequence[Record]]) -> None:
        """Write the records, by topic; all replicas in sync have them when it returns."""
        self._refusals.check(_PRODUCER)
        for name in records:
            self._refusals.check(f"write {name}")
        count = sum(map(len, records.values()))
        if self._count + count > MAX_WAITING and self._count:
            raise Unavailable(
                f"Kafka at {self._connecting.settings.servers}", f"more than {MAX_WAITING} records wait for it"
            )
        self._count += count
        try:
            await self._append(records)
        finally:
            self._count -= count

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

    async def _append(self, records: Mapping[str, Sequence[Record]]) -> None:
        await self._connecting.ready()  # while Kafka is known to be away, nobody waits to hear it
        producer = await self._opened()
        try:
            numbers = {name: sorted(await _partitions(producer, self._topics.wire(name))) for name in records}
        except FAILURES as error:
            self._discard(producer)
            raise self._connecting.failed(error, "writing") from error
        publication = _Publication()
        for name, part in records.items():
            for number, placed in _placed(part, numbers[name]).items():
                self._enqueue((name, number), publication.part(placed))
        await publication.written

    def _enqueue(self, place: tuple[str, int], part: _Part) -> None:
        lane = self._lanes.get(place)
        if lane is None:
            lane = self._lanes[place] = _Lane(*place, deque())
        lane.waiting.append(part)
        if lane.task is None:
            lane.task = asyncio.create_task(self._drain(lane))

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
            return opening.result() if opening.done() else await asyncio.shield(opening)
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


class _Hashes(dict[bytes, int]):
    """Keys' hashes as Java's client makes them, so that others who write the same key reach the same partition."""

    def __missing__(self, key: bytes) -> int:
        if len(self) >= MAX_HASHES:
            self.clear()
        found = self[key] = murmur2(key) & 0x7FFFFFFF
        return found


_hashes = _Hashes()


def _placed(records: Sequence[Record], numbers: Sequence[int]) -> Mapping[int, Sequence[Record]]:
    """A topic's records by partition, `numbers` being all that it has."""
    count, placed = len(numbers), [list[Record]() for _ in numbers]
    for record in records:
        key = record[1]
        if key is None:
            placed[numbers.index(_anywhere(None, numbers, numbers))].append(record)
        else:
            placed[_hashes[key] % count].append(record)
    return {number: part for number, part in zip(numbers, placed, strict=True) if part}


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
        if part.sent == len(part.records):
            part.settle()


def _refuse(parts: Sequence[_Part], error: Exception) -> None:
    for part in parts:
        part.sent = len(part.records)
        part.settle(error)
