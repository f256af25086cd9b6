"""The bus on Kafka, through aiokafka: at least once, in order per key, with an offset that moves after the effect.

Differences from the embedded bus, all inside of what the port promises: `done` is not one transaction (what it
produced may be there although the offset has not moved; ids make that harmless), what is erased goes when the broker
compacts, and a process that stops keeps its partitions for a session (6 s), so that a restart moves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from turnout.common.bus.cloudevents import as_record
from turnout.common.bus.kafka.connecting import SESSION_SECONDS, Connecting
from turnout.common.bus.kafka.instance import Instance
from turnout.common.bus.kafka.members import Member
from turnout.common.bus.kafka.reading import Readers
from turnout.common.bus.kafka.settings import KafkaSettings
from turnout.common.bus.kafka.topics import Found, Topics, all_topics, too_large, wanted_of
from turnout.common.bus.kafka.troubles import FAILURES, Refusals, unavailable
from turnout.common.bus.kafka.writing import Writer
from turnout.common.bus.port import Delivery, Received, Record, Standing, Topic, name_of
from turnout.common.errors import Invalid, Unavailable
from turnout.common.events import Event

# How often the cluster is asked whether it is there, while anybody reads.
WATCH_SECONDS = 2.0
# The bytes of a record besides its key, value and headers, at most.
RECORD_OVERHEAD = 200
# The bytes of a header besides its name (four for a letter) and value, at most.
HEADER_OVERHEAD = 10
FEW_HEADERS = 32


class KafkaBus:
    """The bus on the cluster of `settings`; `home` holds this process's number. Nothing is opened before the first
    call, and everything belongs to the event loop of that call."""

    def __init__(self, settings: KafkaSettings, *, home: Path) -> None:
        self._settings = settings
        self._instance = Instance(settings.instance, home)
        self._refusals = Refusals()
        self._topics = Topics(settings, self._refusals)
        self._connecting = Connecting(settings)
        self._writer = Writer(self._connecting, self._refusals, self._topics)
        self._readers = Readers(self._connecting)
        self._members: dict[Member, tuple[str, int]] = {}
        self._admin: asyncio.Task[AIOKafkaAdminClient] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._readings = 0
        self._closed = False

    async def ensure_topics(self) -> None:
        """Make the topics of all events and of their dead letters, or check them.

        Raises `Unavailable` naming a topic that is not as declared, and the command that mends it.
        """
        await self._found(all_topics())

    async def publish(self, *events: Event | Record) -> None:
        """Append the events; all replicas in sync have them when it returns."""
        if events:
            await self._append([as_record(event) for event in events])

    async def consume(self, *topics: Topic, group: str) -> AsyncGenerator[Delivery]:
        """Deliveries for one static member of `group`: at most 500 records of one partition each."""
        names = [name_of(topic) for topic in topics]
        await self._found(names)
        member = Member(group, {self._topics.wire(name): name for name in names}, self._connecting, self._append)
        instance = await self._enter(member, names)
        try:
            async with self._watched():
                self._refusals.check(f"group {group}")
                try:
                    await member.join(self._settings.topic_prefix + group, instance)
                except Unavailable as error:
                    self._refusals.note(f"group {group}", error)
                    raise
                self._refusals.clear(f"group {group}")
                while True:
                    yield await member.fetch()
        finally:
            await member.leave()
            self._members.pop(member, None)

    async def replay(self, topic: Topic) -> AsyncGenerator[Received]:
        """Every record that is there now, by time; of a compacted topic each key's newest."""
        name = name_of(topic)
        found = await self._found([name])
        reading = self._readers.replay(
            name, self._topics.wire(name), found[name].partitions, compacted=wanted_of(name).compacted
        )
        async with contextlib.aclosing(reading) as records:
            async for received in records:
                yield received

    async def follow(self, topic: Topic) -> AsyncGenerator[Received]:
        """Like `replay`, then what comes, tombstones included."""
        name = name_of(topic)
        found = await self._found([name])
        reading = self._readers.follow(
            name, self._topics.wire(name), found[name].partitions, compacted=wanted_of(name).compacted
        )
        async with self._watched(), contextlib.aclosing(reading) as records:
            async for received in records:
                yield received

    async def lag(self, group: str) -> Mapping[str, int]:
        """Offsets of each topic that `group` has not yet done (those without a record count too)."""
        try:
            admin = await self._administered()
            stands: Mapping[TopicPartition, Any] = await self._in_time(
                admin.list_consumer_group_offsets(self._settings.topic_prefix + group)
            )
            begin, end = await self._readers.bounds(list(stands)) if stands else ({}, {})
        except FAILURES as error:
            raise self._said(error, f"asking how far the group {group} is") from error
        behind = defaultdict[str, int](int)
        for partition, stand in stands.items():
            left = end[partition] - max(stand.offset, begin[partition])
            behind[self._topics.name(partition.topic)] += max(0, left)
        return dict(behind)

    async def standing(self, topic: Topic, group: str) -> Mapping[int, Standing]:
        """Where the group stands in each partition of a topic."""
        name = name_of(topic)
        found = await self._found([name])
        partitions = [TopicPartition(self._topics.wire(name), n) for n in range(found[name].partitions)]
        try:
            admin = await self._administered()
            stands: Mapping[TopicPartition, Any] = await self._in_time(
                admin.list_consumer_group_offsets(self._settings.topic_prefix + group)
            )
            begin, end = await self._readers.bounds(partitions)
        except FAILURES as error:
            raise self._said(error, f"asking how far the group {group} is") from error
        return {
            p.partition: Standing(max(stands[p].offset if p in stands else 0, begin[p]), end[p]) for p in partitions
        }

    def polled(self, group: str) -> float | None:
        """When the members of `group` here last polled (monotonic seconds); None without a member."""
        return min((member.looked for member in self._members if member.group == group), default=None)

    async def erase(self, topic: Topic, key: str) -> int:
        """Of a compacted topic: write a tombstone, the broker removes what it covers within days. Else nothing."""
        name, wanted = name_of(topic), key.encode()
        if not wanted_of(name).compacted:
            return 0
        gone = sum([1 async for received in self.replay(topic) if received.record.key == wanted])
        if gone:
            await self._append([Record(name, wanted, None)])
        return gone

    async def purge(self, now: datetime) -> int:  # noqa: ARG002 (the port's)
        """Nothing: retention and compaction are the broker's to do."""
        return 0

    async def close(self) -> None:
        """Let go of everything; iterators end with `Unavailable`."""
        self._closed = True
        closed = self._is_closed()
        for member in list(self._members):
            member.fail(closed)
        await asyncio.gather(*(member.leave() for member in list(self._members)))
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._readers.close()
        await self._writer.close()
        if self._admin is not None:
            self._admin.cancel()
            for admin in await asyncio.gather(self._admin, return_exceptions=True):
                if isinstance(admin, AIOKafkaAdminClient):
                    await admin.close()
        await self._connecting.close()
        self._instance.close()

    # --- writing ----------------------------------------------------------------------------------------------------

    async def _append(self, records: Sequence[Record]) -> None:
        names = {record.topic for record in records}
        found = await self._found(list(names))
        by_topic = {
            name: records if len(names) == 1 else [record for record in records if record.topic == name]
            for name in names
        }
        for name, part in by_topic.items():
            _check(name, part, found[name].max_bytes)
        await self._writer.append(by_topic)

    async def _found(self, names: Sequence[str]) -> Mapping[str, Found]:
        known = self._topics.known(names)
        if known is not None and not self._closed:
            return known
        try:
            return await self._in_time(self._topics.ready(await self._administered(), names))
        except FAILURES as error:
            raise self._said(error, "looking at its topics") from error

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _enter(self, member: Member, names: Sequence[str]) -> str:
        """Count the member in; the name that the group knows it by, the same after a restart.

        It says what the member reads: a broker gives a known name its partitions back without looking at that.
        """
        name = await asyncio.to_thread(self._instance.name)
        taken = {number for group, number in self._members.values() if group == member.group}
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        self._members[member] = (member.group, number)
        return f"{name}-{number}-{zlib.crc32(' '.join(sorted(names)).encode()):08x}"

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncGenerator[None]:
        """While inside, somebody looks whether Kafka is there: aiokafka tries for ever and says nothing."""
        self._readings += 1
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._readings -= 1
            if not self._readings and not self._closed:
                self._watching.cancel()
                self._watching = None

    async def _watch(self) -> None:
        answered = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                async with asyncio.timeout(WATCH_SECONDS):
                    admin = await self._administered()
                    await admin.describe_topics([])  # of none; of the cluster would be of all that it has
            except Exception as error:  # noqa: BLE001 (whatever it is, it is no answer)
                if time.monotonic() - answered > SESSION_SECONDS:
                    away = self._connecting.failed(error)
                    self._readers.fail(away)
                    for member in list(self._members):
                        member.fail(away)
            else:
                answered = time.monotonic()

    # --- administration ---------------------------------------------------------------------------------------------

    async def _administered(self) -> AIOKafkaAdminClient:
        if self._closed:
            raise self._is_closed()
        if self._admin is None:
            self._admin = asyncio.create_task(self._connecting.admin())
        opening = self._admin
        try:
            return await asyncio.shield(opening)
        except BaseException:
            if opening.done() and self._admin is opening:
                self._admin = None
            raise

    async def _in_time(self, answer: Any) -> Any:
        async with asyncio.timeout(self._settings.timeout_seconds):
            return await answer

    def _said(self, error: BaseException, doing: str) -> Unavailable:
        return unavailable(error, self._settings, doing)

    def _is_closed(self) -> Unavailable:
        return Unavailable(f"Kafka at {self._settings.servers}", "the bus is closed")


def _check(name: str, records: Sequence[Record], limit: int) -> None:
    """Raise `Invalid` for what the topic would not take."""
    if wanted_of(name).compacted and any(record.key is None for record in records):
        raise Invalid(name, "a record without a key", fix="a compacted topic needs one")
    half = limit // 2
    for record in records:
        _, key, value, headers = record
        # To look at every header of everything takes as long as to write it: few and beside a small value, they do
        # not fill half of a topic's largest batch. If they do, the broker says so.
        if len(value or b"") + len(key or b"") > half or len(headers) > FEW_HEADERS:
            size = _size(record)
            if size > limit:
                raise too_large(name, size, limit)


def _size(record: Record) -> int:
    size = len(record.key or b"") + len(record.value or b"") + RECORD_OVERHEAD
    for name, value in record.headers:
        size += 4 * len(name) + len(value) + HEADER_OVERHEAD
    return size
