"""Two monitoring processes on one bus: one table at a time, one report from both, counts that move with the work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from environment import declare, published
from watched import Router, late, outcome, ready, score

from turnout.common import pipeline
from turnout.common.events import Event, ModelDegraded, RoutingChanged, RoutingTable, ScoresSummarised
from turnout.common.runtime.service import utc_now
from turnout.common.runtime.views import Routes


def now(event: Event) -> Event:
    return event.model_copy(update={"time": utc_now()})


def file(**sections: object) -> pipeline.PipelineFile:
    return pipeline.PipelineFile.model_validate(
        {"pipeline": "p", "task": "classification", "source": {"label": "y"}, **sections}
    )


@pytest.fixture
async def both(home) -> AsyncIterator[tuple]:
    async with home.started() as one, home.started() as other:
        yield one, other


async def settled(*systems) -> None:
    """Until nothing is left to do, and every process's view has come to the end of the tables."""
    for system in systems:
        await system.quiet()
    for system in systems:
        await system.environment.routes.newest("p")


async def deploy(systems, *versions: str) -> None:
    for version in versions:
        await systems[0].bus.publish(now(ready(version)))
        await settled(*systems)
    async with asyncio.timeout(10):
        for system in systems:
            while len((await system.report())["versions"]) < len(versions):
                await asyncio.sleep(0.01)


async def counting(system) -> list[int]:
    """The numbers of the tables that count, by the audit trail."""
    trail = await system.environment.history.audit("p", limit=1000)
    return [entry.detail["table"]["version"] for entry in reversed(trail) if "table" in entry.detail]


async def test_whoever_is_asked_to_decide_the_tables_are_one_row(both) -> None:
    one, _ = both
    await deploy(both, "1", "2", "3")
    wanted = ["1", "2", "3"] * 6
    replies = await asyncio.gather(
        *(
            both[index % 2].client.post("/pipelines/p/promote", json={"version": version})
            for index, version in enumerate(wanted)
        )
    )
    assert {reply.status_code for reply in replies} == {200}
    await settled(*both)
    numbers = await counting(one)
    assert len(numbers) == len(set(numbers)), "no number counts twice"
    assert numbers == sorted(numbers)
    tables = [system.environment.routes.now("p") for system in both]
    late_comer = await Routes(one.bus).newest("p")
    assert late_comer is not None
    # What a compacted topic still says is what all who followed it obey.
    assert {t.table.champion for t in tables if t is not None} == {late_comer.table.champion}
    reports = [await system.report() for system in both]
    assert [report["table"] for report in reports] == [late_comer.table.model_dump()] * 2


async def test_a_table_that_came_second_counts_for_nobody_and_its_writer_decides_again(both) -> None:
    """Both start from table 2; the log says whose number 3 came first."""
    one, other = both
    await deploy(both, "1", "2")
    offered = RoutingChanged.first(
        source="/monitoring", at=utc_now(), pipeline="p", why="first", by="ada",
        table=RoutingTable(version=3, champion="1", pinned=True),
    )  # fmt: skip
    publish = other.environment.routes.publish

    async def overtaken(changed, *before):
        if changed.table.version == 3:
            await one.bus.publish(offered)
        return await publish(changed, *before)

    other.environment.routes.publish = overtaken
    reply = await other.client.post("/pipelines/p/promote", json={"version": "2", "why": "second"})
    assert reply.json()["version"] == 4
    await settled(*both)
    for system in both:
        newest = system.environment.routes.now("p")
        assert (newest.table.version, newest.table.champion, newest.why) == (4, "2", "second")


async def test_automation_that_came_second_to_a_pin_puts_the_pin_back(both) -> None:
    one, other = both
    await deploy(both, "1", "2")
    pinned = RoutingChanged.first(
        source="/monitoring", at=utc_now(), pipeline="p", why="mine", by="ada",
        table=RoutingTable(version=3, champion="1", pinned=True),
    )  # fmt: skip
    for system in both:
        publish = system.environment.routes.publish

        async def overtaken(changed, *before, publish=publish):
            if changed.table.version == 3:
                await one.bus.publish(pinned)
            return await publish(changed, *before)

        system.environment.routes.publish = overtaken
    await one.bus.publish(now(ready("3")))
    await settled(*both)
    for view in (one.environment.routes.now("p"), other.environment.routes.now("p"), await Routes(one.bus).newest("p")):
        assert (view.table.version, view.table.champion, view.table.pinned, view.by) == (4, "1", True, "ada")
    assert sorted((await one.actions())[2:]) == ["kept", "waits"]


async def test_both_report_the_same_whoever_counts(both) -> None:
    one, other = both
    await deploy(both, "1")
    await one.scored(*[now(score(f"s-{n}")) for n in range(50)])
    await other.scored(*[now(score(f"t-{n}")) for n in range(30)])
    await one.bus.publish(*[outcome(f"s-{n}") for n in range(10)])
    await settled(*both)
    reports = [await system.version("1") for system in both]
    assert reports[0] == reports[1]
    assert (reports[0]["served"], reports[0]["quality"]["outcomes"]) == (80, 10)


async def test_an_owner_that_is_gone_leaves_its_counts_to_the_next(home) -> None:
    router = Router()
    async with AsyncExitStack() as first, home.started() as other:
        one = await first.enter_async_context(home.started())
        await declare(one.environment, file(monitoring={"min_samples": 40}))
        await deploy((one, other), "1", "2")
        # Not enough for a verdict, and enough together with what the other one counts later.
        early = [now(late(f"s-{n}")) for n in range(30)]
        await one.bus.publish(*early, *router.tell(*early))
        await settled(one, other)
        await first.aclose()
        more = [now(late(f"t-{n}")) for n in range(30)]
        summaries = router.tell(*more)
        await other.bus.publish(*more, *summaries, *summaries)
        await settled(other)
        assert (await other.version("2"))["late"] == 60
        (degraded,) = await published(other.bus, ModelDegraded)
        assert degraded.stats.late >= 40
        assert (await other.actions())[-2:] == ["degraded", "switched back"]


async def test_a_state_that_was_lost_is_counted_again(home) -> None:
    async with home.started() as system:
        await deploy((system,), "1", "2")
        await system.scored(*[now(score(f"s-{n}")) for n in range(90)])
        await system.bus.publish(*[outcome(f"s-{n}") for n in range(20)])
        await system.quiet()
        before = await system.version("1")
    (home.folder / "home" / "monitoring" / "state.sqlite").unlink()
    async with home.started() as system:
        assert await system.version("1") == before, "told again for the report"
        await system.scored(*[now(score(f"t-{n}")) for n in range(10)])
        await system.quiet()
        found = await system.version("1")
        assert (found["served"], found["quality"]["outcomes"]) == (100, 20)


async def test_what_the_log_has_lost_too_comes_from_the_history_store(home) -> None:
    """A state of long ago: the summaries are past their retention, and a new router tells of what comes."""
    async with home.started() as system:
        await system.bus.publish(now(ready("1")))
        await system.quiet()
        await system.bus.publish(*[now(score(f"s-{n}", entity=f"e-{n}")) for n in range(90)])
        await system.quiet()
        assert await published(system.bus, ScoresSummarised) == []
        assert (await system.version("1"))["served"] == 90
        await system.scored(*[now(score(f"t-{n}")) for n in range(10)])
        await system.quiet()
        found = await system.version("1")
        assert (found["served"], found["features"][0]["rows"]) == (100, 100)
