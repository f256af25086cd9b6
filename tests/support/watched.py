"""Builders of what monitoring sees: scores, outcomes, observations, versions, tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from turnout.common.events import (
    Attempt,
    Column,
    ColumnProfile,
    Event,
    Histogram,
    ModelFile,
    ModelReady,
    ObservationReceived,
    OutcomeJoined,
    OutcomeObserved,
    Prior,
    ScoreProduced,
    ScoresSummarised,
    Target,
)
from turnout.common.history.port import Joined
from turnout.common.summary import Gathering, shape_of
from turnout.monitoring.domain import tally
from turnout.monitoring.domain.standing import Standing

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def score(
    ident: str = "s-1",
    *,
    pipeline: str = "p",
    version: str = "1",
    seconds: float = 0.0,
    attempts: tuple[Attempt, ...] | None = None,
    value: float | str = "yes",
    milliseconds: float = 2.0,
    **fields: Any,
) -> ScoreProduced:
    fields.setdefault("served_by", "champion")
    fields.setdefault("values", {"age": 40.0})
    ok = Attempt(version=version, outcome="ok", milliseconds=milliseconds)
    return ScoreProduced.first(
        source="/scoring",
        at=at(seconds),
        id=f"event-{pipeline}-{ident}",
        pipeline=pipeline,
        score_id=ident,
        version=version,
        attempts=(ok,) if attempts is None else attempts,
        value=value,
        milliseconds=milliseconds,
        **fields,
    )


def late(
    ident: str, *, slow: str = "2", version: str = "1", outcome: Any = "late", seconds: float = 0.0
) -> ScoreProduced:
    """An answer of `version` after `slow` did not give one in time."""
    attempts = (
        Attempt(version=slow, outcome=outcome),
        Attempt(version=version, outcome="ok", milliseconds=2.0),
    )
    return score(
        ident,
        version=version,
        attempts=attempts,
        seconds=seconds,
        served_by="previous",
        reason=outcome,
        milliseconds=48.0,
    )


def outcome(ident: str = "s-1", value: Any = "yes", *, pipeline: str = "p", observed: float = 0.0) -> OutcomeObserved:
    return OutcomeObserved.first(
        source="/scoring",
        at=at(observed),
        pipeline=pipeline,
        score_id=ident,
        outcome=value,
        observed_at=at(observed),
    )


def observation(
    ident: str, *, pipeline: str = "p", entity: str = "e-1", seconds: float = 0.0, **values: float
) -> ObservationReceived:
    return ObservationReceived.first(
        source="/test",
        at=at(seconds),
        id=ident,
        pipeline=pipeline,
        entity=entity,
        event_time=at(seconds),
        values=values,
    )


class Router:
    """What a scoring process tells of its scores: numbered summaries."""

    def __init__(self, outbox: str | None = None) -> None:
        self.outbox = outbox or str(uuid4())
        self._numbers: Counter[tuple[str, str]] = Counter()

    def tell(self, *scores: ScoreProduced) -> list[ScoresSummarised]:
        """One summary for each version that is in the scores."""
        gathering = Gathering()
        shape = shape_of([Column(name="age", kind="number")], [AGES])
        for one in scores:
            gathering.add(one, shape)
        events: list[ScoresSummarised] = []
        for part in gathering.parts:
            self._numbers[part.pipeline, part.version] += 1
            events.append(part.event("/scoring", self.outbox, self._numbers[part.pipeline, part.version]))
        return events


class Counts:
    """What a standing judges by, counted as the operator counts it."""

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.state: tally.State = {}
        self.router = Router("box-1")

    def scored(self, scores: Sequence[ScoreProduced]) -> None:
        self.take(*self.router.tell(*scores))

    def observed(self, *pairs: Joined) -> None:
        self.take(*[joined(pair.score, pair.outcome) for pair in pairs])

    def take(self, *events: Event) -> None:
        for event in events:
            tally.fold(self.state, event, self.standing.limits)
        self.standing.tallies = tally.tallies(self.state, self.standing.pipeline) or {}


def joined(score: ScoreProduced, outcome: OutcomeObserved) -> OutcomeJoined:
    return OutcomeJoined.caused_by(
        outcome,
        source="/monitoring",
        at=outcome.time,
        version=score.version,
        score_id=score.score_id,
        scored_at=score.time,
        observed_at=outcome.observed_at,
        predicted=score.value,
        outcome=outcome.outcome,
    )


AGES = ColumnProfile(
    name="age",
    kind="number",
    rows=100,
    missing=0,
    distinct=60,
    histogram=Histogram(edges=(0.0, 20.0, 40.0, 60.0, 80.0), counts=(10, 40, 40, 10)),
)


def ready(version: str = "1", *, pipeline: str = "p", seconds: float = 0.0, **fields: Any) -> ModelReady:
    fields.setdefault("target", Target(task="classification", label="y", classes=("no", "yes")))
    fields.setdefault("prior", Prior(value="yes", probabilities={"no": 0.4, "yes": 0.6}))
    fields.setdefault("metrics", {"accuracy": 0.9})
    fields.setdefault("profile", (AGES,))
    return ModelReady.first(
        source="/evaluation",
        at=at(seconds),
        id=f"ready-{pipeline}-{version}",
        pipeline=pipeline,
        version=version,
        file=ModelFile(uri=f"models/{version}.onnx", sha256="0" * 64, size=1),
        inputs=(Column(name="age", kind="number"),),
        algorithm="logistic_regression",
        **fields,
    )
