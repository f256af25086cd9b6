"""Sends what the outbox holds on to the bus, in order, for as long as it takes; and sums up what went.

The order: published, then marked as relayed. Dying between the two publishes again; the ids are the same, so every
consumer ignores what it has. Scores that were relayed are counted here, off the request's path, and about once a second
the counts go into the outbox as events, in one transaction with the position up to which they count: a death before it
counts again from the position before, a death after it finds the events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Literal, NamedTuple

import orjson
import structlog

from turnout.common import telemetry
from turnout.common.bus.port import Bus, Record
from turnout.common.errors import Unavailable, Unknown
from turnout.common.events import ModelReady, ScoreProduced
from turnout.common.runtime.crash import crash_point
from turnout.common.summary import Answered, Asked, Gathering, Shape, shape_of
from turnout.common.values import Cell
from turnout.scoring.ports import Outbox
from turnout.scoring.reactions.feed import Feed

log = structlog.get_logger()

BATCH = 1000
# Requests that come one after the other share a publication; nobody waits for it. While they keep coming they are
# gathered for longer: each round costs the same few milliseconds, whatever it carries.
GATHER_SECONDS = 0.01
BUSY_GATHER_SECONDS = 0.1
LOOK_SECONDS = 1.0
LONGEST_PAUSE = 5.0
# A quiet version's first score is told at once, a busy one's scores together.
SUMMARY_SECONDS = 1.0
# Scores counted in one go on another thread: a millisecond or two, so that the event loop never waits long for the
# interpreter's lock.
COUNTED = 200
SCORES = ScoreProduced.topic()


class Relay:
    """See the module. `trouble` says why the bus takes nothing now, or is None.

    `ready` knows a version, or raises `Unknown`: its profile says how raw columns are counted. `feed` knows what scores
    feed.
    """

    def __init__(
        self,
        outbox: Outbox,
        bus: Bus,
        ready: Callable[[str, str], ModelReady] | None = None,
        feed: Feed | None = None,
    ) -> None:
        self._outbox = outbox
        self._bus = bus
        self._ready = ready
        self._feed = feed
        self._shapes: dict[tuple[str, str], tuple[str, Shape]] = {}
        self._gathering = Gathering()
        self._counted: int | None = None
        self._relayed: int | None = None
        self._due = 0.0
        self.trouble: str | None = None

    async def run(self) -> None:
        """For ever."""
        while self._feed is not None and not self._feed.ready:  # noqa: ASYNC110 (no event tells)
            await asyncio.sleep(GATHER_SECONDS)
        pause = 0.1
        while True:
            try:
                relayed = await self.once()
                busy = await self.summarise() or relayed > 0
            except Unavailable as error:
                self.trouble = str(error)
                log.warning("scores wait for the bus", why=str(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            self.trouble, pause = None, 0.1
            if busy and relayed < BATCH:
                await asyncio.sleep(BUSY_GATHER_SECONDS)
            elif not busy:
                due = self._due - asyncio.get_running_loop().time() if self._gathering else LOOK_SECONDS
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, due)):
                        await self._outbox.arrival()
                    await asyncio.sleep(GATHER_SECONDS)

    async def once(self) -> int:
        """Relay what is there, `BATCH` at most; how many. Raises `Unavailable`."""
        taken = await self._outbox.take(BATCH)
        if not taken.end:
            telemetry.OUTBOX_WAITING.set(0)
            if self._outbox.trouble is not None:
                await self._outbox.relayed(0)  # a write that changes nothing: is there space again?
            return 0
        crash_point("scoring-relay-taken")
        if taken.records:
            await self._bus.publish(*taken.records, *(self._feed.of(taken.records) if self._feed is not None else ()))
        crash_point("scoring-relay-published")
        await self._outbox.relayed(taken.end)
        self._relayed = taken.end
        if taken.whole and taken.start == self._counted:
            await self._count_all([record for record in taken.records if record.topic == SCORES])
            self._counted = taken.end
        telemetry.OUTBOX_WAITING.set(await self._outbox.waiting())
        return max(1, len(taken.records))

    async def summarise(self, *, now: bool = False) -> bool:
        """Count what was relayed and is not counted, `BATCH` at most, and tell it when it is time (or `now`); whether
        there was anything. Raises `Unavailable`."""
        busy = False
        if self._counted is None or self._counted != self._relayed:
            records, position = await self._outbox.scores(self._counted, BATCH)
            await self._count_all(records)
            busy, self._counted = bool(records) or position > (self._counted or position), position
        clock = asyncio.get_running_loop().time
        if self._gathering and (now or clock() >= self._due):
            crash_point("scoring-summary-counted")
            await self._outbox.summarise(self._gathering.parts, self._counted)
            crash_point("scoring-summary-told")
            self._gathering, self._due = Gathering(), clock() + SUMMARY_SECONDS
            return True
        return busy

    async def drain(self) -> None:
        """Relay all that is there, at the end of the process; what the bus does not take stays for the next start."""
        if self._feed is not None and not self._feed.ready:
            return
        with suppress(Unavailable):
            while await self.once() or await self.summarise(now=True):
                pass

    async def _count_all(self, records: Sequence[Record]) -> None:
        for start in range(0, len(records), COUNTED):
            await asyncio.to_thread(self._count, records[start : start + COUNTED])

    def _count(self, records: Sequence[Record]) -> None:
        self._gathering.add_all(map(_score, records), self._shape)

    def _shape(self, score: Answered) -> Shape:
        try:
            ready = self._ready(score.pipeline, score.version) if self._ready is not None else None
        except Unknown:
            ready = None
        if ready is None:
            return {}
        known = self._shapes.get((score.pipeline, score.version))
        if known is None or known[0] != ready.id:
            known = self._shapes[score.pipeline, score.version] = (ready.id, shape_of(ready.inputs, ready.profile))
        return known[1]


class Attempted(NamedTuple):
    """What is counted of an attempt."""

    version: str
    outcome: Literal["ok", "late", "error", "off", "loading"]
    milliseconds: float | None


class _Answer(NamedTuple):
    """What is counted of a score; the rest is not even looked at."""

    pipeline: str
    time: datetime
    version: str
    served_by: str
    attempts: Sequence[Asked]
    values: Mapping[str, Cell]
    value: float | str
    milliseconds: float


def _score(record: Record) -> _Answer:
    """Everything in it was checked when it was made: a model's second check would cost twice what counting costs."""
    fields = orjson.loads(record.value or b"{}")
    return _Answer(
        fields["pipeline"],
        datetime.fromisoformat(next(value for name, value in record.headers if name == "ce_time").decode()),
        fields["version"],
        fields["served_by"],
        [Attempted(a["version"], a["outcome"], a["milliseconds"]) for a in fields["attempts"]],
        fields["values"],
        fields["value"],
        fields["milliseconds"],
    )
