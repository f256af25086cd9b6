"""CloudEvents 1.0 on the wire: binary mode out; binary mode, structured mode and bare JSON in.

Source: cloudevents/spec, `bindings/kafka-protocol-binding.md` and `formats/json-format.md`. Attributes travel as
`ce_…` headers; `traceparent` is a plain header, written per hop (W3C Trace Context).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

import orjson
import pydantic_core
from pydantic import JsonValue, ValidationError

from turnout.common.bus.port import Received, Record
from turnout.common.errors import Invalid
from turnout.common.events import ATTRIBUTES, REGISTRY, Event
from turnout.common.ids import positional_event_id
from turnout.common.pipeline import in_words

SPECVERSION = "1.0"
CONTENT_TYPE = "content-type"
JSON = "application/json"
STRUCTURED = "application/cloudevents"
DEAD = ".dead"

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 32
# Names of headers up to so many letters are remembered: others may send any, of any length.
SHORT = 64

# The event's field for each attribute; `ce_` comes before its name in a header.
_FIELDS = (
    ("id", "id"),
    ("source", "source"),
    ("time", "time"),
    ("correlationid", "correlation_id"),
    ("causationid", "causation_id"),
)
_SPECVERSION = ("ce_specversion", SPECVERSION.encode())
_CONTENT_TYPE = (CONTENT_TYPE, JSON.encode())
_ATTRIBUTES = set(ATTRIBUTES)
_TYPE = re.compile(r"turnout\.([A-Za-z][A-Za-z0-9]*)\.v([1-9][0-9]{0,3})")
_LONG_INTEGER = re.compile(rb"[0-9]{19}")


def encode(event: Event) -> Record:
    """The event as a record in binary mode. Raises `Invalid` if it is larger than `MAX_BYTES`."""
    shape, key = _shape(type(event)), event.key.encode()
    subject = event.pipeline
    if shape.versioned and isinstance(version := getattr(event, "version", None), str):
        subject = f"{subject}/{version}"
    headers = [
        _SPECVERSION,
        ("ce_id", event.id.encode()),
        ("ce_source", event.source.encode()),
        shape.type,
        ("ce_time", event.time.isoformat().encode()),
        ("ce_subject", subject.encode()),
        ("ce_partitionkey", key),
        ("ce_correlationid", event.correlation_id.encode()),
    ]
    if event.causation_id is not None:
        headers.append(("ce_causationid", event.causation_id.encode()))
    if event.traceparent is not None:
        headers.append(("traceparent", event.traceparent.encode()))
    if shape.expires and isinstance(expiry := getattr(event, "expiry", None), datetime):
        headers.append(("ce_expirytime", expiry.isoformat().encode()))
    headers.append(_CONTENT_TYPE)
    value = event.model_dump_json(by_alias=True, exclude=_ATTRIBUTES).encode()
    if len(value) > MAX_BYTES:
        raise Invalid(
            event.topic(), f"an event of {len(value)} bytes", fix=f"at most {MAX_BYTES}; name the data instead"
        )
    return Record(shape.topic, key, value, tuple(headers))


def as_record(message: Event | Record) -> Record:
    """The record to append: an event is encoded, a record stays as it is."""
    return message if isinstance(message, Record) else encode(message)


def decode(received: Received) -> Event:
    """The event in a record. Raises `Invalid` naming the field, whatever stands there."""
    return event_of(received, *opened(received.record))


def opened(record: Record) -> tuple[dict[str, Any], dict[str, JsonValue]]:
    """A message's CloudEvents attributes, as many as it has, and its data, an object. Raises `Invalid`."""
    if record.value is None:
        raise Invalid("value", "the record is empty (a tombstone)", fix="send the event as JSON")
    headers = texts(record.headers)
    attributes: dict[str, Any]
    if headers.get(CONTENT_TYPE, "").lower().startswith(STRUCTURED):
        attributes, payload = _structured(record.value)
    else:
        attributes = {name[3:]: text for name, text in headers.items() if name.startswith("ce_")}
        payload = parse_json(record.value)
    if not isinstance(payload, dict):
        raise Invalid("value", "it is JSON, but not an object", fix="send the event's fields as one object")
    attributes.setdefault("traceparent", headers.get("traceparent"))
    return attributes, payload


def event_of(received: Received, attributes: Mapping[str, Any], payload: Mapping[str, JsonValue]) -> Event:
    """The event that an opened record is. Raises `Invalid` naming the field."""
    kind = _class(received.record.topic, attributes)
    fields = {**payload, **_attribute_fields(attributes, received)}
    if attributes.get("expirytime") is not None and fields.get("expiry") is None:
        fields["expiry"] = attributes["expirytime"]
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise in_words(error, kind) from None


def texts(headers: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """Our headers as text, names in small letters; the last of several wins. Raises `Invalid` if one is not UTF-8.

    Other people's headers may be any bytes and are passed over.
    """
    found: dict[str, str] = {}
    for given, value in headers:
        name = _remembered(given) if len(given) <= SHORT else _own(given)
        if name is None:
            continue
        try:
            found[name] = value.decode()
        except UnicodeDecodeError:
            raise Invalid(f"header {given}", "it is not UTF-8 text") from None
    return found


def parse_json(value: bytes) -> JsonValue:
    """Strict JSON: no NaN, nothing infinite, no lone surrogate, no deeper than `MAX_DEPTH`. Raises `Invalid`."""
    if not value.strip():
        raise Invalid("value", "it is empty", fix="send the event as JSON")
    if len(value) > MAX_BYTES:
        raise Invalid("value", f"{len(value)} bytes are too many", fix=f"at most {MAX_BYTES}; name the data instead")
    if _depth(value) > MAX_DEPTH:
        raise Invalid("value", "the JSON is nested too deeply", fix=f"at most {MAX_DEPTH} levels")
    try:
        parsed = orjson.loads(value)
        # orjson makes a float of an integer beyond 64 bits; pydantic's parser keeps it.
        return pydantic_core.from_json(value, allow_inf_nan=False) if _LONG_INTEGER.search(value) else parsed
    except ValueError as error:
        raise Invalid("value", f"it is not JSON ({error})", fix="numbers must be finite, text must be UTF-8") from None


def event_class(topic: str) -> type[Event] | None:
    """The class whose events a topic (or its dead letters) carries; None for somebody else's topic."""
    return REGISTRY.get(topic.removesuffix(DEAD))


@dataclass(frozen=True)
class _Shape:
    """What the records of all events of a class have in common, and which of their fields may be more."""

    topic: str
    type: tuple[str, bytes]
    versioned: bool
    expires: bool


@cache
def _shape(kind: type[Event]) -> _Shape:
    # Asked of the class: a model takes its time to say that it lacks an attribute.
    return _Shape(kind.topic(), ("ce_type", kind.type().encode()), _has(kind, "version"), _has(kind, "expiry"))


def _has(kind: type[Event], name: str) -> bool:
    return name in kind.model_fields or hasattr(kind, name)


def _own(given: str) -> str | None:
    """A header's name in small letters; None if it is not for us."""
    name = given.lower()
    return name if name.startswith("ce_") or name in (CONTENT_TYPE, "traceparent") else None


_remembered = lru_cache(maxsize=1024)(_own)


def _structured(value: bytes) -> tuple[dict[str, Any], JsonValue]:
    envelope = parse_json(value)
    if not isinstance(envelope, dict):
        raise Invalid("value", "a structured CloudEvent is an object")
    if "data_base64" in envelope:
        raise Invalid("data_base64", "binary data are not an event's fields", fix="send `data` as a JSON object")
    if "data" not in envelope:
        raise Invalid("data", "is missing", fix="send the event's fields as `data`")
    attributes = {name.lower(): text for name, text in envelope.items() if name != "data"}
    return attributes, envelope["data"]


def _class(topic: str, attributes: Mapping[str, Any]) -> type[Event]:
    version = attributes.get("specversion", SPECVERSION)
    if version != SPECVERSION:
        raise Invalid("specversion", f"CloudEvents {version!r} is not understood", fix=f"send {SPECVERSION}")
    owner = event_class(topic)
    found = attributes.get("type")
    if found is None:
        if owner is None:
            raise Invalid("type", f"the topic {topic} has no event of its own", fix="send the attribute `type`")
        return owner
    match = _TYPE.fullmatch(str(found))
    kind = REGISTRY.get(match.group(1)) if match else None
    if match is None or kind is None or (owner is not None and kind is not owner):
        wanted = owner.type() if owner else "turnout.NAME.v1"
        raise Invalid("type", f"{str(found)[:100]!r} does not belong on {topic}", fix=f"send {wanted}")
    if int(match.group(2)) > kind.major:
        raise Invalid(
            "type", f"{found} is newer than this version of Turnout", fix=f"update it; it reads up to v{kind.major}"
        )
    return kind


def _attribute_fields(attributes: Mapping[str, Any], received: Received) -> dict[str, Any]:
    fields = {field: found for name, field in _FIELDS if (found := attributes.get(name)) is not None}
    for name in ("id", "source"):
        if fields.get(name) == "":
            raise Invalid(name, "is empty", fix="send one, or leave the attribute out")
    if "id" not in fields:
        fields["id"] = positional_event_id(received.record.topic, received.partition, received.offset)
    fields.setdefault("source", "unknown")
    fields.setdefault("time", received.timestamp)
    fields.setdefault("correlation_id", fields["id"])
    fields.setdefault("causation_id", None)
    fields["traceparent"] = attributes.get("traceparent")
    if isinstance(fields["time"], str):
        fields["time"] = _time(fields["time"])
    return fields


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid("time", f"{text[:40]!r} is not a time", fix="write it as 2026-01-31T08:15:00Z") from None
    if moment.tzinfo is None:
        raise Invalid("time", f"{text[:40]!r} has no time zone", fix="end it with Z for UTC")
    return moment


def _depth(value: bytes) -> int:
    """How deeply the JSON is nested; brackets inside of text do not count."""
    if value.count(b"{") + value.count(b"[") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for token in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', value, re.DOTALL):
        if token.group() in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token.group() in b"]}":
            depth -= 1
    return deepest
