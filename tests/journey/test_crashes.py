"""Killed at every named step and at random moments, the counts still add up.

Each round starts the real process, offers it one more file and a few requests, and kills it: at a crash point, where
the process ends itself, or from outside at a moment drawn from a seed. After the last round it runs undisturbed until
nothing is left to do, and the oracle compares the ledger with the stores.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from cluster import apart, opened, variables
from ledger import Ledger, check, declared
from system import System

from turnout.common.events import (
    BatchScored,
    BatchScoringRequested,
    RoutingChanged,
    SourceDataAvailable,
)
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.settings import RuntimeSettings
from turnout.devstack.stack import Stack

ROOT = Path(__file__).parents[2]
# Three for each service; `TURNOUT_TEST_KILLS` asks for a longer night.
RANDOM_KILLS = int(os.environ.get("TURNOUT_TEST_KILLS", "21"))
STACK_KILLS = RANDOM_KILLS // 3
ROWS = 50_000
# A verdict needs a bad model: its steps are walked in tests/service/monitoring/test_outcomes.py. A pull needs a topic
# for its source: tests/journey/test_bracelet.py.
ELSEWHERE = {
    "monitoring.verdict-found",
    "monitoring.verdict-published",
    "ingestion-pull-before-done",
    "ingestion-pull-after-done",
}
# Whose steps only one of the two installations takes.
OF_SERVERS = re.compile(r"kafka|cassandra|redis|s3\.py|bucket\.py")
OF_ONE_MACHINE = re.compile(r"embedded\.py|local\.py|disk\.py")


def crash_points(without: re.Pattern[str], *places: str) -> list[str]:
    """Every name that the code gives to a step between two effects, adapters of the other installation left out."""
    found: set[str] = set()
    for path in itertools.chain.from_iterable(ROOT.glob(f"{place}/*/src/**/*.py") for place in places):
        if not without.search(str(path.relative_to(ROOT))):
            found |= set(re.findall(r"""crash_point\(\s*"([^"]+)"\s*\)""", path.read_text()))
    return sorted(found - ELSEWHERE - ORDERS.keys())


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_nothing_is_lost_or_doubled_however_it_dies(tmp_path: Path) -> None:
    rounds = [*crash_points(OF_SERVERS, "libs", "services"), *[None] * RANDOM_KILLS]
    ledger = Ledger(tmp_path / "sources", rows_a_file=max(ROWS // len(rounds) + 1, 500))
    report = await _walk(System(tmp_path / "home", ledger.folder), ledger, rounds, "ledger")
    assert report["rows"] >= ROWS


@pytest.mark.slow
@pytest.mark.stack
@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("cluster")
async def test_nothing_is_lost_or_doubled_on_real_servers(tmp_path: Path, stack: Stack) -> None:
    """The same journey with bus, stores, lake and registry elsewhere: the steps of adapters and runtime.

    The services' own steps are the same on both; they are walked above.
    """
    rounds = [*crash_points(OF_ONE_MACHINE, "libs"), *[None] * STACK_KILLS]
    ledger = Ledger(tmp_path / "sources", rows_a_file=500)
    system = System(tmp_path / "home", ledger.folder, variables=apart(stack))
    await _walk(system, ledger, rounds, f"ledger-{uuid4().hex[:8]}")


async def _walk(system: System, ledger: Ledger, rounds: Sequence[str | None], name: str) -> dict[str, int]:
    """Every round, then the quiet, then the oracle."""
    with variables(system.variables):
        environment = opened(system.home)
    draw = random.Random(20261121)
    try:
        await environment.bus.publish(declared(name))
        never: list[str] = []
        began = time.monotonic()
        for number, point in enumerate(rounds):
            await _announce(environment, ledger.offer(number), number, name)
            dying = {"TURNOUT_CRASH_POINT": point} if point else None
            ready = await asyncio.to_thread(system.start, environment=dying)
            if point:
                if ready and not await _used_until_dead(system, ledger, number, name, seconds=90):
                    never.append(point)
            else:
                await _used_until_dead(system, ledger, number, name, seconds=draw.uniform(0.2, 4.0))
            system.kill()
            print(f"round {number}: {point or 'random'} after {time.monotonic() - began:.0f} s", flush=True)
        assert not never, f"never reached: {never}"

        assert await asyncio.to_thread(system.start), system.tail()
        await _quiet(system, environment, files=len(rounds))
        report = await check(environment, ledger, name)
        kills = sum(1 for point in rounds if point is None)
        seconds = time.monotonic() - began
        print(f"{len(rounds) - kills} crash points, {kills} random kills in {seconds:.0f} s: {report}")
        assert system.stop() == 0
        return report
    finally:
        if system.process is not None:
            system.kill()
        await environment.close()


async def _announce(environment: Environment, path: Path, number: int, name: str = "ledger") -> None:
    await environment.bus.publish(
        SourceDataAvailable.first(
            source="/test", at=datetime.now(UTC), id=f"announced-{number}", pipeline=name, uri=str(path)
        )
    )


async def _used_until_dead(system: System, ledger: Ledger, number: int, name: str, *, seconds: float) -> bool:
    """Observe, ask and tell outcomes until the process ends or the time is over; whether it ended."""
    until = time.monotonic() + seconds
    turn = 0
    async with httpx.AsyncClient(base_url=system.url, timeout=5) as http:
        while time.monotonic() < until and system.alive():
            turn += 1
            with contextlib.suppress(httpx.TransportError):
                # Every flush of observations is a batch of the lake: fewer where that is far away.
                if not system.variables or turn % 10 == 1:
                    observation = ledger.observe(f"o{number:03d}-{turn:05d}") | {"pipeline": name}
                    if (await http.post("/services/ingestion/observations", json=observation)).is_success:
                        ledger.observed(observation["entity"])
                reply = await http.post(f"/pipelines/{name}/score", json={"rows": [{"x": 0.5, "colour": "red"}]})
                if reply.is_success:
                    ledger.answer(reply.json())
                    await http.post("/outcomes", json=_outcome(reply.json()["rows"][0]))
            await asyncio.sleep(0.05)
    return not system.alive()


def _outcome(row: dict[str, Any]) -> dict[str, Any]:
    """What was predicted did happen, so that nobody is found degraded."""
    return {"score_id": row["score_id"], "outcome": row["value"], "time": datetime.now(UTC).isoformat()}


async def _quiet(system: System, environment: Environment, *, files: int, seconds: float = 420) -> None:
    """Wait until nothing is left to do: no lag and no job, twice in a row."""
    until = time.monotonic() + seconds
    calm = 0
    async with httpx.AsyncClient(base_url=system.url, timeout=10) as http:
        while calm < 3:
            assert time.monotonic() < until, f"still busy; the log ends:\n{system.tail()}"
            metrics = (await http.get("/metrics")).text
            busy = sum(
                float(line.rsplit(" ", 1)[1])
                for line in metrics.splitlines()
                if line.startswith(("turnout_consumer_lag_records", "turnout_jobs_waiting"))
            )
            calm = calm + 1 if busy == 0 else 0
            await asyncio.sleep(0.3)
    routed = [r async for r in environment.bus.replay(RoutingChanged)]
    assert routed


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_what_somebody_ordered_is_done_however_it_dies(tmp_path: Path) -> None:
    """Orders that the journey above does not give: a batch to score, somebody to forget, a pipeline to end."""
    ledger = Ledger(tmp_path / "sources", rows_a_file=600)
    system = System(tmp_path / "home", ledger.folder)
    environment = Environment(RuntimeSettings(home=system.home))
    try:
        for number, name in enumerate(("ledger", "gone-0", "gone-1")):
            await environment.bus.publish(declared(name))
            await _announce(environment, ledger.offer(number), number, name)
        assert await asyncio.to_thread(system.start), system.tail()
        async with asyncio.timeout(90):
            while environment.routes.now("ledger") is None or not _extracted(environment, "gone-1"):
                await environment.routes.newest("ledger")
                await asyncio.sleep(0.2)
        system.kill()
        for number, (point, order) in enumerate(ORDERS.items()):
            assert await asyncio.to_thread(system.start, environment={"TURNOUT_CRASH_POINT": point}), point
            done = await order(system, environment, number)
            assert await asyncio.to_thread(system.died, 60), f"never reached: {point}"
            assert await asyncio.to_thread(system.start), system.tail()
            until = time.monotonic() + 60
            while not await done():
                assert time.monotonic() < until, f"not done after the death at {point}:\n{system.tail(10)}"
                await asyncio.sleep(0.2)
            system.kill()
    finally:
        if system.process is not None:
            system.kill()
        await environment.close()


Done = Callable[[], Awaitable[bool]]


def _extracted(environment: Environment, name: str) -> bool:
    return any(True for _ in environment.lake.manifests("raw", name))


async def _post(system: System, path: str, body: dict[str, Any]) -> None:
    """Give an order over HTTP; the process may die before it replies."""
    async with httpx.AsyncClient(base_url=system.url, timeout=10) as http:
        with contextlib.suppress(httpx.TransportError):
            (await http.post(f"/services/monitoring/pipelines/{path}", json=body)).raise_for_status()


async def _score_batch(system: System, environment: Environment, number: int) -> Done:
    uri = str(system.sources / f"{number:03d}.csv")
    asked = BatchScoringRequested.first(source="/test", at=datetime.now(UTC), pipeline="ledger", uri=uri)
    await environment.bus.publish(asked)

    async def done() -> bool:
        scored = {r.event() for r in [r async for r in environment.bus.replay(BatchScored)]}
        mine = {e.id: e for e in scored if isinstance(e, BatchScored) and e.causation_id == asked.id}
        for event in mine.values():
            manifest = environment.lake.manifest(event.data)
            assert manifest is not None
            assert (manifest.rows, event.rows, event.rows_quarantined) == (599, 599, 1)
        return len(mine) == 1

    return done


async def _forget(system: System, environment: Environment, number: int) -> Done:
    entity = f"r000-{number:05d}"
    await _post(system, "ledger/forget", {"entity": entity})

    async def done() -> bool:
        (raw,) = environment.lake.manifests("raw", "ledger")
        rows = environment.lake.read(raw.ref, columns=["row"])["row"].to_pylist()
        assert len(rows) == raw.rows
        return entity not in rows

    return done


async def _promote(system: System, environment: Environment, number: int) -> Done:
    await _post(system, "ledger/promote", {"version": "1", "why": f"order {number}"})

    async def done() -> bool:
        # Written down at the latest when somebody looks.
        async with httpx.AsyncClient(base_url=system.url, timeout=10) as http:
            await http.get("/services/monitoring/pipelines/ledger")
        trail = await environment.history.audit("ledger")
        return len([entry for entry in trail if entry.why == f"order {number}"]) == 1

    return done


def _remove(name: str) -> Callable[[System, Environment, int], Awaitable[Done]]:
    async def order(system: System, environment: Environment, number: int) -> Done:
        await _post(system, f"{name}/remove", {})

        async def done() -> bool:
            return not _extracted(environment, name)

        return done

    return order


ORDERS: dict[str, Callable[[System, Environment, int], Awaitable[Done]]] = {
    "scoring-batch-quarantined": _score_batch,
    "scoring-batch-committed": _score_batch,
    "monitoring.forgetting-published": _forget,
    "ingestion-entity-erased": _forget,
    "lake-erased": _forget,
    "monitoring.command-published": _promote,
    "monitoring.removal-published": _remove("gone-0"),
    "lake-removing": _remove("gone-1"),
}
