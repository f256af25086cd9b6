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
from turnout.common.errors import Unavailable
from turnout.common.events import Event, ScoreProduced
from turnout.common.runtime.environment import Environment
from turnout.scoring.adapters import outbox as module
from turnout.scoring.adapters.outbox import SqliteOutbox
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
    records, _ = await outbox.take(10)
    await environment.bus.publish(*records)
    await Relay(outbox, environment.bus).once()
    assert [event.id for event in await published(environment.bus, ScoreProduced)] == [score.id, score.id]


async def test_it_survives_its_process(tmp_path: Path) -> None:
    first = SqliteOutbox(tmp_path / "outbox.sqlite")
    await first.add([builders.score_produced("s-1")])
    second = SqliteOutbox(tmp_path / "outbox.sqlite")
    records, _ = await second.take(10)
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
    _, position = await outbox.take(10)
    await outbox.relayed(position)
    assert await outbox.find("s-1") is None
    assert await outbox.find("t-4") is not None


async def test_an_entity_is_forgotten(outbox: SqliteOutbox) -> None:
    await outbox.add([builders.score_produced("s-1", entity="e"), builders.score_produced("s-2", entity="f")])
    await outbox.erase("p", "e")
    assert await outbox.find("s-1") is None
    assert await outbox.find("s-2") is not None


async def test_positions_go_on_after_everything_was_removed(outbox: SqliteOutbox) -> None:
    await outbox.add([builders.score_produced("s-1")])
    _, position = await outbox.take(10)
    await outbox.relayed(position)
    await outbox.erase("p")
    await outbox.add([builders.score_produced("s-2")])
    records, after = await outbox.take(10)
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
