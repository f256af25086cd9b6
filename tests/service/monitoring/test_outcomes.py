"""Scores and outcomes in any order, late, twice, corrected; each counted once, also across a restart."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

import pytest
from environment import dead_letters, declare, published
from watched import at, late, observation, outcome, ready, score

from turnout.common import pipeline
from turnout.common.bus.port import Record
from turnout.common.events import (
    Event,
    ModelDegraded,
    ModelReady,
    ObservationReceived,
    RoutingChanged,
    ScoreProduced,
)
from turnout.common.runtime.service import utc_now
from turnout.monitoring import reactions


class Crash(BaseException):
    """The process is gone."""


def file(**sections: object) -> pipeline.PipelineFile:
    return pipeline.PipelineFile.model_validate(
        {"pipeline": "p", "task": "classification", "source": {"label": "y"}, **sections}
    )


def now(event: Event) -> Event:
    return event.model_copy(update={"time": utc_now()})


async def deploy(system, *versions: str) -> None:
    for version in versions:
        await system.bus.publish(now(ready(version)))
        await system.quiet()


async def test_each_score_is_counted_once_however_often_it_comes(system) -> None:
    await deploy(system, "1")
    scores = [now(score(f"s-{n}", milliseconds=1 + n % 10)) for n in range(200)]
    summaries = [told for at in range(0, 200, 10) for told in system.router.tell(*scores[at : at + 10])]
    shuffled = (scores + summaries) * 3
    random.Random(7).shuffle(shuffled)
    await system.bus.publish(*shuffled)
    await system.quiet()
    version = await system.version("1")
    assert (version["served"], version["attempts"]) == (200, {"ok": 200})
    assert version["milliseconds"]["maximum"] == 10
    assert version["milliseconds"]["mean"] == pytest.approx(5.5)
    assert version["features"][0]["rows"] == 200


async def test_counts_are_right_after_a_restart_in_the_middle(home) -> None:
    async with home.started() as system:
        await deploy(system, "1")
        await system.scored(*[now(score(f"s-{n}")) for n in range(100)])
        await system.quiet()
        await system.bus.publish(*[now(score(f"s-{n}")) for n in range(50, 100)])
        await system.scored(*[now(score(f"s-{n}")) for n in range(100, 150)])
    async with home.started() as system:
        await system.bus.publish(*[now(score(f"s-{n}")) for n in range(100, 150)])
        await system.scored(*[now(score(f"s-{n}")) for n in range(150, 200)])
        await system.quiet()
        assert (await system.version("1"))["served"] == 200
        assert await system.environment.history.count_scores("p") == 200


@pytest.mark.parametrize(
    "point", ["monitoring.scores-kept", "monitoring.verdict-found", "monitoring.verdict-published"]
)
async def test_killed_between_scores_and_switch_it_still_switches_once(
    home, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = asyncio.Event()

    def crash_point(name: str) -> None:
        if name == point:
            gone.set()
            raise Crash

    async with home.started() as system:
        await declare(system.environment, file())
        await deploy(system, "1", "2")
        monkeypatch.setattr(reactions, "crash_point", crash_point)
        await system.scored(*[now(late(f"s-{n}")) for n in range(100)])
        await asyncio.wait_for(gone.wait(), 10)
    monkeypatch.undo()
    async with home.started() as system:
        await system.quiet()
        degraded = {event.id: event for event in await published(system.bus, ModelDegraded)}
        assert len(degraded) == 1
        (newest,) = await published(system.bus, RoutingChanged)
        assert (newest.table.version, newest.table.champion) == (3, "1")
        assert newest.causation_id in degraded
        assert await system.actions() == ["deployed", "deployed", "degraded", "switched back"]
        assert await system.environment.history.count_scores("p") == 100
        assert (await system.version("2"))["late"] == 100
        await deploy(system, "2")
        (newest,) = await published(system.bus, RoutingChanged)
        assert newest.table.version == 3, "a version that was found unfit is not chosen again"


@pytest.mark.parametrize("point", ["monitoring.routing-published", "monitoring.command-published"])
async def test_killed_after_a_table_was_published_it_is_written_down_later(
    home, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = asyncio.Event()

    def crash_point(name: str) -> None:
        if name == point:
            gone.set()
            raise Crash

    async with home.started() as system:
        await deploy(system, "1", "2")
        monkeypatch.setattr(reactions, "crash_point", crash_point)
        if point == "monitoring.routing-published":
            await system.bus.publish(now(ready("3")))
        else:
            with pytest.raises(Crash):
                await system.client.post("/pipelines/p/promote", json={"version": "1"})
        await asyncio.wait_for(gone.wait(), 10)
        assert await system.actions() == ["deployed", "deployed"]
    monkeypatch.undo()
    async with home.started() as system:
        await system.quiet()
        await system.report()
        expected = "deployed" if point == "monitoring.routing-published" else "promoted"
        assert await system.actions() == ["deployed", "deployed", expected]
        (newest,) = await published(system.bus, RoutingChanged)
        assert newest.table.version == 3


async def test_killed_after_outcomes_were_kept_they_are_joined_and_judged(
    home, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = asyncio.Event()

    def crash_point(name: str) -> None:
        if name == "monitoring.outcomes-kept":
            gone.set()
            raise Crash

    async with home.started() as system:
        await deploy(system, "1", "2")
        await system.scored(*[now(score(f"s-{n}", version="2")) for n in range(60)])
        await system.quiet()
        monkeypatch.setattr(reactions, "crash_point", crash_point)
        await system.bus.publish(*[outcome(f"s-{n}", "no") for n in range(60)])
        await asyncio.wait_for(gone.wait(), 10)
    monkeypatch.undo()
    async with home.started() as system:
        await system.quiet()
        assert (await system.report())["outcomes"] == 60
        (degraded,) = await published(system.bus, ModelDegraded)
        assert degraded.signal == "accuracy"


@pytest.mark.parametrize("what", ["removal", "forgetting"])
async def test_killed_after_a_wish_was_published_it_is_fulfilled(
    home, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash_point(name: str) -> None:
        if name == f"monitoring.{what}-published":
            raise Crash

    async with home.started() as system:
        await declare(system.environment, file())
        await deploy(system, "1")
        await system.scored(now(score("s-1", entity="ada")), now(score("s-2", entity="bob")))
        await system.quiet()
        monkeypatch.setattr(reactions, "crash_point", crash_point)
        path, body = ("remove", {}) if what == "removal" else ("forget", {"entity": "ada"})
        with pytest.raises(Crash):
            await system.client.post(f"/pipelines/p/{path}", json=body)
    monkeypatch.undo()
    async with home.started() as system:
        await system.quiet()
        left = [s.score_id for s in await system.environment.history.scores("p")]
        assert left == ([] if what == "removal" else ["s-2"])
        assert (await system.client.get("/pipelines/p")).status_code == (404 if what == "removal" else 200)
        assert (await system.actions())[-1] == ("removed" if what == "removal" else "forgotten")
        assert (await published(system.bus, ModelReady) == []) == (what == "removal")
        on_the_bus = [s.entity for s in await published(system.bus, ScoreProduced)]
        assert on_the_bus == (["ada", "bob"] if what == "removal" else ["bob"])


async def test_outcomes_come_late_twice_out_of_order_and_before_their_score(system) -> None:
    await deploy(system, "1")
    await system.bus.publish(outcome("s-2", "no", observed=1), outcome("s-9", "no"))
    await system.quiet()
    await system.scored(*[now(score(f"s-{n}")) for n in range(3)])
    await system.quiet()
    await system.bus.publish(
        outcome("s-0", "yes", observed=10),
        outcome("s-0", "yes", observed=10),
        outcome("s-0", "no", observed=3),
        outcome("s-1", "no", observed=5),
        outcome("s-1", "yes", observed=6),
    )
    await system.quiet()
    report = await system.report()
    assert report["outcomes"] == 3
    quality = next(v for v in report["versions"] if v["version"] == "1")["quality"]
    # s-0 yes (the later one), s-1 yes (corrected), s-2 no (it came before its score); all were predicted "yes".
    assert quality["confusion"] == {"actual": ["no", "yes"], "predicted": ["no", "yes"], "counts": [[0, 1], [0, 2]]}
    assert quality["live"] == pytest.approx(2 / 3)
    assert (await system.client.get("/pipelines/p/quality")).json()["1"] == quality
    metrics = (await system.client.get("/metrics")).text
    assert 'turnout_outcomes_total{result="unmatched"}' in metrics
    assert 'turnout_model_quality_ratio{metric="accuracy",model_name="p",model_version="1"}' in metrics
    assert 'turnout_version_latency_seconds{model_name="p",model_version="1",quantile="0.99"}' in metrics


async def test_a_version_that_is_wrong_too_often_gives_way(home) -> None:
    async with home.started() as system:
        await declare(system.environment, file(monitoring={"accuracy_drop": 0.2}))
        await deploy(system, "1", "2")
        await system.scored(*[now(score(f"s-{n}", version="2")) for n in range(60)])
        await system.bus.publish(*[outcome(f"s-{n}", "no" if n % 2 else "yes") for n in range(20)])
        await system.quiet()
        assert await published(system.bus, ModelDegraded) == [], "ten of twenty may be chance"
    async with home.started() as system:
        await system.bus.publish(*[outcome(f"s-{n}", "no" if n % 2 else "yes") for n in range(20, 60)])
        await system.quiet()
        (degraded,) = await published(system.bus, ModelDegraded)
        assert (degraded.signal, degraded.stats.reference) == ("accuracy", 0.9)
        (newest,) = await published(system.bus, RoutingChanged)
        assert (newest.table.champion, newest.causation_id) == ("1", degraded.id)


async def test_an_outcome_of_the_wrong_type_is_counted_and_in_nobodys_way(system) -> None:
    await deploy(system, "1")
    await system.scored(now(score("s-0")), now(score("s-1")))
    await system.bus.publish(outcome("s-0", "   "), outcome("s-1", 12.5))
    await system.quiet()
    quality = (await system.version("1"))["quality"]
    assert (quality["outcomes"], quality["unreadable"]) == (1, 1)


async def test_what_cannot_be_read_is_a_dead_letter_and_the_rest_goes_on(system) -> None:
    await deploy(system, "1")
    fields = (
        b'{"pipeline":"p","score_id":"x","version":"1","served_by":"champion","values":{},"value":1,"milliseconds":'
    )
    await system.bus.publish(
        Record("ScoreProduced", b"x", fields + b'"inf"}'),
        Record("ScoreProduced", b"x", b"not json"),
        Record("OutcomeObserved", b"x", None),
        now(score("s-1")),
    )
    await system.quiet()
    assert (await system.version("1"))["served"] == 1
    assert len(await dead_letters(system.bus, ScoreProduced)) == 2


async def test_a_forgotten_entity_is_gone_from_bus_and_history_and_stays_gone(home) -> None:
    async with home.started() as system:
        await declare(system.environment, file())
        await deploy(system, "1")
        forgotten = now(score("s-1", entity="ada", values={"age": 36}))
        await system.scored(forgotten, now(score("s-2", entity="bob")), observation("o-1", entity="ada"))
        await system.environment.history.add_features([observation("o-1", entity="ada")])
        await system.quiet()
        reply = await system.client.post("/pipelines/p/forget", json={"entity": "ada"})
        assert reply.status_code == 200, reply.text
        await system.quiet()
        assert [s.score_id for s in await system.environment.history.scores("p")] == ["s-2"]
        assert await system.environment.history.features("p", "ada") == []
        assert [s.entity for s in await published(system.bus, ScoreProduced)] == ["bob"]
        assert await published(system.bus, ObservationReceived) == []
        trail = (await system.client.get("/pipelines/p/audit")).text
        assert "forgotten" in trail
        assert "ada" not in trail
    async with home.started() as system:
        await system.bus.publish(forgotten)  # a straggler from a router's outbox
        await system.quiet()
        assert await system.environment.history.count_scores("p") == 1


async def test_the_page_and_the_lists_show_where_everything_stands(system) -> None:
    page = await system.client.get("/")
    assert page.status_code == 200
    assert "turnout init" in page.text
    await declare(system.environment, file())
    await deploy(system, "1", "2")
    await system.scored(*[now(score(f"s-{n}", version="2")) for n in range(60)])
    await system.bus.publish(*[outcome(f"s-{n}") for n in range(60)])
    await system.quiet()
    (line,) = (await system.client.get("/pipelines")).json()
    assert (line["pipeline"], line["champion"], line["previous"], line["served"]) == ("p", "2", "1", 60)
    assert (line["stage"]["name"], line["task"]) == ("serving", "classification")
    page = await system.client.get("/services/monitoring/")
    assert page.status_code == 200
    assert "<svg" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    trail = (await system.client.get("/pipelines/p/audit", params={"limit": 1})).json()
    assert [(t["action"], t["subject"]) for t in trail] == [("deployed", "2")]
    assert (await system.client.get("/pipelines/p/audit", params={"limit": 0})).status_code == 422
    assert (await system.client.get("/pipelines/q/audit")).status_code == 404


async def test_what_is_past_its_retention_goes(system) -> None:
    history = system.environment.history
    await history.add_scores([score("old", seconds=0), score("new", seconds=100 * 86_400)])
    slept = asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.set()
        await asyncio.Event().wait()

    day = timedelta(days=1)
    expiry = reactions.Expiry(history, keep=30 * day, every=day, now=lambda: at(90 * 86_400), sleep=sleep)
    task = asyncio.create_task(expiry.run())
    await asyncio.wait_for(slept.wait(), 10)
    task.cancel()
    assert [s.score_id for s in await history.scores("p")] == ["new"]
