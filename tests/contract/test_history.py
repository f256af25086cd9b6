"""What every history store keeps. A new adapter is a new parameter of `opened`."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from watched import at, observation, outcome, score

from turnout.common.errors import Unavailable
from turnout.common.events import ScoreProduced
from turnout.common.history.embedded import EmbeddedHistoryStore
from turnout.common.history.port import Audit, HistoryStore

Open = Callable[[], HistoryStore]


def place_of(adapter: str, request: pytest.FixtureRequest, folder: Path) -> Open:
    """How to open the test's own store, empty at first, as often as the test likes."""
    if adapter == "embedded":
        return lambda: EmbeddedHistoryStore(folder / "home" / "history.sqlite")
    from keyspaces import emptied

    from turnout.common.history.cassandra import CassandraHistoryStore

    settings = emptied(request.getfixturevalue("stack").cassandra, "contract_history")
    return lambda: CassandraHistoryStore(settings)


@pytest.fixture(params=["embedded", pytest.param("cassandra", marks=pytest.mark.stack)])
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    place = place_of(request.param, request, tmp_path)
    made: list[HistoryStore] = []

    def make() -> HistoryStore:
        made.append(place())
        return made[-1]

    yield make
    for store in made:
        await store.close()


@pytest.fixture
def store(opened: Open) -> HistoryStore:
    return opened()


def audit(ident: str, *, seconds: float = 0.0, pipeline: str = "p") -> Audit:
    return Audit(ident, at(seconds), pipeline, "ada", "promote", "2", "it is better", {"table": 2})


async def everything(store: HistoryStore, pipeline: str = "p") -> list[ScoreProduced]:
    return [score async for page in store.all_scores(pipeline) for score in page]


async def test_a_score_comes_back_as_it_was(store: HistoryStore) -> None:
    kept = score(
        "s-1", entity="e", values={"age": 40.5, "n": 3, "name": "Zoë", "ok": True, "none": None}, value=0.1 + 0.2
    )
    await store.add_scores([kept])
    assert await store.score("s-1") == kept
    assert await store.score("s-2") is None


async def test_a_score_is_kept_once_and_the_first_stays(store: HistoryStore) -> None:
    first, again = score("s-1", value="yes"), score("s-1", value="no")
    other = score("s-2")
    assert await store.add_scores([first, again]) == [first]
    assert await store.add_scores([again, other]) == [other]
    assert await store.add_scores([]) == []
    kept = await store.score("s-1")
    assert kept is not None
    assert kept.value == "yes"
    assert await store.count_scores("p") == 2


async def test_many_writers_at_once_keep_each_score_once(store: HistoryStore) -> None:
    offered = [score(f"s-{n % 40}") for n in range(400)]
    added = await asyncio.gather(*(store.add_scores(offered[k::7]) for k in range(7)))
    assert sorted(s.score_id for some in added for s in some) == sorted({s.score_id for s in offered})


async def test_two_stores_on_one_place_see_each_other(opened: Open) -> None:
    store, other = opened(), opened()
    await asyncio.gather(store.add_scores([score("s-1")]), other.add_scores([score("s-1"), score("s-2")]))
    assert await store.count_scores("p") == await other.count_scores("p") == 2


async def test_scores_are_newest_first_and_of_one_pipeline(store: HistoryStore) -> None:
    await store.add_scores([score(f"s-{n}", seconds=n) for n in (2, 0, 1)])
    await store.add_scores([score("s-9", pipeline="q", seconds=9)])
    assert [s.score_id for s in await store.scores("p")] == ["s-2", "s-1", "s-0"]
    assert [s.score_id for s in await store.scores("p", since=at(1))] == ["s-2", "s-1"]
    assert [s.score_id for s in await store.scores("p", limit=1)] == ["s-2"]


async def test_all_scores_walks_every_page_oldest_first(store: HistoryStore) -> None:
    # More than a page, many of one moment.
    await store.add_scores([score(f"s-{n}", seconds=n // 4000) for n in range(10_100)])
    walked = await everything(store)
    assert len({s.score_id for s in walked}) == len(walked) == 10_100
    assert walked == sorted(walked, key=lambda s: s.time)
    assert await everything(store, "nobody") == []


async def test_outcomes_tell_what_they_are(store: HistoryStore) -> None:
    await store.add_scores([score("s-1"), score("s-2")])
    assert await store.add_outcomes([outcome("s-1", "no")]) == ["joined"]
    assert await store.add_outcomes([outcome("s-1", "no")]) == ["duplicate"]
    assert await store.add_outcomes([outcome("s-1", "yes", observed=5)]) == ["corrected"]
    assert await store.add_outcomes([outcome("s-1", "no")]) == ["duplicate"]
    assert await store.add_outcomes([outcome("s-9", "no"), outcome("s-9", "no")]) == ["unmatched", "duplicate"]
    assert await store.add_outcomes([]) == []


async def test_an_older_outcome_that_comes_later_changes_nothing(store: HistoryStore) -> None:
    await store.add_scores([score("s-1")])
    assert await store.add_outcomes([outcome("s-1", "yes", observed=5)]) == ["joined"]
    assert await store.add_outcomes([outcome("s-1", "no", observed=1)]) == ["duplicate"]
    (joined,) = await store.joined("p")
    assert joined.outcome.outcome == "yes"


async def test_the_same_value_again_later_is_no_correction(store: HistoryStore) -> None:
    await store.add_scores([score("s-1")])
    assert await store.add_outcomes([outcome("s-1", 1), outcome("s-1", 1, observed=5)]) == ["joined", "duplicate"]
    assert await store.add_outcomes([outcome("s-1", "1", observed=6)]) == ["corrected"]
    assert await store.add_outcomes([outcome("s-1", 1, observed=7)]) == ["corrected"]


async def test_an_outcome_before_its_score_waits_for_it(store: HistoryStore) -> None:
    assert await store.add_outcomes([outcome("s-1", "no"), outcome("s-1", "yes", observed=3)]) == [
        "unmatched",
        "unmatched",
    ]
    assert await store.joined("p") == []
    await store.add_scores([score("s-1")])
    (joined,) = await store.joined("p")
    assert (joined.score.score_id, joined.outcome.outcome) == ("s-1", "yes")
    assert await store.add_outcomes([outcome("s-1", "no", observed=4)]) == ["corrected"]


async def test_an_outcome_of_another_pipeline_is_no_outcome_of_ours(store: HistoryStore) -> None:
    await store.add_scores([score("s-1")])
    assert await store.add_outcomes([outcome("s-1", pipeline="q")]) == ["unmatched"]
    assert await store.joined("p") == []


@pytest.mark.parametrize("value", [1, 0.25, "sick", True])
async def test_an_outcome_keeps_its_type(store: HistoryStore, value: object) -> None:
    await store.add_scores([score("s-1")])
    await store.add_outcomes([outcome("s-1", value)])
    (joined,) = await store.joined("p")
    assert joined.outcome.outcome == value
    assert type(joined.outcome.outcome) is type(value)


async def test_joined_by_version_time_and_id(store: HistoryStore) -> None:
    await store.add_scores([score(f"s-{n}", seconds=n, version="1" if n < 3 else "2") for n in range(6)])
    await store.add_outcomes([outcome(f"s-{n}") for n in (0, 1, 2, 3, 5)])

    def ids(found: object) -> list[str]:
        return [j.score.score_id for j in found]  # type: ignore[attr-defined]

    assert ids(await store.joined("p")) == ["s-5", "s-3", "s-2", "s-1", "s-0"]
    assert ids(await store.joined("p", version="1")) == ["s-2", "s-1", "s-0"]
    assert ids(await store.joined("p", since=at(2), limit=2)) == ["s-5", "s-3"]
    assert sorted(ids(await store.joined_of("p", ["s-4", "s-5", "s-0", "s-0", "nothing"]))) == ["s-0", "s-5"]
    assert await store.joined_of("p", []) == []
    assert len(await store.joined_of("p", [f"s-{n}" for n in range(2000)])) == 5


async def test_features_are_looked_up_as_of_a_moment(store: HistoryStore) -> None:
    rows = [observation(f"o-{n}", seconds=n, age=float(n)) for n in (3, 1, 2)]
    await store.add_features(rows)
    await store.add_features(rows)
    await store.add_features([observation("other", entity="e-2", seconds=2)])
    assert [o.id for o in await store.features("p", "e-1")] == ["o-3", "o-2", "o-1"]
    assert [o.id for o in await store.features("p", "e-1", until=at(2))] == ["o-2", "o-1"]
    assert [o.id for o in await store.features("p", "e-1", until=at(2), limit=1)] == ["o-2"]
    assert await store.features("p", "nobody") == []


async def test_the_audit_trail_appends_once(store: HistoryStore) -> None:
    await store.add_audit(audit("a-1"), audit("a-2", seconds=1), audit("b", pipeline="q"))
    await store.add_audit(audit("a-1", seconds=9))
    assert await store.audit("p") == [audit("a-2", seconds=1), audit("a-1")]
    assert await store.audit("p", limit=1) == [audit("a-2", seconds=1)]
    assert set(await store.audited(["a-1", "a-9", "b"])) == {"a-1", "b"}


async def test_what_is_old_goes_and_the_audit_trail_stays(store: HistoryStore) -> None:
    await store.add_scores([score(f"s-{n}", seconds=n) for n in range(4)])
    # Of s-0 (goes, its outcome with it), of s-3 (stays although observed early), of nothing.
    await store.add_outcomes([outcome("s-0", observed=9), outcome("s-3", observed=0), outcome("s-x", observed=1)])
    await store.add_features([observation(f"o-{n}", seconds=n) for n in range(4)])
    await store.add_audit(audit("a"))
    assert await store.expire(at(2)) == 2 + 2 + 2
    assert await store.expire(at(2)) == 0
    assert [s.score_id for s in await store.scores("p")] == ["s-3", "s-2"]
    assert [j.score.score_id for j in await store.joined("p")] == ["s-3"]
    assert [o.id for o in await store.features("p", "e-1")] == ["o-3", "o-2"]
    assert len(await store.audit("p")) == 1


async def test_forgetting_takes_one_entity_and_nothing_else(store: HistoryStore) -> None:
    await store.add_scores([score("s-1", entity="e-1"), score("s-2", entity="e-2"), score("s-3")])
    await store.add_scores([score("s-1", entity="e-1", pipeline="q")])
    await store.add_outcomes([outcome("s-1"), outcome("s-2"), outcome("s-1", pipeline="q")])
    await store.add_features([observation("o-1"), observation("o-2", entity="e-2")])
    await store.forget("p", "e-1")
    await store.forget("p", "e-1")
    assert {s.score_id for s in await store.scores("p")} == {"s-2", "s-3"}
    assert [j.score.score_id for j in await store.joined("p")] == ["s-2"]
    assert await store.features("p", "e-1") == []
    assert len(await store.features("p", "e-2")) == 1
    assert len(await store.joined("q")) == 1
    # The outcome went too: the same score offered again has none.
    await store.add_scores([score("s-1")])
    assert [j.score.score_id for j in await store.joined("p")] == ["s-2"]


async def test_what_was_forgotten_is_not_in_the_files(tmp_path: Path) -> None:
    # Of this adapter only: Cassandra keeps deleted values until a compaction (docs/reliability.md).
    store = EmbeddedHistoryStore(tmp_path / "home" / "history.sqlite")
    secret = "Zaphod-42"
    await store.add_scores([score("s-1", entity="e-1", values={"name": secret})])
    files = list((tmp_path / "home").iterdir())
    assert any(secret.encode() in f.read_bytes() for f in files)
    await store.forget("p", "e-1")
    assert not any(secret.encode() in f.read_bytes() for f in (tmp_path / "home").iterdir())
    await store.close()


async def test_removing_a_pipeline_keeps_its_audit_trail(store: HistoryStore) -> None:
    await store.add_scores([score("s-1"), score("s-1", pipeline="q")])
    await store.add_outcomes([outcome("s-1"), outcome("s-x")])
    await store.add_features([observation("o-1")])
    await store.add_audit(audit("a"))
    await store.remove("p")
    assert await store.count_scores("p") == 0
    assert await store.joined("p") == []
    assert await store.features("p", "e-1") == []
    assert await store.add_outcomes([outcome("s-x")]) == ["unmatched"]
    assert (await store.count_scores("q"), len(await store.audit("p"))) == (1, 1)


async def test_everything_is_there_after_a_restart(opened: Open) -> None:
    store = opened()
    await store.add_scores([score("s-1")])
    await store.add_outcomes([outcome("s-1")])
    await store.close()
    with pytest.raises(Unavailable):
        await store.add_scores([score("s-2")])
    again = opened()
    assert await again.add_scores([score("s-1")]) == []
    assert len(await again.joined("p")) == 1


async def test_closing_twice_and_unopened_is_fine(tmp_path: Path) -> None:
    unopened = EmbeddedHistoryStore(tmp_path / "history.sqlite")
    await unopened.close()
    await unopened.close()
    assert not (tmp_path / "history.sqlite").exists()


async def test_a_file_that_is_no_store_is_said_to_be_unavailable(tmp_path: Path) -> None:
    (tmp_path / "history.sqlite").write_text("this is not a database, it is a sentence that is long enough" * 20)
    broken = EmbeddedHistoryStore(tmp_path / "history.sqlite")
    with pytest.raises(Unavailable, match="history store"):
        await broken.count_scores("p")
    await broken.close()


async def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "history.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    newer = EmbeddedHistoryStore(tmp_path / "history.sqlite")
    with pytest.raises(Unavailable, match="format 99"):
        await newer.count_scores("p")
    await newer.close()
