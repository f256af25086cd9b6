"""Other people's clients on our topics, and other people's messages before our reactions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchBuilderPy
from builders import source_available
from buses import kafka_settings, on_kafka
from confluent_kafka import Consumer, Message, Producer
from environment import dead_letters, environment_in, running

from turnout.common.bus.kafka.bus import KafkaBus
from turnout.common.errors import Invalid
from turnout.common.events import Event, RawDataExtracted, SourceDataAvailable
from turnout.common.ids import positional_event_id
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Reaction, Service
from turnout.devstack.stack import Stack

pytestmark = pytest.mark.stack
SECONDS = 60
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
async def place(stack: Stack, tmp_path: Path) -> AsyncIterator[tuple[Environment, str, Producer]]:
    """An environment on Kafka, the prefix of its topics, and somebody else's producer."""
    on_kafka(tmp_path, stack.kafka)
    environment = environment_in(tmp_path)
    environment.__dict__["bus"] = bus = KafkaBus(kafka_settings(tmp_path), home=tmp_path)
    await bus.ensure_topics()
    producer = Producer({"bootstrap.servers": stack.kafka, "partitioner": "murmur2_random", "message.max.bytes": 2**24})
    yield environment, kafka_settings(tmp_path).topic_prefix, producer
    await bus.close()
    await environment.close()


async def sent(producer: Producer, topic: str, value: bytes | None, **fields: Any) -> None:
    """Delivered by the other library."""
    failed: list[object] = []
    producer.produce(topic, value, on_delivery=lambda error, _: failed.append(error) if error else None, **fields)
    assert await asyncio.to_thread(producer.flush, SECONDS) == 0
    assert not failed


def answer(event: Event) -> RawDataExtracted:
    return RawDataExtracted.caused_by(
        event, source="/test", at=event.time, batches=(), columns=(), rows_read=0, rows_written=0, rows_quarantined=0,
        spec_id="s",
    )  # fmt: skip


class Reading:
    """A reaction that remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[SourceDataAvailable] = []

    async def __call__(self, events: Sequence[Event]) -> list[Event]:
        for event in events:
            assert isinstance(event, SourceDataAvailable)
            if event.uri == "invalid":
                raise Invalid("uri", "is no good")
        self.seen += [event for event in events if isinstance(event, SourceDataAvailable)]
        return [answer(event) for event in events]

    def service(self) -> Service:
        return Service("ingestion", [Reaction("read", [SourceDataAvailable], self)])

    async def saw(self, uri: str) -> SourceDataAvailable:
        async with asyncio.timeout(SECONDS):
            while True:
                for event in self.seen:
                    if event.uri == uri:
                        return event
                await asyncio.sleep(0.02)


async def test_bare_json_of_another_library_is_an_event_with_an_id_of_its_place(
    place: tuple[Environment, str, Producer],
) -> None:
    environment, prefix, producer = place
    await sent(producer, f"{prefix}SourceDataAvailable", b'{"pipeline": "p", "uri": "bare"}', key=b"p")
    await sent(producer, f"{prefix}SourceDataAvailable", b'{"pipeline": "p", "uri": "keyless"}')
    reading = Reading()
    async with running(environment, reading.service()):
        bare, keyless = await reading.saw("bare"), await reading.saw("keyless")
    lay = {r.event().id: r async for r in environment.bus.replay(SourceDataAvailable)}
    for event in (bare, keyless):
        received = lay[event.id]
        assert event.id == positional_event_id("SourceDataAvailable", received.partition, received.offset)
        assert (event.time, event.correlation_id) == (received.timestamp, event.id)
    assert await dead_letters(environment.bus, SourceDataAvailable) == []


async def test_another_library_puts_a_key_where_we_put_it(place: tuple[Environment, str, Producer]) -> None:
    environment, prefix, producer = place
    keys = [f"key-{n}" for n in range(40)]
    await environment.bus.publish(*(source_available(pipeline=key) for key in keys))
    for key in keys:
        value = b'{"pipeline": "%s", "uri": "theirs"}' % key.encode()
        producer.produce(f"{prefix}SourceDataAvailable", value, key=key.encode())
    assert await asyncio.to_thread(producer.flush, SECONDS) == 0
    places: dict[bytes | None, set[int]] = {}
    async for received in environment.bus.replay(SourceDataAvailable):
        places.setdefault(received.record.key, set()).add(received.partition)
    assert len(places) == 40
    assert all(len(partitions) == 1 for partitions in places.values())


async def test_another_library_reads_our_events_headers(place: tuple[Environment, str, Producer], stack: Stack) -> None:
    environment, prefix, _ = place
    event = source_available(pipeline="heart", traceparent=TRACE)
    await environment.bus.publish(answer(event))
    message = await asyncio.to_thread(_first, stack.kafka, f"{prefix}RawDataExtracted")
    headers = dict(message.headers() or [])  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert message.key() == b"heart"
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_type"] == b"turnout.RawDataExtracted.v1"
    assert headers["ce_causationid"] == event.id.encode()
    assert headers["traceparent"][:36] == TRACE.encode()[:36], "the trace is the caller's, the step is ours"
    assert headers["content-type"] == b"application/json"


def _first(servers: str, topic: str) -> Message:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": uuid4().hex, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    until = time.monotonic() + SECONDS
    try:
        while time.monotonic() < until:
            message = consumer.poll(1)
            if message is not None and message.error() is None:
                return message
    finally:
        consumer.close()
    raise AssertionError("nothing came")


POISON = {
    "not JSON": (b"not json", []),
    "empty": (b"", []),
    "a tombstone": (None, []),
    "10 MB": (b'{"pipeline": "p", "uri": "' + b"x" * 10_000_000 + b'"}', []),
    "1,000 headers, one not UTF-8": (
        b'{"pipeline": "p"}', [(f"h-{n}", b"v%d" % n) for n in range(1_000)] + [("ce_id", b"\xff")],
    ),
    "an unknown future version": (
        b'{"pipeline": "p", "uri": "x"}', [("ce_specversion", b"1.0"), ("ce_type", b"turnout.SourceDataAvailable.v9")],
    ),
    "refused by the reaction": (
        b'{"pipeline": "p", "uri": "invalid"}', [("theirs", b"\x00\xff"), ("t", b"1"), ("t", b"2")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", POISON)
async def test_poison_is_a_dead_letter_byte_for_byte_and_the_stream_goes_on(
    place: tuple[Environment, str, Producer], case: str
) -> None:
    environment, prefix, producer = place
    value, headers = POISON[case]
    topic, reading = f"{prefix}SourceDataAvailable", Reading()
    await sent(producer, topic, value, key=b"p", headers=headers)
    await sent(producer, topic, b'{"pipeline": "p", "uri": "after"}', key=b"p")
    async with running(environment, reading.service()):
        await reading.saw("after")
        async with asyncio.timeout(SECONDS):
            while (await environment.bus.lag("ingestion.read")) != {"SourceDataAvailable": 0}:
                await asyncio.sleep(0.05)
    [letter] = await dead_letters(environment.bus, SourceDataAvailable)
    assert (letter.record.key, letter.record.value) == (b"p", value)
    assert [*letter.record.headers[: len(headers)]] == headers
    why = dict(letter.record.headers)
    assert (why["dead_topic"], why["dead_offset"]) == (b"SourceDataAvailable", b"0")
    assert why["dead_error_type"] == b"Invalid"


@pytest.mark.parametrize("compression", [None, "gzip"])
async def test_a_header_that_is_no_text_stops_nobody(
    place: tuple[Environment, str, Producer], stack: Stack, compression: str | None
) -> None:
    """A broker takes any bytes as a header's name; the client library's own parser would stop here for ever."""
    environment, prefix, producer = place
    topic = f"{prefix}SourceDataAvailable"
    values = [b'{"pipeline": "p", "uri": "before"}', b'{"pipeline": "p"}', b'{"pipeline": "p", "uri": "after"}']
    await _with_names(stack.kafka, topic, values, b"n\xff\xfe", compression)
    reading = Reading()
    async with running(environment, reading.service()):
        await reading.saw("before")
        await reading.saw("after")
        await sent(producer, topic, b'{"pipeline": "p", "uri": "later"}', key=b"p", partition=0)
        await reading.saw("later")
        async with asyncio.timeout(SECONDS):
            while not (letters := await dead_letters(environment.bus, SourceDataAvailable)):
                await asyncio.sleep(0.05)
    [letter] = letters
    assert (letter.record.key, letter.record.value) == (b"p", values[1])
    assert letter.record.headers[0] == ("n\ufffd\ufffd", b"\x00\xff")
    assert [event.uri for event in reading.seen] == ["before", "after", "later"], "each once, in order"


async def _with_names(servers: str, topic: str, values: Sequence[bytes], name: bytes, compression: str | None) -> None:
    """One batch to partition 0, each record with a header of that name: what no client library sends."""
    codec = {None: DefaultRecordBatch.CODEC_NONE, "gzip": DefaultRecordBatch.CODEC_GZIP}[compression]
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all")
    await producer.start()
    try:
        batch = BatchBuilder(2**20, codec)
        # The library's own writer, in Python, lets a name pass that is bytes already.
        batch._builder = _DefaultRecordBatchBuilderPy(2, codec, 0, -1, -1, 0, 2**20)  # pyright: ignore[reportAttributeAccessIssue]
        header = (_Name(name), b"\x00\xff")
        for value in values:
            assert batch.append(timestamp=None, key=b"p", value=value, headers=[header]) is not None
        batch.close()
        await (await producer.send_batch(batch, topic, partition=0))
    finally:
        await producer.stop()


class _Name(str):
    """A header's name that is any bytes on the wire."""

    def __new__(cls, raw: bytes) -> Self:
        made = super().__new__(cls, raw.decode(errors="replace"))
        made.raw = raw
        return made

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return self.raw
