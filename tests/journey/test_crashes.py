"""Killed at every named step and at random moments, the counts still add up.

Each round starts the real process, offers it one more file and a few requests, and kills it: at a crash point, where
the process ends itself, or from outside at a moment drawn from a seed. After the last round it runs undisturbed until
nothing is left to do, and the oracle compares the ledger with the stores.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from ledger import Ledger, check
from system import System

from turnout.common import pipeline
from turnout.common.events import PipelineDeclared, RoutingChanged, SourceDataAvailable
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.settings import RuntimeSettings

ROOT = Path(__file__).parents[2]
# Three for each service; `TURNOUT_TEST_KILLS` asks for a longer night.
RANDOM_KILLS = int(os.environ.get("TURNOUT_TEST_KILLS", "21"))
ROWS = 50_000
# Every file trains a candidate and every candidate is accepted: each round takes the whole way.
SPEC = """
pipeline: ledger
task: classification
source: {entity: row, label: y}
schema: {row: category, x: number, colour: category, y: category}
training: {candidates: [{algorithm: logistic_regression}]}
evaluation: {better_by: -1.0}
retraining: {on: [new_data]}
"""
# Steps that this journey does not take; each has its own test.
ELSEWHERE = {
    "lake-erased": "tests/service/ingestion",
    "lake-removing": "tests/service/ingestion",
    "ingestion-entity-erased": "tests/service/ingestion",
    "monitoring.verdict-found": "tests/service/monitoring",
    "monitoring.verdict-published": "tests/service/monitoring",
    "monitoring.command-published": "tests/service/monitoring",
    "monitoring.removal-published": "tests/service/monitoring",
    "monitoring.forgetting-published": "tests/service/monitoring",
    "scoring-batch-quarantined": "tests/service/scoring",
    "scoring-batch-committed": "tests/service/scoring",
}


def crash_points() -> list[str]:
    """Every name that the code gives to a step between two effects."""
    found = re.findall(
        r"""crash_point\(\s*"([^"]+)"\s*\)""",
        "\n".join(p.read_text() for p in [*ROOT.glob("libs/*/src/**/*.py"), *ROOT.glob("services/*/src/**/*.py")]),
    )
    return sorted(set(found) - set(ELSEWHERE))


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_nothing_is_lost_or_doubled_however_it_dies(tmp_path: Path) -> None:
    points = crash_points()
    rounds: list[str | None] = [*points, *[None] * RANDOM_KILLS]
    ledger = Ledger(tmp_path / "sources", rows_a_file=max(ROWS // len(rounds) + 1, 500))
    system = System(tmp_path / "home", ledger.folder)
    environment = Environment(RuntimeSettings(home=system.home))
    draw = random.Random(20261121)
    try:
        await _declare(environment)
        never: list[str] = []
        began = time.monotonic()
        for number, point in enumerate(rounds):
            await _announce(environment, ledger.offer(number), number)
            ready = await asyncio.to_thread(system.start, environment={"TURNOUT_CRASH_POINT": point} if point else None)
            if point:
                if ready and not await _used_until_dead(system, ledger, number, seconds=90):
                    never.append(point)
            else:
                await _used_until_dead(system, ledger, number, seconds=draw.uniform(0.2, 4.0))
            system.kill()
            print(f"round {number}: {point or 'random'} after {time.monotonic() - began:.0f} s", flush=True)
        assert not never, f"never reached: {never}"

        assert await asyncio.to_thread(system.start), system.tail()
        await _quiet(system, environment, files=len(rounds))
        report = await check(environment, ledger, "ledger")
        seconds = time.monotonic() - began
        print(f"{len(points)} crash points, {RANDOM_KILLS} random kills in {seconds:.0f} s: {report}")
        assert report["rows"] >= ROWS
        assert system.stop() == 0
    finally:
        if system.process is not None:
            system.kill()
        await environment.close()


async def _declare(environment: Environment) -> None:
    file = pipeline.parse(SPEC)
    await environment.bus.publish(
        PipelineDeclared.first(
            source="/test", at=datetime.now(UTC), id="declared", pipeline="ledger", spec=file, spec_id=file.spec_id
        )
    )


async def _announce(environment: Environment, path: Path, number: int) -> None:
    await environment.bus.publish(
        SourceDataAvailable.first(
            source="/test", at=datetime.now(UTC), id=f"announced-{number}", pipeline="ledger", uri=str(path)
        )
    )


async def _used_until_dead(system: System, ledger: Ledger, number: int, *, seconds: float) -> bool:
    """Observe, ask and tell outcomes until the process ends or the time is over; whether it ended."""
    until = time.monotonic() + seconds
    turn = 0
    async with httpx.AsyncClient(base_url=system.url, timeout=5) as http:
        while time.monotonic() < until and system.alive():
            turn += 1
            with contextlib.suppress(httpx.TransportError):
                observation = ledger.observe(f"o{number:03d}-{turn:05d}")
                if (await http.post("/services/ingestion/observations", json=observation)).is_success:
                    ledger.observed(observation["entity"])
                reply = await http.post("/pipelines/ledger/score", json={"rows": [{"x": 0.5, "colour": "red"}]})
                if reply.is_success:
                    ledger.answer(reply.json())
                    await http.post("/outcomes", json=_outcome(reply.json()["rows"][0]))
            await asyncio.sleep(0.05)
    return not system.alive()


def _outcome(row: dict[str, Any]) -> dict[str, Any]:
    """What was predicted did happen, so that nobody is found degraded."""
    return {"score_id": row["score_id"], "outcome": row["value"], "time": datetime.now(UTC).isoformat()}


async def _quiet(system: System, environment: Environment, *, files: int, seconds: float = 180) -> None:
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
