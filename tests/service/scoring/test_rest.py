"""Scoring over REST: what a caller sees."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any

import builders
import httpx
import pytest
from environment import published, wait_for
from scoring_stand import OLD, Stand

from turnout.common.events import OutcomeObserved, ScoreProduced
from turnout.common.runtime.service import utc_now

LOGIT = 1.4


async def test_a_row_is_scored(stand: Stand) -> None:
    row = await stand.one()
    assert row["value"] == "yes"
    assert row["probabilities"]["yes"] == pytest.approx(1 / (1 + math.exp(-LOGIT)), abs=1e-6)
    assert (row["version"], row["served_by"], row["reason"]) == ("1", "champion", None)
    assert [a["outcome"] for a in row["attempts"]] == ["ok"]


async def test_every_score_comes_to_the_bus_as_it_was_answered(stand: Stand) -> None:
    rows = (await stand.score(OLD, {"age": 20.0}, {"colour": "blue"}))["rows"]
    await wait_for(stand.environment.bus, ScoreProduced, where=lambda e: e.score_id == rows[-1]["score_id"])
    events = {e.score_id: e for e in await published(stand.environment.bus, ScoreProduced)}
    assert len(events) == 3
    for row in rows:
        event = events[row["score_id"]]
        assert (event.value, dict(event.probabilities), event.version) == (row["value"], row["probabilities"], "1")
    assert events[rows[1]["score_id"]].values == {"age": 20.0}


async def test_a_thousand_rows_are_scored_in_their_order(stand: Stand) -> None:
    rows = (await stand.score(*({"age": float(age)} for age in range(1000))))["rows"]
    shares = [row["probabilities"]["yes"] for row in rows]
    assert shares == sorted(shares)
    assert len({row["score_id"] for row in rows}) == 1000


async def test_a_missing_field_is_missing_data(stand: Stand) -> None:
    assert (await stand.one({"age": None, "colour": "red"}))["value"] == (await stand.one({"colour": "red"}))["value"]


# What is sent (text: as it is), the status, and what the answer must say.
BAD: dict[str, tuple[Any, int, str]] = {
    "no JSON": ('{"rows": [', 400, "not JSON"),
    "nothing": ("", 400, "not JSON"),
    "not an object": ([1], 422, "an object is expected"),
    "no rows": ({}, 422, "rows"),
    "an empty list": ({"rows": []}, 422, "0 rows"),
    "rows that are no list": ({"rows": {"age": 1}}, 422, "a list is expected"),
    "a row that is no object": ({"rows": [1]}, 422, "rows[0]"),
    "too many rows": ({"rows": [{"age": 1}] * 1001}, 422, "1001 rows"),
    "an unknown field of the body": ({"row": [OLD]}, 422, "did you mean 'rows'?"),
    "an unknown column": ({"rows": [{"agee": 1}]}, 422, "did you mean 'age'?"),
    "a text for a number": ({"rows": [OLD, {"age": "old"}]}, 422, "rows[1].age"),
    "an object for a number": ({"rows": [{"age": {"x": 1}}]}, 422, "rows[0].age"),
    "a list for a category": ({"rows": [{"colour": ["red"]}]}, 422, "rows[0].colour"),
    "a row without values": ({"rows": [{}]}, 422, "no value for any input"),
    "only nulls": ({"rows": [{"age": None}]}, 422, "no value for any input"),
    "NaN": ('{"rows": [{"age": NaN}]}', 422, "rows[0].age"),
    "infinity": ('{"rows": [{"age": -Infinity}]}', 422, "rows[0].age"),
    "1e400": ('{"rows": [{"age": 1e400}]}', 422, "rows[0].age"),
    "10,000 digits": ('{"rows": [{"age": ' + "9" * 10_000 + "}]}", 422, "rows[0].age"),
    "a lone surrogate": ('{"rows": [{"colour": "\\ud800"}]}', 400, "not JSON"),
    "a long text": ({"rows": [{"colour": "x" * 10_001}]}, 422, "10001 characters"),
    "deep nesting": ("[" * 100_000, 400, "not JSON"),
    "a deep row": ('{"rows": ' + "[" * 500 + "]" * 500 + "}", 422, "rows[0]"),
    "entities that are no texts": ({"entities": [1]}, 422, "entities[0]"),
    "one entity for two rows": ({"rows": [OLD, OLD], "entities": ["e"]}, 422, "1 entities but 2 rows"),
    "an unknown entity": ({"entities": ["nobody"]}, 404, "nobody"),
    "a version that is none": ({"rows": [OLD], "version": [1]}, 422, "version"),
    "an unknown version": ({"rows": [OLD], "version": "99"}, 404, "99"),
    "a time limit of nothing": ({"rows": [OLD], "timeout_ms": 0}, 422, "timeout_ms"),
    "an unknown mode": ({"rows": [OLD], "mode": "later"}, 422, "mode"),
    "a callback": ({"rows": [OLD], "callback": "http://example.com"}, 422, "callback"),
}


async def test_bad_input_is_answered_in_words_and_harms_nobody(stand: Stand) -> None:
    for case, (body, status, words) in BAD.items():
        sent = {"content": body} if isinstance(body, str) else {"json": body}
        reply = await stand.client.post("/pipelines/p/score", headers={"content-type": "application/json"}, **sent)
        assert reply.status_code == status, (case, reply.text)
        assert reply.headers["content-type"] == "application/problem+json", case
        problem = reply.json()
        assert words in " ".join(str(problem.get(part, "")) for part in ("field", "detail", "fix")), (case, problem)
    assert (await stand.one())["version"] == "1"
    assert len(await published(stand.environment.bus, ScoreProduced)) <= 1


async def test_unknown_addresses(stand: Stand) -> None:
    reply = await stand.client.post("/pipelines/pp/score", json={"rows": [OLD]})
    assert reply.status_code == 404
    assert reply.json()["fix"] == "did you mean 'p'?"
    assert (await stand.client.get("/scores/nothing")).status_code == 404
    reply = await stand.client.post("/pipelines/p/score?verison=1", json={"rows": [OLD]})
    assert reply.json()["fix"] == "did you mean 'version'?"
    reply = await stand.client.post("/pipelines/p/score", content="rows=1", headers={"content-type": "text/plain"})
    assert reply.status_code == 415


async def test_a_body_too_large_is_refused(stand: Stand) -> None:
    reply = await stand.client.post(
        "/pipelines/p/score", content=b" " * 1_100_000, headers={"content-type": "application/json"}
    )
    assert reply.status_code == 413


async def test_an_entitys_features_come_from_the_store_and_the_rows_values_win(stand: Stand) -> None:
    online = stand.environment.online
    await online.put("p", "e-1", {"age": 40.0, "colour": "red", "postcode": "x"}, utc_now())
    by_entity = (await stand.score(OLD))["rows"][0]
    reply = (await stand.client.post("/pipelines/p/score", json={"entities": ["e-1"]})).json()["rows"][0]
    assert (reply["entity"], reply["value"], reply["probabilities"]) == (
        "e-1",
        by_entity["value"],
        by_entity["probabilities"],
    )
    mixed = (await stand.score({"age": 80.0}, entities=["e-1"]))["rows"][0]
    assert mixed["probabilities"]["yes"] == pytest.approx(1 / (1 + math.exp(-1.8)), abs=1e-6)


async def test_asynchronous_scores_are_accepted_answered_and_found(stand: Stand) -> None:
    reply = await stand.client.post("/pipelines/p/score?mode=async", json={"rows": [OLD, {"age": 1.0}]})
    assert reply.status_code == 202
    ids = reply.json()["score_ids"]
    assert reply.headers["location"] == f"/scores/{ids[0]}"
    found = await _until_there(stand.client, ids[0])
    assert (found["pipeline"], found["value"], found["version"]) == ("p", "yes", "1")
    reply = await stand.client.post("/pipelines/p/score?mode=async", json={"rows": [{"agee": 1}]})
    assert reply.status_code == 422


async def _until_there(client: httpx.AsyncClient, score_id: str) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            reply = await client.get(f"/scores/{score_id}")
            if reply.status_code == 200:
                return reply.json()
            assert reply.status_code == 202, reply.text
            await asyncio.sleep(0.02)


async def test_a_score_is_found_here_and_in_the_history(stand: Stand) -> None:
    row = await stand.one()
    stored = (await stand.client.get(f"/scores/{row['score_id']}")).json()
    assert {name: stored[name] for name in row} == row
    old = builders.score_produced("s-old")
    await stand.environment.history.add_scores([old])
    assert (await stand.client.get("/scores/s-old")).json()["value"] == old.value


async def test_outcomes_become_events_and_an_unknown_score_is_refused(stand: Stand) -> None:
    rows = (await stand.score(OLD, OLD))["rows"]
    at = "2026-01-31T08:15:00Z"
    body: list[dict[str, Any]] = [{"score_id": row["score_id"], "outcome": "yes", "time": at} for row in rows]
    reply = await stand.client.post("/outcomes", json=body[0])
    assert reply.status_code == 202, reply.text
    again = await stand.client.post("/outcomes", json=body)
    assert again.json()["outcomes"][0]["event_id"] == reply.json()["outcomes"][0]["event_id"]
    first = rows[0]["score_id"]
    event = await wait_for(stand.environment.bus, OutcomeObserved, where=lambda e: e.score_id == first)
    assert (event.pipeline, event.score_id, event.outcome) == ("p", rows[0]["score_id"], "yes")
    assert event.observed_at.isoformat() == "2026-01-31T08:15:00+00:00"

    for bad, status in (
        ({"score_id": "nobody", "outcome": "yes"}, 404),
        ({"score_id": rows[0]["score_id"]}, 422),
        ({"score_id": rows[0]["score_id"], "outcome": ["yes"]}, 422),
        ({"score_id": rows[0]["score_id"], "outcome": "yes", "time": "soon"}, 422),
        ({"score": rows[0]["score_id"], "outcome": "yes"}, 422),
        ([*body, {"score_id": "nobody", "outcome": 1}], 404),
        ([], 422),
        ("text", 422),
    ):
        assert (await stand.client.post("/outcomes", json=bad)).status_code == status, bad


async def test_a_time_limit_beyond_the_slo_changes_nothing(stand: Stand) -> None:
    assert (await stand.one(timeout_ms=1e12))["version"] == "1"


async def test_keys_are_asked_for_once_there_are_some(stand: Stand) -> None:
    key = stand.environment.keys.add("somebody", "score")
    reader = stand.environment.keys.add("reader", "read")
    read = {"authorization": f"Bearer {reader}"}
    async with asyncio.timeout(10):
        while (await stand.client.post("/pipelines/p/score", json={}, headers=read)).status_code != 403:
            await asyncio.sleep(0.1)
    for path in ("/v2/models/p/infer", "/outcomes"):
        assert (await stand.client.post(path, json={})).status_code == 401
    assert (await stand.client.get("/v2/models/p/router")).status_code == 401
    assert (await stand.client.get("/v2/health/live")).status_code == 200
    for given, status in ((key, 200), (reader, 403), ("wrong", 401)):
        reply = await stand.client.post(
            "/pipelines/p/score", json={"rows": [OLD]}, headers={"authorization": f"Bearer {given}"}
        )
        assert reply.status_code == status


async def test_openapi_describes_every_route_and_its_examples_fit(stand: Stand) -> None:
    described = (await stand.client.get("/openapi.json")).json()["paths"]
    for path, method in (
        ("/pipelines/{pipeline}/score", "post"),
        ("/scores/{score_id}", "get"),
        ("/outcomes", "post"),
        ("/v2", "get"),
        ("/v2/health/live", "get"),
        ("/v2/health/ready", "get"),
        ("/v2/models/{model}", "get"),
        ("/v2/models/{model}/versions/{version}", "get"),
        ("/v2/models/{model}/ready", "get"),
        ("/v2/models/{model}/versions/{version}/ready", "get"),
        ("/v2/models/{model}/infer", "post"),
        ("/v2/models/{model}/versions/{version}/infer", "post"),
        ("/v2/models/{model}/router", "get"),
    ):
        assert method in described[path], path
    assert described["/pipelines/{pipeline}/score"]["post"]["requestBody"]


async def test_requests_by_event_are_answered_and_those_past_their_expiry_dropped(stand: Stand) -> None:
    events = [
        builders.score_requested(values={"age": 40.0}, id="r-1"),
        builders.score_requested(values={"age": 40.0}, id="r-2", expiry=utc_now() - timedelta(seconds=1)),
        builders.score_requested(values={"age": 41.0}, id="r-3", expiry=utc_now() + timedelta(minutes=1)),
    ]
    await stand.environment.bus.publish(*events)
    await wait_for(stand.environment.bus, ScoreProduced, where=lambda e: e.score_id == "r-3")
    await wait_for(stand.environment.bus, ScoreProduced, where=lambda e: e.score_id == "r-1")
    scores = await published(stand.environment.bus, ScoreProduced)
    assert {score.score_id for score in scores} == {"r-1", "r-3"}
    assert {score.causation_id for score in scores} == {"r-1", "r-3"}
