"""Monitoring as the runtime runs it, on the embedded bus and store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from environment import environment_in, running
from watched import Router

from turnout.common.events import Event, ScoreProduced
from turnout.common.runtime.environment import Environment
from turnout.monitoring.service import build


class Home:
    """One folder; monitoring can be started on it again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @asynccontextmanager
    async def started(self) -> AsyncIterator[System]:
        environment = environment_in(self.folder)
        try:
            async with running(environment, build(environment)) as (_, client):
                yield System(environment, client)
        finally:
            await environment.close()


class System:
    def __init__(self, environment: Environment, client: httpx.AsyncClient) -> None:
        self.environment = environment
        self.client = client
        self.router = Router()

    @property
    def bus(self):
        return self.environment.bus

    async def scored(self, *events: Event, told_of: int = 25) -> None:
        """Publish as scoring does: the scores (and whatever else), and summaries of so many scores each."""
        scores = [event for event in events if isinstance(event, ScoreProduced)]
        summaries = [s for at in range(0, len(scores), told_of) for s in self.router.tell(*scores[at : at + told_of])]
        await self.bus.publish(*events, *summaries)

    async def quiet(self, seconds: float = 20) -> None:
        """Until every reaction has done all there is."""
        async with asyncio.timeout(seconds):
            for group in GROUPS:
                while self.bus.polled(group) is None or any((await self.bus.lag(group)).values()):
                    await asyncio.sleep(0.01)

    async def report(self, pipeline: str = "p") -> dict:
        reply = await self.client.get(f"/pipelines/{pipeline}")
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def version(self, version: str, pipeline: str = "p") -> dict:
        report = await self.report(pipeline)
        return next(v for v in report["versions"] if v["version"] == version)

    async def actions(self, pipeline: str = "p") -> list[str]:
        """What the audit trail says was done, oldest first."""
        return [entry.action for entry in reversed(await self.environment.history.audit(pipeline))]


GROUPS = [f"monitoring.{name}" for name in ("versions", "scores", "outcomes", "removed", "forgotten", "counts")]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
async def system(home: Home) -> AsyncIterator[System]:
    async with home.started() as started:
        yield started
