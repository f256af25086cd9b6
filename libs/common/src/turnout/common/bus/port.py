"""The bus port: at least once, in order per key, with an offset that moves only after the effect.

What every adapter keeps (tests/contract/test_bus.py holds them to it):

1. `publish` returns when the events survive the death of this process.
2. Events with one key reach a group in the order of their publication; a partition is read by one member of a
   group at a time.
3. A delivery that is not `done` comes again, to this member or another.
4. `done(*produced)`: the produced events are durable before the offset moves, or nothing of both is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from turnout.common.events import Event

# An event class, or the name of a topic that somebody else owns.
Topic = type[Event] | str


def name_of(topic: Topic) -> str:
    """The topic's name on the wire."""
    return topic if isinstance(topic, str) else topic.topic()


# Tuples, these two: they are made for every message there is, and a frozen dataclass takes twice the time.
class Record(NamedTuple):
    """A message as it is on the wire; `value` None is a tombstone."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Received(NamedTuple):
    """A record where it lies. `event()` parses it or raises `Invalid`; nothing else does."""

    record: Record
    partition: int
    offset: int
    timestamp: datetime

    def event(self) -> Event:
        """The event in this record (CloudEvents binary or structured mode, or bare JSON). Raises `Invalid`."""
        from turnout.common.bus.cloudevents import decode  # noqa: PLC0415 (the codec knows Received)

        return decode(self)


@dataclass(frozen=True)
class Standing:
    """Where a group stands in a partition: the offset that it takes next, and the one behind the newest record."""

    next: int
    end: int


class Delivery(Protocol):
    """What one poll brought from one partition, oldest first, never empty."""

    @property
    def received(self) -> Sequence[Received]:
        """The records, in the partition's order."""
        ...

    async def done(self, *produced: Event | Record) -> None:
        """Make `produced` durable, then move the group's offset behind this delivery.

        Raises `Unavailable`; then the delivery is not done and comes again.
        """
        ...


class Source(Protocol):
    """Where a reaction's deliveries come from: a bus, or what keeps a state beside it; the methods are `Bus`'s."""

    def consume(self, *topics: Topic, group: str) -> AsyncGenerator[Delivery]:
        """See `Bus.consume`."""
        ...

    def polled(self, group: str) -> float | None:
        """See `Bus.polled`."""
        ...


class Bus(Protocol):
    """Topics of events. Methods raise `Unavailable` while the bus cannot be reached."""

    async def publish(self, *events: Event | Record) -> None:
        """Append the events; durable when it returns."""
        ...

    async def ensure_topics(self) -> None:
        """Make the topic of every event, or check that it is as the event's class says.

        Raises `Unavailable` naming what differs and what mends it.
        """
        ...

    def consume(self, *topics: Topic, group: str) -> AsyncGenerator[Delivery]:
        """Deliveries for a member of `group`, for ever. Take the next one after `done` of the one before, or
        keep several open: offsets of a partition move in order. `aclose` leaves the group."""
        ...

    def replay(self, topic: Topic) -> AsyncGenerator[Received]:
        """Every record from the first to the newest at the time of the call, then stops. A compacted topic gives
        each key's newest record. No group, no offsets."""
        ...

    def follow(self, topic: Topic) -> AsyncGenerator[Received]:
        """Like `replay`, then every later record as it comes, for ever; every caller sees all records."""
        ...

    async def lag(self, group: str) -> Mapping[str, int]:
        """Records of each topic that `group` has not yet done."""
        ...

    async def standing(self, topic: Topic, group: str) -> Mapping[int, Standing]:
        """Where `group` stands in each partition of `topic`; what it never read it has before it from the first
        record on. Offsets before the end may hold no record."""
        ...

    async def erase(self, topic: Topic, key: str) -> int:
        """Remove the records with `key`, where the adapter can; how many went. What it cannot remove ends by
        retention."""
        ...

    def polled(self, group: str) -> float | None:
        """When the members of `group` in this process last looked for records (monotonic seconds), also in vain;
        None without a member."""
        ...

    async def purge(self, now: datetime) -> int:
        """Remove what is past its topic's retention or superseded, where that is the adapter's to do; how many
        records went."""
        ...

    async def close(self) -> None:
        """Let go of everything. Deliveries not done come again to somebody else."""
        ...
