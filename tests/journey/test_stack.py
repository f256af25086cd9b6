"""The seven services as processes of their own on real servers: strangers' clients, restarts, hand-overs.

What is asserted is that the counts add up and that nobody has to lend a hand; how long it took is printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import confluent_kafka
import httpx
import pytest
from cluster import SERVICES, Cluster, apart, turnout
from environment import wait_for
from ledger import Ledger, check, declared

from turnout.common.events import ModelReady, RoutingChanged, SourceDataAvailable
from turnout.devstack.stack import Stack, running

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("cluster")]

# Sessions run out after 6 s, leases after 9.
FROZEN_SECONDS = 12
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def a_name() -> str:
    """A pipeline's, in an MLflow server that other tests use too."""
    return f"ledger-{uuid4().hex[:8]}"


@asynccontextmanager
async def clustered(folder: Path, stack: Stack, *, each: int = 1) -> AsyncIterator[tuple[Cluster, Ledger]]:
    """Every service `each` times, ready; gone afterwards."""
    ledger = Ledger(folder / "sources", rows_a_file=600)
    ledger.folder.mkdir()
    cluster = Cluster(folder / "members", apart(stack), ledger.folder, each=each)
    try:
        began = time.monotonic()
        await cluster.start()
        print(f"{len(cluster.members)} processes ready after {time.monotonic() - began:.0f} s", flush=True)
        yield cluster, ledger
    finally:
        await cluster.close()


async def announce(cluster: Cluster, name: str, path: Path) -> None:
    await cluster.environment.bus.publish(
        SourceDataAvailable.first(source="/test", at=datetime.now(UTC), pipeline=name, uri=str(path))
    )


class Traffic:
    """Scoring requests with outcomes, and observations, all the time; what was answered goes into the ledger."""

    def __init__(self, cluster: Cluster, ledger: Ledger, name: str) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._name = name
        self.answers = 0
        self.refused: list[int] = []
        self._turn = 0

    async def run(self) -> None:
        async with httpx.AsyncClient(timeout=15) as http:
            while True:
                for member in [m for m in self._cluster.of("scoring") if m.alive()]:
                    await self._ask(http, member.url)
                self._turn += 1
                # Every flush of observations is a batch of the lake.
                for member in [m for m in self._cluster.of("ingestion") if m.alive() and self._turn % 10 == 0]:
                    await self._observe(http, member.url)
                await asyncio.sleep(0.2)

    async def _ask(self, http: httpx.AsyncClient, url: str) -> None:
        with contextlib.suppress(httpx.TransportError):
            reply = await http.post(f"{url}/pipelines/{self._name}/score", json={"rows": [{"x": 0.5, "colour": "red"}]})
            if not reply.is_success:
                self.refused.append(reply.status_code)
                return
            self._ledger.answer(reply.json())
            self.answers += 1
            row = reply.json()["rows"][0]
            # What was predicted did happen, so that nobody is found degraded.
            outcome = {"score_id": row["score_id"], "outcome": row["value"], "time": datetime.now(UTC).isoformat()}
            await http.post(f"{url}/outcomes", json=outcome)

    async def _observe(self, http: httpx.AsyncClient, url: str) -> None:
        observation = self._ledger.observe(f"o-{uuid4().hex[:12]}") | {"pipeline": self._name}
        with contextlib.suppress(httpx.TransportError):
            if (await http.post(f"{url}/observations", json=observation)).is_success:
                self._ledger.observed(observation["entity"])


@asynccontextmanager
async def under_load(cluster: Cluster, ledger: Ledger, name: str) -> AsyncIterator[Traffic]:
    traffic = Traffic(cluster, ledger, name)
    task = asyncio.create_task(traffic.run())
    try:
        yield traffic
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled():
        task.result()


async def champion(cluster: Cluster, name: str, *, after: int = 0) -> RoutingChanged:
    return await wait_for(
        cluster.environment.bus,
        RoutingChanged,
        where=lambda e: e.pipeline == name and e.table.champion is not None and e.table.version > after,
        seconds=180,
    )


async def test_a_strangers_client_announces_and_reads(tmp_path: Path, stack: Stack) -> None:
    """confluent-kafka sends bare JSON and gets the whole chain; the score it reads is a CloudEvent in its trace."""
    name = a_name()
    async with clustered(tmp_path, stack) as (cluster, ledger):
        await cluster.environment.bus.publish(declared(name))
        prefix = cluster.values["TURNOUT_KAFKA_TOPIC_PREFIX"]
        producer = confluent_kafka.Producer({"bootstrap.servers": stack.kafka})
        bare = json.dumps({"pipeline": name, "uri": str(ledger.offer(0))})
        producer.produce(f"{prefix}SourceDataAvailable", value=bare, key=name)
        assert producer.flush(30) == 0
        ready = await wait_for(cluster.environment.bus, ModelReady, where=lambda e: e.pipeline == name, seconds=180)
        await champion(cluster, name)
        async with httpx.AsyncClient(base_url=cluster.url("scoring"), timeout=30) as http:
            while True:
                reply = await http.post(
                    f"/pipelines/{name}/score", json={"rows": [{"x": 1.0, "colour": "blue"}]},
                    headers={"traceparent": CALLER},
                )  # fmt: skip
                if reply.is_success and reply.json()["rows"][0]["version"] == ready.version:
                    break
                await asyncio.sleep(0.2)
        score_id = reply.json()["rows"][0]["score_id"]
        headers, value = await asyncio.to_thread(_read_score, stack, f"{prefix}ScoreProduced", score_id)
        assert headers["ce_specversion"] == "1.0"
        assert headers["ce_type"] == "turnout.ScoreProduced.v1"
        assert headers["ce_id"] == score_id
        assert headers["ce_source"] == "/scoring"
        assert headers["content-type"] == "application/json"
        version, trace, span, flags = headers["traceparent"].split("-")
        assert (version, trace, flags) == ("00", CALLER.split("-")[1], "01")
        assert span != CALLER.split("-")[2]
        assert value["pipeline"] == name
        assert value["version"] == ready.version
        told = await asyncio.to_thread(
            turnout, cluster.values, "lineage", score_id, home=tmp_path / "cli", cwd=ledger.folder
        )
        assert told.returncode == 0, told.stderr
        assert "000.csv" in told.stdout
        looked = await asyncio.to_thread(turnout, cluster.values, "doctor", home=tmp_path / "cli", cwd=ledger.folder)
        for what in ("bus on Kafka", "online store on Redis", "history store on Cassandra", "jobs on Cassandra"):
            assert f"ok   {what}" in looked.stdout, looked.stdout
        assert "password" not in looked.stdout


def _read_score(stack: Stack, topic: str, score_id: str) -> tuple[dict[str, str], dict[str, Any]]:
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": stack.kafka, "group.id": f"stranger-{uuid4().hex}", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            message = consumer.poll(1.0)
            if message is None or message.error():
                continue
            headers = {key: value.decode() for key, value in message.headers() or []}
            if headers.get("ce_id") == score_id:
                return headers, json.loads(message.value())
    finally:
        consumer.close()
    raise AssertionError(f"{score_id} did not come")


async def test_two_of_each_share_the_work_and_take_it_over(tmp_path: Path, stack: Stack) -> None:
    """One of each is drained, then killed; the other is frozen until the first has taken over, and wakes up again."""
    name = a_name()
    async with clustered(tmp_path, stack, each=2) as (cluster, ledger):
        firsts = [cluster.of(service)[0] for service in SERVICES]
        seconds = [cluster.of(service)[1] for service in SERVICES]
        await cluster.environment.bus.publish(declared(name))
        await announce(cluster, name, ledger.offer(0))
        table = await champion(cluster, name)
        async with under_load(cluster, ledger, name):
            await announce(cluster, name, ledger.offer(1))
            drained = await asyncio.gather(*(asyncio.to_thread(first.drain) for first in firsts))
            for first, (code, took) in zip(firsts, drained, strict=True):
                print(f"{first.service}: drained in {took:.1f} s", flush=True)
                assert code == 0, first.tail()
            await announce(cluster, name, ledger.offer(2))
            await cluster.start(firsts)
            await announce(cluster, name, ledger.offer(3))
            await asyncio.sleep(1)
            for first in firsts:
                first.kill()
            await announce(cluster, name, ledger.offer(4))
            await cluster.start(firsts)
            for second in seconds:
                second.send(signal.SIGSTOP)
            await announce(cluster, name, ledger.offer(5))
            await asyncio.sleep(FROZEN_SECONDS)
            for second in seconds:
                second.send(signal.SIGCONT)
            await announce(cluster, name, ledger.offer(6))
            await champion(cluster, name, after=table.table.version)
        await cluster.ready()
        await cluster.quiet()
        report = await check(cluster.environment, ledger, name)
        print(report, flush=True)
        assert report["scores"] > 0


async def test_servers_restart_under_load(tmp_path: Path) -> None:
    """Each server goes and comes back: who needs it says so, everybody recovers, the counts add up."""
    name = a_name()
    with running(tmp_path / "stack", "kafka", "redis", "cassandra", "mlflow", "s3") as stack:
        async with clustered(tmp_path, stack) as (cluster, ledger):
            await cluster.environment.bus.publish(declared(name))
            await announce(cluster, name, ledger.offer(0))
            await champion(cluster, name)
            async with under_load(cluster, ledger, name) as traffic:
                for number, server in enumerate(("kafka", "redis", "cassandra", "mlflow"), 1):
                    await announce(cluster, name, ledger.offer(number))
                    before = traffic.answers
                    await asyncio.to_thread(stack.servers[server].kill)
                    began = time.monotonic()
                    if server == "kafka":
                        await _said(cluster, "Kafka")
                    await asyncio.sleep(max(0.0, 8 - (time.monotonic() - began)))
                    assert traffic.answers > before, f"nothing was answered while {server} was away"
                    assert all(member.alive() for member in cluster.members)
                    stack.servers[server].start()
                    await asyncio.to_thread(stack.servers[server].wait)
                    began = time.monotonic()
                    await cluster.ready()
                    print(f"{server}: ready {time.monotonic() - began:.1f} s after it was back", flush=True)
            await cluster.quiet()
            print(await check(cluster.environment, ledger, name), flush=True)
            assert not traffic.refused, traffic.refused


async def _said(cluster: Cluster, word: str, seconds: float = 60) -> None:
    """Wait until every process says that it is not ready, and why."""
    until = time.monotonic() + seconds
    for member in cluster.members:
        while word not in ((await asyncio.to_thread(member.waiting)) or ""):
            assert time.monotonic() < until, f"{member.service} says that it is ready: {member.waiting()}"
            await asyncio.sleep(0.2)
