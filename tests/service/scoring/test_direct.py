"""Requests answered below ASGI say and keep exactly what those that go the long way do."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import builders
import graphs
import httpx
import pytest
from environment import published, wait_for
from scoring_stand import OLD, SLO_MS, Stand, direct, file

from turnout.common.bus.cloudevents import encode
from turnout.common.events import ATTRIBUTES, ScoreProduced, VersionEjected
from turnout.common.runtime.direct import Exchange
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.web import site
from turnout.scoring.adapters import outbox as outbox_module

WILD = {"age": 200.0, "colour": "red"}
PATH = "/pipelines/p/score"


class Spy:
    """How many requests were answered directly, and how many were given back."""

    def __init__(self) -> None:
        self.replied = self.given_back = 0


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    found = Spy()
    reply, give_back = Exchange.reply, Exchange.give_back

    def replied(self: Exchange, content: bytes) -> None:
        found.replied += 1
        reply(self, content)

    def given(self: Exchange, tried: object = None) -> None:
        found.given_back += 1
        give_back(self, tried)

    monkeypatch.setattr(Exchange, "reply", replied)
    monkeypatch.setattr(Exchange, "give_back", given)
    return found


@pytest.fixture
async def long_way(environment: Environment, spy: Spy) -> AsyncIterator[tuple[Stand, httpx.AsyncClient]]:
    """A stand that answers directly, and a client of the same application without a port."""
    async with direct(environment) as stand:
        app = site(stand.running.services, stand.running.health, "scoring", stand.running.measure)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://turnout") as other:
            yield stand, other


def same(score: dict[str, Any]) -> dict[str, Any]:
    """A score without what differs from one to the next."""
    attempts = [{**attempt, "milliseconds": None} for attempt in score["attempts"]]
    return {**score, "score_id": None, "attempts": attempts}


@pytest.mark.parametrize("durability", ["NORMAL", "FULL"])
async def test_a_plain_request_is_answered_directly_and_kept(
    environment: Environment, spy: Spy, durability: str
) -> None:
    async with direct(environment, durability=durability) as stand:
        spy.replied = 0
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        row = {"age": 41.5, "colour": " 3.0 "}
        answer = await stand.client.post(PATH, json={"rows": [row]}, headers={"traceparent": trace})
        assert spy.replied == 1
        (score,) = answer.json()["rows"]
        assert (score["version"], score["served_by"], score["reason"]) == ("2", "champion", None)
        kept = await wait_for(environment.bus, ScoreProduced, where=lambda e: e.score_id == score["score_id"])
        assert kept.values == row
        assert kept.traceparent is not None
        assert kept.traceparent.startswith(trace[:35])
        stored = (await stand.client.get(f"/scores/{score['score_id']}")).json()
        assert {name: stored[name] for name in score} == score
        # The same as an event that was built and encoded in one piece.
        fields = kept.model_dump(exclude=set(ATTRIBUTES))
        again = ScoreProduced.first(id=kept.id, source=kept.source, at=kept.time, traceparent=trace, **fields)
        assert again == kept
        records = {dict(r.record.headers)["ce_id"]: r.record async for r in environment.bus.replay(ScoreProduced)}
        assert sorted(records[kept.id.encode()].headers) == sorted(encode(again).headers)


async def test_both_ways_say_the_same(long_way: tuple[Stand, httpx.AsyncClient], spy: Spy) -> None:
    stand, other = long_way
    rows = [OLD, {"age": 0.0, "colour": "red"}, {"age": 7, "colour": "blue"}, {"age": 99.0, "colour": "3.0"}]
    for row in rows:
        before = spy.replied
        here = await stand.client.post(PATH, json={"rows": [row]})
        there = await other.post(PATH, json={"rows": [row]})
        assert same(here.json()["rows"][0]) == same(there.json()["rows"][0])
        assert spy.replied - before in (0, 1)
    assert spy.replied > 0
    ids = {(await stand.one(row))["score_id"] for row in rows * 5}
    assert len(ids) == 20


ODD: dict[str, dict[str, Any]] = {
    "nothing": {"content": b""},
    "no JSON": {"content": b"{"},
    "NaN": {"content": b'{"rows": [{"age": NaN, "colour": "red"}]}'},
    "a list": {"json": [OLD]},
    "no rows": {"json": {"rows": []}},
    "two rows": {"json": {"rows": [OLD, OLD]}},
    "a row that is no object": {"json": {"rows": [[1, 2]]}},
    "an empty row": {"json": {"rows": [{}]}},
    "a field too few": {"json": {"rows": [{"age": 40.0}]}},
    "a field too many": {"json": {"rows": [OLD | {"colours": "red"}]}},
    "another field": {"json": {"rows": [{"age": 40.0, "color": "red"}]}},
    "a text for a number": {"json": {"rows": [OLD | {"age": "old"}]}},
    "a number as text": {"json": {"rows": [OLD | {"age": "40"}]}},
    "a truth for a number": {"json": {"rows": [OLD | {"age": True}]}},
    "a number for a text": {"json": {"rows": [OLD | {"colour": 3.0}]}},
    "nulls": {"json": {"rows": [{"age": None, "colour": None}]}},
    "a list in a field": {"json": {"rows": [OLD | {"age": [1]}]}},
    "a long text": {"json": {"rows": [OLD | {"colour": "x" * 20_000}]}},
    "an entity": {"json": {"rows": [OLD], "entities": ["e-1"]}},
    "a version": {"json": {"rows": [OLD], "version": "1"}},
    "a version that is not there": {"json": {"rows": [OLD], "version": "9"}},
    "an unknown word": {"json": {"rows": [OLD], "verson": "1"}},
    "another kind": {"content": b"rows", "headers": {"content-type": "text/csv"}},
    "a query": {"json": {"rows": [OLD]}, "params": {"version": "1"}},
    "a query that is not there": {"json": {"rows": [OLD]}, "params": {"colour": "1"}},
}


async def test_what_is_odd_is_answered_as_ever(long_way: tuple[Stand, httpx.AsyncClient], spy: Spy) -> None:
    stand, other = long_way
    before = spy.replied
    for name, request in ODD.items():
        here, there = await stand.client.post(PATH, **request), await other.post(PATH, **request)
        assert spy.replied == before, name
        assert here.status_code == there.status_code, name
        if here.is_success:
            assert [same(row) for row in here.json()["rows"]] == [same(row) for row in there.json()["rows"]], name
        else:
            assert here.json() == there.json(), name


@pytest.mark.parametrize(
    ("content", "outcome"), [(graphs.raising(), "error"), (graphs.not_a_number(), "error"), (graphs.slow(), "late")]
)  # fmt: skip
async def test_a_version_that_fails_a_request_is_asked_once_and_the_one_before_answers(
    environment: Environment, spy: Spy, content: bytes, outcome: str
) -> None:
    async with direct(environment, content, slo_ms=SLO_MS) as stand:
        row = await stand.one(WILD)
        assert spy.given_back == 1
        assert (row["version"], row["served_by"]) == ("1", "previous")
        assert [(attempt["version"], attempt["outcome"]) for attempt in row["attempts"]] == [
            ("2", outcome),
            ("1", "ok"),
        ]
        async with asyncio.timeout(60):
            while not await published(environment.bus, VersionEjected):
                assert (await stand.one(WILD))["version"] == "1"


async def test_one_bad_row_fails_alone(environment: Environment, spy: Spy) -> None:
    """Requests of one turn share a run; a graph that raises for one of them raises for the run."""
    async with direct(environment, graphs.raising()) as stand:
        answers = await asyncio.gather(*(stand.one(WILD if number == 3 else OLD) for number in range(8)))
        assert [answer["version"] for answer in answers] == ["2", "2", "2", "1", "2", "2", "2", "2"]


async def test_a_full_disk_is_a_503_that_ends_by_itself(
    environment: Environment, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[sqlite3.Connection] = []
    for name in ("_open", "open_wal"):
        original = getattr(outbox_module, name)

        def remembered(path: Path, *arguments: Any, of: Any = original, **options: Any) -> sqlite3.Connection:
            db = of(path, *arguments, **options)
            made.append(db)
            return db

        monkeypatch.setattr(outbox_module, name, remembered)
    async with direct(environment, durability="NORMAL") as stand:
        for db in made:
            db.execute("pragma max_page_count = 1")
        reply = await stand.client.post(PATH, json={"rows": [OLD]})
        while reply.status_code == 200:  # until the last page is full
            reply = await stand.client.post(PATH, json={"rows": [OLD]})
        assert reply.status_code == 503
        assert "full" in reply.json()["detail"]
        for db in made:
            db.execute("pragma max_page_count = 1000000")
        before = spy.replied
        assert (await stand.client.post(PATH, json={"rows": [OLD]})).status_code == 200
        assert spy.replied == before + 1


async def test_a_key_is_asked_for(environment: Environment, spy: Spy) -> None:
    async with direct(environment) as stand:
        key = await asyncio.to_thread(environment.keys.add, "one", "score")
        other = await asyncio.to_thread(environment.keys.add, "other", "read")
        before = spy.replied
        for header, status in ((None, 401), ("Bearer nonsense", 401), (f"Bearer {other}", 403), (f"Bearer {key}", 200)):
            headers = {} if header is None else {"authorization": header}
            reply = await stand.client.post(PATH, json={"rows": [OLD]}, headers=headers)
            assert reply.status_code == status
        assert spy.replied == before + 1


async def test_a_thousand_at_once_have_a_score_each(environment: Environment, spy: Spy) -> None:
    async with direct(environment, durability="NORMAL") as stand:
        spy.replied = 0
        answers = [
            await asyncio.gather(*(stand.one({"age": n / 10, "colour": "red"}) for n in range(100))) for _ in range(10)
        ]
        ids = {answer["score_id"] for some in answers for answer in some}
        assert len(ids) == 1000
        assert spy.replied > 900
        async with asyncio.timeout(60):
            while not ids <= {score.score_id for score in await published(environment.bus, ScoreProduced)}:
                await asyncio.sleep(0.1)


async def test_a_canary_is_drawn_for_each_request(environment: Environment, spy: Spy) -> None:
    async with direct(environment) as stand:
        await environment.bus.publish(builders.routing(2, "2", previous="1", challenger="1", share=0.5))
        async with asyncio.timeout(60):
            while (await stand.router())["table"]["challenger"] != "1":
                await asyncio.sleep(0.01)
        versions = [(await stand.one())["version"] for _ in range(60)]
        assert {"1", "2"} == set(versions)


async def test_pipelines_that_share_a_turn_keep_their_own_decisions(environment: Environment, spy: Spy) -> None:
    async with direct(environment) as stand:
        await environment.bus.publish(
            builders.declared(file(pipeline="q")),
            graphs.put(environment.lake, graphs.good(), "7", pipeline="q"),
            builders.routing(1, "7", pipeline="q"),
        )

        async def ask(pipeline: str) -> str:
            while True:
                reply = await stand.client.post(f"/pipelines/{pipeline}/score", json={"rows": [OLD]})
                if reply.is_success and reply.json()["rows"][0]["version"] != "baseline":
                    return reply.json()["rows"][0]["score_id"]
                await asyncio.sleep(0.02)

        asked: dict[str, set[str]] = {"p": set(), "q": set()}
        for _ in range(10):
            for pipeline, ident in zip("pqpq", await asyncio.gather(*map(ask, "pqpq")), strict=True):
                asked[pipeline].add(ident)
        for pipeline, version in (("p", "2"), ("q", "7")):
            decisions = (await stand.client.get(f"/v2/models/{pipeline}/router")).json()["decisions"]
            shown = {decision["score_id"]: decision["version"] for decision in decisions}
            assert asked[pipeline] <= shown.keys()
            assert {shown[ident] for ident in asked[pipeline]} == {version}
            assert not asked["pq".replace(pipeline, "")] & shown.keys()
