"""The event loop is never blocked: every turn of the runtime, watched by a detector of blocking calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from blockbuster import blockbuster_ctx
from builders import raw_extracted, source_available
from environment import running, wait_for
from fastapi import Depends, FastAPI
from runtime_process import read

from turnout.common.errors import Invalid, Unavailable
from turnout.common.events import Event, RawDataExtracted, RoutingChanged, SourceDataAvailable, StageFailed
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Reaction, Service


async def test_nothing_of_ours_blocks_the_loop(environment: Environment) -> None:
    tries = 0

    async def fail(events: Sequence[Event]) -> list[Event]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Unavailable("the lake", "it is away")
        raise Invalid("batches", "there is none")

    app = FastAPI()

    @app.get("/who")
    async def who(name: str = Depends(environment.keys.require("read"))) -> str:
        return name

    services = [
        Service("ingestion", [Reaction("read", [SourceDataAvailable], read)], app=app),
        Service("preparation", [Reaction("make", [RawDataExtracted], fail, long=True)]),
    ]
    paths = ("/livez", "/readyz", "/metrics", "/services/ingestion/who", "/no/such/path")
    async with running(environment, *services) as (_, client):
        for path in paths:  # what is imported on the way is imported now
            await client.get(path)
    with blockbuster_ctx("turnout"):
        async with running(environment, *services) as (_, client):
            await environment.bus.publish(source_available(), raw_extracted())
            await wait_for(environment.bus, StageFailed)
            await environment.routes.newest("p")
            for path in paths:
                assert (await client.get(path)).status_code in (200, 404)
            await asyncio.to_thread(environment.keys.add, "ann", "read")
            await environment.bus.erase(RoutingChanged, "p")
            await environment.bus.purge(environment.now())
            await environment.jobs.purge(environment.now())
