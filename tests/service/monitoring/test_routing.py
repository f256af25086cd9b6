"""Versions, routers' reports and people in; tables out, one after the other."""

from __future__ import annotations

import asyncio

import pytest
from environment import dead_letters, declare, published
from watched import late, ready, score

from turnout.common import pipeline
from turnout.common.events import (
    Event,
    ModelDegraded,
    ModelReady,
    PipelineDeclared,
    RoutingChanged,
    VersionEjected,
    VersionRestored,
)
from turnout.common.runtime.service import utc_now


def file(**sections: object) -> pipeline.PipelineFile:
    return pipeline.PipelineFile.model_validate(
        {"pipeline": "p", "task": "classification", "source": {"label": "y"}, **sections}
    )


def now(event: Event) -> Event:
    return event.model_copy(update={"time": utc_now()})


def ejected(version: str, *, admitted: bool) -> VersionEjected:
    return VersionEjected.first(
        source="/scoring",
        at=utc_now(),
        pipeline="p",
        version=version,
        router="r-1",
        why="too slow",
        admitted=admitted,
    )


def tables(changes: list[RoutingChanged]) -> list[tuple[int, str, str | None]]:
    return [(c.table.version, c.table.champion, c.table.previous) for c in changes]


async def every_table(system) -> list[RoutingChanged]:
    """RoutingChanged is compacted; what the audit trail says is whole."""
    trail = reversed(await system.environment.history.audit("p", limit=1000))
    return [
        RoutingChanged.first(
            source="/audit", at=e.at, id=e.id, pipeline="p", table=e.detail["table"], why=e.why, by=e.who
        )
        for e in trail
        if "table" in e.detail
    ]


async def deploy(system, *versions: str) -> None:
    for version in versions:
        await system.bus.publish(now(ready(version)))
        await system.quiet()


async def test_versions_take_over_one_after_the_other(system) -> None:
    await deploy(system, "1", "2", "3")
    assert tables(await every_table(system)) == [(1, "1", None), (2, "2", "1"), (3, "3", "2")]
    (newest,) = await published(system.bus, RoutingChanged)
    third = (await published(system.bus, ModelReady))[-1]
    assert newest.causation_id == third.id
    assert newest.correlation_id == third.correlation_id
    assert (newest.by, newest.table.pinned) == ("monitoring", False)


async def test_the_same_version_again_changes_nothing(system) -> None:
    await deploy(system, "1", "2", "1", "2")
    assert len(await every_table(system)) == 2


async def test_manual_approval_waits_for_a_person(system) -> None:
    await declare(system.environment, file(deployment={"approval": "manual"}))
    await deploy(system, "1")
    assert await published(system.bus, RoutingChanged) == []
    assert await system.actions() == ["waits"]
    reply = await system.client.post("/pipelines/p/promote", json={"version": "1", "why": "looks good"})
    assert reply.status_code == 200, reply.text
    assert reply.json() == {
        "version": 1, "champion": "1", "previous": None, "challenger": None, "share": 0.0, "pinned": True,
    }  # fmt: skip
    (changed,) = await published(system.bus, RoutingChanged)
    assert (changed.by, changed.why) == ("anonymous", "looks good")
    assert await system.actions() == ["waits", "promoted"]


async def test_a_flood_of_late_attempts_is_one_verdict_and_one_switch(system) -> None:
    await declare(system.environment, file(monitoring={"min_samples": 20}))
    await deploy(system, "1", "2")
    await system.scored(*[now(late(f"s-{n}")) for n in range(300)])
    await system.quiet()
    (degraded,) = await published(system.bus, ModelDegraded)
    assert (degraded.version, degraded.signal) == ("2", "latency")
    assert degraded.stats.late >= 20
    assert tables(await every_table(system)) == [(1, "1", None), (2, "2", "1"), (3, "1", None)]
    (newest,) = await published(system.bus, RoutingChanged)
    assert newest.causation_id == degraded.id
    assert await system.actions() == ["deployed", "deployed", "degraded", "switched back"]


async def test_errors_are_named_errors(system) -> None:
    await deploy(system, "1", "2")
    await system.scored(*[now(late(f"s-{n}", outcome="error")) for n in range(40)])
    await system.quiet()
    (degraded,) = await published(system.bus, ModelDegraded)
    assert degraded.signal == "errors"


async def test_too_few_attempts_are_no_verdict(system) -> None:
    await deploy(system, "1", "2")
    await system.scored(*[now(late(f"s-{n}")) for n in range(19)])
    await system.quiet()
    assert await published(system.bus, ModelDegraded) == []


async def test_a_few_late_ones_among_many_are_no_verdict(system) -> None:
    await deploy(system, "1", "2")
    await system.scored(*[now(late(f"s-{n}") if n % 3 == 0 else score(f"s-{n}", version="2")) for n in range(300)])
    await system.quiet()
    assert await published(system.bus, ModelDegraded) == []


async def test_the_last_version_stays_however_slow(system) -> None:
    await deploy(system, "1")
    await system.scored(*[now(late(f"s-{n}", slow="1", version="1")) for n in range(100)])
    await system.quiet()
    assert len(await published(system.bus, ModelDegraded)) == 1
    assert tables(await every_table(system)) == [(1, "1", None)]


async def test_a_degraded_version_is_not_chosen_again(system) -> None:
    await deploy(system, "1", "2")
    await system.scored(*[now(late(f"s-{n}")) for n in range(100)])
    await system.quiet()
    await deploy(system, "2", "3")
    assert tables(await every_table(system))[2:] == [(3, "1", None), (4, "3", "1")]


async def test_a_pin_is_never_undone_by_automation(system) -> None:
    await deploy(system, "1", "2")
    assert (await system.client.post("/pipelines/p/promote", json={"version": "2"})).status_code == 200
    await system.scored(*[now(late(f"s-{n}")) for n in range(100)])
    await system.quiet()
    await deploy(system, "3")
    await system.bus.publish(ejected("2", admitted=False))
    await system.quiet()
    assert tables(await every_table(system)) == [(1, "1", None), (2, "2", "1"), (3, "2", "1")]
    assert len(await published(system.bus, ModelDegraded)) == 1
    assert await system.actions() == ["deployed", "deployed", "promoted", "degraded", "waits", "refused"]

    assert (await system.client.post("/pipelines/p/unpin")).json()["pinned"] is False
    await deploy(system, "4")
    assert tables(await every_table(system))[-1] == (5, "4", None), "2 was found unfit: it does not stand behind 4"


async def test_a_refused_version_gives_way(system) -> None:
    await deploy(system, "1", "2")
    await system.bus.publish(ejected("2", admitted=False))
    await system.quiet()
    assert tables(await every_table(system))[-1] == (3, "1", None)
    assert await system.actions() == ["deployed", "deployed", "refused", "switched back"]


async def test_a_version_refused_before_it_was_routed_is_passed_over(system) -> None:
    await deploy(system, "1")
    await system.bus.publish(ejected("2", admitted=False))
    await system.quiet()
    await deploy(system, "2")
    assert tables(await every_table(system)) == [(1, "1", None)]
    assert await system.actions() == ["deployed", "refused", "passed over"]


async def test_a_breaker_is_local(system) -> None:
    await deploy(system, "1", "2")
    await system.bus.publish(ejected("2", admitted=True))
    await system.bus.publish(
        VersionRestored.first(source="/scoring", at=utc_now(), pipeline="p", version="2", router="r-1")
    )
    await system.quiet()
    assert tables(await every_table(system))[-1] == (2, "2", "1")
    assert sorted(await system.actions()) == ["deployed", "deployed", "ejected", "restored"]


async def test_promotes_at_the_same_time_come_one_after_the_other(system) -> None:
    await deploy(system, "1", "2", "3")
    wanted = ["1", "2", "3", "1", "2", "3", "2"]
    replies = await asyncio.gather(*(system.client.post("/pipelines/p/promote", json={"version": v}) for v in wanted))
    assert {r.status_code for r in replies} == {200}
    numbers = [c.table.version for c in await every_table(system)]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_rollback_goes_one_back_and_pins(system) -> None:
    await deploy(system, "1", "2")
    table = (await system.client.post("/pipelines/p/rollback", json={"why": "odd"})).json()
    assert (table["champion"], table["previous"], table["pinned"]) == ("1", None, True)
    refused = await system.client.post("/pipelines/p/rollback")
    assert refused.status_code == 422
    assert refused.headers["content-type"] == "application/problem+json"
    assert "promote" in refused.json()["fix"]


@pytest.mark.parametrize("what", ["promote", "rollback", "unpin", "remove", "forget"])
async def test_an_unknown_pipeline_is_named(system, what: str) -> None:
    await declare(system.environment, file(pipeline="heart"))
    body = {"promote": {"version": "1"}, "forget": {"entity": "e"}}.get(what, {})
    reply = await system.client.post(f"/pipelines/hart/{what}", json=body)
    assert reply.status_code == 404
    assert "heart" in reply.json()["fix"]


async def test_an_unknown_version_is_named(system) -> None:
    await deploy(system, "1", "2")
    reply = await system.client.post("/pipelines/p/promote", json={"version": 12})
    assert reply.status_code == 404
    assert "did you mean" in reply.json()["fix"]
    assert (await system.client.post("/pipelines/p/promote", json={})).status_code == 422


async def test_changing_needs_an_admin_key_once_there_is_one(system) -> None:
    await deploy(system, "1", "2")
    keys = system.environment.keys
    keys.add("bob", "read")
    ada = keys.add("ada", "admin")
    await asyncio.sleep(1.1)  # the file is looked at once a second
    assert (await system.client.post("/pipelines/p/rollback")).status_code == 401
    assert (await system.client.get("/pipelines")).status_code == 401
    headers = {"authorization": f"Bearer {ada}"}
    assert (await system.client.post("/pipelines/p/rollback", headers=headers)).status_code == 200
    (changed,) = await published(system.bus, RoutingChanged)
    assert changed.by == "ada"
    trail = (await system.client.get("/pipelines/p/audit", headers=headers)).json()
    assert (trail[0]["who"], trail[0]["action"]) == ("ada", "rolled back")


async def test_a_table_survives_a_restart(home) -> None:
    async with home.started() as system:
        await deploy(system, "1", "2")
    async with home.started() as system:
        await deploy(system, "3")
        assert tables(await every_table(system)) == [(1, "1", None), (2, "2", "1"), (3, "3", "2")]


async def test_a_removed_pipeline_is_gone_and_its_name_may_live_again(home) -> None:
    async with home.started() as system:
        await declare(system.environment, file())
        await deploy(system, "1", "2")
        await system.scored(*[now(late(f"s-{n}")) for n in range(60)])
        await system.quiet()
        assert (await system.client.delete("/pipelines/p")).status_code == 200
        await system.quiet()
        assert (await system.client.get("/pipelines")).json() == []
        assert (await system.client.get("/pipelines/p")).status_code == 404
        assert await dead_letters(system.bus, PipelineDeclared) == []
        assert await system.environment.history.count_scores("p") == 0
        assert [r.record.value async for r in system.bus.replay(RoutingChanged) if r.record.value] == []
        assert [r async for r in system.bus.replay(PipelineDeclared) if r.record.value] == []
    async with home.started() as system:
        assert (await system.client.get("/pipelines")).json() == []
        # Version 2 was degraded in its earlier life; table numbers go on, for routers that remember.
        await system.bus.publish(*[now(ready(v)).model_copy(update={"id": f"again-{v}"}) for v in ("1", "2")])
        await system.quiet()
        assert [t for t in tables(await every_table(system)) if t[0] > 3] == [(4, "1", None), (5, "2", "1")]
