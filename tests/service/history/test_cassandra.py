"""The history store and a cluster that is away, comes back, refuses us, or answers too late."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from keyspaces import emptied
from ports import forwarded, free_port, tried_again
from pydantic import SecretStr
from watched import at, observation, outcome, score

from turnout.common.cassandra.connection import open_cluster
from turnout.common.cassandra.settings import CassandraSettings
from turnout.common.errors import Unavailable
from turnout.common.events import ScoreProduced
from turnout.common.history.cassandra import CassandraHistoryStore
from turnout.common.history.port import Audit
from turnout.devstack.cassandra import cassandra
from turnout.devstack.server import Server
from turnout.devstack.stack import Stack

pytestmark = pytest.mark.stack

KEYSPACE = "service_history"
# What a process of its own does to the keyspace, to die on the way.
WRITE = """
import asyncio, sys
from watched import at, outcome, score
from turnout.common.cassandra.settings import CassandraSettings
from turnout.common.history.cassandra import CassandraHistoryStore
from turnout.common.history.port import Audit

async def main():
    store = CassandraHistoryStore(CassandraSettings(hosts=sys.argv[1], keyspace=sys.argv[2], timeout_seconds=30))
    match sys.argv[3]:
        case "score": await store.add_scores([score("s-1", value="first"), score("s-2")])
        case "outcome": await store.add_outcomes([outcome("s-1", "no")])
        case "audit": await store.add_audit(Audit("a-1", at(0), "p", "ada", "promote", "2", "better", {}))
    await store.close()

asyncio.run(main())
"""


@pytest.fixture
def settings(stack: Stack) -> CassandraSettings:
    return emptied(stack.cassandra, KEYSPACE)


@pytest.fixture
async def store(settings: CassandraSettings) -> AsyncIterator[CassandraHistoryStore]:
    opened = CassandraHistoryStore(settings)
    yield opened
    await opened.close()


def died(settings: CassandraSettings, what: str, point: str) -> None:
    """Another process did `what` until it was killed at `point`."""
    child = subprocess.run(
        [sys.executable, "-c", WRITE, settings.hosts, settings.keyspace, what],
        env={**os.environ, "TURNOUT_CRASH_POINT": point, "PYTHONPATH": str(Path(__file__).parents[2] / "support")},
        check=False,
        capture_output=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()


async def everything(store: CassandraHistoryStore) -> list[ScoreProduced]:
    return [s async for page in store.all_scores("p") for s in page]


@pytest.mark.parametrize("point", ["history-partition-named", "history-score-claimed"])
async def test_a_score_whose_writer_died_is_new_when_it_comes_again(
    settings: CassandraSettings, store: CassandraHistoryStore, point: str
) -> None:
    await asyncio.to_thread(died, settings, "score", point)
    # Nobody counted it, so nobody sees it.
    assert (await everything(store), await store.score("s-1")) == ([], None)
    again = [score("s-1", value="first"), score("s-2")]
    assert await store.add_scores(again) == again
    assert await store.add_scores(again) == []
    assert {s.score_id for s in await everything(store)} == {"s-1", "s-2"}


async def test_another_score_of_the_same_id_is_never_kept(
    settings: CassandraSettings, store: CassandraHistoryStore
) -> None:
    await asyncio.to_thread(died, settings, "score", "history-score-claimed")
    # Scored once more, later and by another version, while the first one's event is still on its way.
    other = score("s-1", value="second", version="2", seconds=90)
    assert await store.add_scores([other]) == []
    assert await everything(store) == []
    first = score("s-1", value="first")
    assert await store.add_scores([first, other]) == [first]
    assert await everything(store) == [first]


async def test_of_scores_with_one_id_written_at_once_one_is_kept(
    settings: CassandraSettings, store: CassandraHistoryStore
) -> None:
    other = CassandraHistoryStore(settings)
    offered = [score(f"s-{n}", version=version, seconds=int(version)) for n in range(30) for version in ("1", "2", "3")]
    new = await asyncio.gather(*((store, other)[k % 2].add_scores(offered[k::5]) for k in range(5)))
    kept = await everything(store)
    assert sorted(s.score_id for s in kept) == sorted({s.score_id for s in offered})
    assert sorted((s.score_id, s.version) for some in new for s in some) == sorted(
        (s.score_id, s.version) for s in kept
    )
    await other.close()


async def test_an_outcome_whose_writer_died_is_the_first_when_it_comes_again(
    settings: CassandraSettings, store: CassandraHistoryStore
) -> None:
    await store.add_scores([score("s-1")])
    await asyncio.to_thread(died, settings, "outcome", "history-outcome-named")
    assert await store.joined("p") == []
    assert await store.add_outcomes([outcome("s-1", "no")]) == ["joined"]
    assert len(await store.joined("p", version="1")) == 1


async def test_an_outcome_of_a_score_that_is_only_claimed_joins_it_in_the_end(
    settings: CassandraSettings, store: CassandraHistoryStore
) -> None:
    await asyncio.to_thread(died, settings, "score", "history-score-claimed")
    await store.add_outcomes([outcome("s-1", "no")])
    assert await store.joined("p") == []
    await store.add_scores([score("s-1")])
    assert [j.score.score_id for j in await store.joined("p")] == ["s-1"]


async def test_outcomes_and_scores_written_at_once_all_find_each_other(
    settings: CassandraSettings, store: CassandraHistoryStore
) -> None:
    other = CassandraHistoryStore(settings)
    ids = [f"s-{n}" for n in range(150)]
    await asyncio.gather(
        *(store.add_scores([score(i) for i in ids[k::5]]) for k in range(5)),
        *(other.add_outcomes([outcome(i) for i in reversed(ids[k::3])]) for k in range(3)),
    )
    assert sorted(j.score.score_id for j in await store.joined("p")) == sorted(ids)
    await other.close()


async def test_an_audit_entry_whose_writer_died_gets_into_the_trail(
    settings: CassandraSettings, store: CassandraHistoryStore
) -> None:
    await asyncio.to_thread(died, settings, "audit", "history-audit-claimed")
    assert await store.audited(["a-1"]) == set()
    await store.add_audit(Audit("a-1", at(7), "p", "ada", "promote", "2", "better", {}))
    # The first one's moment stays.
    assert [(e.id, e.at) for e in await store.audit("p")] == [("a-1", at(0))]
    assert await store.audited(["a-1"]) == {"a-1"}


async def test_a_score_whose_acknowledgement_was_lost_is_new_when_asked_again(settings: CassandraSettings) -> None:
    port = free_port()
    impatient = settings.model_copy(update={"hosts": f"127.0.0.1:{port}", "timeout_seconds": 1.0})
    store = CassandraHistoryStore(impatient)
    kept = [score("s-1"), score("s-2")]
    async with forwarded(port, settings.hosts):
        await store.add_scores([score("warm", pipeline="q")])
        placing, _ = await store._claim({(s.pipeline, s.score_id): s for s in kept})
    # The way is cut: what was sent may have come through or not.
    with pytest.raises(Unavailable):
        await store._place("p", 0, placing)
    elsewhere = CassandraHistoryStore(settings)
    await elsewhere._place("p", int(at(0).timestamp()) // 60, placing)
    async with forwarded(port, settings.hosts):
        await asyncio.wait_for(tried_again(lambda: _added(store, kept, new=kept)), 60)
        assert await store.add_scores(kept) == []
    await store.close()
    await elsewhere.close()


async def _added(store: CassandraHistoryStore, scores: list[ScoreProduced], *, new: list[ScoreProduced]) -> None:
    assert await store.add_scores(scores) == new


async def test_nothing_blocks_the_loop(store: CassandraHistoryStore) -> None:
    await store.add_scores([score("s-0")])
    with blockbuster_ctx("turnout"):
        await store.add_scores([score(f"s-{n}", entity=f"e-{n}") for n in range(300)])
        await store.add_outcomes([outcome(f"s-{n}") for n in range(50)])
        await store.add_features([observation(f"o-{n}") for n in range(50)])
        assert len(await store.joined("p", version="1")) == 50
        assert len(await everything(store)) == 300
        await store.forget("p", "e-1")
        await store.expire(at(1))
        assert await store.count_scores("p") == 0
        await store.close()


async def test_an_empty_store_and_a_closed_one(settings: CassandraSettings) -> None:
    unopened = CassandraHistoryStore(settings)
    await unopened.close()
    with pytest.raises(Unavailable, match="closed"):
        await unopened.count_scores("p")
    await unopened.close()


async def test_closing_lets_nobody_wait(settings: CassandraSettings) -> None:
    store = CassandraHistoryStore(settings)
    opening = asyncio.create_task(store.count_scores("p"))
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(Unavailable):
        await opening
    store = CassandraHistoryStore(settings)
    await store.count_scores("p")
    busy = [asyncio.create_task(store.add_scores([score(f"s-{n}-{k}") for n in range(50)])) for k in range(20)]
    await asyncio.sleep(0.01)
    await store.close()
    async with asyncio.timeout(30):
        ended = await asyncio.gather(*busy, return_exceptions=True)
    assert any(isinstance(end, Unavailable) for end in ended)
    assert all(isinstance(end, Unavailable | list) for end in ended), ended


async def test_a_caller_that_goes_away_while_we_connect_leaves_the_others_be(settings: CassandraSettings) -> None:
    store = CassandraHistoryStore(settings)
    impatient = asyncio.create_task(store.count_scores("p"))
    patient = asyncio.create_task(store.count_scores("p"))
    await asyncio.sleep(0.01)
    impatient.cancel()
    assert await patient == 0
    await store.close()


async def test_a_newer_format_is_refused_by_name(settings: CassandraSettings, store: CassandraHistoryStore) -> None:
    await store.count_scores("p")
    _execute(settings, f"UPDATE {settings.keyspace}.format SET format = 99 WHERE store = 'history'")
    newer = CassandraHistoryStore(settings)
    try:
        with pytest.raises(Unavailable, match="format 99"):
            await newer.count_scores("p")
    finally:
        _execute(settings, f"UPDATE {settings.keyspace}.format SET format = 1 WHERE store = 'history'")
        await newer.close()


async def test_tables_are_made_only_where_they_may_be(settings: CassandraSettings) -> None:
    bare = CassandraHistoryStore(settings.model_copy(update={"keyspace": "nobody_made_it", "create_schema": False}))
    with pytest.raises(Unavailable, match="TURNOUT_CASSANDRA_CREATE_SCHEMA"):
        await bare.count_scores("p")
    await bare.close()


def _execute(settings: CassandraSettings, statement: str) -> None:
    cluster = open_cluster(settings)
    try:
        cluster.connect().execute(statement, timeout=60)
    finally:
        cluster.shutdown()


# --- a cluster of the tests' own, that asks for a password -------------------------------------------------------


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    asking = {"authenticator": "PasswordAuthenticator", "authorizer": "CassandraAuthorizer"}
    server = cassandra(tmp_path_factory.mktemp("cassandra"), free_port(), more=asking)
    # Its first role is there at once, not after ten seconds.
    java, *rest = server.command
    server.command = [java, "-Dcassandra.superuser_setup_delay_ms=0", *rest]
    server.start()
    server.wait()
    yield server
    server.stop()


def login(node: Server, user: str = "cassandra", password: str = "cassandra", **more: object) -> CassandraSettings:
    return CassandraSettings(hosts=node.address, user=user, password=SecretStr(password), **more)  # type: ignore[arg-type]


async def _counted(store: CassandraHistoryStore) -> None:
    await store.count_scores("p")


async def test_a_wrong_password_is_said_to_be_one(node: Server, caplog: pytest.LogCaptureFixture) -> None:
    right = CassandraHistoryStore(login(node))
    await asyncio.wait_for(tried_again(lambda: _counted(right)), 60)
    await right.close()
    wrong = CassandraHistoryStore(login(node, password="Zaphod-42"))
    with caplog.at_level(logging.DEBUG), pytest.raises(Unavailable) as refused:
        await wrong.count_scores("p")
    assert node.address in str(refused.value)
    assert "TURNOUT_CASSANDRA_PASSWORD" in str(refused.value)
    assert "Zaphod-42" not in str(refused.value) + repr(wrong._db._settings) + caplog.text
    with pytest.raises(Unavailable, match="TURNOUT_CASSANDRA_USER"):
        await CassandraHistoryStore(CassandraSettings(hosts=node.address)).count_scores("p")
    await wrong.close()


async def test_a_missing_permission_is_said_to_be_one_and_the_least_ones_suffice(node: Server) -> None:
    owner = CassandraHistoryStore(login(node))
    await asyncio.wait_for(tried_again(lambda: _counted(owner)), 60)
    await owner.close()
    as_owner = login(node)
    await asyncio.to_thread(_execute, as_owner, "CREATE ROLE ada WITH PASSWORD = 'a' AND LOGIN = true")
    await asyncio.to_thread(_execute, as_owner, "GRANT SELECT ON KEYSPACE turnout TO ada")
    ada = CassandraHistoryStore(login(node, "ada", "a", create_schema=False))
    with pytest.raises(Unavailable, match="TURNOUT_CASSANDRA_USER may not"):
        await ada.add_scores([score("s-1")])
    await asyncio.to_thread(_execute, as_owner, "GRANT MODIFY ON KEYSPACE turnout TO ada")
    # Nodes remember permissions for two seconds. What was refused may have claimed nothing: it is new.
    await asyncio.wait_for(tried_again(lambda: _added(ada, [score("s-1")], new=[score("s-1")])), 60)
    assert await ada.add_outcomes([outcome("s-1")]) == ["joined"]
    await ada.add_features([observation("o-1")])
    await ada.add_audit(Audit("a-1", at(0), "p", "ada", "promote", "2", "better", {}))
    await ada.forget("p", "e-1")
    await ada.remove("p")
    assert await ada.count_scores("p") == 0
    await ada.close()


async def test_a_role_that_may_create_keyspaces_makes_its_own(node: Server) -> None:
    await asyncio.to_thread(_execute, login(node), "CREATE ROLE bob WITH PASSWORD = 'b' AND LOGIN = true")
    await asyncio.to_thread(_execute, login(node), "GRANT CREATE ON ALL KEYSPACES TO bob")
    bob = CassandraHistoryStore(login(node, "bob", "b", keyspace="of_bob"))
    await asyncio.wait_for(tried_again(lambda: _added(bob, [score("s-1")], new=[score("s-1")])), 60)
    await bob.close()


async def test_a_node_that_hangs_is_unavailable_in_time_and_used_again(node: Server) -> None:
    store = CassandraHistoryStore(login(node, keyspace="hanging", timeout_seconds=1.0))
    await asyncio.wait_for(tried_again(lambda: _added(store, [score("s-1")], new=[score("s-1")])), 60)
    node.pause()
    try:
        async with asyncio.timeout(30):
            with pytest.raises(Unavailable, match=node.address):
                await store.add_scores([score("s-2")])
            with pytest.raises(Unavailable, match=node.address):
                await store.scores("p")
    finally:
        node.resume()
    # What was sent may have come through when the node went on; nobody was told, so it is new.
    await asyncio.wait_for(tried_again(lambda: _added(store, [score("s-2")], new=[score("s-2")])), 60)
    assert await store.add_scores([score("s-2")]) == []
    assert await store.count_scores("p") == 2
    await store.close()


async def test_a_cluster_that_comes_later_is_found(node: Server) -> None:
    port = free_port()
    store = CassandraHistoryStore(login(node).model_copy(update={"hosts": f"127.0.0.1:{port}"}))
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
        await store.count_scores("p")
    async with forwarded(port, node.address):
        await asyncio.wait_for(tried_again(lambda: _counted(store)), 60)
        await store.close()


async def test_a_cluster_that_is_away_is_tried_seldom(caplog: pytest.LogCaptureFixture) -> None:
    knocks: list[float] = []

    async def slam(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        knocks.append(time.monotonic())
        writer.close()

    door = await asyncio.start_server(slam, "127.0.0.1", 0)
    port = door.sockets[0].getsockname()[1]
    store = CassandraHistoryStore(CassandraSettings(hosts=f"127.0.0.1:{port}", connect_timeout_seconds=0.2))
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        while time.monotonic() < began + 5:
            with pytest.raises(Unavailable):
                await store.count_scores("p")
            await asyncio.sleep(0.01)
    took = time.monotonic() - began
    assert 2 <= len(knocks) <= took + 1
    assert len([r for r in caplog.records if r.name.startswith("cassandra")]) <= took / 2 + 1
    await store.close()
    door.close()


async def test_a_restarted_cluster_is_used_again(node: Server, caplog: pytest.LogCaptureFixture) -> None:
    store = CassandraHistoryStore(login(node, keyspace="restarted", timeout_seconds=5.0))
    await asyncio.wait_for(tried_again(lambda: _counted(store)), 60)
    kept = [score(f"r-{n}") for n in range(50)]
    await store.add_scores(kept)
    caplog.clear()
    began = time.monotonic()
    # As an orderly end does: the commit log is flushed every ten seconds only.
    await asyncio.to_thread(node.stop)
    with caplog.at_level(logging.WARNING):
        for _ in range(30):
            with pytest.raises(Unavailable, match=node.address):
                await store.add_scores([score("later")])
            await asyncio.sleep(0.1)
    assert len([r for r in caplog.records if r.name.startswith("cassandra")]) <= (time.monotonic() - began) / 2 + 1
    await asyncio.to_thread(node.start)
    await asyncio.to_thread(node.wait)
    await asyncio.wait_for(tried_again(lambda: _added(store, [score("later")], new=[score("later")])), 60)
    assert await store.add_scores(kept) == []
    assert await store.count_scores("p") == 51
    await store.close()


async def test_an_emptied_cluster_gets_its_tables_again(settings: CassandraSettings) -> None:
    own = settings.model_copy(update={"keyspace": "emptied_history"})
    store = CassandraHistoryStore(own)
    await store.add_scores([score("s-1")])
    await asyncio.to_thread(_execute, own, f"DROP KEYSPACE {own.keyspace}")
    with pytest.raises(Unavailable, match="keyspace is gone"):
        await store.count_scores("p")
    await asyncio.wait_for(tried_again(lambda: _counted(store)), 60)
    assert await store.add_scores([score("s-1")]) == [score("s-1")]
    await store.close()
    await asyncio.to_thread(_execute, own, f"DROP KEYSPACE {own.keyspace}")
