"""What bad messages cost a topic: a reaction over Kafka on clean events and on the same with some poison among them.

The reaction is run as the runtime runs it: read, handled, answered with an event each, dead letters written before the
offset moves, a log line for each. Poison is a quarter each of what is not JSON, is empty, has a field of a wrong type,
and has 1,000 headers besides. Rows by the time between the first and the last event handled; rounds alternate, the
ratio is the median of the rounds'.

`--refused` adds the kind that costs most: events that are well formed and that the reaction refuses by raising, so that
the others of the delivery are handled once more, one by one.

    python benchmarks/poison.py [--rows 20000] [--rounds 3] [--percent 1] [--refused] [--kafka HOST:PORT] 2>log
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from turnout.common.bus.cloudevents import encode
from turnout.common.bus.kafka.bus import KafkaBus
from turnout.common.bus.kafka.settings import KafkaSettings
from turnout.common.bus.port import Record
from turnout.common.errors import Invalid
from turnout.common.events import Event, RawDataExtracted, SourceDataAvailable
from turnout.common.runtime import logs
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.run import start
from turnout.common.runtime.service import Reaction, Service
from turnout.common.runtime.settings import RuntimeSettings
from turnout.devstack.stack import running

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
PUBLISHED_AT_ONCE = 2000
KEYS = 1000
HEADERS = tuple((f"h-{number}", b"value") for number in range(1000))
REFUSED = "refused"


class Reading:
    """The reaction: an answer for each event; remembers when it had the first and the last one."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._seen: set[str] = set()
        self.began = self.ended = 0.0
        self.finished = asyncio.Event()

    async def __call__(self, events: Sequence[Event]) -> list[Event]:
        self.began = self.began or time.perf_counter()
        for event in events:
            if isinstance(event, SourceDataAvailable) and event.uri == REFUSED:
                raise Invalid("uri", "is no good", fix="take another")
        self._seen.update(event.id for event in events)
        if len(self._seen) == self._expected:
            self.ended = time.perf_counter()
            self.finished.set()
        return [_answer(event) for event in events]


async def rate(servers: str, rows: int, percent: float, kinds: int, prefix: str) -> float:
    """Rows in a second; every row counts, poison too."""
    with tempfile.TemporaryDirectory() as place:
        environment = Environment(RuntimeSettings(home=Path(place)))
        bus = KafkaBus(KafkaSettings(servers=servers, topic_prefix=prefix, replication_factor=1), home=Path(place))
        environment.__dict__["bus"] = bus
        try:
            await bus.ensure_topics()
            every = round(100 / percent) if percent else 0
            messages = [
                _poison(number, number // every % kinds) if every and number % every == every // 2 else _good(number)
                for number in range(rows)
            ]
            for begin in range(0, rows, PUBLISHED_AT_ONCE):
                await bus.publish(*messages[begin : begin + PUBLISHED_AT_ONCE])
            bad = len(range(every // 2, rows, every)) if every else 0
            reading = Reading(rows - bad)
            services = start(environment, [Service("bench", [Reaction("read", [SourceDataAvailable], reading)])])
            try:
                await asyncio.wait_for(reading.finished.wait(), 300)
            finally:
                await services.stop()
            buried = sum([1 async for _ in bus.replay("SourceDataAvailable.dead")])
            # What was handled and not yet done at the end is not buried yet.
            assert buried <= bad, (buried, bad)
            return rows / (reading.ended - reading.began)
        finally:
            await bus.close()
            await environment.close()


def _answer(event: Event) -> RawDataExtracted:
    return RawDataExtracted.caused_by(
        event, source="/bench", at=event.time, batches=(), columns=(), rows_read=0, rows_written=0,
        rows_quarantined=0, spec_id="s",
    )  # fmt: skip


def _good(number: int) -> Record:
    return encode(_event(number, f"/data/{number}.csv"))


def _event(number: int, uri: str) -> SourceDataAvailable:
    return SourceDataAvailable.first(source="/bench", at=AT, id=f"e-{number}", pipeline=f"p-{number % KEYS}", uri=uri)


def _poison(number: int, kind: int) -> Record:
    good = _good(number)
    match kind:
        case 0:
            return good._replace(value=b"not JSON")
        case 1:
            return good._replace(value=b"")
        case 2:
            return good._replace(value=b'{"pipeline": 7, "uri": ["no text"]}')
        case 3:
            return good._replace(value=b'{"pipeline": "p"}', headers=good.headers + HEADERS)
        case _:
            return encode(_event(number, REFUSED))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--percent", type=float, default=1.0)
    parser.add_argument("--refused", action="store_true")
    parser.add_argument("--kafka")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends too
    logs.configure("info")
    with ExitStack() as stack:
        servers = given.kafka
        if servers is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            servers = stack.enter_context(running(folder / "stack", "kafka")).kafka
        kinds = 5 if given.refused else 4
        print(f"{given.rows} rows, rows/s\n{'':8} {'clean':>9} {f'{given.percent:g} % poison':>12} {'ratio':>7}")
        ratios: list[float] = []
        for number in range(given.rounds):
            mark = f"bench{time.time_ns()}."
            clean = uvloop.run(rate(servers, given.rows, 0.0, kinds, f"{mark}clean."))
            poisoned = uvloop.run(rate(servers, given.rows, given.percent, kinds, f"{mark}poison."))
            ratios.append(poisoned / clean)
            print(f"round {number + 1:2} {clean:9,.0f} {poisoned:12,.0f} {ratios[-1]:7.2f}", flush=True)
        print(f"{'median':8} {'':9} {'':12} {statistics.median(ratios):7.2f}")


if __name__ == "__main__":
    main()
