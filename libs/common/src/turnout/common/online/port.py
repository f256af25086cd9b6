"""The online store port: the newest features of an entity, read in one round trip for many, and saved scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from turnout.common.events import Values

# Values of an entity that were measured together: whose, which, when.
Put = tuple[str, Values, datetime]


@dataclass(frozen=True)
class EntityFeatures:
    """An entity's newest values, and when they were measured."""

    values: Values
    event_time: datetime


class OnlineStore(Protocol):
    """Methods raise `Unavailable` while the store cannot be reached.

    Nothing goes because it is old: an entity's last good value stays until a newer one replaces it.
    """

    async def put(self, pipeline: str, entity: str, values: Values, event_time: datetime) -> bool:
        """Keep `values` unless newer ones are there; whether any was kept. Columns not in `values` stay.

        Which is newer is decided column by column: several sources with clocks of their own may feed one entity.
        The same event time again overwrites (a redelivery writes the same).
        """
        ...

    async def put_many(self, pipeline: str, puts: Sequence[Put]) -> int:
        """`put` each in order, many in one exchange; of how many any value was kept.

        Raises `Invalid` for a value that cannot be kept; then none was. After `Unavailable` some may have been: to put
        all again is safe. What is written is bounded at a time, what is handed in is the caller's business.
        """
        ...

    async def get_many(self, pipeline: str, entities: Sequence[str]) -> Mapping[str, EntityFeatures]:
        """Features of those entities that have some, in one round trip."""
        ...

    async def put_score(self, pipeline: str, key: str, score: str, at: datetime) -> None:
        """Keep a score (JSON) under `key`, an entity or a hash of the inputs."""
        ...

    async def get_score(self, pipeline: str, key: str) -> tuple[str, datetime] | None:
        """The score under `key` and when it was made."""
        ...

    async def forget(self, pipeline: str, entity: str) -> None:
        """Remove everything of an entity."""
        ...

    async def remove(self, pipeline: str) -> None:
        """Remove everything of a pipeline."""
        ...

    async def mark(self, pipeline: str, text: str) -> None:
        """Keep a note about what the store holds of a pipeline; whatever loses the pipeline's values loses it too."""
        ...

    async def marked(self, pipeline: str) -> str | None:
        """The note of `mark`; None where there was none, or the store lost what it had."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...
