"""A real process: killed at each of the runtime's own steps, stopped politely, stuck."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runtime_process
from builders import source_available
from environment import ROOT, environment_in, published, wait_for

from turnout.common.events import FeaturesGenerated, RawDataExtracted
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.health import EXIT_STUCK

SECONDS = 60


def points() -> list[str]:
    """The names that the runtime gives to its steps."""
    sources = (ROOT / "libs/common/src/turnout/common/runtime").glob("*.py")
    return sorted({name for path in sources for name in re.findall(r'crash_point\("([^"]+)"\)', path.read_text())})


class Process:
    def __init__(self, home: Path, *, patience: float = 30, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, runtime_process.__file__, str(home), str(patience)],
            stdout=subprocess.PIPE,
            stderr=(home.parent / "log").open("ab"),
            text=True,
            env=os.environ | environment,
        )

    async def url(self) -> str:
        assert self._process.stdout is not None
        return (await asyncio.to_thread(self._process.stdout.readline)).strip()

    async def ended(self) -> int:
        return await asyncio.to_thread(self._process.wait, SECONDS)

    def send(self, name: signal.Signals) -> None:
        self._process.send_signal(name)

    async def kill(self) -> None:
        self._process.kill()
        await self.ended()


def test_there_are_crash_points() -> None:
    assert points() == [
        "job-before-finish", "job-before-publish", "job-recorded", "reaction-after-done", "reaction-before-done",
    ]  # fmt: skip


@pytest.mark.parametrize("point", points())
async def test_killed_at_a_step_nothing_is_lost_or_doubled(tmp_path: Path, point: str) -> None:
    environment = environment_in(tmp_path)
    sent = {event.id: event for event in (source_available() for _ in range(5))}
    await environment.bus.publish(*sent.values())
    dying = Process(environment.home, TURNOUT_CRASH_POINT=point)
    assert await dying.ended() == -signal.SIGKILL

    going_on = Process(environment.home)
    try:
        async with asyncio.timeout(SECONDS):
            while len(features := {e.id: e for e in await published(environment.bus, FeaturesGenerated)}) < len(sent):
                await asyncio.sleep(0.05)
            while await environment.jobs.waiting("preparation.make"):
                await asyncio.sleep(0.05)
    finally:
        await going_on.kill()
    raw = {e.id: e for e in await published(environment.bus, RawDataExtracted)}
    assert {e.causation_id for e in raw.values()} == set(sent)
    assert {e.causation_id for e in features.values()} == set(raw)
    assert {e.correlation_id for e in features.values()} == set(sent)
    await environment.close()


async def test_sigterm_ends_it_soon_and_in_order(environment: Environment) -> None:
    process = Process(environment.home)
    assert (await process.url()).startswith("http://127.0.0.1:")
    await environment.bus.publish(source_available())
    await wait_for(environment.bus, FeaturesGenerated)
    began = time.monotonic()
    process.send(signal.SIGTERM)
    assert await process.ended() == 0
    assert time.monotonic() - began < 10


async def test_sigterm_ends_it_whatever_a_thread_waits_for(environment: Environment) -> None:
    """A call to a server cannot be cancelled: without a last word, the process would wait for it."""
    process = Process(environment.home)
    await process.url()
    await environment.bus.publish(source_available(pipeline="thread"))
    await wait_for(environment.bus, FeaturesGenerated)
    process.send(signal.SIGTERM)
    assert await process.ended() == 0
    assert "although something in it goes on" in (environment.home.parent / "log").read_text()


@pytest.mark.parametrize("pipeline", ["stall", "hold"])
async def test_what_is_stuck_ends_the_process(environment: Environment, pipeline: str) -> None:
    process = Process(environment.home, patience=2)
    await process.url()
    await environment.bus.publish(source_available(pipeline=pipeline))
    assert await process.ended() == EXIT_STUCK
    lines = [
        json.loads(line) for line in (environment.home.parent / "log").read_text().splitlines() if line.startswith("{")
    ]
    stuck = {line["stuck"] for line in lines if line["event"] == "no progress, the process ends"}
    assert stuck & ({"stalling.stall"} if pipeline == "stall" else {"event loop", "holding.hold"})
    waits = [line["where"] for line in lines if line["event"] == "a task waits"]
    assert any("stall" in where if pipeline == "stall" else "Consumer.run" in where for where in waits), waits


async def test_idle_is_not_stuck(environment: Environment) -> None:
    process = Process(environment.home, patience=2)
    await process.url()
    for number in range(2):
        event = source_available()
        await environment.bus.publish(event)
        await wait_for(environment.bus, FeaturesGenerated, where=lambda e, of=event: e.correlation_id == of.id)
        if number == 0:
            await asyncio.sleep(5)
    process.send(signal.SIGTERM)
    assert await process.ended() == 0
