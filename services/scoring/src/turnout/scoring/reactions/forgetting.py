"""`EntityForgotten`: what is still kept here of an entity goes."""

from __future__ import annotations

from collections.abc import Sequence

from turnout.common.events import EntityForgotten, Event
from turnout.scoring.ports import Outbox


class Forgetting:
    """Removes an entity's scores from the outbox, relayed or not."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    async def __call__(self, events: Sequence[Event]) -> list[Event]:
        """Nothing is produced."""
        for event in events:
            if isinstance(event, EntityForgotten):
                await self._outbox.erase(event.pipeline, event.entity)
        return []
