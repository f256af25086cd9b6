"""Any event of any class comes back from the wire as it was; any bytes are an event or a clear refusal."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime, BaseModel

from turnout.common.bus.cloudevents import decode, encode
from turnout.common.bus.log import pack_headers, unpack_headers
from turnout.common.bus.port import Received, Record
from turnout.common.errors import Invalid
from turnout.common.events import ATTRIBUTES, REGISTRY, Event, PipelineDeclared
from turnout.common.pipeline import parse

NOW = datetime(2026, 5, 1, tzinfo=UTC)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
CELL = st.none() | st.booleans() | FLOAT | st.integers(-(2**70), 2**70) | TEXT
TIME = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.sampled_from(  # noqa: DTZ001 (hypothesis adds the zone)
    [UTC, timezone(timedelta(hours=5, minutes=45))]
))  # fmt: skip
FILES = st.sampled_from([
    parse("pipeline: p\ntask: clustering"),
    parse("pipeline: a-b\ntask: regression\nsource: {label: y}\npreparation: [{impute: {columns: [x]}}]"),
])  # fmt: skip


@st.composite
def events(draw: st.DrawFn) -> Event:
    """An event of any class, built from its own schema."""
    kind = draw(st.sampled_from(sorted(REGISTRY.values(), key=lambda k: k.__name__)))
    fields = {name: draw(_values(info.annotation, info.metadata)) for name, info in kind.model_fields.items()
              if name not in ATTRIBUTES and name != "spec"}  # fmt: skip
    if kind is PipelineDeclared:
        fields["spec"] = draw(FILES)
    attributes = {"id": draw(NAME), "source": draw(NAME), "time": draw(TIME), "correlation_id": draw(NAME)}
    optional = {"causation_id": draw(st.none() | NAME), "traceparent": draw(st.none() | NAME)}
    return kind(**fields, **attributes, **optional)


def _values(annotation: object, metadata: list[object]) -> st.SearchStrategy[object]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    match annotation:
        case _ if annotation is str:
            if any(getattr(m, "pattern", None) for m in metadata):
                return st.text("0123456789abcdef", min_size=64, max_size=64)
            return NAME if metadata else TEXT
        case _ if annotation is bool:
            return st.booleans()
        case _ if annotation is int:
            return st.integers(1, 2**50)
        case _ if annotation is float:
            return st.floats(0, 1)
        case _ if annotation in (datetime, AwareDatetime):
            return TIME
        case type() if issubclass(annotation, BaseModel):
            return st.fixed_dictionaries(
                {name: _values(info.annotation, info.metadata) for name, info in annotation.model_fields.items()}
            ).map(lambda fields: annotation(**fields))
        case _ if origin is typing.Literal:
            return st.sampled_from(arguments)
        case _ if origin is typing.Annotated:
            return _values(arguments[0], list(arguments[1:]))
        case _ if origin is tuple:
            return st.lists(_values(arguments[0], []), max_size=3).map(tuple)
        case _ if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
            return st.dictionaries(_values(arguments[0], []), _values(arguments[1], []), max_size=3)
        case _ if origin in (typing.Union, types.UnionType):
            if set(arguments) >= {float, int, str, bool}:
                return CELL if type(None) in arguments else CELL.filter(lambda v: v is not None)
            return st.one_of(*(st.none() if a is type(None) else _values(a, metadata) for a in arguments))
        case _:
            return CELL  # a JSON value


@given(events())
@settings(max_examples=300, deadline=None)
def test_an_event_comes_back_from_the_wire_as_it_was(event: Event) -> None:
    again = decode(Received(encode(event), 0, 0, NOW))
    assert type(again) is type(event)
    assert again == event
    assert encode(again) == encode(event)


JSONISH = st.recursive(CELL, lambda inner: st.dictionaries(TEXT, inner)).map(repr).map(str.encode)
HEADER = st.sampled_from(["ce_id", "ce_type", "ce_time", "content-type", "traceparent"])
TOPICS = st.sampled_from([*sorted(REGISTRY), "theirs", "ModelReady.dead"])


@given(st.binary(max_size=200) | JSONISH, st.lists(st.tuples(HEADER, st.binary(max_size=20))), TOPICS)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_an_event_or_a_clear_refusal(value: bytes, headers: list[tuple[str, bytes]], topic: str) -> None:
    with suppress(Invalid):
        assert isinstance(decode(Received(Record(topic, None, value, tuple(headers)), 0, 0, NOW)), Event)


@given(events(), st.integers(0, 10_000), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_damaged_event_is_refused_or_read_never_a_crash(event: Event, place: int, byte: int) -> None:
    record = encode(event)
    value = bytearray(record.value or b"")
    value[place % len(value)] = byte
    with suppress(Invalid):
        decode(Received(record._replace(value=bytes(value)), 0, 0, NOW))


@given(st.lists(st.tuples(TEXT, st.binary())))
def test_headers_of_any_bytes_are_packed_and_unpacked(headers: list[tuple[str, bytes]]) -> None:
    assert unpack_headers(pack_headers(headers)) == tuple(headers)
