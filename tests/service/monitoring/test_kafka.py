"""Counts as a Faust table on Kafka: they survive a restart, move with the partitions, count once, and can be lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from environment import published, running, wait_for
from system import TURNOUT, free_port
from watched import Router, late, outcome, ready, score

from turnout.common.bus.kafka.settings import KafkaSettings
from turnout.common.bus.port import Record
from turnout.common.errors import Unavailable
from turnout.common.events import Event, ModelDegraded, RoutingChanged
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Service, utc_now
from turnout.common.runtime.settings import RuntimeSettings
from turnout.monitoring.adapters.faust import changelog
from turnout.monitoring.domain import tally
from turnout.monitoring.reactions import Watch
from turnout.monitoring.service import build

pytestmark = [pytest.mark.stack, pytest.mark.timeout(180)]

# More than partitions, so that two processes have some each.
PIPELINES = [f"p{number}" for number in range(12)]


def now(event: Event) -> Event:
    return event.model_copy(update={"time": utc_now()})


class Process:
    """Monitoring as one process runs it."""

    def __init__(self, environment: Environment, service: Service, client) -> None:
        self.environment = environment
        self.client = client
        self._state = next(reaction.source for reaction in service.reactions if reaction.name == "counts")

    @property
    def bus(self):
        return self.environment.bus

    async def version(self, version: str = "1", pipeline: str = "p") -> dict:
        reply = await self.client.get(f"/pipelines/{pipeline}")
        found = reply.json()["versions"] if reply.status_code == 200 else []
        return next((v for v in found if v["version"] == version), {"served": 0})

    async def counted(self, pipeline: str = "p") -> int:
        """Scores in the state itself, as the changelog tells of it: a report would tell what nobody counted yet."""
        try:
            found = await self._state.look(lambda state: tally.load(state, pipeline, "1"))
        except Unavailable:
            return -1
        return -1 if found is None else found.summary.served.total()

    async def served(self, pipeline: str = "p") -> int:
        return (await self.version("1", pipeline))["served"]


class Installation:
    """A home, topics of its own, and how often a pipeline had to be counted again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.again = 0

    @asynccontextmanager
    async def process(self) -> AsyncIterator[Process]:
        environment = Environment(RuntimeSettings(home=self.folder / "home", bus="kafka", workers=1))
        try:
            service = build(environment)
            async with running(environment, service) as (_, client):
                yield Process(environment, service, client)
        finally:
            await environment.close()


@pytest.fixture
def installation(stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.setenv("TURNOUT_KAFKA_SERVERS", stack.kafka)
    monkeypatch.setenv("TURNOUT_KAFKA_TOPIC_PREFIX", f"counts-{uuid4().hex[:8]}.")
    made = Installation(tmp_path)
    rebuilt = Watch._rebuilt_tallies

    async def counted(self, standing):
        made.again += 1
        return await rebuilt(self, standing)

    monkeypatch.setattr(Watch, "_rebuilt_tallies", counted)
    return made


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.1)


async def told(process: Process, router: Router, name: str, count: int, pipeline: str = "p") -> list[Event]:
    """Scores and their summary, twice: what was told."""
    scores = [now(score(f"{pipeline}-{name}-{number}", pipeline=pipeline)) for number in range(count)]
    events = [*scores, *router.tell(*scores)]
    await process.bus.publish(*events, *events)
    return events


async def test_a_restart_restores_what_was_counted_and_an_event_seen_twice_counts_once(installation) -> None:
    router = Router()
    async with installation.process() as one:
        await one.bus.publish(now(ready("1")))
        first = await told(one, router, "a", 30)
        await one.bus.publish(now(outcome("p-a-0")), now(outcome("p-a-1")))
        await until(lambda: is_(one.counted(), 30))
    async with installation.process() as one:
        installation.again = 0
        await until(lambda: is_(one.served(), 30))
        await one.bus.publish(*first)
        await told(one, router, "b", 12)
        await until(lambda: is_(one.served(), 42))
        assert (await one.version())["quality"]["outcomes"] == 2
        assert installation.again == 0, "the table was restored from its changelog"


async def test_the_counts_move_with_the_partitions_and_both_report_the_same(installation, tmp_path: Path) -> None:
    routers = {pipeline: Router() for pipeline in PIPELINES}
    async with installation.process() as one, alone(tmp_path) as (process, other):
        for pipeline in PIPELINES:
            await one.bus.publish(now(ready("1", pipeline=pipeline)))
            await told(one, routers[pipeline], "a", 10, pipeline)
        for pipeline in PIPELINES:
            await until(lambda pipeline=pipeline: is_(one.counted(pipeline), 10))
        for pipeline in PIPELINES:
            await until(lambda pipeline=pipeline: alike(one.client, other, f"/pipelines/{pipeline}"))
        installation.again = 0
        process.kill()
        for pipeline in PIPELINES:
            await told(one, routers[pipeline], "b", 5, pipeline)
        for pipeline in PIPELINES:
            await until(lambda pipeline=pipeline: is_(one.counted(pipeline), 15))
        assert installation.again == 0, "what the other one counted was taken over"


@asynccontextmanager
async def alone(folder: Path) -> AsyncIterator[tuple[subprocess.Popen[bytes], httpx.AsyncClient]]:
    """Monitoring as a process of its own, once it is ready."""
    port = free_port()
    with (folder / "other.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 (it is waited for without blocking)
            [TURNOUT, "run", "monitoring", "--home", str(folder / "home"), "--port", str(port)],
            env={**os.environ, "TURNOUT_BUS": "kafka"}, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

            async def answers() -> bool:
                assert process.poll() is None, (folder / "other.log").read_text()[-2000:]
                with contextlib.suppress(httpx.TransportError):
                    return (await client.get("/readyz")).status_code == httpx.codes.OK
                return False

            await until(answers)
            yield process, client
    finally:
        process.kill()
        process.wait()


async def test_a_lost_table_is_counted_again(installation) -> None:
    router = Router()
    async with installation.process() as one:
        await one.bus.publish(now(ready("1")))
        await told(one, router, "a", 30)
        await one.bus.publish(now(outcome("p-a-0")))
        await until(lambda: is_(one.counted(), 30))
    settings = KafkaSettings()
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.servers)
    await admin.start()
    await admin.delete_topics([changelog(settings)])
    await admin.close()
    async with installation.process() as one:
        await told(one, router, "b", 12)
        await until(lambda: is_(one.served(), 42))
        assert (await one.version())["quality"]["outcomes"] == 1
        assert installation.again >= 1


async def test_a_slow_champion_gives_way_and_poison_is_a_dead_letter(installation) -> None:
    router = Router()
    async with installation.process() as one:
        for version in ("1", "2"):
            await one.bus.publish(now(ready(version)))
            await wait_for(one.bus, RoutingChanged, where=lambda c, v=version: c.table.champion == v)
        await one.bus.publish(Record("ScoresSummarised", b"p", b"not json"))
        scores = [now(late(f"s-{number}")) for number in range(60)]
        await one.bus.publish(*scores, *router.tell(*scores))
        degraded = await wait_for(one.bus, ModelDegraded)
        newest = await wait_for(one.bus, RoutingChanged, where=lambda c: c.table.version == 3)
        assert (degraded.version, newest.table.champion, newest.causation_id) == ("2", "1", degraded.id)
        dead = [received async for received in one.bus.replay("ScoresSummarised.dead")]
        assert [received.record.value for received in dead] == [b"not json"]
        assert len(await published(one.bus, ModelDegraded)) == 1


async def alike(one: httpx.AsyncClient, other: httpx.AsyncClient, path: str) -> bool:
    here, there = [await client.get(path) for client in (one, other)]
    if (here.status_code, there.status_code) != (200, 200):
        return False
    return here.json()["versions"] == there.json()["versions"]


async def is_(found: Awaitable[int], wanted: int) -> bool:
    return await found == wanted
