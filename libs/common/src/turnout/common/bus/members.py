"""Members of consumer groups on the embedded bus: who reads which partition, and how far."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from turnout.common.bus.cloudevents import as_record
from turnout.common.bus.log import Claim, Fenced, Log, Partition
from turnout.common.bus.port import Received, Record
from turnout.common.errors import Unavailable
from turnout.common.events import Event

T = TypeVar("T")


class Disk(Protocol):
    """What a member needs of the bus."""

    def end(self, partition: int) -> int:
        """The offset that the partition's next record gets, as far as it is known."""
        ...

    async def read(self, partition: Partition | Claim, start: int, end: int) -> tuple[list[Received], int]:
        """Records from `start`, and where to go on."""
        ...

    async def write(self, change: Callable[[Log], T]) -> T:
        """Change something in a transaction."""
        ...

    async def append(self, records: Sequence[Record], before: Callable[[Log], None]) -> None:
        """`before` and the records in one transaction."""
        ...

    def give_up(self, change: Callable[[Log], object]) -> None:
        """Change something in a transaction, then let everybody see who holds what."""
        ...


def share_out(partitions: Iterable[Partition], members: Mapping[str, Sequence[str]]) -> dict[str, list[Partition]]:
    """Each partition to one member that reads its topic, as evenly as can be; everybody computes the same."""
    shares: dict[str, list[Partition]] = {member: [] for member in sorted(members)}
    for partition in sorted(partitions, key=lambda p: (p.topic, p.number)):
        readers = [member for member in shares if partition.topic in members[member]]
        if readers:
            shares[min(readers, key=lambda member: len(shares[member]))].append(partition)
    return shares


class Signal:
    """Something to wait for on the loop that made it; any thread may set it off."""

    def __init__(self, partitions: frozenset[int] = frozenset()) -> None:
        self.partitions = partitions
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._ended = False

    def later(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call on the loop; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(call, *arguments)

    def set(self) -> None:
        """Wake who waits; from any thread."""
        self.later(self._event.set)

    def clear(self) -> None:
        """Wait again from now on."""
        self._event.clear()

    def end(self) -> None:
        """Wake who waits for the last time."""
        self._ended = True
        self.set()

    async def wait(self) -> None:
        """Until `set`. Raises `Unavailable` once the bus is closed."""
        await self._event.wait()
        if self._ended:
            raise Unavailable("the bus", "it is closed")


@dataclass
class Reading:
    """Where a member stands in a partition it holds; `opened` are deliveries not yet done, oldest first."""

    claim: Claim
    position: int
    opened: deque[EmbeddedDelivery] = field(default_factory=deque)
    leaving: bool = False


class Member(Signal):
    """A member of a group; everything but `set` happens on its loop."""

    def __init__(self, ident: str, group: str, topics: Sequence[str], disk: Disk) -> None:
        super().__init__()
        self.id = ident
        self.group = group
        self.topics = topics
        self.disk = disk
        self.readings: dict[int, Reading] = {}
        self.looked = time.monotonic()
        self._claiming: asyncio.Task[None] | None = None

    async def fetch(self) -> EmbeddedDelivery | None:
        """What there is of one partition, after waiting for it; None if it went to somebody else meanwhile."""
        while (reading := self._readable()) is None:
            self.clear()
            if self._readable() is None:
                await self.wait()
        partition = reading.claim.id
        found, position = await self.disk.read(reading.claim, reading.position, self.disk.end(partition))
        if self.readings.get(partition) is not reading or reading.leaving:
            return None
        reading.position = position
        # Partitions take turns: this one is the last now.
        self.readings[partition] = self.readings.pop(partition)
        if found:
            delivery = EmbeddedDelivery(found, position, self, reading)
            reading.opened.append(delivery)
            return delivery
        if not reading.opened:  # what was there is gone by retention
            self.disk.give_up(lambda log: skip(log, self.group, reading.claim, position))
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
        free = [p for p in share if p.id not in self.readings and held.get(p.id, (None, 0))[0] in (None, self.id)]
        if free and self._claiming is None:
            self._claiming = asyncio.create_task(self._claim(free))
        if self._readable():
            self.set()

    def give_back(self) -> None:
        """Release partitions that are leaving, once nothing of them is open."""
        for partition, reading in list(self.readings.items()):
            if reading.leaving and not reading.opened:
                del self.readings[partition]
                self.disk.give_up(lambda log, claim=reading.claim: log.release(self.group, claim))

    def drop(self, reading: Reading) -> None:
        """The partition was taken over by somebody else."""
        if self.readings.get(reading.claim.id) is reading:
            del self.readings[reading.claim.id]

    def _readable(self) -> Reading | None:
        for reading in self.readings.values():
            if not reading.leaving and reading.position < self.disk.end(reading.claim.id):
                return reading
        return None

    async def _claim(self, partitions: Sequence[Partition]) -> None:
        taken: list[Claim] = []
        with contextlib.suppress(Unavailable):  # the next look tries again
            taken = await self.disk.write(lambda log: log.claim(self.id, self.group, partitions))
        self._claiming = None
        for claim in taken:
            self.readings[claim.id] = Reading(claim, claim.offset)
        self.set()


class EmbeddedDelivery:
    """Records of one partition; see `Delivery`."""

    def __init__(self, received: Sequence[Received], end: int, member: Member, reading: Reading) -> None:
        self.received = received
        self.end = end
        self.settled = False
        self._member = member
        self._reading = reading

    async def done(self, *produced: Event | Record) -> None:
        """Produced records and the offset in one transaction.

        Raises `Unavailable` if the partition went to another member, or the file cannot be written.
        """
        if self.settled:
            return
        claim, group = self._reading.claim, self._member.group
        first = self._reading.opened[0] is self

        def settle(log: Log) -> None:
            if first:
                log.move(group, claim, self.end)
            else:  # the offset waits for the deliveries before this one
                log.held(group, claim)

        try:
            await self._member.disk.append([as_record(event) for event in produced], settle)
        except Fenced:
            self._member.drop(self._reading)
            raise Unavailable("the partition", f"another member of {group} has taken it over") from None
        self.settled = True
        await self._advance(self.end if first else -1)

    async def _advance(self, moved: int) -> None:
        """Take settled deliveries off the front; the offset follows where they were settled out of order."""
        opened, claim, group = self._reading.opened, self._reading.claim, self._member.group
        end = -1
        while opened and opened[0].settled:
            end = opened.popleft().end
        if end > moved:
            await self._member.disk.write(lambda log: skip(log, group, claim, end))
        self._member.give_back()


def skip(log: Log, group: str, claim: Claim, offset: int) -> None:
    """Move the offset over what needs nothing more; harmless if somebody else holds the partition."""
    with contextlib.suppress(Fenced):
        log.move(group, claim, offset)
