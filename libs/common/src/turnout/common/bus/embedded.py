"""The embedded bus: an append-only log in SQLite, shared by all processes that name one folder.

One thread writes: what waits while it flushes to disk becomes one commit, so many small publications share one flush.
Another thread reads, and looks every 25 ms whether another process has written. `done` is one transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import uuid4

from turnout.common.bus.cloudevents import as_record
from turnout.common.bus.log import LEASE_SECONDS, Claim, Fenced, Log, Partition
from turnout.common.bus.port import Delivery, Received, Record, Topic, name_of
from turnout.common.errors import Unavailable
from turnout.common.events import REGISTRY, Event

T = TypeVar("T")

POLL_SECONDS = 0.025
# How often a member looks who else is there.
TICK_SECONDS = 0.25
# Records in one commit: beyond this the flush is cheap beside the rest, and others have waited long enough.
COMMIT_RECORDS = 5_000
MAX_WAITING = 50_000


class EmbeddedBus:
    """The bus in `folder`; several processes may open it. `synchronous`: "FULL" survives a power cut, "NORMAL" only
    the death of the process. Nothing is opened before the first call."""

    def __init__(self, folder: Path, *, synchronous: str = "FULL") -> None:
        self._folder = folder
        self._synchronous = synchronous
        self._writer = _Writer(self._open, self._grown)
        self._reader = _Reader(self._open, self._look)
        self._ends: dict[int, int] = {}
        self._members: dict[str, _Member] = {}
        self._followers: set[_Signal] = set()
        self._renewed = 0.0
        self._ticked = 0.0

    async def publish(self, *events: Event | Record) -> None:
        """Append the events in one transaction; on disk when it returns."""
        if events:
            await self._append([as_record(event) for event in events])

    async def consume(self, *topics: Topic, group: str) -> AsyncGenerator[Delivery]:
        """Deliveries for one member of `group`: at most 500 records of one partition each."""
        member = _Member(f"{group}/{uuid4()}", group, tuple(map(name_of, topics)), self)
        await self._write(lambda log: log.join(member.id, group, member.topics))
        self._members[member.id] = member
        try:
            self._reader.soon(self._tick)
            while True:
                await member.wait()
                delivery = await member.fetch()
                if delivery is not None:
                    yield delivery
        finally:
            del self._members[member.id]
            with contextlib.suppress(Unavailable):
                self._writer.put(lambda log: log.leave(member.id))
                self._reader.soon(self._tick)

    async def replay(self, topic: Topic) -> AsyncGenerator[Received]:
        """Every record that is there now, by time of publication; of a compacted topic each key's newest."""
        partitions = await self._partitions_of(name_of(topic))
        async for received in _merged([self._replayed(p) for p in partitions]):
            yield received

    async def follow(self, topic: Topic) -> AsyncGenerator[Received]:
        """Like `replay`, then what comes, tombstones included."""
        partitions = await self._partitions_of(name_of(topic))
        signal = _Signal(frozenset(p.id for p in partitions))
        self._followers.add(signal)
        try:
            self._reader.start()
            async for received in _merged([self._replayed(p) for p in partitions]):
                yield received
            positions = {p: p.next for p in partitions}
            while True:
                signal.clear()
                for partition, position in positions.items():
                    end = self._ends.get(partition.id, 0)
                    while position < end:
                        found, position = await self._read_from(partition, position, end)
                        positions[partition] = position
                        for received in found:
                            yield received
                await signal.wait()
        finally:
            self._followers.discard(signal)

    async def lag(self, group: str) -> Mapping[str, int]:
        """Records of each topic that `group` has not yet done (removed ones between them count too)."""
        return await self._reader.call(lambda log: log.lag(group))

    def polled(self, group: str) -> float | None:
        """When the members of `group` here last looked for records (monotonic seconds); None without a member."""
        return min((m.looked for m in list(self._members.values()) if m.group == group), default=None)

    async def erase(self, topic: Topic, key: str) -> int:
        """Remove the records with `key` from the file itself."""
        gone = await self._write(lambda log: log.erase(name_of(topic), key.encode()))
        await self._writer.call(Log.forget_pages, alone=True)
        return gone

    async def purge(self, now: datetime) -> int:
        """Remove what is past its topic's retention, and what compaction makes superfluous; how many went."""
        gone = await self._write(lambda log: log.purge(now))
        await self._writer.call(Log.forget_pages, alone=True)
        return gone

    async def close(self) -> None:
        """Leave every group and close the file; iterators end with `Unavailable`."""
        for member in list(self._members.values()):
            with contextlib.suppress(Unavailable):
                self._writer.put(lambda log, ident=member.id: log.leave(ident))
            member.end()
        for follower in list(self._followers):
            follower.end()
        await asyncio.to_thread(self._reader.close)
        await asyncio.to_thread(self._writer.close)

    # --- inside -------------------------------------------------------------------------------------------------

    def _open(self) -> Log:
        return Log(self._folder, synchronous=self._synchronous)

    async def _write(self, change: Callable[[Log], T]) -> T:
        return await self._writer.call(change)

    async def _append(self, records: Sequence[Record], before: Callable[[Log], None] | None = None) -> None:
        def change(log: Log) -> dict[int, int]:
            if before is not None:
                before(log)
            return log.append(records, datetime.now(UTC))

        await self._writer.call(change, weight=len(records))

    async def _partitions_of(self, topic: str) -> list[Partition]:
        found = await self._reader.call(lambda log: log.partitions([topic]))
        if not found:
            await self._write(lambda log: log.make_topic(topic))
            found = await self._reader.call(lambda log: log.partitions([topic]))
        self._grown({p.id: p.next for p in found})
        return found

    async def _replayed(self, partition: Partition) -> AsyncIterator[Received]:
        kind = REGISTRY.get(partition.topic)
        position = 0
        while position < partition.next:
            found, position = await self._read_from(
                partition, position, partition.next, compact=kind is not None and kind.compacted
            )
            for received in found:
                yield received

    async def _read_from(
        self, partition: Partition | Claim, start: int, end: int, *, compact: bool = False
    ) -> tuple[list[Received], int]:
        return await self._reader.call(lambda log: log.read(partition, start, end=end, compact=compact))

    def _grown(self, ends: Mapping[int, int]) -> None:
        """Wake who waits for these partitions; from any thread."""
        grown = {p for p, end in ends.items() if end > self._ends.get(p, 0)}
        if not grown:
            return
        for partition in grown:
            self._ends[partition] = max(ends[partition], self._ends.get(partition, 0))
        for member in list(self._members.values()):
            if not grown.isdisjoint(member.readings):
                member.set()
        for follower in list(self._followers):
            if not grown.isdisjoint(follower.partitions):
                follower.set()

    # --- on the reader's thread ---------------------------------------------------------------------------------

    def _look(self, log: Log, changed: bool) -> None:
        if changed:
            self._grown({p.id: p.next for p in log.partitions()})
        if time.monotonic() - self._ticked >= TICK_SECONDS:
            self._tick(log)

    def _tick(self, log: Log) -> None:
        self._ticked = now = time.monotonic()
        members = list(self._members.values())
        if not members:
            return
        with log.reading():
            known = log.members()
            partitions = log.partitions()
            holders = {group: log.holders(group) for group in {m.group for m in members}}
        self._grown({p.id: p.next for p in partitions})
        if any(not alive for _, _, _, alive in known):
            self._writer.put(Log.bury)
        if now - self._renewed > LEASE_SECONDS / 3:
            self._renewed = now
            self._writer.put(lambda log: log.renew({m.id: (m.group, m.topics) for m in self._members.values()}))
        for group, held in holders.items():
            there = {ident: topics for ident, name, topics, alive in known if name == group and alive}
            shares = share_out(partitions, there)
            for member in members:
                if member.group == group:
                    member.later(member.rebalance, shares.get(member.id, []), held)


def share_out(partitions: Iterable[Partition], members: Mapping[str, Sequence[str]]) -> dict[str, list[Partition]]:
    """Each partition to one member that reads its topic, as evenly as can be; everybody computes the same."""
    shares: dict[str, list[Partition]] = {member: [] for member in sorted(members)}
    for partition in sorted(partitions, key=lambda p: (p.topic, p.number)):
        readers = [member for member in shares if partition.topic in members[member]]
        if readers:
            shares[min(readers, key=lambda member: len(shares[member]))].append(partition)
    return shares


class _Signal:
    """An event that any thread may set, awaited on the loop that made it."""

    def __init__(self, partitions: frozenset[int] = frozenset()) -> None:
        self.partitions = partitions
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._ended = False

    def later(self, call: Callable[..., object], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(call, *arguments)

    def set(self) -> None:
        self.later(self._event.set)

    def clear(self) -> None:
        self._event.clear()

    def end(self) -> None:
        self._ended = True
        self.set()

    async def wait(self) -> None:
        await self._event.wait()
        if self._ended:
            raise Unavailable("the bus", "it is closed")


@dataclass
class _Reading:
    """Where a member stands in a partition it holds; `opened` are deliveries not yet done, oldest first."""

    claim: Claim
    position: int
    opened: deque[_EmbeddedDelivery] = field(default_factory=deque)
    leaving: bool = False


class _Member(_Signal):
    """A member of a group; everything but `set` happens on its loop."""

    def __init__(self, ident: str, group: str, topics: Sequence[str], bus: EmbeddedBus) -> None:
        super().__init__()
        self.id = ident
        self.group = group
        self.topics = topics
        self.readings: dict[int, _Reading] = {}
        self.looked = time.monotonic()
        self._bus = bus
        self._claiming = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def wait(self) -> None:
        """Until one of the partitions has something to read."""
        while self._readable() is None:
            self.clear()
            if self._readable() is None:
                await super().wait()

    def _readable(self) -> _Reading | None:
        for reading in self.readings.values():
            if not reading.leaving and reading.position < self._bus._ends.get(reading.claim.partition, 0):
                return reading
        return None

    async def fetch(self) -> Delivery | None:
        reading = self._readable()
        if reading is None:
            return None
        start = reading.position
        end = self._bus._ends[reading.claim.partition]
        found, position = await self._bus._read_from(reading.claim, start, end)
        if self.readings.get(reading.claim.partition) is not reading or reading.leaving:
            return None  # lost or given back while it was read
        reading.position = position
        # Partitions take turns.
        self.readings[reading.claim.partition] = self.readings.pop(reading.claim.partition)
        if found:
            delivery = _EmbeddedDelivery(found, position, self, reading)
            reading.opened.append(delivery)
            return delivery
        if not reading.opened:
            self._bus._writer.put(lambda log: _skip(log, self.group, reading.claim, position))
        return None

    def rebalance(self, share: Sequence[Partition], held: Mapping[int, tuple[str | None, int]]) -> None:
        """Give back what is another's share, take what is free of ours, forget what was taken from us."""
        self.looked = time.monotonic()
        for partition, reading in list(self.readings.items()):
            if held.get(partition, (None, 0))[1] > reading.claim.epoch:
                del self.readings[partition]
        mine = {p.id for p in share}
        for partition, reading in self.readings.items():
            reading.leaving = partition not in mine
        self.give_back()
        free = [p for p in share if p.id not in self.readings and held.get(p.id, (None, 0))[0] is None]
        if free and not self._claiming:
            self._claiming = True
            task = asyncio.create_task(self._claim(free))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._readable():
            self.set()

    def give_back(self) -> None:
        """Release partitions that are leaving, once nothing of them is open."""
        for partition, reading in list(self.readings.items()):
            if reading.leaving and not reading.opened:
                del self.readings[partition]
                self._bus._writer.put(lambda log, claim=reading.claim: log.release(self.group, claim))
                self._bus._reader.soon(self._bus._tick)

    async def _claim(self, partitions: Sequence[Partition]) -> None:
        try:
            taken = await self._bus._write(lambda log: log.claim(self.id, self.group, partitions))
        except Unavailable:
            return  # the next tick tries again
        finally:
            self._claiming = False
        for claim in taken:
            self.readings[claim.partition] = _Reading(claim, claim.offset)
        self.set()


class _EmbeddedDelivery:
    """Records of one partition; see `Delivery`."""

    def __init__(self, received: Sequence[Received], end: int, member: _Member, reading: _Reading) -> None:
        self.received = received
        self._end = end
        self._member = member
        self._reading = reading
        self._settled = False

    async def done(self, *produced: Event | Record) -> None:
        """Produced records and the offset in one transaction.

        Raises `Unavailable` if the partition went to another member, or the file cannot be written.
        """
        if self._settled:
            return
        reading, group = self._reading, self._member.group
        first = reading.opened[0] is self

        def settle(log: Log) -> None:
            if first:
                log.move(group, reading.claim, self._end)
            else:
                log.held(group, reading.claim)

        try:
            await self._member._bus._append([as_record(event) for event in produced], settle)
        except Fenced:
            if self._member.readings.get(reading.claim.partition) is reading:
                del self._member.readings[reading.claim.partition]
            raise Unavailable("the partition", f"another member of {group} has taken it over") from None
        self._settled = True
        await self._advance(self._end if first else -1)

    async def _advance(self, moved: int) -> None:
        """Take settled deliveries off the front; the offset follows where they were settled out of order."""
        reading = self._reading
        end = -1
        while reading.opened and reading.opened[0]._settled:
            end = reading.opened.popleft()._end
        if end > moved:
            claim, group = reading.claim, self._member.group
            await self._member._bus._write(lambda log: _skip(log, group, claim, end))
        self._member.give_back()


def _skip(log: Log, group: str, claim: Claim, offset: int) -> None:
    with contextlib.suppress(Fenced):
        log.move(group, claim, offset)


# --- threads ----------------------------------------------------------------------------------------------------------


@dataclass
class _Call(Generic[T]):
    """Something to do with the log, and who waits for it."""

    work: Callable[[Log], T]
    loop: asyncio.AbstractEventLoop | None = None
    future: asyncio.Future[T] | None = None
    weight: int = 1
    alone: bool = False
    result: T | None = None
    error: BaseException | None = None


class _Thread:
    """A thread with a connection of its own and a queue of calls; started by the first call."""

    def __init__(self, name: str, open_log: Callable[[], Log]) -> None:
        self._name = name
        self._open = open_log
        self._log: Log | None = None
        self._queue: queue.SimpleQueue[_Call[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Start the thread if it does not run."""
        with self._starting:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name=f"bus-{self._name}", daemon=True)
                self._thread.start()

    def put(self, work: Callable[[Log], object], **options: Any) -> None:
        """Do it, in turn; nobody waits. Raises `Unavailable` if the bus is closed."""
        self._enqueue(_Call(work, **options))

    async def call(self, work: Callable[[Log], T], **options: Any) -> T:
        """Do it, in turn, and wait."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._enqueue(_Call(work, loop, future, **options))
        return await future

    def close(self) -> None:
        """Do what is queued, then end; blocks."""
        with self._starting:
            self._closed = True
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _enqueue(self, call: _Call[Any]) -> None:
        if self._closed:
            raise Unavailable("the bus", "it is closed")
        if self._queue.qsize() > MAX_WAITING:
            raise Unavailable("the bus", f"more than {MAX_WAITING} calls are waiting for the disk")
        self._queue.put(call)
        self.start()

    def _opened(self) -> Log:
        if self._log is None:
            self._log = self._open()
        return self._log

    def _run(self) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        if self._log is not None:
            self._log.close()
        while not self._queue.empty():
            late = self._queue.get()
            if late is not None:
                late.error = Unavailable("the bus", "it is closed")
                _resolve([late])


class _Writer(_Thread):
    """Commits what waits as one transaction."""

    def __init__(self, open_log: Callable[[], Log], grown: Callable[[Mapping[int, int]], None]) -> None:
        super().__init__("writer", open_log)
        self._grown = grown

    def _run(self) -> None:
        kept: _Call[Any] | None = None
        while True:
            call = kept or self._queue.get()
            kept = None
            if call is None:
                break
            calls = [call]
            weight = call.weight
            while not call.alone and weight < COMMIT_RECORDS and not self._queue.empty():
                following = self._queue.get()
                if following is None or following.alone:
                    kept = following
                    if following is None:
                        self._queue.put(None)
                    break
                calls.append(following)
                weight += following.weight
            self._commit(calls)
        self._end()

    def _commit(self, calls: Sequence[_Call[Any]]) -> None:
        try:
            log = self._opened()
            if calls[0].alone:
                calls[0].result = calls[0].work(log)
            else:
                with log.transaction():
                    for call in calls:
                        _perform(call, log)
        except Exception as error:  # noqa: BLE001 (whoever waits must hear of it)
            for call in calls:
                call.error = error
        else:
            for call in calls:
                if call.error is None and isinstance(call.result, dict):
                    self._grown(call.result)
        _resolve(calls)


class _Reader(_Thread):
    """Answers calls, and between them looks whether the file has changed."""

    def __init__(self, open_log: Callable[[], Log], look: Callable[[Log, bool], None]) -> None:
        super().__init__("reader", open_log)
        self._look = look

    def soon(self, work: Callable[[Log], object]) -> None:
        """`put`, but harmless on a closed bus."""
        with contextlib.suppress(Unavailable):
            self.put(work)

    def _run(self) -> None:
        version = -1
        looked = 0.0
        while True:
            wait = looked + POLL_SECONDS - time.monotonic()
            try:
                call = self._queue.get(timeout=max(0.0, wait))
            except queue.Empty:
                pass
            else:
                if call is None:
                    break
                self._answer(call)
            if time.monotonic() - looked >= POLL_SECONDS:
                looked = time.monotonic()
                with contextlib.suppress(Unavailable):
                    log = self._opened()
                    found = log.data_version()
                    self._look(log, found != version)
                    version = found
        self._end()

    def _answer(self, call: _Call[Any]) -> None:
        try:
            _perform(call, self._opened())
        except Exception as error:  # noqa: BLE001 (whoever waits must hear of it)
            call.error = error
        _resolve([call])


def _perform(call: _Call[Any], log: Log) -> None:
    """Do it; `Fenced` concerns this call alone (it is raised before anything is written)."""
    try:
        call.result = call.work(log)
    except Fenced as error:
        call.error = error


def _resolve(calls: Sequence[_Call[Any]]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Call[Any]]] = defaultdict(list)
    for call in calls:
        if call.loop is not None:
            by_loop[call.loop].append(call)
    for loop, waiting in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, waiting)


def _settle(calls: Sequence[_Call[Any]]) -> None:
    for call in calls:
        if call.future is None or call.future.done():
            continue
        if call.error is not None:
            call.future.set_exception(call.error)
        else:
            call.future.set_result(call.result)


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
