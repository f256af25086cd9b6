"""Scores written to Cassandra: `add_scores` beside the driver's `execute_concurrent_with_args` alone, in one run.

Both keep the same rows in tables of the same shape: where a score is, by its id, and the score itself, by its
pipeline's minute. The driver alone writes them blindly, one request a row, its default settings: it cannot say what
was new, and of two scores with one id the last one stays. "By hand, once" is the driver alone keeping our promise in
the plain way: each row by `IF NOT EXISTS`. `add_scores` claims each id by a lightweight transaction and puts all
scores of a call that lie in one partition there by one more. Rounds alternate; each figure is the median.

    python benchmarks/history_store.py [ROUNDS] [HOST:PORT]

Without HOST:PORT a node of its own is started (turnout.devstack).
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from cassandra.cluster import Cluster
from cassandra.concurrent import execute_concurrent_with_args

from turnout.common.cassandra.settings import CassandraSettings
from turnout.common.events import Attempt, ScoreProduced
from turnout.common.history.cassandra import CassandraHistoryStore
from turnout.devstack.cassandra import cassandra
from turnout.devstack.server import free_port

# Scores of a round, of one call (what a delivery of the bus holds), requests of the driver at once (its default).
SCORES, BATCH, CONCURRENCY = 8_000, 500, 100
KEYSPACE = "bench_history"
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
VALUES = {f"x{n}": 63.0 + n for n in range(11)} | {"sex": "1", "cp": "4"}
BY_ID = "INSERT INTO {}.score_by_id (score_id, pipeline, at, version) VALUES (?, ?, ?, ?)"
SCORE = "INSERT INTO {}.score (pipeline, minute, at, score_id, version, event) VALUES (?, ?, ?, ?, ?, ?)"


def scores(pipelines: int) -> list[ScoreProduced]:
    """A round's scores, 200 a second of each pipeline, 13 features each, ids never used before."""
    return [
        ScoreProduced.first(
            source="/bench",
            at=AT + timedelta(milliseconds=5 * (n // pipelines)),
            pipeline=f"p-{n % pipelines}",
            score_id=str(uuid4()),
            version="1",
            served_by="champion",
            attempts=(Attempt(version="1", outcome="ok", milliseconds=2.0),),
            values=VALUES,
            value="yes",
            probabilities={"no": 0.4, "yes": 0.6},
            milliseconds=2.0,
        )
        for n in range(SCORES)
    ]


def by_hand(session: Any, condition: str) -> Callable[[list[ScoreProduced]], None]:
    """The driver alone."""
    by_id = session.prepare(BY_ID.format(KEYSPACE) + condition)
    score = session.prepare(SCORE.format(KEYSPACE) + condition)

    def write(offered: list[ScoreProduced]) -> None:
        micros = [int(s.time.timestamp() * 1_000_000) for s in offered]
        for statement, rows in (
            (by_id, [(s.score_id, s.pipeline, at, s.version) for s, at in zip(offered, micros, strict=True)]),
            (
                score,
                [
                    (s.pipeline, at // 60_000_000, at, s.score_id, s.version, s.model_dump_json())
                    for s, at in zip(offered, micros, strict=True)
                ],
            ),
        ):
            execute_concurrent_with_args(session, statement, rows, concurrency=CONCURRENCY)

    return write


async def ours(store: CassandraHistoryStore, offered: list[ScoreProduced]) -> None:
    """One caller per pipeline, as monitoring is one, each with a delivery's worth at a time."""
    of: dict[str, list[ScoreProduced]] = {}
    for score in offered:
        of.setdefault(score.pipeline, []).append(score)

    async def write(rows: list[ScoreProduced]) -> None:
        for first in range(0, len(rows), BATCH):
            some = rows[first : first + BATCH]
            assert len(await store.add_scores(some)) == len(some)

    await asyncio.gather(*map(write, of.values()))


@contextmanager
def node(address: str | None) -> Generator[str]:
    """The node at `address`, or one of our own."""
    if address is not None:
        yield address
        return
    with tempfile.TemporaryDirectory() as folder:
        server = cassandra(Path(folder), free_port())
        server.start()
        try:
            server.wait()
            yield server.address
        finally:
            server.stop()


async def main(rounds: int, address: str) -> None:
    host, _, port = address.partition(":")
    store = CassandraHistoryStore(CassandraSettings(hosts=address, keyspace=KEYSPACE, timeout_seconds=30))
    await ours(store, scores(1))  # makes the tables, and warms both sides up
    cluster = Cluster([host], port=int(port), protocol_version=5)
    session = await asyncio.to_thread(cluster.connect)
    blindly, once = by_hand(session, ""), by_hand(session, " IF NOT EXISTS")
    await asyncio.to_thread(blindly, scores(1))
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, pipelines, write in (
            ("driver alone, blindly", 1, blindly),
            ("driver alone, by hand, once", 1, once),
            ("add_scores, 1 pipeline", 1, None),
            ("add_scores, 4 pipelines", 4, None),
        ):
            offered = scores(pipelines)
            began = time.perf_counter()
            if write is None:
                await ours(store, offered)
            else:
                await asyncio.to_thread(write, offered)
            figures.setdefault(name, []).append(SCORES / (time.perf_counter() - began))
    await store.close()
    await asyncio.to_thread(cluster.shutdown)
    size = len(scores(1)[0].model_dump_json())
    print(f"scores of {size} bytes, two rows each; median of {rounds} rounds of {SCORES:,}; scores a second")
    base = statistics.median(figures["driver alone, blindly"])
    print(f"{'':<30} {'scores/s':>9} {'ratio':>6}")
    for name, found in figures.items():
        print(f"{name:<30} {statistics.median(found):>9,.0f} {statistics.median(found) / base:>6.2f}")


if __name__ == "__main__":
    with node(sys.argv[2] if len(sys.argv) > 2 else None) as where:
        asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, where))
