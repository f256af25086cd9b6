"""Dead letters: what could not be handled, byte for byte, with the reason in its headers; and the way back.

A topic's dead letters lie on `TOPIC.dead`. The headers that say why begin with `dead_`; the record's own stay.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

from turnout.common.bus.cloudevents import DEAD
from turnout.common.bus.port import Bus, Received, Record
from turnout.common.errors import Invalid
from turnout.common.ids import positional_event_id
from turnout.common.runtime.redaction import redact

ATTEMPT = "turnout_attempt"
FIRST_FAILURE = "turnout_first_failure"
PREFIX = "dead_"
REPLAY_GROUP = "turnout.replay"
REPLAY_SECONDS = 5.0


@dataclass(frozen=True)
class Origin:
    """Where a record lay and when it was first tried by whom."""

    topic: str
    partition: int
    offset: int
    timestamp: datetime
    group: str
    first_failure: datetime


def dead_letter(record: Record, origin: Origin, error: BaseException, attempts: int) -> Record:
    """The record for the dead letters: key and value untouched, the reason in headers."""
    reason = {
        "topic": origin.topic,
        "partition": str(origin.partition),
        "offset": str(origin.offset),
        "timestamp": origin.timestamp.isoformat(),
        "timestamp_type": "append",
        "group": origin.group,
        "service": origin.group.partition(".")[0],
        "error_type": type(error).__name__,
        "error": redact(str(error) or type(error).__name__),
        "attempts": str(attempts),
        "first_failure": origin.first_failure.isoformat(),
    }
    if isinstance(error, Invalid):
        reason["field"] = redact(error.field)
        if error.fix is not None:
            reason["fix"] = redact(error.fix)
    earlier = dict(record.headers).get(FIRST_FAILURE)
    if earlier is not None:
        reason["first_failure"] = earlier.decode(errors="replace")
    kept = tuple((n, value) for n, value in record.headers if not n.startswith(PREFIX) and n != FIRST_FAILURE)
    added = tuple((PREFIX + name, text.encode(errors="replace")) for name, text in reason.items())
    return Record(origin.topic + DEAD, record.key, record.value, kept + added)


def revived(received: Received) -> Record:
    """A dead letter as it goes back to its topic: the same key, value and event id, its attempt one higher.

    Raises `Invalid` if it does not say where it came from.
    """
    headers = dict(received.record.headers)
    topic = headers.get("dead_topic", b"").decode(errors="replace")
    if not topic:
        raise Invalid("dead_topic", f"record {received.offset} does not say where it came from")
    kept = [(n, v) for n, v in received.record.headers if not n.startswith(PREFIX) and n != ATTEMPT]
    kept.append((FIRST_FAILURE, headers.get("dead_first_failure", b"unknown")))
    if b"ce_id" not in {name.encode() for name, _ in kept} and not _structured(headers):
        # It came as bare JSON: its id says where it lay at first, and has to stay.
        place = int(headers.get("dead_partition", b"0")), int(headers.get("dead_offset", b"0"))
        kept.append(("ce_id", positional_event_id(topic, *place).encode()))
    kept.append((ATTEMPT, str(attempt_of(received.record) + 1).encode()))
    return Record(topic, received.record.key, received.record.value, tuple(kept))


def attempt_of(record: Record) -> int:
    """How often the record was sent, from 1."""
    text = dict(record.headers).get(ATTEMPT, b"1")
    return int(text) if text.isdigit() and len(text) < 10 else 1


async def replay_dead_letters(bus: Bus, topic: str) -> int:
    """Send a topic's dead letters back, each once; how many went.

    A consumer group remembers which were sent. A letter that dies again meanwhile goes with the next call.
    """
    name = topic.removesuffix(DEAD) + DEAD
    left = await left_to_replay(bus, topic)
    sent = 0
    if left == 0:
        return sent
    async with aclosing(bus.consume(name, group=REPLAY_GROUP)) as deliveries:
        while sent < left:
            try:
                async with asyncio.timeout(REPLAY_SECONDS):
                    delivery = await anext(deliveries)
            except TimeoutError:
                break  # another replay has the rest, or it was removed meanwhile
            await delivery.done(*(revived(letter) for letter in delivery.received))
            sent += len(delivery.received)
    return sent


async def left_to_replay(bus: Bus, topic: str) -> int:
    """Dead letters of a topic that were not sent back yet."""
    name = topic.removesuffix(DEAD) + DEAD
    behind = (await bus.lag(REPLAY_GROUP)).get(name)
    return behind if behind is not None else sum([1 async for _ in bus.replay(name)])


def _structured(headers: dict[str, bytes]) -> bool:
    return headers.get("content-type", b"").lower().startswith(b"application/cloudevents")
