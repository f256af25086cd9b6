"""An event in a few words, for people who watch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turnout.common.bus.cloudevents import DEAD
from turnout.common.bus.port import Received
from turnout.common.errors import Invalid
from turnout.common.events import (
    BatchScored,
    BatchScoringRequested,
    CandidateRefused,
    DataSegregated,
    EntityForgotten,
    Event,
    FeaturesGenerated,
    ModelDegraded,
    ModelReady,
    ModelTrained,
    ObservationReceived,
    OutcomeObserved,
    PipelineDeclared,
    PipelineRemoved,
    RawDataExtracted,
    RoutingChanged,
    RoutingTable,
    ScoreProduced,
    ScoreRequested,
    SourceDataAvailable,
    StageFailed,
    TopicPullAdvanced,
    TopicPulled,
    TopicPullRequested,
    TrainingRequested,
    VersionEjected,
    VersionRestored,
)

MAX_VALUES = 4


def describe(event: Event) -> str:  # noqa: C901, PLR0911, PLR0912 (one line an event)
    """One line about an event."""
    match event:
        case PipelineDeclared():
            return f"{event.spec.task}, declared by {event.by}"
        case PipelineRemoved():
            return f"removed by {event.by}"
        case EntityForgotten():
            return f"an entity forgotten, asked for by {event.by}"
        case SourceDataAvailable():
            return event.uri
        case ObservationReceived():
            return f"{event.entity}: {_values(event.values)}"
        case RawDataExtracted():
            aside = f", {event.rows_quarantined} quarantined" if event.rows_quarantined else ""
            batches = _count(len(event.batches), "batch", "batches")
            return f"{event.rows_written} of {event.rows_read} rows in {batches}{aside}"
        case FeaturesGenerated():
            return f"{event.rows} rows, {len(event.plan.features)} columns{_warned(len(event.warnings))}"
        case DataSegregated():
            return ", ".join(f"{part.name} {part.rows} rows" for part in event.parts) + _warned(len(event.warnings))
        case TrainingRequested():
            return f"{event.reason}, by {event.by}"
        case ModelTrained():
            which = f"candidate {event.candidate + 1} of {event.candidates}: {event.algorithm}"
            return f"{which} failed: {event.failure}" if event.failure else f"{which} in {event.seconds:.1f} s"
        case ModelReady():
            return f"version {event.version}: {event.algorithm}, {metrics(event.metrics)}; {event.why}".rstrip("; ")
        case CandidateRefused():
            return f"{event.algorithm or 'the run'}: {event.why}"
        case RoutingChanged():
            return f"{routes(event.table)}; {event.why}"
        case VersionEjected():
            return f"version {event.version} {'taken off' if event.admitted else 'refused'}: {event.why}"
        case VersionRestored():
            return f"version {event.version} asked again{': ' if event.why else ''}{event.why}"
        case ScoreRequested():
            return event.entity or _values(event.values or {})
        case ScoreProduced():
            why = f" ({event.reason})" if event.reason else ""
            return f"{event.value} by version {event.version}, {event.served_by}{why}, {event.milliseconds:.1f} ms"
        case OutcomeObserved():
            return f"{event.score_id}: {event.outcome}"
        case ModelDegraded():
            return f"version {event.version}, {event.signal}: {event.why}"
        case BatchScoringRequested():
            return event.uri
        case BatchScored():
            return f"{event.rows} rows by version {event.version}"
        case TopicPullRequested():
            return f"asked for by {event.by}"
        case TopicPullAdvanced() | TopicPulled():
            return f"{event.taken} taken from {event.source_topic}, {event.refused} refused"
        case StageFailed():
            return f"{event.stage}: {event.error}"
        case _:
            return ""


def described(received: Received) -> tuple[str, str]:
    """The pipeline and one line about a record, whatever is in it."""
    headers = {name: value.decode(errors="replace") for name, value in received.record.headers}
    if received.record.topic.endswith(DEAD):
        line = headers.get("dead_error", "no reason given")
        return headers.get("ce_subject", "?").partition("/")[0], line
    if received.record.value is None:
        return (received.record.key or b"?").decode(errors="replace"), "(removed)"
    try:
        event = received.event()
    except Invalid as error:
        return headers.get("ce_subject", "?"), f"not understood: {error}"
    return event.pipeline, describe(event)


def metrics(found: Mapping[str, float]) -> str:
    """Metrics in one line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in sorted(found.items())) or "no metrics"


def routes(table: RoutingTable) -> str:
    """A routing table in one line."""
    words = [f"champion {table.champion}"]
    if table.previous:
        words.append(f"previous {table.previous}")
    if table.challenger:
        words.append(f"challenger {table.challenger} ({table.share:.0%})")
    return ", ".join(words) + (", pinned" if table.pinned else "")


def _values(values: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name}={value}" for name, value in list(values.items())[:MAX_VALUES])
    return shown + (", …" if len(values) > MAX_VALUES else "")


def _warned(number: int) -> str:
    return f", {_count(number, 'warning', 'warnings')}" if number else ""


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
