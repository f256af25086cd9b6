"""How a reaction is tried: again while something is unavailable, one by one when refused, and when to give up."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from structlog.contextvars import bound_contextvars
from tenacity import AsyncRetrying, RetryCallState, wait_random_exponential

from turnout.common import telemetry
from turnout.common.bus.cloudevents import as_record
from turnout.common.bus.port import Received, Record
from turnout.common.errors import Invalid, Unavailable
from turnout.common.events import Event
from turnout.common.executor.port import WorkerLost
from turnout.common.runtime.dead_letters import Origin, dead_letter
from turnout.common.runtime.health import Health, Progress
from turnout.common.runtime.service import Clock, Reaction, Refused

log = structlog.get_logger()

# A bug may be a race that does not come twice; three times is no race.
TRIES = 3
LONGEST_PAUSE = 15.0


@dataclass(frozen=True)
class Item:
    """A record and its event."""

    received: Received
    event: Event


@dataclass
class Handled:
    """What became of a batch: records to publish, what was given up (with the reason), and the dead letters of it."""

    produced: list[Record] = field(default_factory=list)
    dead: list[Record] = field(default_factory=list)
    failed: list[tuple[Item, Exception]] = field(default_factory=list)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Answer:
    """What a reaction gave back: records to publish, and the events that it refused by their ids."""

    produced: Sequence[Record]
    refused: Mapping[str, Invalid]


class Handling:
    """Runs one reaction's function on what arrived; raises nothing but cancellation."""

    def __init__(self, service: str, reaction: Reaction, health: Health, progress: Progress, now: Clock) -> None:
        self.service = service
        self.reaction = reaction
        self.group = f"{service}.{reaction.name}"
        self.health = health
        self.progress = progress
        self.now = now

    def parse(self, received: Sequence[Received], into: Handled) -> list[Item]:
        """The events that can be read; the others are dead letters in `into`."""
        items: list[Item] = []
        for one in received:
            try:
                event = self.reaction.read(one)
            except Invalid as error:
                self._bury(one, error, 1, into)
            else:
                items += [] if event is None else [Item(one, event)]
        return items

    async def run(self, items: Sequence[Item]) -> Handled:
        """All at once; where that is refused, one by one."""
        into = Handled()
        if not items:
            return into
        try:
            produced = await self._attempt([i.event for i in items], tries=1 if len(items) > 1 else TRIES)
        except Exception as error:  # noqa: BLE001 (a bug in one event must not stop the others)
            if len(items) == 1:
                self.give_up(items[0], error, into)
                return into
        else:
            self._succeeded(items, produced, into)
            return into
        for item in items:
            try:
                produced = await self._attempt([item.event], tries=TRIES)
            except Exception as error:  # noqa: BLE001
                self.give_up(item, error, into)
            else:
                self._succeeded([item], produced, into)
        return into

    async def _attempt(self, events: Sequence[Event], *, tries: int) -> _Answer:
        patience = _Patience(tries, self._pausing)
        with bound_contextvars(service=self.service, reaction=self.reaction.name, **context(events)):
            try:
                try:
                    return await self._once(events)
                except Exception as error:
                    if not patience.again(error):
                        raise
                return await self._again(events, patience)
            finally:  # answered or refused: in either case nothing is waited for any more
                self.health.well(self.group)

    async def _again(self, events: Sequence[Event], patience: _Patience) -> _Answer:
        """All tries but the first. That one needs no machinery, which costs as much as a small reaction itself."""
        await asyncio.sleep(pause(1))
        waiting = wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE)
        async for attempt in AsyncRetrying(retry=patience, wait=waiting, reraise=True):
            with attempt:
                return await self._once(events)
        raise AssertionError("tenacity returned without a result")

    async def _once(self, events: Sequence[Event]) -> _Answer:
        self._beat()
        try:
            produced = await self.reaction.handle(events)
        except ExceptionGroup as group:
            raise telling(group) from group
        # Here, so that an event that cannot be sent is this reaction's failure and not the bus's.
        return _Answer(
            [as_record(one) for one in produced if not isinstance(one, Refused)],
            {one.event.id: one.error for one in produced if isinstance(one, Refused)},
        )

    def _pausing(self, error: Unavailable) -> None:
        telemetry.RETRIES.labels(self.service, self.group).inc()
        self.health.trouble(self.group, str(error))
        self._beat()
        log.warning("not available, trying again", reaction=self.group, error=str(error))

    def _beat(self) -> None:
        """Waiting for something that is away is no standstill. A job has a heartbeat of its own."""
        if not self.reaction.long:
            self.progress.beat(self.group)

    def _succeeded(self, items: Sequence[Item], answer: _Answer, into: Handled) -> None:
        into.produced += answer.produced
        for item in items:
            if (error := answer.refused.get(item.event.id)) is not None:
                self.give_up(item, error, into)
            else:
                into.outcomes[type(item.event).__name__, "ok"] += 1

    def give_up(self, item: Item, error: Exception, into: Handled) -> None:
        """The event goes to the dead letters; `into.failed` remembers why."""
        tries = 1 if isinstance(error, Invalid) else TRIES
        into.failed.append((item, error))
        self._bury(item.received, error, tries, into)

    def _bury(self, received: Received, error: Exception, tries: int, into: Handled) -> None:
        record, now = received.record, self.now()
        origin = Origin(record.topic, received.partition, received.offset, received.timestamp, self.group, now)
        into.dead.append(dead_letter(record, origin, error, tries))
        into.outcomes[record.topic, "dead"] += 1
        log.warning(
            "event could not be handled",
            reaction=self.group, topic=record.topic, partition=received.partition, offset=received.offset,
            error_type=type(error).__name__, error=str(error),
        )  # fmt: skip


class _Patience:
    """Whether to try again: while something is unavailable always, after a bug `tries` times in all, else never."""

    def __init__(self, tries: int, pausing: Callable[[Unavailable], None]) -> None:
        self._left = tries
        self._pausing = pausing

    def __call__(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        return isinstance(error, Exception) and self.again(error)

    def again(self, error: Exception) -> bool:
        """Whether to, after this error."""
        if isinstance(error, Invalid):
            return False
        if isinstance(error, Unavailable) and not isinstance(error, WorkerLost):
            self._pausing(error)
            return True
        self._left -= 1
        log.error("a reaction failed", exc_info=error, tries_left=self._left)
        return self._left > 0


def telling(group: ExceptionGroup[Exception]) -> Exception:
    """Of several errors that came at once, the one that says what to do: try again, refuse, or call it a bug."""
    leaves: list[Exception] = []
    waiting: list[Exception] = [group]
    while waiting:
        error = waiting.pop()
        if isinstance(error, ExceptionGroup):
            waiting += error.exceptions
        else:
            leaves.append(error)
    return min(leaves, key=lambda e: 1 if isinstance(e, Invalid) else 2 if isinstance(e, Unavailable) else 0)


def pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row: up to twice as long each time, and never in step with others."""
    return random.uniform(0, min(LONGEST_PAUSE, 0.1 * 2**failures))  # noqa: S311 (no secret)


def context(events: Iterable[Event]) -> Mapping[str, str]:
    """What binds the log lines of these events together: the fields that they share."""
    found = {
        telemetry.PIPELINE: {e.pipeline for e in events},
        telemetry.CORRELATION: {e.correlation_id for e in events},
        telemetry.CAUSATION: {e.id for e in events},
    }
    return {name: next(iter(values)) for name, values in found.items() if len(values) == 1}


async def until_available(call: Callable[[], Awaitable[object]], what: str, health: Health) -> None:
    """Do `call`, again and again while it raises `Unavailable`."""

    def pausing(error: Unavailable) -> None:
        health.trouble(what, str(error))
        log.warning("not available, trying again", reaction=what, error=str(error))

    async for attempt in AsyncRetrying(
        retry=_Patience(1, pausing), wait=wait_random_exponential(multiplier=0.1, max=LONGEST_PAUSE), reraise=True
    ):
        with attempt:
            await call()
    health.well(what)
