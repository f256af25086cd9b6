"""A running scoring service with one version, and the ways to give it another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import builders
import graphs
import httpx
import pytest
from environment import listening, running

from turnout.common.events import ModelReady
from turnout.common.pipeline import PipelineFile, parse
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.run import Running
from turnout.scoring.reactions import lane
from turnout.scoring.service import build
from turnout.scoring.settings import ScoringSettings

FILE = """
pipeline: {pipeline}
task: classification
source: {{uri: data.csv, label: y, entity: id}}
scoring: {{slo_ms: {slo_ms}, baseline: {baseline}}}
"""
# Far above what a healthy version takes on a busy machine, far below what a test waits.
SLO_MS = 1000.0
OLD = {"age": 40.0, "colour": "red"}


@dataclass
class Stand:
    """A service under test."""

    environment: Environment
    running: Running
    client: httpx.AsyncClient

    async def score(self, *rows: dict[str, Any], **body: Any) -> dict[str, Any]:
        reply = await self.client.post("/pipelines/p/score", json={"rows": list(rows or (OLD,)), **body})
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def one(self, row: dict[str, Any] | None = None, **body: Any) -> dict[str, Any]:
        return (await self.score(row or OLD, **body))["rows"][0]

    async def router(self) -> dict[str, Any]:
        return (await self.client.get("/v2/models/p/router")).json()

    async def until_state(self, version: str, *states: str, seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while True:
                found = {v["version"]: v["state"] for v in (await self.router()).get("versions", [])}
                if found.get(version) in states:
                    return
                await asyncio.sleep(0.02)

    async def give(self, content: bytes, version: str, **fields: Any) -> ModelReady:
        ready = graphs.put(self.environment.lake, content, version, **fields)
        await self.environment.bus.publish(ready)
        return ready


def file(*, slo_ms: float = SLO_MS, baseline: bool = True, pipeline: str = "p") -> PipelineFile:
    return parse(FILE.format(pipeline=pipeline, slo_ms=slo_ms, baseline=str(baseline).lower()))


@asynccontextmanager
async def standing(
    environment: Environment, *, slo_ms: float = SLO_MS, baseline: bool = True, **settings: Any
) -> AsyncIterator[Stand]:
    await environment.bus.publish(builders.declared(file(slo_ms=slo_ms, baseline=baseline)))
    # Half a deadline at most: a busy machine is no slow store.
    service = build(environment, ScoringSettings(**{"features_ms": SLO_MS} | settings))
    async with running(environment, service) as (started, client):
        yield Stand(environment, started, client)


@asynccontextmanager
async def direct(
    environment: Environment, content: bytes | None = None, *, slo_ms: float = SLO_MS, **settings: Any
) -> AsyncIterator[Stand]:
    """Behind a real port: version 2 is the champion and runs on the event loop, 1 stands behind it."""
    await environment.bus.publish(builders.declared(file(slo_ms=slo_ms)))
    service = build(environment, ScoringSettings(**{"features_ms": SLO_MS} | settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lane, "PROVEN_RUNS", 3)
        patch.setattr(lane, "PROVEN_MS", 1000.0)
        async with listening(environment, service) as (started, url), httpx.AsyncClient(base_url=url) as client:
            made = Stand(environment, started, client)
            await made.give(graphs.good(), "1")
            await made.give(content or graphs.good(), "2")
            await environment.bus.publish(builders.routing(1, "2", previous="1"))
            await made.until_state("1", "on")
            await made.until_state("2", "on")
            async with asyncio.timeout(60):
                while (await made.router())["versions"][0]["runs"] != "inline":
                    await made.one()
            yield made


@pytest.fixture
async def stand(environment: Environment) -> AsyncIterator[Stand]:
    """Version 1 is the champion of pipeline `p`."""
    async with standing(environment) as made:
        await made.give(graphs.good(), "1")
        await environment.bus.publish(builders.routing(1, "1"))
        await made.until_state("1", "on")
        yield made
