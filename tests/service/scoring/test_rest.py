"""Scoring over REST: what a caller sees."""

from __future__ import annotations

import math

import pytest
from environment import published, wait_for
from scoring_stand import OLD, Stand

from turnout.common.events import ScoreProduced


async def test_a_row_is_scored(stand: Stand) -> None:
    row = await stand.one()
    expected = 1 / (1 + math.exp(-1.4))
    assert row["value"] == "yes"
    assert row["probabilities"]["yes"] == pytest.approx(expected, abs=1e-6)
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
