"""What monitoring needs from outside that is nobody else's business."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from turnout.monitoring.domain.tally import Json, State

T = TypeVar("T")


class KeyedState(Protocol):
    """Tallies by key. Methods raise `Unavailable` while they cannot be reached."""

    async def fold(self, work: Callable[[State], T]) -> T:
        """Let `work` change the state, all of it or nothing; durable at the latest when the delivery at hand is done.

        To be called by the reaction that owns the keys, and by nobody else.
        """
        ...

    async def look(self, work: Callable[[Mapping[str, Json]], T]) -> T:
        """Let `work` read the state, in any process, whoever owns the keys."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...
