"""The history store port: scores, outcomes, features over time, the audit trail, each by its query."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from pydantic import JsonValue

from turnout.common.events import ObservationReceived, OutcomeObserved, ScoreProduced


@dataclass(frozen=True)
class Joined:
    """A score beside what really happened."""

    score: ScoreProduced
    outcome: OutcomeObserved


# A first outcome; the same again (by content); a different one for a score that had one; one whose score has
# not come yet, kept until it does.
OutcomeKind = Literal["joined", "duplicate", "corrected", "unmatched"]


@dataclass(frozen=True)
class Audit:
    """Who did what to which pipeline, and why; `id` is the id of the event that says so."""

    id: str
    at: datetime
    pipeline: str
    who: str
    action: str
    subject: str
    why: str
    detail: Mapping[str, JsonValue]


class HistoryStore(Protocol):
    """Writing the same thing twice has one effect. Methods raise `Unavailable` while it cannot be reached."""

    async def add_scores(self, scores: Sequence[ScoreProduced]) -> Sequence[ScoreProduced]:
        """Keep scores; returns those that were not there already."""
        ...

    async def score(self, score_id: str) -> ScoreProduced | None:
        """One score."""
        ...

    async def scores(
        self, pipeline: str, *, since: datetime | None = None, limit: int = 1000
    ) -> Sequence[ScoreProduced]:
        """A pipeline's newest scores, newest first."""
        ...

    async def count_scores(self, pipeline: str) -> int:
        """How many scores are kept of a pipeline."""
        ...

    def all_scores(self, pipeline: str) -> AsyncIterator[Sequence[ScoreProduced]]:
        """Every score kept of a pipeline, oldest first, in pages."""
        ...

    async def add_outcomes(self, outcomes: Sequence[OutcomeObserved]) -> Sequence[OutcomeKind]:
        """Keep outcomes; what each one was, in order. The one observed last is a score's outcome."""
        ...

    async def joined_of(self, pipeline: str, score_ids: Sequence[str]) -> Sequence[Joined]:
        """Those of the scores that have an outcome, in no particular order."""
        ...

    async def joined(
        self, pipeline: str, *, version: str | None = None, since: datetime | None = None, limit: int = 1000
    ) -> Sequence[Joined]:
        """Scores that have an outcome, newest score first."""
        ...

    async def add_features(self, observations: Sequence[ObservationReceived]) -> None:
        """Keep features over time."""
        ...

    async def features(
        self, pipeline: str, entity: str, *, until: datetime | None = None, limit: int = 100
    ) -> Sequence[ObservationReceived]:
        """An entity's observations up to `until`, newest first."""
        ...

    async def add_audit(self, *entries: Audit) -> None:
        """Append to the audit trail."""
        ...

    async def audit(self, pipeline: str, *, limit: int = 100) -> Sequence[Audit]:
        """A pipeline's audit trail, newest first."""
        ...

    async def audited(self, ids: Sequence[str]) -> Collection[str]:
        """Those of the ids that are in the audit trail: what was decided already."""
        ...

    async def expire(self, before: datetime) -> int:
        """Remove scores, outcomes and features from before; never the audit trail. How many rows went."""
        ...

    async def forget(self, pipeline: str, entity: str) -> None:
        """Remove scores, outcomes and features of an entity."""
        ...

    async def remove(self, pipeline: str) -> None:
        """Remove scores, outcomes and features of a pipeline; the audit trail stays."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...
