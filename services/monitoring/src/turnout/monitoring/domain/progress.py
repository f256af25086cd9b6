"""Where on its way from a file to a live answer a pipeline stands."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from turnout.common.events import (
    CandidateRefused,
    DataSegregated,
    Event,
    FeaturesGenerated,
    ModelReady,
    ModelTrained,
    PipelineDeclared,
    RawDataExtracted,
    RoutingChanged,
    SourceDataAvailable,
    StageFailed,
    TrainingRequested,
)

# The events that say where a pipeline is.
MILESTONES: tuple[type[Event], ...] = (
    PipelineDeclared, SourceDataAvailable, RawDataExtracted, FeaturesGenerated, DataSegregated, TrainingRequested,
    ModelTrained, ModelReady, CandidateRefused, RoutingChanged, StageFailed,
)  # fmt: skip


class Stage(BaseModel):
    """The last thing that happened: a word, a sentence and when."""

    name: str
    detail: str
    at: datetime
    failed: bool = False


class Progress:
    """The newest milestone of each pipeline."""

    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {}

    def take(self, event: Event) -> None:
        """Something happened; an older event than the newest changes nothing."""
        stage = stage_of(event)
        known = self._stages.get(event.pipeline)
        if stage is not None and (known is None or stage.at >= known.at):
            self._stages[event.pipeline] = stage

    def of(self, pipeline: str) -> Stage | None:
        """Where the pipeline stands."""
        return self._stages.get(pipeline)

    def forget(self, pipeline: str, at: datetime) -> None:
        """The pipeline ended then; what one of that name did later stays."""
        known = self._stages.get(pipeline)
        if known is not None and known.at <= at:
            del self._stages[pipeline]


def stage_of(event: Event) -> Stage | None:
    """What an event says of its pipeline's stage; None if nothing."""
    said = _said(event)
    return None if said is None else Stage(name=said[0], detail=said[1], at=event.time, failed=said[0] == "failed")


def _said(event: Event) -> tuple[str, str] | None:  # noqa: PLR0911, C901 (one line an event)
    match event:
        case PipelineDeclared():
            return "declared", f"the pipeline file was declared by {event.by}"
        case SourceDataAvailable():
            return "announced", f"data lie at {event.uri}"
        case RawDataExtracted():
            return "ingested", f"{event.rows_written} rows written, {event.rows_quarantined} quarantined"
        case FeaturesGenerated():
            return "prepared", f"{event.rows} rows of {len(event.plan.features)} features"
        case DataSegregated():
            return "segregated", ", ".join(f"{part.rows} rows to {part.name}" for part in event.parts)
        case TrainingRequested():
            return "training", event.reason
        case ModelTrained():
            said = f"candidate {event.candidate + 1} of {event.candidates}: {event.algorithm}"
            return "training", said if event.failure is None else f"{said} failed: {event.failure}"
        case ModelReady():
            return "evaluated", f"version {event.version} is ready"
        case CandidateRefused():
            return "evaluated", f"refused: {event.why}"
        case RoutingChanged():
            return "serving", f"version {event.table.champion} answers"
        case StageFailed():
            return "failed", f"{event.stage}: {event.error}"
        case _:
            return None
