"""A topic's messages on request: `TopicPullRequested` → a job that goes as far as the topic went then → `TopicPulled`.

Each delivery tells, in one step with its offset, what became of it (`TopicPullAdvanced`); so whoever takes the job up
after a death goes on at the group's offsets and knows what was done before. A schedule asks for the same job: its id
comes from the pipeline and the slot, so several processes that ask make one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress

import structlog

from turnout.common.bus.port import Bus, Delivery
from turnout.common.errors import Invalid, Unavailable
from turnout.common.events import Event, PulledPart, TopicPullAdvanced, TopicPulled, TopicPullRequested
from turnout.common.ids import caused_event_id
from turnout.common.pipeline import Every
from turnout.common.runtime.coming import Coming
from turnout.common.runtime.consuming import report
from turnout.common.runtime.crash import crash_point
from turnout.common.runtime.handling import Handled, Handling
from turnout.common.runtime.health import Health, Progress
from turnout.common.runtime.service import Clock, Service
from turnout.common.runtime.views import Pipelines
from turnout.ingestion.domain.pulls import total
from turnout.ingestion.topics import Topics

log = structlog.get_logger()

SERVICE = "ingestion"
SOURCE = "/ingestion"
# How often somebody waiting for messages looks whether another member of the group has taken them.
LOOK_SECONDS = 0.5
# Longer than a dead member keeps its partitions (two sessions on Kafka): what has not come by then is no message.
QUIET_SECONDS = 15.0
SCHEDULE_SECONDS = 0.5


class Pulling:
    """The job, and the schedule that asks for it. `trouble` says what a job waits for."""

    def __init__(self, bus: Bus, pipelines: Pipelines, topics: Topics, now: Clock) -> None:
        self._bus = bus
        self._pipelines = pipelines
        self._topics = topics
        self._now = now
        self._health = Health(Service(SERVICE))
        self._health.started = True
        self._asked: dict[str, int] = {}

    def waiting_for(self) -> list[str]:
        """What a job that is under way waits for."""
        return self._health.waiting_for()

    async def __call__(self, events: Sequence[Event]) -> list[Event]:
        """Take what each request asks for. Raises `Invalid` for a pipeline without a topic."""
        return [await self._pull(event) for event in events if isinstance(event, TopicPullRequested)]

    async def schedule(self) -> None:
        """Ask for what the pipelines' schedules say, for ever; where nothing new has come, nothing is asked."""
        while True:
            for name in self._pipelines.names():
                file = self._pipelines.now(name)
                if file is None or file.source.topic is None or not isinstance(file.source.pull, Every):
                    continue
                slot = int(self._now().timestamp()) // file.source.pull.seconds
                if self._asked.get(name) != slot:
                    await self._ask(name, file.source.topic, f"{file.source.pull.every} {slot}")
                    self._asked[name] = slot
            await asyncio.sleep(SCHEDULE_SECONDS)

    async def _ask(self, pipeline: str, topic: str, slot: str) -> None:
        standing = await self._bus.standing(topic, self._topics.group(pipeline))
        if all(at.next >= at.end for at in standing.values()):
            return
        await self._bus.publish(
            TopicPullRequested.first(
                source=SOURCE,
                at=self._now(),
                id=caused_event_id(pipeline, TopicPullRequested.__name__, slot),
                pipeline=pipeline,
                ends={partition: at.end for partition, at in standing.items()},
                by="schedule",
            )
        )

    async def _pull(self, request: TopicPullRequested) -> TopicPulled:
        pipeline = request.pipeline
        topic = (await self._pipelines.file(pipeline)).source.topic
        if topic is None:
            raise Invalid("pipeline", f"'{pipeline}' takes no topic", fix="name one as source.topic in its file")
        reaction = self._topics.reaction(pipeline, topic)
        handling = Handling(SERVICE, reaction, self._health, Progress(math.inf), self._now)
        standing = await self._bus.standing(topic, handling.group)
        ends = request.ends or {partition: at.end for partition, at in standing.items()}
        left = await self._take_until(ends, topic, handling, request)
        found = total([one async for one in self._advanced(request)])
        return TopicPulled.caused_by(
            request,
            source=SOURCE,
            at=self._now(),
            source_topic=topic,
            taken=found.taken,
            refused=found.refused,
            left=left,
            parts=found.parts,
            seconds=max(0.0, (self._now() - request.time).total_seconds()),
        )

    async def _take_until(
        self, ends: Mapping[int, int], topic: str, handling: Handling, request: TopicPullRequested
    ) -> int:
        """Take deliveries until the group stands at the ends; how many offsets before them never came."""
        left = await self._left(ends, topic, handling.group)
        if not any(left.values()):
            return 0
        clock = asyncio.get_running_loop().time
        moved = clock()
        async with (
            aclosing(self._bus.consume(topic, group=handling.group)) as deliveries,
            Coming(deliveries) as coming,
        ):
            while any(left.values()):
                delivery = await coming.within(LOOK_SECONDS)
                if delivery is not None:
                    end = await self._take(delivery, handling, request)
                    partition = delivery.received[0].partition
                    if end is not None and partition in left:
                        left[partition] = max(0, ends[partition] - end)
                    moved = clock()
                    continue
                before, left = left, await self._left(ends, topic, handling.group)
                moved = clock() if before != left else moved
                if clock() - moved > QUIET_SECONDS:
                    log.warning("offsets that give no message are passed by", topic=topic, offsets=sum(left.values()))
                    break
        return sum(left.values())

    async def _left(self, ends: Mapping[int, int], topic: str, group: str) -> dict[int, int]:
        standing = await self._bus.standing(topic, group)
        return {n: max(0, end - standing[n].next) for n, end in ends.items() if n in standing}

    async def _take(self, delivery: Delivery, handling: Handling, request: TopicPullRequested) -> int | None:
        """Handle a delivery; the offset behind it, None if the partition went to another member meanwhile."""
        began = asyncio.get_running_loop().time()
        received = delivery.received
        handled = Handled()
        items = handling.parse(received, handled)
        outcome = await handling.run(items)
        handled.produced += outcome.produced
        handled.dead += outcome.dead
        handled.outcomes += outcome.outcomes
        part = PulledPart(partition=received[0].partition, first=received[0].offset, last=received[-1].offset)
        advanced = TopicPullAdvanced.caused_by(
            request,
            source=SOURCE,
            at=self._now(),
            of=f"{part.partition} {part.first} {part.last}",
            source_topic=received[0].record.topic,
            part=part,
            taken=len(received) - len(handled.dead),
            refused=len(handled.dead),
        )
        crash_point("ingestion-pull-before-done")
        try:
            await delivery.done(*handled.produced, *handled.dead, advanced)
        except Unavailable as error:
            # It comes again, to this member or another; if the bus is away, the next look for messages says so.
            log.warning("messages come again", topic=advanced.source_topic, why=str(error))
            return None
        crash_point("ingestion-pull-after-done")
        report(handling, len(received), handled, asyncio.get_running_loop().time() - began)
        return part.last + 1

    async def _advanced(self, request: TopicPullRequested) -> AsyncGenerator[TopicPullAdvanced]:
        cause = ("ce_causationid", request.id.encode())
        async for received in self._bus.replay(TopicPullAdvanced):
            if cause in received.record.headers:
                with suppress(Invalid):  # anybody can write anything
                    event = received.event()
                    assert isinstance(event, TopicPullAdvanced)
                    yield event
