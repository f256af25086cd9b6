"""An environment with everything embedded, in a folder of the test; and services run in it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from turnout.common.bus.port import Bus, Received
from turnout.common.events import Event
from turnout.common.pipeline import PipelineFile
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.run import Running, start, web_server
from turnout.common.runtime.service import Service
from turnout.common.runtime.settings import RuntimeSettings
from turnout.common.runtime.web import lifespans, site

E = TypeVar("E", bound=Event)

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("TURNOUT_TEST_DATA", ROOT.parent / "shared" / "data"))


class Clock:
    """Time that passes when the test says so."""

    def __init__(self, now: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **delta: float) -> None:
        self.now += timedelta(**delta)


def environment_in(folder: Path, *, sources: Path | None = None, workers: int = 1, **options: object) -> Environment:
    """Everything embedded under `folder/home`; sources may lie under `sources` (default: `folder`)."""
    settings = RuntimeSettings(home=folder / "home", source_roots=(sources or folder,), workers=workers)
    return Environment(settings, **options)  # pyright: ignore[reportArgumentType]


def test_data(*parts: str) -> Path:
    """A real file of `TURNOUT_TEST_DATA`; the test skips where it is not there."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not there; set TURNOUT_TEST_DATA")
    return path


test_data.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


@asynccontextmanager
async def running(
    environment: Environment, *services: Service, root: str | None = None
) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """Services as the runtime runs them (reactions, jobs, background, lifespans), and a client on their routes.

    Paths are those of `turnout up`: `root` (or a single service) at `/`, every one at `/services/NAME/…`.
    """
    started = start(environment, services)
    async with lifespans(started.services):
        app = site(started.services, started.health, root, started.measure)
        for health in started.health.values():
            health.started = True
        await until(lambda: environment.pipelines.ready and environment.routes.ready)
        try:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://turnout"
            ) as client:
                yield started, client
        finally:
            await started.stop()


@asynccontextmanager
async def listening(environment: Environment, *services: Service) -> AsyncIterator[tuple[Running, httpx.URL]]:
    """Like `running`, behind a web server at a real port."""
    started = start(environment, services)
    async with lifespans(started.services):
        for health in started.health.values():
            health.started = True
        server = web_server(started)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            web = asyncio.create_task(server.serve(sockets=[listener]))
            await until(lambda: server.started and environment.pipelines.ready and environment.routes.ready)
            try:
                yield started, httpx.URL(f"http://127.0.0.1:{listener.getsockname()[1]}")
            finally:
                server.should_exit = True
                await asyncio.gather(web, started.stop())


async def published(bus: Bus, kind: type[E]) -> list[E]:
    """Every event of a topic, oldest first."""
    return [event async for event in _events(bus, kind)]


async def wait_for(bus: Bus, kind: type[E], *, where: Callable[[E], bool] = lambda _: True, seconds: float = 60) -> E:
    """The first event of a topic that fits, past or to come."""
    async with asyncio.timeout(seconds), aclosing(bus.follow(kind)) as records:
        async for received in records:
            event = received.event()
            if isinstance(event, kind) and where(event):
                return event
    raise AssertionError("follow ended")


async def dead_letters(bus: Bus, kind: type[Event] | str) -> list[Received]:
    """What lies on a topic's dead letters."""
    name = kind if isinstance(kind, str) else kind.topic()
    return [received async for received in bus.replay(f"{name}.dead")]


async def declare(environment: Environment, file: PipelineFile) -> Event:
    """Publish a pipeline file as `turnout apply` does; the event."""
    from builders import declared

    event = declared(file)
    await environment.bus.publish(event)
    return event


async def _events(bus: Bus, kind: type[E]) -> AsyncGenerator[E]:
    async for received in bus.replay(kind):
        event = received.event()
        assert isinstance(event, kind)
        yield event


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that no event tells."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def collect(bus: Bus, kinds: Sequence[type[Event]]) -> dict[str, list[Event]]:
    """Every event of several topics."""
    return {kind.topic(): [*await published(bus, kind)] for kind in kinds}
