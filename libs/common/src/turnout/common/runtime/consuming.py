"""Poll, react, done: the loop behind a short reaction."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing

import structlog
from structlog.contextvars import bound_contextvars

from turnout.common import telemetry
from turnout.common.bus.port import Delivery, Source
from turnout.common.errors import Unavailable
from turnout.common.runtime.crash import crash_point
from turnout.common.runtime.handling import Handled, Handling, context, pause

log = structlog.get_logger()


class Consumer:
    """Takes deliveries for one reaction until it is stopped."""

    def __init__(self, bus: Source, handling: Handling) -> None:
        self._bus = bus
        self._handling = handling
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._busy = False

    @property
    def group(self) -> str:
        """The consumer group."""
        return self._handling.group

    @property
    def polled(self) -> float | None:
        """When it last looked for records (monotonic seconds), also in vain; None while it does not consume."""
        return self._bus.polled(self.group)

    async def run(self) -> None:
        """For ever, or until `stop`."""
        self._task = asyncio.current_task()
        group = self._handling.group
        failures = 0
        while not self._stopping:
            try:
                async with aclosing(self._bus.consume(*self._handling.reaction.topics, group=group)) as deliveries:
                    async for delivery in deliveries:
                        await self._take(delivery)
                        failures = 0
                        self._handling.health.well(group)
                        if self._stopping:
                            return
            except Unavailable as error:
                # With nothing to take, that it polls again is all that tells that the bus is back.
                self._handling.health.trouble(group, str(error), over=self._polls_after(time.monotonic()))
                log.warning("the bus is not available", reaction=group, error=str(error))
                failures += 1
                await asyncio.sleep(pause(failures))

    def _polls_after(self, moment: float) -> Callable[[], bool]:
        return lambda: (self._bus.polled(self.group) or 0.0) > moment

    def stop(self) -> None:
        """Take nothing more; what is being handled may end."""
        self._stopping = True
        if not self._busy and self._task is not None:
            self._task.cancel()

    async def _take(self, delivery: Delivery) -> None:
        self._busy = True
        self._handling.progress.beat(self._handling.group)
        try:
            await self._handle(delivery)
        finally:
            self._busy = False
            self._handling.progress.rest(self._handling.group)

    async def _handle(self, delivery: Delivery) -> None:
        began = time.perf_counter()
        handled = Handled()
        items = self._handling.parse(delivery.received, handled)
        outcome = await self._handling.run(items)
        handled.produced += outcome.produced
        handled.dead += outcome.dead
        handled.outcomes += outcome.outcomes
        crash_point("reaction-before-done")
        await delivery.done(*handled.produced, *handled.dead)
        crash_point("reaction-after-done")
        with bound_contextvars(**context([i.event for i in items])):
            report(self._handling, len(delivery.received), handled, time.perf_counter() - began)


def report(handling: Handling, records: int, handled: Handled, seconds: float) -> None:
    """The one line and the metrics of a batch."""
    count(handling, handled)
    telemetry.REACTION_SECONDS.labels(handling.service, handling.reaction.name).observe(seconds)
    log.info(
        "events handled",
        service=handling.service, reaction=handling.reaction.name, records=records,
        produced=dict(Counter(record.topic for record in handled.produced)), dead=len(handled.dead),
        milliseconds=round(seconds * 1000, 1),
    )  # fmt: skip


def count(handling: Handling, handled: Handled) -> None:
    """The metrics of a batch."""
    for (kind, outcome), number in handled.outcomes.items():
        telemetry.EVENTS_PROCESSED.labels(handling.service, kind, outcome).inc(number)
    for record in handled.dead:
        telemetry.EVENTS_DEAD_LETTERED.labels(handling.service, record.topic.removesuffix(".dead")).inc()
