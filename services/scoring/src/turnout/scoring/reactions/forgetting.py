"""`EntityForgotten`: what is still kept here of an entity goes."""

from __future__ import annotations

from collections.abc import Sequence

from turnout.common.bus.port import Bus
from turnout.common.errors import Unknown
from turnout.common.events import EntityForgotten, Event
from turnout.common.runtime.views import Pipelines
from turnout.scoring.ports import Outbox


class Forgetting:
    """Removes an entity's scores from the outbox, relayed or not, and its features from the topic that they feed.

    What the bus cannot remove ends by the topic's retention. A pipeline that takes the topic is asked to forget itself.
    """

    def __init__(self, outbox: Outbox, bus: Bus, pipelines: Pipelines) -> None:
        self._outbox = outbox
        self._bus = bus
        self._pipelines = pipelines

    async def __call__(self, events: Sequence[Event]) -> list[Event]:
        """Nothing is produced."""
        for event in events:
            if isinstance(event, EntityForgotten):
                await self._outbox.erase(event.pipeline, event.entity)
                topic = await self._fed(event.pipeline)
                for name in (topic, f"{topic}.dead") if topic is not None else ():
                    await self._bus.erase(name, event.entity)
        return []

    async def _fed(self, pipeline: str) -> str | None:
        try:
            return (await self._pipelines.file(pipeline)).scoring.feed
        except Unknown:
            return None
