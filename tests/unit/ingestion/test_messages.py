"""A message of somebody else's topic as an observation, or the reason why it is none."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import builders
import pytest

from turnout.common.bus.cloudevents import encode
from turnout.common.bus.port import Received, Record
from turnout.common.errors import Invalid
from turnout.common.pipeline import parse
from turnout.common.runtime.dead_letters import Origin, dead_letter, revived
from turnout.ingestion.domain.messages import SOURCE, observation

SENT = datetime(2026, 3, 2, 9, tzinfo=UTC)
FILE = parse("""
pipeline: mine
task: features
source: {topic: feed, entity: patient, event_time: at}
schema: {patient: category, at: timestamp, pulse: number, place: category}
""")
OTHER = FILE.model_copy(update={"pipeline": "other"})


def message(content: Any, *headers: tuple[str, str], offset: int = 0) -> Received:
    value = content if isinstance(content, bytes | None) else json.dumps(content).encode()
    return Received(Record("feed", b"k", value, tuple((n, v.encode()) for n, v in headers)), 1, offset, SENT)


def passed_on(record: Record) -> Received:
    return Received(Record("feed", record.key, record.value, record.headers), 1, 0, SENT)


def test_a_bare_object_is_a_row() -> None:
    found = observation(message({"patient": 17.0, "at": "2026-03-01T08:00:00Z", "pulse": 71, "place": None}), FILE)
    assert (found.pipeline, found.entity, found.event_time) == ("mine", "17", datetime(2026, 3, 1, 8, tzinfo=UTC))
    assert found.values == {"pulse": 71, "place": None}
    assert found.time == SENT


def test_a_row_without_a_time_was_measured_when_it_was_sent() -> None:
    assert observation(message({"patient": "a"}), FILE).event_time == SENT
    theirs = message({"patient": "a"}, ("ce_time", "2026-03-01T07:00:00+01:00"))
    assert observation(theirs, FILE).event_time == datetime(2026, 3, 1, 6, tzinfo=UTC)


def test_the_data_of_a_foreign_event_are_a_row() -> None:
    headers = (("content-type", "application/cloudevents+json"),)
    envelope = {"specversion": "1.0", "id": "1", "source": "/clinic", "type": "org.clinic.beat"}
    structured = message({**envelope, "data": {"patient": "a", "pulse": 70}}, *headers)
    binary = message({"patient": "a", "pulse": 70}, ("ce_id", "1"), ("ce_source", "/clinic"), ("ce_type", "org.beat"))
    assert observation(structured, FILE).values == observation(binary, FILE).values == {"pulse": 70}
    assert observation(structured, FILE).id == observation(binary, FILE).id


def test_an_observation_is_taken_over_whichever_pipeline_it_names() -> None:
    event = builders.observation(entity="e-7", values={"pulse": 70.0})
    found = observation(passed_on(encode(event)), FILE)
    assert (found.pipeline, found.entity, found.event_time) == ("mine", "e-7", event.event_time)
    assert (found.correlation_id, found.causation_id) == (event.correlation_id, event.id)


def test_ids_are_the_same_at_every_delivery_and_differ_between_pipelines_and_messages() -> None:
    bare = message({"patient": "a"})
    event = passed_on(encode(builders.observation()))
    for received in (bare, event):
        assert observation(received, FILE).id == observation(received, FILE).id
        assert observation(received, FILE).id != observation(received, OTHER).id
    assert observation(bare, FILE).id != observation(message({"patient": "a"}, offset=1), FILE).id


def test_a_dead_letter_that_was_sent_back_is_the_same_observation() -> None:
    bare = message({"patient": "a"})
    letter = dead_letter(bare.record, Origin("feed", 1, 0, SENT, "g", SENT), Invalid("x", "y"), 1)
    again = Received(revived(Received(letter, 0, 5, SENT)), 3, 9, SENT)
    assert again.record.topic == "feed"
    assert observation(again, FILE).id == observation(bare, FILE).id


@pytest.mark.parametrize(
    ("received", "says"),
    [
        (message(None), "value: the record is empty"),
        (message(b"\xff"), "value: it is not JSON"),
        (message([1]), "value: it is JSON, but not an object"),
        (message({"pulse": 1}), "patient: is missing; every message says whose row it is"),
        (message({"patient": " "}), "patient: is missing"),
        (message({"patient": "a" * 201}), "entity: string should have at most 200 characters"),
        (message({"patient": "a", "pulse": [1]}), "pulse: a list or an object is no cell"),
        (message({"patient": "a", "at": "soon"}), "at: 'soon' is not a time"),
        (message({"patient": "a"}, ("ce_time", "soon")), "time: 'soon' is not a time"),
        (passed_on(encode(builders.score_produced())), "type: turnout.ScoreProduced.v1 is no row; send turnout.Obs"),
        (passed_on(encode(builders.observation(source=SOURCE))), "source: it was taken from a topic before"),
        (message({}, ("ce_type", "turnout.ObservationReceived.v9")), "type: turnout.ObservationReceived.v9 is newer"),
        (message({}, ("ce_type", "turnout.ObservationReceived.v1")), "entity: is missing"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(received: Received, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        observation(received, FILE)
    assert says in str(caught.value)
