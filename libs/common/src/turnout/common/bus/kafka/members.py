"""A member of a consumer group on Kafka: which partitions it holds, what of them is open, and how far it has come.

A rebalance takes every partition away and gives most of them back. While it decides, nothing is handed out and `done`
waits. A partition that comes back with its offset where this member left it keeps its open deliveries: nobody else has
done anything of it meanwhile. Otherwise they are lost, and their `done` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener

from turnout.common.bus.cloudevents import as_record
from turnout.common.bus.kafka.connecting import SESSION_SECONDS, Connecting, is_member
from turnout.common.bus.kafka.tolerating import Fetched
from turnout.common.bus.kafka.troubles import FAILURES, again, unavailable
from turnout.common.bus.port import Received, Record
from turnout.common.errors import Unavailable
from turnout.common.events import Event

log = structlog.get_logger()

DELIVERY_RECORDS = 500
DELIVERY_BYTES = 8 * 1024 * 1024
# A partition with this many records waiting is asked for no more; one poll may bring a fetch (1 MiB) on top.
HIGH_WATER = 1000
POLL_SECONDS = 0.5
# Before a rebalance, what is being handled may end; the group waits for us no longer than a session.
REVOKE_SECONDS = 2.0
# The broker has said that we are a member within this time, or is asked before anything is written. Two thirds of the
# session are left to write it.
PROOF_SECONDS = SESSION_SECONDS / 3
_NOTHING = TopicPartition("", 0)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Milliseconds: a foreign writer's clock may say anything, a datetime ends with the year 9999.
_LAST = 253_402_300_799_000
# As the tuples make themselves, without the function around it that takes as long again: each record is two of them.
_new = tuple.__new__


@dataclass(eq=False)
class Reading:
    """Where the member stands in a partition that it holds."""

    partition: TopicPartition
    committed: int
    position: int
    """The offset that is handed out next."""
    waiting: deque[Fetched] = field(default_factory=deque[Fetched])
    opened: deque[KafkaDelivery] = field(default_factory=deque[Any])
    standing: bool = True
    """False while a rebalance decides whose it is."""
    lost: bool = False

    @property
    def ahead(self) -> int:
        """Records that wait, at most."""
        return self.waiting[-1].offset + 1 - self.position if self.waiting else 0

    @property
    def settled(self) -> int:
        """The offset behind what may be committed."""
        end = self.committed
        for delivery in self.opened:
            if not delivery.written:
                break
            end = delivery.end
        return end


class Member(ConsumerRebalanceListener):
    """One consumer of the group in this process; `topics` are names in the program, by their names on the cluster."""

    def __init__(
        self,
        group: str,
        topics: Mapping[str, str],
        connecting: Connecting,
        append: Callable[[Sequence[Record]], Awaitable[None]],
    ) -> None:
        self.group = group
        self.topics = topics
        self.looked = time.monotonic()
        self._connecting = connecting
        self._append = append
        self._consumer: AIOKafkaConsumer | None = None
        self._pumping: asyncio.Task[None] | None = None
        self._readings: dict[TopicPartition, Reading] = {}
        self._rebalancing = True
        self._proved = 0.0
        self._committing = asyncio.Lock()
        self._problem: Unavailable | None = None
        self._leaving = False
        # There is something to hand out; there is room for more; a rebalance is over or a delivery is done.
        self._came = asyncio.Event()
        self._room = asyncio.Event()
        self._changed = asyncio.Event()

    async def join(self, group: str, instance: str) -> None:
        """Become a member, under the group's name on the cluster. Raises `Unavailable`."""

        def subscribe(consumer: AIOKafkaConsumer) -> None:
            self._consumer = consumer  # the first partitions come before it has started
            consumer.subscribe(list(self.topics), listener=self)

        try:
            consumer = await self._connecting.consumer(group, instance, subscribe)
        except FAILURES as error:
            self._consumer = None
            raise self._said(error, "joining") from error
        self._pumping = asyncio.create_task(self._pump(consumer))

    async def leave(self) -> None:
        """Read no more; the group keeps the place of a static member until its session ends."""
        self._leaving = True
        self.fail(Unavailable(f"the group {self.group}", "this member has left it"))
        if self._pumping is not None:
            self._pumping.cancel()
            await asyncio.gather(self._pumping, return_exceptions=True)
        if self._consumer is not None:
            await self._connecting.stop(self._consumer)

    def fail(self, problem: Unavailable) -> None:
        """Hand out nothing more: whoever waits hears the problem, and what is open is lost."""
        self._problem = self._problem or problem
        for reading in self._readings.values():
            reading.lost = True
        self._wake()

    async def fetch(self) -> KafkaDelivery:
        """The next records of one partition, after waiting for them. Raises `Unavailable`."""
        while True:
            if self._problem is not None:
                raise again(self._problem)
            reading = self._readable()
            if reading is not None:
                delivery = self._hand_out(reading)
                if delivery is not None:
                    return delivery
                continue
            self._came.clear()
            await self._came.wait()

    # --- rebalances -------------------------------------------------------------------------------------------------

    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride] (it may be a coroutine)
        self,
        revoked: Collection[TopicPartition],  # noqa: ARG002 (all of them, always)
    ) -> None:
        """A rebalance begins: let what is open end, for a moment, then wait for its outcome."""
        self._rebalancing = True
        until = time.monotonic() + REVOKE_SECONDS
        while any(r.opened for r in self._readings.values()) and not self._leaving and time.monotonic() < until:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - time.monotonic()):
                    await self._changed.wait()
        for reading in self._readings.values():
            reading.standing = False
            reading.waiting.clear()
            reading.position = reading.opened[-1].end if reading.opened else reading.committed

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, assigned: Collection[TopicPartition]
    ) -> None:
        """A rebalance is over: go on where the group stands."""
        consumer = self._subscribed
        try:
            committed = await self._stands(consumer, assigned)
        except FAILURES as error:
            self.fail(self._said(error, "taking partitions"))
            return
        before, self._readings = self._readings, {}
        for partition in assigned:
            reading = before.pop(partition, None)
            if reading is None or not reading.opened or reading.committed != committed[partition] or reading.lost:
                if reading is not None:
                    reading.lost = True
                reading = Reading(partition, committed[partition], committed[partition])
            reading.standing = True
            self._readings[partition] = reading
            consumer.seek(partition, reading.position)
        for reading in before.values():
            reading.lost = True
        self._proved = time.monotonic()
        self._rebalancing = False
        self._wake()

    async def _stands(
        self, consumer: AIOKafkaConsumer, assigned: Collection[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Where the group stands in each partition; one that it never read stands at the beginning from now on."""
        stands: dict[TopicPartition, int] = {}
        fresh: list[TopicPartition] = []
        for partition in assigned:
            committed: int | None = await consumer.committed(partition)
            if committed is None:
                fresh.append(partition)
            else:
                stands[partition] = committed
        if fresh:
            begin: dict[TopicPartition, int] = await consumer.beginning_offsets(fresh)
            await consumer.commit(begin)
            stands |= begin
        return stands

    # --- deliveries -------------------------------------------------------------------------------------------------

    async def settle(self, delivery: KafkaDelivery, records: Sequence[Record]) -> None:
        """Write what was produced, then move the offset over what is settled. Raises `Unavailable`, `Invalid`."""
        reading = delivery.reading
        await self._hold(reading)
        if records:
            await self._append(records)
        await self._decided(reading)
        delivery.written = True
        try:
            if reading.settled > reading.committed:
                await self._commit(reading)
        except BaseException:
            delivery.written = False
            raise
        delivery.settled = True
        while reading.opened and reading.opened[0].settled:
            reading.opened.popleft()
        self._changed.set()

    async def _hold(self, reading: Reading) -> None:
        """Make sure that the partition is still ours: who was asleep must not write.

        The broker moves a partition a session after it last heard of its member, no sooner.
        """
        await self._decided(reading)
        if time.monotonic() - self._proved > PROOF_SECONDS:
            await self._commit(reading, prove=True)

    async def _decided(self, reading: Reading) -> None:
        """Wait for the outcome of a rebalance. Raises `Unavailable` if the partition moved."""
        if reading.standing and not reading.lost:
            return
        try:
            async with asyncio.timeout(2 * SESSION_SECONDS):
                while not reading.standing and not reading.lost:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise self._moved(reading) from None
        if reading.lost:
            raise self._moved(reading)

    async def _commit(self, reading: Reading, *, prove: bool = False) -> None:
        """Move the offset over what is settled, of all partitions at once; who comes meanwhile shares the next round.

        To `prove` that the partition is ours it is moved to where it is, unless that was proved meanwhile.
        """
        end = reading.settled
        async with self._committing:
            await self._decided(reading)
            if time.monotonic() - self._proved <= PROOF_SECONDS if prove else reading.committed >= end:
                return
            consumer = self._subscribed
            if not is_member(consumer):
                raise self._moved(reading)
            moving = {
                one: one.settled
                for one in self._readings.values()
                if one is reading or (one.settled > one.committed and one.standing and not one.lost)
            }
            try:
                async with asyncio.timeout(self._connecting.settings.timeout_seconds):
                    await consumer.commit({one.partition: offset for one, offset in moving.items()})
            except FAILURES as error:
                for one in moving:
                    one.lost = True
                raise self._said(error, f"moving the offset of {reading.partition.topic}") from error
            for one, offset in moving.items():
                one.committed = offset
            self._proved = time.monotonic()

    def _moved(self, reading: Reading) -> Unavailable:
        where = f"partition {reading.partition.partition} of {reading.partition.topic}"
        if self._problem is not None:
            return again(self._problem)
        return Unavailable(where, f"the partition moved to another member of {self.group}")

    def _hand_out(self, reading: Reading) -> KafkaDelivery | None:
        """The next records of the partition; None if what waits holds none."""
        try:
            found = _taken(self.topics[reading.partition.topic], reading)
        except Exception as error:
            log.exception("reading failed", group=self.group)
            self.fail(self._said(error, "reading"))
            return None
        self._room.set()
        if not found:
            return None
        reading.position = found[-1].offset + 1
        # Partitions take turns: this one is the last now.
        self._readings[reading.partition] = self._readings.pop(reading.partition)
        delivery = KafkaDelivery(found, reading.position, self, reading)
        reading.opened.append(delivery)
        return delivery

    def _readable(self) -> Reading | None:
        if self._rebalancing:
            return None
        for reading in self._readings.values():
            if reading.waiting and reading.standing and not reading.lost:
                return reading
        return None

    # --- polls ------------------------------------------------------------------------------------------------------

    async def _pump(self, consumer: AIOKafkaConsumer) -> None:
        """Poll for ever, so that a long reaction costs no membership."""
        try:
            while True:
                await self._poll(consumer)
                self.looked = time.monotonic()
        except FAILURES as error:
            self.fail(self._said(error, "reading"))
        except Exception as error:
            log.exception("reading failed", group=self.group)
            self.fail(self._said(error, "reading"))

    async def _poll(self, consumer: AIOKafkaConsumer) -> None:
        self._room.clear()
        readings = {} if self._rebalancing else self._readings
        wanted = [p for p, reading in readings.items() if reading.ahead < HIGH_WATER]
        all_wanted = len(wanted) == len(readings)
        # Asked for nothing it still counts as a poll. What is not asked for stays in the client, and is fetched no
        # further.
        polling = consumer.getmany(*(wanted or [_NOTHING]), timeout_ms=int(POLL_SECONDS * 1000))
        found: Mapping[TopicPartition, Sequence[Any]]
        found = await polling if all_wanted else await self._unless_room(polling)
        if self._rebalancing:
            return  # what comes now comes again: the rebalance ends with a seek
        for partition, records in found.items():
            reading = self._readings.get(partition)
            if reading is not None:
                reading.waiting.extend(records)
                self._came.set()

    async def _unless_room(self, polling: Any) -> Mapping[TopicPartition, Sequence[Any]]:
        """The poll's records; none if there is room for more partitions first."""
        tasks = asyncio.ensure_future(polling), asyncio.ensure_future(self._room.wait())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return {} if tasks[0].cancelled() else tasks[0].result()

    @property
    def _subscribed(self) -> AIOKafkaConsumer:
        assert self._consumer is not None
        return self._consumer

    def _wake(self) -> None:
        self._came.set()
        self._room.set()
        self._changed.set()

    def _said(self, error: BaseException, doing: str) -> Unavailable:
        return unavailable(error, self._connecting.settings, f"{doing} as {self.group}")


class KafkaDelivery:
    """Records of one partition; see `Delivery`."""

    def __init__(self, received: Sequence[Received], end: int, member: Member, reading: Reading) -> None:
        self.received = received
        self.end = end
        self.written = False
        """What was produced is written: the offset may move."""
        self.settled = False
        self.reading = reading
        self._member = member

    async def done(self, *produced: Event | Record) -> None:
        """Produced records on all replicas in sync, then the offset.

        Raises `Unavailable` if the partition moved to another member, or Kafka does not answer.
        """
        if not self.settled:
            await self._member.settle(self, [as_record(event) for event in produced])


def as_received(name: str, partition: int, records: Iterable[Any]) -> list[Received]:
    """Records of aiokafka's, as the port has it."""
    found: list[Received] = []
    milliseconds, moment = -1, _EPOCH
    for record in records:
        headers = tuple(record.headers)
        for _, value in headers:
            if value is None:
                headers = tuple((key, value or b"") for key, value in headers)
                break
        # One batch of a broker that stamps it has one time for all its records.
        if record.timestamp != milliseconds:
            milliseconds, moment = record.timestamp, _moment(record.timestamp)
        own = _new(Record, (name, record.key, record.value, headers))
        found.append(_new(Received, (own, partition, record.offset, moment)))
    return found


def _taken(name: str, reading: Reading) -> list[Received]:
    """What the next delivery consists of, taken from what waits."""
    found, room = list[Received](), DELIVERY_BYTES
    while reading.waiting and room > 0 and len(found) < DELIVERY_RECORDS:
        records, size = reading.waiting[0].take(DELIVERY_RECORDS - len(found), room)
        if records:
            found += as_received(name, reading.partition.partition, records)
            room -= size
        else:
            reading.waiting.popleft()
    return found


def _moment(milliseconds: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=min(max(milliseconds, 0), _LAST))
