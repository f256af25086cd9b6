"""What lies on the wire, and what is made of other people's messages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from builders import AT, model_ready, observation, score_requested, source_available

from turnout.common.bus.cloudevents import MAX_BYTES, decode, encode
from turnout.common.bus.port import Received, Record
from turnout.common.errors import Invalid
from turnout.common.events import ObservationReceived, SourceDataAvailable
from turnout.common.ids import positional_event_id

NOW = datetime(2026, 5, 1, tzinfo=UTC)
FIELDS = {"pipeline": "p", "uri": "a.csv"}


def lies(record: Record, partition: int = 2, offset: int = 7) -> Received:
    return Received(record, partition, offset, NOW)


def binary(value: bytes | None = None, topic: str = "SourceDataAvailable", **headers: str) -> Received:
    made = {"ce_specversion": "1.0", "ce_id": "e-1", "ce_type": f"turnout.{topic}.v1", "ce_source": "/test"} | headers
    content = orjson.dumps(FIELDS) if value is None else value
    return lies(Record(topic, b"p", content, tuple((n, t.encode()) for n, t in made.items() if t)))


def structured(content: Any, topic: str = "SourceDataAvailable") -> Received:
    headers = (("Content-Type", b"application/cloudevents+json; charset=UTF-8"),)
    return lies(Record(topic, b"p", orjson.dumps(content), headers))


def test_an_event_is_a_binary_mode_message() -> None:
    event = source_available(uri="a.csv", spec_id="s", train=True).model_copy(
        update={"causation_id": "c", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    )
    record = encode(event)
    assert record.topic == "SourceDataAvailable"
    assert record.key == b"p"
    assert dict(record.headers) == {
        "ce_specversion": b"1.0",
        "ce_id": event.id.encode(),
        "ce_source": b"/cli",
        "ce_type": b"turnout.SourceDataAvailable.v1",
        "ce_time": b"2026-03-01T12:00:00+00:00",
        "ce_subject": b"p",
        "ce_partitionkey": b"p",
        "ce_correlationid": event.id.encode(),
        "ce_causationid": b"c",
        "traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "content-type": b"application/json",
    }
    assert orjson.loads(record.value or b"") == {
        "pipeline": "p", "uri": "a.csv", "format": None, "spec_id": "s", "train": True,
    }  # fmt: skip
    assert decode(lies(record)) == event


def test_the_subject_names_a_version_and_the_key_an_entity() -> None:
    assert dict(encode(model_ready("6")).headers)["ce_subject"] == b"p/6"
    assert encode(observation(entity="p-17")).key == b"p-17"
    assert dict(encode(observation(entity="p-17")).headers)["ce_partitionkey"] == b"p-17"


def test_a_deadline_travels_as_expirytime() -> None:
    headers = dict(encode(score_requested(expiry=AT)).headers)
    assert headers["ce_expirytime"] == b"2026-03-01T12:00:00+00:00"


def test_structured_mode_is_accepted() -> None:
    event = decode(structured({
        "specversion": "1.0", "id": "e-9", "source": "/them", "type": "turnout.SourceDataAvailable.v1",
        "time": "2026-01-02T03:04:05Z", "correlationid": "c-1", "traceparent": "00-a-b-01", "data": FIELDS,
    }))  # fmt: skip
    assert isinstance(event, SourceDataAvailable)
    assert (event.id, event.source, event.correlation_id, event.uri) == ("e-9", "/them", "c-1", "a.csv")
    assert event.time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert event.traceparent == "00-a-b-01"


def test_bare_json_is_accepted() -> None:
    event = decode(lies(Record("SourceDataAvailable", None, orjson.dumps(FIELDS))))
    ident = positional_event_id("SourceDataAvailable", 2, 7)
    assert (event.id, event.correlation_id, event.source, event.time) == (ident, ident, "unknown", NOW)


def test_attributes_never_come_from_the_body() -> None:
    event = decode(binary(orjson.dumps({**FIELDS, "id": "forged", "source": "/forged", "correlation_id": "forged"})))
    assert (event.id, event.source, event.correlation_id) == ("e-1", "/test", "e-1")


def test_a_field_from_a_newer_writer_is_passed_over() -> None:
    assert decode(binary(orjson.dumps({**FIELDS, "new_field": 1}))).pipeline == "p"


def test_dead_letters_read_as_what_they_were() -> None:
    received = binary()
    dead = lies(received.record._replace(topic="SourceDataAvailable.dead"))
    assert isinstance(decode(dead), SourceDataAvailable)


def test_integers_beyond_64_bits_stay_exact() -> None:
    fields = b'"pipeline":"p","entity":"e","event_time":"2026-01-01T00:00:00Z"'
    value = b"{" + fields + b',"values":{"a":123456789012345678901234567890}}'
    event = decode(binary(value, "ObservationReceived"))
    assert isinstance(event, ObservationReceived)
    assert event.values["a"] == 123456789012345678901234567890


@pytest.mark.parametrize(
    ("received", "says"),
    [
        (lies(Record("SourceDataAvailable", b"p", None)), "value: the record is empty (a tombstone)"),
        (binary(b"  "), "value: it is empty"),
        (binary(b"not json"), "value: it is not JSON"),
        (binary(b"\xff\xfe"), "value: it is not JSON"),
        (binary(b"[1]"), "value: it is JSON, but not an object"),
        (binary(b'{"pipeline": NaN}'), "value: it is not JSON"),
        (binary(b'{"pipeline": "p", "x": Infinity}'), "value: it is not JSON"),
        (binary(b'{"pipeline": "p", "x": 1e400}'), "value: it is not JSON"),
        (binary(b'{"pipeline": "p", "x": 1' + b"0" * 10_000 + b"}"), "value: it is not JSON"),
        (binary(b'{"pipeline": "\\ud800"}'), "value: it is not JSON"),
        (binary(b'{"a":' * 5000 + b"1" + b"}" * 5000), "value: the JSON is nested too deeply; at most 32 levels"),
        (binary(b'{"a":"' + b"x" * MAX_BYTES + b'"}'), f"value: {MAX_BYTES + 8} bytes are too many"),
        (binary(b'{"pipeline": "p"}'), "uri: is missing; it is required"),
        (binary(b'{"pipeline": "", "uri": "x"}'), "pipeline: string should have at least 1 character"),
        (binary(b'{"pipeline": "p", "uri": 3}'), "uri: input should be a valid string, found 3"),
        (binary(ce_type="turnout.ModelReady.v1"), "type: 'turnout.ModelReady.v1' does not belong on SourceData"),
        (binary(ce_type="com.example.thing"), "type: 'com.example.thing' does not belong on SourceDataAvailable"),
        (binary(ce_type="turnout.SourceDataAvailable.v2"), "type: turnout.SourceDataAvailable.v2 is newer than this"),
        (binary(ce_specversion="2.0"), "specversion: CloudEvents '2.0' is not understood; send 1.0"),
        (binary(ce_time="yesterday"), "time: 'yesterday' is not a time"),
        (binary(ce_time="2026-01-01T00:00:00"), "time: '2026-01-01T00:00:00' has no time zone"),
        (structured({"specversion": "1.0", "id": "x"}), "data: is missing"),
        (structured({"data_base64": "AA=="}), "data_base64: binary data are not an event's fields"),
        (structured([1]), "value: a structured CloudEvent is an object"),
        (structured({"specversion": 1.0, "data": FIELDS}), "specversion: CloudEvents 1.0 is not understood"),
        (structured({"id": 3, "data": FIELDS}), "id: input should be a valid string"),
        (structured({"id": "", "data": FIELDS}), "id: is empty"),
        (binary(topic="their.topic", ce_type=""), "type: the topic their.topic has no event of its own"),
        (lies(Record("SourceDataAvailable", b"p", b"{}", (("ce_id", b"\xff"),))), "header ce_id: it is not UTF-8 text"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_event_is_refused_with_a_reason(received: Received, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        received.event()
    assert str(caught.value).startswith(says)


def test_brackets_inside_of_text_are_no_depth() -> None:
    assert decode(binary(orjson.dumps({**FIELDS, "uri": '[{"' * 100}))).pipeline == "p"


def test_many_headers_are_no_trouble() -> None:
    received = binary()
    headers = received.record.headers + tuple((f"x-{n}", b"y") for n in range(1000))
    assert decode(lies(received.record._replace(headers=headers))).id == "e-1"


def test_an_event_that_is_too_large_is_refused_before_it_is_sent() -> None:
    with pytest.raises(Invalid, match="name the data instead"):
        encode(source_available(uri="x" * (MAX_BYTES + 1)))
