"""What every online store keeps. An adapter joins by adding its name to the `store` fixture."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr
from redis_stand import PASSWORD, add_user

from turnout.common.errors import Invalid, Unavailable
from turnout.common.online.embedded import TRUST, EmbeddedOnlineStore
from turnout.common.online.port import OnlineStore
from turnout.common.online.redis import RedisOnlineStore, RedisSettings

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
Open = Callable[[], OnlineStore]


@pytest.fixture(params=["embedded", pytest.param("redis", marks=pytest.mark.stack)])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    opened: list[OnlineStore] = []
    make: Open = lambda: EmbeddedOnlineStore(tmp_path / "deep" / "online.sqlite")  # noqa: E731
    if request.param == "redis":
        name = uuid4().hex
        url, prefix = request.getfixturevalue("stack").redis, f"t*[{name}]?:"  # what a pattern would take for its own
        add_user(url, name, prefix)
        settings = RedisSettings(url=url, prefix=prefix, username=name, password=SecretStr(PASSWORD))
        make = lambda: RedisOnlineStore(settings)  # noqa: E731

    def again() -> OnlineStore:
        opened.append(make())
        return opened[-1]

    yield again
    for store in opened:
        await store.close()


@pytest.fixture
def store(open_store: Open) -> OnlineStore:
    return open_store()


async def test_what_was_put_is_there_with_its_time(store: OnlineStore) -> None:
    values = {"age": 63.0, "sex": "1", "smokes": True, "name": None, "huge": 1e300, "ü 😀": "\u202e"}
    assert await store.put("heart", "p1", values, T0)
    found = await store.get_many("heart", ["p1", "nobody"])
    assert set(found) == {"p1"}
    assert found["p1"].values == values
    assert found["p1"].event_time == T0


async def test_a_late_value_never_overwrites_a_newer_one(store: OnlineStore) -> None:
    await store.put("heart", "p1", {"age": 2.0}, T0)
    assert not await store.put("heart", "p1", {"age": 1.0}, T0 - timedelta(microseconds=1))
    assert (await store.get_many("heart", ["p1"]))["p1"].values == {"age": 2.0}


async def test_the_same_time_again_overwrites(store: OnlineStore) -> None:
    await store.put("heart", "p1", {"age": 2.0}, T0)
    assert await store.put("heart", "p1", {"age": 2.0}, T0)
    assert await store.put("heart", "p1", {"age": 3.0}, T0)
    assert (await store.get_many("heart", ["p1"]))["p1"].values == {"age": 3.0}


async def test_columns_that_are_not_put_stay_and_are_newer_or_older_on_their_own(store: OnlineStore) -> None:
    await store.put("heart", "p1", {"age": 2.0, "chol": 200.0}, T0)
    await store.put("heart", "p1", {"weather": "rain"}, T0 + timedelta(hours=1))
    assert await store.put("heart", "p1", {"age": 3.0}, T0 + timedelta(minutes=1))
    found = (await store.get_many("heart", ["p1"]))["p1"]
    assert found.values == {"age": 3.0, "chol": 200.0, "weather": "rain"}
    assert found.event_time == T0 + timedelta(hours=1)


async def test_time_zones_are_compared_as_moments(store: OnlineStore) -> None:
    east = timezone(timedelta(hours=5))
    await store.put("heart", "p1", {"age": 2.0}, T0)
    assert not await store.put("heart", "p1", {"age": 1.0}, datetime(2026, 1, 1, 16, 59, tzinfo=east))


async def test_pipelines_do_not_see_each_other(store: OnlineStore) -> None:
    await store.put("a", "p1", {"x": 1.0}, T0)
    await store.put("b", "p1", {"x": 2.0}, T0)
    await store.remove("a")
    assert not await store.get_many("a", ["p1"])
    assert (await store.get_many("b", ["p1"]))["p1"].values == {"x": 2.0}


async def test_many_at_once_in_any_order_end_with_the_newest(store: OnlineStore) -> None:
    puts = [(f"p{i % 50}", float(i), T0 + timedelta(seconds=(i * 7919) % 1000)) for i in range(1000)]
    await asyncio.gather(*(store.put("heart", who, {"x": x}, at) for who, x, at in puts))
    found = await store.get_many("heart", [f"p{i}" for i in range(50)])
    for who, features in found.items():
        newest = max((at, i) for i, (entity, _, at) in enumerate(puts) if entity == who)
        assert features.event_time == newest[0]
        assert features.values == {"x": puts[newest[1]][1]}


async def test_many_in_one_call_are_put_in_order_each_column_by_its_own_time(store: OnlineStore) -> None:
    await store.put("heart", "p1", {"age": 2.0, "chol": 200.0}, T0)
    hour, minute = timedelta(hours=1), timedelta(minutes=1)
    kept = await store.put_many("heart", [
        ("p1", {"age": 1.0}, T0 - minute),  # older than what is there
        ("p1", {"weather": "rain", "age": 4.0}, T0 + hour),
        ("p1", {"age": 3.0, "chol": 201.0}, T0 + minute),  # half of it older than what came just before
        ("p2", {"age": 7.0}, T0),
        ("p2", {"age": 8.0}, T0),  # the same time again
        ("p2", {"age": 6.0}, T0 - minute),
    ])  # fmt: skip
    assert kept == 4
    found = await store.get_many("heart", ["p1", "p2"])
    assert found["p1"].values == {"age": 4.0, "chol": 201.0, "weather": "rain"}
    assert found["p1"].event_time == T0 + hour
    assert found["p2"].values == {"age": 8.0}
    assert await store.put("heart", "p1", {"chol": 202.0}, T0 + minute)
    assert not await store.put("heart", "p1", {"chol": 203.0}, T0)
    assert await store.put_many("heart", []) == 0
    assert not await store.put_many("heart", [("p3", {}, T0)])
    assert not await store.get_many("heart", ["p3"])


async def test_more_in_one_call_than_one_transaction_holds(store: OnlineStore) -> None:
    names = [f"p{i % 2600}" for i in range(5200)]
    puts = [(name, {"x": float(i)}, T0 + timedelta(seconds=i)) for i, name in enumerate(names)]
    assert await store.put_many("heart", puts) == len(puts)
    assert await store.put_many("heart", puts[:2600]) == 0
    found = await store.get_many("heart", names[:2600])
    assert [found[name].values["x"] for name in names[:2600]] == [float(2600 + i) for i in range(2600)]


@pytest.mark.parametrize("value", ["\ud800", 10**30])
async def test_one_value_that_json_cannot_hold_keeps_the_whole_call_out(store: OnlineStore, value: str | int) -> None:
    puts = [(f"p{i}", {"x": value if i == 2100 else 1.0}, T0) for i in range(2200)]
    with pytest.raises(Invalid, match="p2100"):
        await store.put_many("heart", puts)
    assert not await store.get_many("heart", [who for who, _, _ in puts])


async def test_asking_for_more_than_a_statement_holds(store: OnlineStore) -> None:
    await store.put("heart", "p39999", {"x": 1.0}, T0)
    assert set(await store.get_many("heart", [f"p{i}" for i in range(40_000)])) == {"p39999"}
    assert await store.get_many("heart", []) == {}


async def test_forget_removes_features_and_score(store: OnlineStore) -> None:
    await store.put("heart", "p1", {"x": 1.0}, T0)
    await store.put_score("heart", "p1", "{}", T0)
    await store.get_many("heart", ["p1"])
    await store.forget("heart", "p1")
    await store.forget("heart", "p1")
    assert not await store.get_many("heart", ["p1"])
    assert await store.get_score("heart", "p1") is None


@pytest.mark.parametrize("value", ["\ud800", 10**30])
async def test_a_value_that_json_cannot_hold_fails_alone(store: OnlineStore, value: str | int) -> None:
    results = await asyncio.gather(
        store.put("heart", "p1", {"x": 1.0}, T0),
        store.put("heart", "p2", {"x": value}, T0),
        store.put("heart", "p3", {"x": 3.0}, T0),
        return_exceptions=True,
    )
    assert results[0] is True
    assert isinstance(results[1], Invalid)
    assert set(await store.get_many("heart", ["p1", "p2", "p3"])) == {"p1", "p3"}


async def test_scores_keep_the_newest(store: OnlineStore) -> None:
    assert await store.get_score("heart", "k") is None
    await store.put_score("heart", "k", '{"value": 2}', T0)
    await store.put_score("heart", "k", '{"value": 1}', T0 - timedelta(seconds=1))
    assert await store.get_score("heart", "k") == ('{"value": 2}', T0)


async def test_a_mark_stays_until_the_pipeline_goes(store: OnlineStore) -> None:
    assert await store.marked("heart") is None
    await store.mark("heart", "one")
    await store.mark("heart", "two ü")
    await store.mark("heart-2", "other")
    await store.put("heart", "p1", {"x": 1.0}, T0)
    await store.forget("heart", "p1")
    assert await store.marked("heart") == "two ü"
    await store.remove("heart")
    assert await store.marked("heart") is None
    assert await store.marked("heart-2") == "other"


async def test_an_entity_may_be_named_like_a_key(store: OnlineStore) -> None:
    names = ["a:b", "*", "heart:p1", "m:heart:", " ", "ü😀", "x" * 500]
    await asyncio.gather(*(store.put("heart", name, {"x": float(i)}, T0) for i, name in enumerate(names)))
    await store.put("heart-2", "*", {"x": -1.0}, T0)
    found = await store.get_many("heart", names)
    assert [found[name].values["x"] for name in names] == [float(i) for i in range(len(names))]
    await store.forget("heart", "*")
    assert set(await store.get_many("heart", names)) == set(names) - {"*"}
    await store.remove("heart")
    assert not await store.get_many("heart", names)
    assert set(await store.get_many("heart-2", ["*"])) == {"*"}


async def test_two_openings_that_write_at_once_keep_the_newest_of_each_column(open_store: Open) -> None:
    """Both write every entity all the time; a lost comparison would leave an older value."""
    stores = [open_store() for _ in range(3)]
    puts = [(f"p{i % 7}", f"c{i % 3}", float(i), T0 + timedelta(seconds=(i * 7919) % 1000)) for i in range(900)]
    await asyncio.gather(
        *(stores[i % 3].put("heart", who, {column: x}, at) for i, (who, column, x, at) in enumerate(puts))
    )
    newest: dict[tuple[str, str], tuple[datetime, float]] = {}
    for who, column, x, at in puts:
        newest[who, column] = max(newest.get((who, column), (T0, -1.0)), (at, x))
    await asyncio.sleep(2 * TRUST)
    found = await stores[0].get_many("heart", [f"p{i}" for i in range(7)])
    assert {(who, column): found[who].values[column] for who, column in newest} == {
        key: x for key, (_, x) in newest.items()
    }


async def test_two_openings_that_put_many_at_once_keep_the_newest_of_each_column(open_store: Open) -> None:
    """The calls share every entity, and others put single ones of them meanwhile."""
    stores = [open_store() for _ in range(3)]
    puts = [(f"p{i % 700}", f"c{i % 3}", float(i), T0 + timedelta(seconds=(i * 7919) % 4200)) for i in range(4200)]
    several = [[(who, {column: x}, at) for who, column, x, at in puts[n::3]] for n in range(3)]
    await asyncio.gather(
        *(stores[n].put_many("heart", several[n]) for n in range(2)),
        *(stores[2].put("heart", who, values, at) for who, values, at in several[2]),
    )
    newest: dict[tuple[str, str], tuple[datetime, float]] = {}
    for who, column, x, at in puts:
        newest[who, column] = max(newest.get((who, column), (T0, -1.0)), (at, x))
    await asyncio.sleep(2 * TRUST)
    found = await stores[0].get_many("heart", [f"p{i}" for i in range(700)])
    assert {(who, column): found[who].values[column] for who, column in newest} == {
        key: x for key, (_, x) in newest.items()
    }


async def test_another_opening_sees_what_was_put(open_store: Open) -> None:
    first, second = open_store(), open_store()
    await first.put("heart", "p1", {"x": 1.0}, T0)
    assert (await second.get_many("heart", ["p1"]))["p1"].values == {"x": 1.0}
    await first.put("heart", "p1", {"x": 2.0}, T0)
    await asyncio.sleep(2 * TRUST)
    assert (await second.get_many("heart", ["p1"]))["p1"].values == {"x": 2.0}
    assert not await second.put("heart", "p1", {"x": 0.0}, T0 - timedelta(days=1))


async def test_what_was_put_survives_closing(open_store: Open) -> None:
    first = open_store()
    await first.put("heart", "p1", {"x": 1.0}, T0)
    await first.close()
    await first.close()
    assert (await open_store().get_many("heart", ["p1"]))["p1"].values == {"x": 1.0}
    with pytest.raises(Unavailable, match="closed"):
        await first.put("heart", "p1", {"x": 2.0}, T0)
    with pytest.raises(Unavailable, match="closed"):
        await first.put_many("heart", [("p1", {"x": 2.0}, T0)])


async def test_a_read_from_memory_does_not_leave_the_loop(tmp_path: Path) -> None:
    """Right after a read the entity is in memory: the coroutine ends without ever waiting."""
    store = EmbeddedOnlineStore(tmp_path / "online.sqlite")
    await store.put("heart", "p1", {"x": 1.0}, T0)
    for _ in range(100):
        await store.get_many("heart", ["p1"])
        reading = asyncio.ensure_future(store.get_many("heart", ["p1"]))
        await asyncio.sleep(0)
        if reading.done():
            assert reading.result()["p1"].values == {"x": 1.0}
            break
        await reading
    else:
        pytest.fail("no read came from memory")
    await store.close()


async def test_a_file_that_is_no_store_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "online.sqlite").write_bytes(b"no database" * 1000)
    store = EmbeddedOnlineStore(tmp_path / "online.sqlite")
    with pytest.raises(Unavailable, match="online store"):
        await store.put("heart", "p1", {"x": 1.0}, T0)
    await store.close()


async def test_a_newer_format_says_so(tmp_path: Path) -> None:
    path = tmp_path / "online.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    store = EmbeddedOnlineStore(path)
    with pytest.raises(Invalid, match="newer Turnout"):
        await store.get_many("heart", ["p1"])
    await store.close()
