"""A message of somebody else's topic as an observation of the pipeline that takes it.

What fits: a CloudEvent of ours that is an `ObservationReceived`, whichever pipeline it names; or a JSON object, bare or
the data of anybody's CloudEvent, whose fields are the pipeline's columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import JsonValue, ValidationError

from turnout.common.bus.cloudevents import event_of, opened
from turnout.common.bus.port import Received
from turnout.common.errors import Invalid
from turnout.common.events import ObservationReceived
from turnout.common.ids import caused_event_id, positional_event_id
from turnout.common.pipeline import PipelineFile, in_words
from turnout.common.values import Cell, category, timestamp

# Says of an observation that it was taken from a topic; it is never taken from one again.
SOURCE = "/ingestion/topics"
_OURS = "turnout."


def observation(received: Received, file: PipelineFile) -> ObservationReceived:
    """The observation that a message is; its id is the same at every delivery. Raises `Invalid` naming the field."""
    attributes, content = opened(received.record)
    try:
        if str(attributes.get("type", "")).startswith(_OURS):
            return _passed_on(received, attributes, content, file)
        return _row(received, attributes, content, file)
    except ValidationError as error:
        raise in_words(error, ObservationReceived) from None


def _passed_on(
    received: Received, attributes: Mapping[str, Any], content: Mapping[str, JsonValue], file: PipelineFile
) -> ObservationReceived:
    event = event_of(received, attributes, content)
    if not isinstance(event, ObservationReceived):
        raise Invalid("type", f"{event.type()} is no row", fix=f"send {ObservationReceived.type()}, or a JSON object")
    if event.source == SOURCE:
        raise Invalid("source", "it was taken from a topic before", fix="let the other pipeline take that topic itself")
    return ObservationReceived.caused_by(
        event,
        source=SOURCE,
        at=received.timestamp,
        of=file.pipeline,
        pipeline=file.pipeline,
        entity=event.entity,
        event_time=event.event_time,
        values=event.values,
    )


def _row(
    received: Received, attributes: Mapping[str, Any], content: Mapping[str, JsonValue], file: PipelineFile
) -> ObservationReceived:
    cells = {name: _cell(value, name) for name, value in content.items()}
    column = file.source.entity
    assert column is not None  # the pipeline file asks for it
    entity = category(cells.pop(column, None))
    if entity is None:
        raise Invalid(column, "is missing", fix="every message says whose row it is")
    at = file.source.event_time
    measured = timestamp(cells.pop(at, None), at) if at is not None else None
    return ObservationReceived.first(
        source=SOURCE,
        at=received.timestamp,
        id=caused_event_id(_ident(received, attributes), ObservationReceived.__name__, file.pipeline),
        traceparent=attributes.get("traceparent"),
        pipeline=file.pipeline,
        entity=entity,
        event_time=measured or _sent(attributes) or received.timestamp,
        values=cells,
    )


def _cell(value: JsonValue, name: str) -> float | int | str | bool | None:
    if isinstance(value, list | dict):
        raise Invalid(name, "a list or an object is no cell", fix="send numbers, texts, true, false or null")
    return value


def _sent(attributes: Mapping[str, Any]) -> datetime | None:
    found: Cell = attributes.get("time")
    return timestamp(found, "time")


def _ident(received: Received, attributes: Mapping[str, Any]) -> str:
    """What the message is called by who sent it (its id is unique within its source), or where it lies."""
    ident, source = attributes.get("id"), attributes.get("source")
    if ident is None:
        return positional_event_id(received.record.topic, received.partition, received.offset)
    return str(ident) if source is None else f"{source}\0{ident}"
