"""The embedded bus: an append-only log in SQLite, shared by all processes that name one folder.

One thread writes: what waits while it flushes to disk becomes one commit, so many small publications share one flush.
Another thread reads, and looks every 25 ms whether another process has written. `done` is one transaction.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from turnout.common.bus.cloudevents import as_record
from turnout.common.bus.log import LEASE_SECONDS, Claim, Log, Partition
from turnout.common.bus.members import Member, Signal, share_out
from turnout.common.bus.port import Delivery, Received, Record, Standing, Topic, name_of
from turnout.common.bus.threads import Reader, Writer
from turnout.common.events import REGISTRY, Event
from turnout.common.wal import Synchronous

T = TypeVar("T")

# How often a member looks who else is there.
TICK_SECONDS = 0.25


class EmbeddedBus:
    """The bus in `folder`; several processes may open it. Nothing is opened before the first call.

    `synchronous`: "FULL" survives a power cut, "NORMAL" only the death of the process.
    """

    def __init__(self, folder: Path, *, synchronous: Synchronous = "FULL") -> None:
        self._disk = _Disk(lambda: Log(folder, synchronous=synchronous))

    async def publish(self, *events: Event | Record) -> None:
        """Append the events in one transaction; on disk when it returns."""
        if events:
            await self._disk.append([as_record(event) for event in events])

    async def ensure_topics(self) -> None:
        """Make the topic of every event; those that are there stay as they are."""
        await self._disk.write(lambda log: [log.make_topic(name) for name in REGISTRY])

    async def consume(self, *topics: Topic, group: str) -> AsyncGenerator[Delivery]:
        """Deliveries for one member of `group`: at most 500 records of one partition each."""
        member = Member(f"{group}/{uuid4()}", group, tuple(map(name_of, topics)), self._disk)
        await self._disk.join(member)
        try:
            while True:
                delivery = await member.fetch()
                if delivery is not None:
                    yield delivery
        finally:
            self._disk.leave(member)

    async def replay(self, topic: Topic) -> AsyncGenerator[Received]:
        """Every record that is there now, by time of publication; of a compacted topic each key's newest."""
        partitions = await self._disk.partitions(name_of(topic))
        async for received in _merged([self._replayed(p) for p in partitions]):
            yield received

    async def follow(self, topic: Topic) -> AsyncGenerator[Received]:
        """Like `replay`, then what comes, tombstones included."""
        partitions = await self._disk.partitions(name_of(topic))
        signal = self._disk.follower(partitions)
        try:
            async for received in _merged([self._replayed(p) for p in partitions]):
                yield received
            positions = [p.next for p in partitions]
            while True:
                signal.clear()
                for index, partition in enumerate(partitions):
                    while positions[index] < self._disk.end(partition.id):
                        start, end = positions[index], self._disk.end(partition.id)
                        found, positions[index] = await self._disk.read(partition, start, end)
                        for received in found:
                            yield received
                await signal.wait()
        finally:
            self._disk.unfollow(signal)

    async def lag(self, group: str) -> Mapping[str, int]:
        """Records of each topic that `group` has not yet done (removed ones between them count too)."""
        return await self._disk.ask(lambda log: log.lag(group))

    async def standing(self, topic: Topic, group: str) -> Mapping[int, Standing]:
        """Where the group stands in each partition of a topic."""
        await self._disk.partitions(name_of(topic))
        return await self._disk.ask(lambda log: log.standing(name_of(topic), group))

    def polled(self, group: str) -> float | None:
        """When the members of `group` here last looked for records (monotonic seconds); None without a member."""
        return min((m.looked for m in self._disk.members() if m.group == group), default=None)

    async def erase(self, topic: Topic, key: str) -> int:
        """Remove the records with `key` from the file itself."""
        gone = await self._disk.write(lambda log: log.erase(name_of(topic), key.encode()))
        await self._disk.tidy()
        return gone

    async def purge(self, now: datetime) -> int:
        """Remove what is past its topic's retention, and what compaction makes superfluous; how many went."""
        gone = await self._disk.write(lambda log: log.purge(now))
        await self._disk.tidy()
        return gone

    async def close(self) -> None:
        """Leave every group and close the file; iterators end with `Unavailable`."""
        await self._disk.close()

    async def _replayed(self, partition: Partition) -> AsyncIterator[Received]:
        kind = REGISTRY.get(partition.topic)
        compact = kind is not None and kind.compacted
        position = 0
        while position < partition.next:
            found, position = await self._disk.read(partition, position, partition.next, compact=compact)
            for received in found:
                yield received


class _Disk:
    """The log behind its two threads, and who is to be woken when it grows."""

    def __init__(self, open_log: Callable[[], Log]) -> None:
        self._writer = Writer(open_log, self._grown)
        self._reader = Reader(open_log, self._look)
        self._ends: dict[int, int] = {}
        self._members: dict[str, Member] = {}
        self._followers: set[Signal] = set()
        self._renewed = 0.0
        self._ticked = 0.0

    def end(self, partition: int) -> int:
        return self._ends.get(partition, 0)

    async def append(self, records: Sequence[Record], before: Callable[[Log], None] | None = None) -> None:
        def change(log: Log) -> None:
            if before is not None:
                before(log)
            log.append(records, datetime.now(UTC))

        await self._writer.call(change, weight=len(records))

    async def write(self, change: Callable[[Log], T]) -> T:
        return await self._writer.call(change)

    async def ask(self, question: Callable[[Log], T]) -> T:
        return await self._reader.call(question)

    async def read(
        self, partition: Partition | Claim, start: int, end: int, *, compact: bool = False
    ) -> tuple[list[Received], int]:
        return await self._reader.call(lambda log: log.read(partition, start, end, compact=compact))

    async def partitions(self, topic: str) -> list[Partition]:
        found = await self.ask(lambda log: log.partitions([topic]))
        if not found:
            await self.write(lambda log: log.make_topic(topic))
            found = await self.ask(lambda log: log.partitions([topic]))
        self._grown({p.id: p.next for p in found})
        return found

    async def tidy(self) -> None:
        await self._writer.call(Log.tidy, alone=True)

    async def join(self, member: Member) -> None:
        await self.write(lambda log: log.join(member.id, member.group, member.topics))
        self._members[member.id] = member
        self._reader.put(self._tick)

    def leave(self, member: Member) -> None:
        self._members.pop(member.id, None)
        self.give_up(lambda log: log.leave(member.id))

    def give_up(self, change: Callable[[Log], object]) -> None:
        self._writer.put(change, after=lambda: self._reader.put(self._tick))

    def follower(self, partitions: Sequence[Partition]) -> Signal:
        signal = Signal(frozenset(p.id for p in partitions))
        self._followers.add(signal)
        return signal

    def unfollow(self, signal: Signal) -> None:
        self._followers.discard(signal)

    def members(self) -> list[Member]:
        return list(self._members.values())

    async def close(self) -> None:
        for member in self.members():
            self.leave(member)
            member.end()
        for follower in list(self._followers):
            follower.end()
        await asyncio.to_thread(self._writer.close)
        await asyncio.to_thread(self._reader.close)

    def _grown(self, ends: Mapping[int, int]) -> None:
        """Wake who waits for these partitions; on any thread."""
        grown = {partition for partition, end in ends.items() if end > self._ends.get(partition, 0)}
        if not grown:
            return
        for partition in grown:
            self._ends[partition] = ends[partition]
        for member in self.members():
            if not grown.isdisjoint(list(member.readings)):
                member.set()
        for follower in list(self._followers):
            if not grown.isdisjoint(follower.partitions):
                follower.set()

    def _look(self, log: Log, changed: bool) -> None:
        """On the reader's thread, every 25 ms."""
        if changed:
            with log.reading():
                self._grown({p.id: p.next for p in log.partitions()})
        if time.monotonic() - self._ticked >= TICK_SECONDS:
            with log.reading():
                self._tick(log)

    def _tick(self, log: Log) -> None:
        """Who is there, and who shall read what: on the reader's thread, in one snapshot."""
        self._ticked = now = time.monotonic()
        members = self.members()
        if not members:
            return
        known = log.members()
        partitions = log.partitions()
        holders = {group: log.holders(group) for group in {m.group for m in members}}
        self._grown({p.id: p.next for p in partitions})
        if not all(m.alive for m in known):
            self.give_up(Log.bury)
        if now - self._renewed > LEASE_SECONDS / 3:
            self._renewed = now
            self._writer.put(lambda log: log.renew({m.id: (m.group, m.topics) for m in self.members()}))
        for group, held in holders.items():
            shares = share_out(partitions, {m.id: m.topics for m in known if m.group == group and m.alive})
            for member in members:
                if member.group == group:
                    member.later(member.rebalance, shares.get(member.id, []), held)


async def _merged(streams: Sequence[AsyncIterator[Received]]) -> AsyncIterator[Received]:
    """Streams in order of time, each in its own order."""
    heads: dict[int, Received] = {}
    for index, stream in enumerate(streams):
        if (head := await anext(stream, None)) is not None:
            heads[index] = head
    while heads:
        index = min(heads, key=lambda i: (heads[i].timestamp, i))
        yield heads[index]
        following = await anext(streams[index], None)
        if following is None:
            del heads[index]
        else:
            heads[index] = following
