"""The outbox and its relay: nothing that was answered is lost, and a full disk is said."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import builders
import pytest
from environment import published, until

from turnout.common.bus.port import Record
from turnout.common.errors import Unavailable, Unknown
from turnout.common.events import Attempt, Event, Histogram, ModelReady, ScoreProduced, ScoresSummarised
from turnout.common.runtime.environment import Environment
from turnout.scoring.adapters import outbox as module
from turnout.scoring.adapters.outbox import SqliteOutbox
from turnout.scoring.reactions import relay as relaying
from turnout.scoring.reactions.relay import Relay


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[SqliteOutbox]:
    made = SqliteOutbox(tmp_path / "outbox.sqlite")
    yield made
    await made.close()


class Away:
    """A bus that cannot be reached until it is back."""

    def __init__(self, bus: object) -> None:
        self._bus = bus
        self.back = False
        self.asked = 0

    async def publish(self, *events: Event | Record) -> None:
        self.asked += 1
        if not self.back:
            raise Unavailable("the bus", "it is away")
        await self._bus.publish(*events)  # type: ignore[attr-defined]


async def test_what_was_appended_is_relayed_once_and_in_order(outbox: SqliteOutbox, environment: Environment) -> None:
    scores = [builders.score_produced(f"s-{number}", entity="e") for number in range(1200)]
    await asyncio.gather(*(outbox.add(scores[at : at + 10]) for at in range(0, 1200, 10)))
    relay = Relay(outbox, environment.bus)
    while await relay.once():
        pass
    assert [score.score_id for score in await published(environment.bus, ScoreProduced)] == [s.score_id for s in scores]
    assert not await relay.once()
    assert await outbox.waiting() == 0


async def test_scores_wait_while_the_bus_is_away_and_arrive_exactly_once(
    outbox: SqliteOutbox, environment: Environment
) -> None:
    away = Away(environment.bus)
    relay = Relay(outbox, away)  # type: ignore[arg-type]
    task = asyncio.create_task(relay.run())
    await outbox.add([builders.score_produced("s-1")])
    await until(lambda: relay.trouble is not None)
    await outbox.add([builders.score_produced("s-2")])
    assert await outbox.waiting() == 2
    away.back = True
    await until(lambda: relay.trouble is None)
    async with asyncio.timeout(10):
        while await outbox.waiting():
            await asyncio.sleep(0.01)
    task.cancel()
    assert sorted(score.score_id for score in await published(environment.bus, ScoreProduced)) == ["s-1", "s-2"]


async def test_a_relay_that_died_before_it_took_note_publishes_the_same_again(
    outbox: SqliteOutbox, environment: Environment
) -> None:
    score = builders.score_produced("s-1")
    await outbox.add([score])
    records = (await outbox.take(10)).records
    await environment.bus.publish(*records)
    await Relay(outbox, environment.bus).once()
    assert [event.id for event in await published(environment.bus, ScoreProduced)] == [score.id, score.id]


async def test_it_survives_its_process(tmp_path: Path) -> None:
    first = SqliteOutbox(tmp_path / "outbox.sqlite")
    await first.add([builders.score_produced("s-1")])
    second = SqliteOutbox(tmp_path / "outbox.sqlite")
    records = (await second.take(10)).records
    assert len(records) == 1
    await first.close()
    await second.close()


async def test_events_are_found_by_their_id_for_a_while(outbox: SqliteOutbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    score = builders.score_produced("s-1", entity="e")
    await outbox.add([score, builders.score_requested(id="r-1")])
    found = await outbox.find("s-1")
    assert found == score
    assert (await outbox.find("r-1")) is not None
    assert await outbox.find("nobody") is None
    await outbox.add([builders.score_produced(f"t-{number}") for number in range(5)])
    position = (await outbox.take(10)).end
    await outbox.relayed(position)
    assert await outbox.find("s-1") is not None, "it was not yet counted"
    await outbox.summarise([], position)
    assert await outbox.find("s-1") is None
    assert await outbox.find("t-4") is not None


async def test_an_entity_is_forgotten(outbox: SqliteOutbox) -> None:
    await outbox.add([builders.score_produced("s-1", entity="e"), builders.score_produced("s-2", entity="f")])
    await outbox.erase("p", "e")
    assert await outbox.find("s-1") is None
    assert await outbox.find("s-2") is not None


async def test_positions_go_on_after_everything_was_removed(outbox: SqliteOutbox) -> None:
    await outbox.add([builders.score_produced("s-1")])
    position = (await outbox.take(10)).end
    await outbox.relayed(position)
    await outbox.erase("p")
    await outbox.add([builders.score_produced("s-2")])
    records, _, after, _ = await outbox.take(10)
    assert len(records) == 1
    assert after > position


async def test_a_full_disk_is_said_and_ends_by_itself(
    tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own page limit gives the same error as a disk without space."""
    made: list[sqlite3.Connection] = []
    open_file = module._open

    def limited(path: Path, synchronous: str) -> sqlite3.Connection:
        db = open_file(path, synchronous)
        db.execute("pragma max_page_count = 30")
        made.append(db)
        return db

    monkeypatch.setattr(module, "_open", limited)
    outbox = SqliteOutbox(tmp_path / "outbox.sqlite")
    many: Sequence[Event] = [builders.score_produced(f"s-{number}") for number in range(2000)]
    with pytest.raises(Unavailable, match="full"):
        await outbox.add(many)
    assert outbox.trouble is not None
    assert await outbox.waiting() == 0
    assert outbox.trouble is not None
    made[0].execute("pragma max_page_count = 100000")
    await Relay(outbox, environment.bus).once()
    assert outbox.trouble is None
    await outbox.add(many)
    assert await outbox.waiting() == 2000
    await outbox.close()


async def summaries(environment: Environment) -> list[ScoresSummarised]:
    return await published(environment.bus, ScoresSummarised)


async def test_what_was_relayed_is_summarised_once(outbox: SqliteOutbox, environment: Environment) -> None:
    relay = Relay(outbox, environment.bus)
    await outbox.add([builders.score_produced(f"s-{number}", version="1") for number in range(3)])
    assert not await relay.summarise(now=True), "nothing was relayed yet"
    await relay.drain()
    await outbox.add([builders.score_produced("s-3", version="1"), builders.score_produced("t-1", version="2")])
    await relay.drain()
    told = await summaries(environment)
    assert [(s.version, s.sequence, s.summary.served) for s in told] == [
        ("1", 1, {"champion": 3}), ("1", 2, {"champion": 1}), ("2", 1, {"champion": 1}),
    ]  # fmt: skip
    assert len({s.outbox for s in told}) == 1
    assert not await relay.summarise(now=True)


async def test_a_score_that_another_way_brings_to_the_bus_is_counted(
    outbox: SqliteOutbox, environment: Environment
) -> None:
    score = builders.score_produced("s-1", attempts=(Attempt(version="2", outcome="late"),))
    await outbox.count([score])
    relay = Relay(outbox, environment.bus)
    await relay.drain()
    assert await published(environment.bus, ScoreProduced) == []
    told = {s.version: s for s in await summaries(environment)}
    assert told["1"].summary.served == {"champion": 1}
    assert [t.outcome for t in told["2"].tries] == ["late"]
    assert told["2"].time == score.time


async def test_a_request_that_was_answered_twice_is_counted_once(
    outbox: SqliteOutbox, environment: Environment
) -> None:
    await outbox.count([builders.score_produced("s-1")])
    relay = Relay(outbox, environment.bus)
    await relay.drain()
    await outbox.count([builders.score_produced("s-1"), builders.score_produced("s-2")])
    await outbox.add([builders.score_produced("s-2")])
    await relay.drain()
    assert [s.summary.served for s in await summaries(environment)] == [{"champion": 1}, {"champion": 1}]


class Crash(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("point", ["scoring-summary-counted", "scoring-summary-told", "scoring-relay-published"])
async def test_killed_at_any_step_everything_is_summarised_once(
    tmp_path: Path, environment: Environment, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash_point(name: str) -> None:
        if name == point:
            raise Crash

    first = SqliteOutbox(tmp_path / "outbox.sqlite")
    await first.add([builders.score_produced(f"s-{number}") for number in range(7)])
    monkeypatch.setattr(relaying, "crash_point", crash_point)
    with pytest.raises(Crash):
        await Relay(first, environment.bus).drain()
    monkeypatch.undo()
    await first.close()
    second = SqliteOutbox(tmp_path / "outbox.sqlite")
    await second.add([builders.score_produced("s-7")])
    await Relay(second, environment.bus).drain()
    await second.close()
    told = {s.id: s for s in await summaries(environment)}
    assert sum(sum(s.summary.served.values()) for s in told.values()) == 8
    assert sorted(s.sequence for s in told.values()) == list(range(1, len(told) + 1))


async def test_what_was_relayed_before_there_were_summaries_is_not_told_again(
    tmp_path: Path, environment: Environment
) -> None:
    """A file of an earlier version: what it relayed was counted by whoever read it."""
    path = tmp_path / "outbox.sqlite"
    old = SqliteOutbox(path)
    await old.add([builders.score_produced("s-1"), builders.score_produced("s-2")])
    await old.relayed(1)
    await old.close()
    with sqlite3.connect(path) as db:
        db.executescript("drop table summarised; drop table sequence;")
    db.close()
    new = SqliteOutbox(path)
    await Relay(new, environment.bus).drain()
    await new.close()
    assert [s.summary.served for s in await summaries(environment)] == [{"champion": 1}]


async def test_features_are_counted_on_the_versions_own_bins(outbox: SqliteOutbox, environment: Environment) -> None:
    ages = builders.profile(histogram=Histogram(edges=(0.0, 20.0, 60.0), counts=(1, 2)))
    ready = builders.model_ready(profile=(ages,))

    def known(pipeline: str, version: str) -> ModelReady:
        if version != "1":
            raise Unknown.name("version", "version", version, ["1"])
        return ready

    await outbox.add([builders.score_produced("s-1"), builders.score_produced("s-2", version="2")])
    await Relay(outbox, environment.bus, known).drain()
    told = {s.version: s.summary.features for s in await summaries(environment)}
    assert (told["1"]["age"].counts, told["2"]) == ((0, 1), {})


async def test_a_quiet_outbox_tells_at_once_and_a_busy_one_once_a_second(
    outbox: SqliteOutbox, environment: Environment
) -> None:
    relay = Relay(outbox, environment.bus)
    task = asyncio.create_task(relay.run())
    for number in range(40):
        await outbox.add([builders.score_produced(f"s-{number}")])
        await asyncio.sleep(0.005)
    async with asyncio.timeout(10):
        while sum(sum(s.summary.served.values()) for s in await summaries(environment)) < 40:
            await asyncio.sleep(0.05)
    task.cancel()
    assert len(await summaries(environment)) < 10
