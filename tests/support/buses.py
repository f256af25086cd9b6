"""Every adapter of the bus by name, so that one suite, and the processes it starts, can open any of them.

Run as a program it is another process on the same bus:

    buses.py ADAPTER PLACE publish KEY NUMBER      publishes NUMBER events with one key
    buses.py ADAPTER PLACE handle LEDGER [DIE_AT]  consumes as group `g`: a line in LEDGER, an event produced, done;
                                                   killed before the `done` of delivery DIE_AT
    buses.py ADAPTER PLACE hold                    takes one delivery, says so, waits for a line, then tries `done`
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from turnout.common.bus.kafka.settings import KafkaSettings
from turnout.common.bus.port import Bus, Delivery
from turnout.common.errors import Unavailable
from turnout.common.events import SourceDataAvailable, StageFailed
from turnout.common.runtime import logs

ADAPTERS = ("embedded", pytest.param("kafka", marks=pytest.mark.stack))
GROUP = "g"
KAFKA_FILE = "kafka.json"
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def open_bus(adapter: str, place: Path) -> Bus:
    match adapter:
        case "embedded":
            from turnout.common.bus.embedded import EmbeddedBus

            return EmbeddedBus(place / "bus")
        case "kafka":
            from turnout.common.bus.kafka.bus import KafkaBus

            return KafkaBus(kafka_settings(place), home=place)
        case _:
            raise ValueError(adapter)


def kafka_settings(place: Path) -> KafkaSettings:
    """How the bus of this place is reached; written by `on_kafka`."""
    return KafkaSettings.model_validate_json((place / KAFKA_FILE).read_bytes())


def on_kafka(place: Path, servers: str, **settings: object) -> None:
    """Let the bus of this place be on Kafka, under names that no other place has."""
    prefix = f"t{uuid4().hex[:8]}."
    settings = {"servers": servers, "topic_prefix": prefix, "replication_factor": 1} | settings
    (place / KAFKA_FILE).write_text(json.dumps(settings))


def foreign(name: str) -> str:
    """A topic of somebody else that no other test has: no prefix of ours stands before it."""
    return f"{name}.{uuid4().hex[:8]}"


def numbered(number: int, key: str = "p") -> SourceDataAvailable:
    """An event whose place in its key's order can be read from it."""
    return SourceDataAvailable.first(source="/test", at=AT, id=f"{key}-{number}", pipeline=key, uri=str(number))


def answer(event: SourceDataAvailable) -> StageFailed:
    return StageFailed.caused_by(event, source="/test", at=AT, stage="test", error=event.uri)


def process(adapter: str, place: Path, *words: object) -> subprocess.Popen[str]:
    """This file as another process."""
    return subprocess.Popen(
        [sys.executable, __file__, adapter, str(place), *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def events_of(deliveries: Sequence[Delivery]) -> list[SourceDataAvailable]:
    found = [received.event() for delivery in deliveries for received in delivery.received]
    assert all(isinstance(event, SourceDataAvailable) for event in found)
    return found  # pyright: ignore[reportReturnType]


async def _publish(bus: Bus, key: str, number: int) -> None:
    for first in range(0, number, 7):
        await bus.publish(*(numbered(n, key) for n in range(first, min(first + 7, number))))


async def _handle(bus: Bus, ledger: Path, die_at: int) -> None:
    print("ready", flush=True)
    taken = 0
    async with aclosing(bus.consume(SourceDataAvailable, group=GROUP)) as deliveries:
        async for delivery in deliveries:
            taken += 1
            events = events_of([delivery])
            with ledger.open("a") as file:
                file.write("".join(f"{event.id}\n" for event in events))
            if taken == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            await delivery.done(*map(answer, events))


async def _hold(bus: Bus) -> None:
    async for delivery in bus.consume(SourceDataAvailable, group=GROUP):
        print("holding", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        try:
            await delivery.done(*map(answer, events_of([delivery])))
        except Unavailable:
            print("refused", flush=True)
        else:
            print("accepted", flush=True)
        return


async def _main(adapter: str, place: str, what: str, *words: str) -> None:
    bus = open_bus(adapter, Path(place))
    match what, *words:
        case "publish", key, number:
            await _publish(bus, key, int(number))
        case "handle", ledger:
            await _handle(bus, Path(ledger), 0)
        case "handle", ledger, die_at:
            await _handle(bus, Path(ledger), int(die_at))
        case "hold", *_:
            await _hold(bus)
        case _:
            raise ValueError(what)
    await bus.close()


if __name__ == "__main__":
    logs.configure("warning", console=False)  # what it says on stdout is for who started it
    asyncio.run(_main(*sys.argv[1:]))
