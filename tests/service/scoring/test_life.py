"""What happens around the answers: a full disk, stores that are away, pipelines and entities that go."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import graphs
import httpx
import pytest
from environment import running
from scoring_stand import OLD, Stand, standing

from turnout.common.errors import Unavailable
from turnout.common.events import EntityForgotten, PipelineRemoved
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import utc_now
from turnout.scoring.adapters import outbox as outbox_module
from turnout.scoring.service import build
from turnout.scoring.settings import ScoringSettings


async def until_status(client: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
    async with asyncio.timeout(30):
        while (reply := await client.get(path)).status_code != status:
            await asyncio.sleep(0.05)
    return reply


async def test_a_full_disk_is_a_503_that_says_so_and_ends_by_itself(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[sqlite3.Connection] = []
    open_file: Callable[..., sqlite3.Connection] = outbox_module._open

    def limited(path: Path, synchronous: str) -> sqlite3.Connection:
        made.append(open_file(path, synchronous))
        return made[-1]

    monkeypatch.setattr(outbox_module, "_open", limited)
    async with standing(environment) as stand:
        await stand.give(graphs.good(), "1")
        await environment.bus.publish(builders.routing(1, "1"))
        await stand.until_state("1", "on")
        assert (await stand.one())["version"] == "1"
        made[0].execute("pragma max_page_count = 1")
        async with asyncio.timeout(30):  # until the pages that are there are used up
            while True:
                reply = await stand.client.post("/pipelines/p/score", json={"rows": [OLD] * 1000})
                if reply.status_code != 200:
                    break
        assert reply.status_code == 503
        assert "full" in reply.json()["detail"]
        waiting = (await until_status(stand.client, "/readyz", 503)).json()["waiting_for"]
        assert "full" in str(waiting)
        assert (await stand.client.get("/livez")).status_code == 200
        made[0].execute("pragma max_page_count = 1000000")
        await until_status(stand.client, "/readyz", 200)
        assert (await stand.one())["version"] == "1"


class Away:
    """An online store that cannot be reached."""

    async def get_many(self, pipeline: str, entities: Any) -> Any:
        raise Unavailable("the online store", "it is away")


async def test_without_the_online_store_rows_are_answered_and_entities_get_the_prior(environment: Environment) -> None:
    environment.__dict__["online"] = Away()
    async with standing(environment) as stand:
        await stand.give(graphs.good(), "1")
        await environment.bus.publish(builders.routing(1, "1"))
        await stand.until_state("1", "on")
        rows = (await stand.score({}, OLD, entities=["e-1", "e-2"]))["rows"]
        assert [(row["version"], row["reason"]) for row in rows] == [("baseline", "features"), ("1", None)]


async def test_a_removed_pipeline_is_gone_and_can_come_again(stand: Stand) -> None:
    removed = PipelineRemoved.first(source="/monitoring", at=utc_now(), pipeline="p")
    await stand.environment.bus.publish(removed)
    await until_status(stand.client, "/v2/models/p/router", 404)
    async with asyncio.timeout(10):
        folder = stand.environment.home / "scoring" / "models"
        while list(folder.glob("*/*.onnx")):
            await asyncio.sleep(0.02)
    later = {"at": utc_now()}
    ready = graphs.put(stand.environment.lake, graphs.good(0.2), "1")
    route = builders.routing(1, "1")
    declared = builders.declared()
    again = [
        event.model_copy(update={"time": later["at"], "id": builders.ident()}) for event in (declared, ready, route)
    ]
    await stand.environment.bus.publish(*again)
    await stand.until_state("1", "on")


async def test_a_forgotten_entity_is_gone_from_here(stand: Stand) -> None:
    row = (await stand.score(OLD, entities=["e-1"]))["rows"][0]
    assert (await stand.client.get(f"/scores/{row['score_id']}")).status_code == 200
    forgotten = EntityForgotten.first(source="/monitoring", at=utc_now(), pipeline="p", entity="e-1")
    await stand.environment.bus.publish(forgotten)
    await until_status(stand.client, f"/scores/{row['score_id']}", 404)


async def test_two_workers_agree_on_the_route(stand: Stand) -> None:
    second = build(stand.environment, ScoringSettings(worker="1"))
    async with running(stand.environment, second) as (_, client):
        other = Stand(stand.environment, stand.running, client)
        await other.until_state("1", "on")
        await stand.give(graphs.good(0.4), "2")
        await stand.environment.bus.publish(builders.routing(2, "2", previous="1"))
        for each in (stand, other):
            await each.until_state("2", "on")
            assert (await each.one())["version"] == "2"
