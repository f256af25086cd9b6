"""The embedded bus beside plain sqlite3 doing the same writes and reads, in one run.

Plain sqlite3 is what one would write by hand: one table, one thread, `executemany`, the same rows, the same
durability (WAL, synchronous=FULL: a commit survives a power cut). It has no topics, groups, offsets or other
processes. Rounds alternate, and each figure is the median of its rounds.

    python benchmarks/embedded_bus.py [ROUNDS]
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

from turnout.common.bus.cloudevents import encode
from turnout.common.bus.embedded import EmbeddedBus
from turnout.common.bus.log import pack_headers, unpack_headers
from turnout.common.bus.port import Record
from turnout.common.events import ObservationReceived

BATCHED, BATCH = 50_000, 500
SINGLE = 2_000
WRITERS = 64

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
VALUES = {"age": 63.0, "chol": 233.0, "trestbps": 145.0, "sex": "1", "cp": "4"}


def records(number: int) -> list[Record]:
    """Observations as they are on the wire, a few hundred bytes each, with 97 keys."""
    events = (
        ObservationReceived.first(
            source="/bench", at=AT, id=f"e-{n}", pipeline="heart", entity=f"p-{n % 97}", event_time=AT, values=VALUES
        )
        for n in range(number)
    )
    return [encode(event) for event in events]


class Plain:
    """sqlite3 by hand."""

    def __init__(self, folder: Path) -> None:
        self.db = sqlite3.connect(folder / "plain.sqlite", isolation_level=None)
        self.db.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE log (offset INTEGER PRIMARY KEY,"
            " timestamp INTEGER, key BLOB, value BLOB, headers BLOB)"
        )

    def write(self, rows: list[Record]) -> None:
        now = time.time_ns() // 1000
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany(
            "INSERT INTO log (timestamp, key, value, headers) VALUES (?, ?, ?, ?)",
            [(now, r.key, r.value, pack_headers(r.headers)) for r in rows],
        )
        self.db.execute("COMMIT")

    def read(self) -> int:
        found = [
            Record("ObservationReceived", key, value, unpack_headers(headers))
            for _, _, key, value, headers in self.db.execute("SELECT * FROM log ORDER BY offset")
        ]
        return len(found)


async def plain_batched(folder: Path, rows: list[Record]) -> None:
    plain = Plain(folder)
    for first in range(0, len(rows), BATCH):
        plain.write(rows[first : first + BATCH])


async def plain_single(folder: Path, rows: list[Record]) -> None:
    plain = Plain(folder)
    for row in rows:
        plain.write([row])


async def bus_batched(folder: Path, rows: list[Record]) -> None:
    bus = EmbeddedBus(folder)
    for first in range(0, len(rows), BATCH):
        await bus.publish(*rows[first : first + BATCH])
    await bus.close()


async def bus_single(folder: Path, rows: list[Record]) -> None:
    bus = EmbeddedBus(folder)
    for row in rows:
        await bus.publish(row)
    await bus.close()


async def bus_many(folder: Path, rows: list[Record]) -> None:
    """The same single publications, by many writers at once: they share commits."""
    bus = EmbeddedBus(folder)

    async def writer(own: list[Record]) -> None:
        for row in own:
            await bus.publish(row)

    await asyncio.gather(*(writer(rows[n::WRITERS]) for n in range(WRITERS)))
    await bus.close()


async def timed(work: Callable[[Path, list[Record]], Awaitable[None]], rows: list[Record]) -> float:
    """Seconds in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        await work(Path(folder), rows)
        return time.perf_counter() - began


async def timed_reading(rows: list[Record]) -> tuple[float, float]:
    """Seconds to read everything: by hand, and as a consumer group that moves its offsets."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain, bus = Plain(folder), EmbeddedBus(folder)
        for first in range(0, len(rows), BATCH):
            plain.write(rows[first : first + BATCH])
            await bus.publish(*rows[first : first + BATCH])
        began = time.perf_counter()
        assert plain.read() == len(rows)
        by_hand = time.perf_counter() - began
        began, left = time.perf_counter(), len(rows)
        async with aclosing(bus.consume(ObservationReceived, group="bench")) as deliveries:
            while left:
                delivery = await anext(deliveries)
                left -= len(delivery.received)
                await delivery.done()
        by_bus = time.perf_counter() - began
        await bus.close()
        return by_hand, by_bus


async def main(rounds: int) -> None:
    many, few = records(BATCHED), records(SINGLE)
    results: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(rounds):
        for name, plain, bus, rows in (
            (f"written in batches of {BATCH}", plain_batched, bus_batched, many),
            ("written one by one", plain_single, bus_single, few),
            (f"written by {WRITERS} at once", plain_single, bus_many, few),
        ):
            pair = results.setdefault(name, ([], []))
            pair[0].append(len(rows) / await timed(plain, rows))
            pair[1].append(len(rows) / await timed(bus, rows))
        pair = results.setdefault("read, offsets moved", ([], []))
        by_hand, by_bus = await timed_reading(many)
        pair[0].append(len(many) / by_hand)
        pair[1].append(len(many) / by_bus)
    size = sum(len(r.value or b"") for r in many) // len(many)
    print(f"records of {size} bytes and {len(many[0].headers)} headers; median of {rounds} rounds, records a second")
    print(f"{'':<26} {'sqlite3':>10} {'bus':>10} {'ratio':>7}")
    for name, (by_hand, by_bus) in results.items():
        one, other = statistics.median(by_hand), statistics.median(by_bus)
        print(f"{name:<26} {one:>10,.0f} {other:>10,.0f} {other / one:>7.2f}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
