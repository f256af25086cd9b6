"""What Redis alone can do to the online store: refuse, be slow, die, forget."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import builders
import graphs
import pytest
from environment import until
from pydantic import SecretStr, ValidationError
from redis_stand import PASSWORD, Proxy, add_user, command
from scoring_stand import OLD, standing

from turnout.common.errors import Unavailable
from turnout.common.online.redis import RedisOnlineStore, RedisSettings
from turnout.common.runtime.environment import Environment
from turnout.devstack.redis import redis
from turnout.devstack.server import Server, free_port

pytestmark = pytest.mark.stack

Attempt = Callable[[RedisOnlineStore], Awaitable[object]]
T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = redis(tmp_path / "redis", free_port())
    made.start()
    made.wait()
    yield made
    made.resume()
    made.kill()


def url(server: Server) -> str:
    return f"redis://{server.address}"


@asynccontextmanager
async def opened(address: str, **settings: Any) -> AsyncIterator[RedisOnlineStore]:
    store = RedisOnlineStore(RedisSettings(url=address, **settings))
    yield store
    await store.close()


def self_signed(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=redis",
         "-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(key)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


async def everything(store: RedisOnlineStore) -> None:
    await store.put("heart", "p1", {"x": "canary-value"}, T0)
    await store.forget("heart", "p1")
    await store.remove("heart")


def fails_at_once(store: RedisOnlineStore) -> bool:
    """Whether a read fails without waiting for anything."""
    reading = store.get_many("heart", ["p1"])
    try:
        reading.send(None)
    except Unavailable:
        return True
    except StopIteration:
        return False
    reading.close()
    return False


async def test_without_a_password_nobody_is_let_in_and_the_message_says_what_to_set(server: Server) -> None:
    add_user(url(server), "turnout", "turnout:")
    command(url(server), "CONFIG", "SET", "requirepass", "something else")
    async with opened(url(server)) as store:
        with pytest.raises(Unavailable, match=rf"{server.address}.*asks for a password; set TURNOUT_REDIS_USERNAME"):
            await store.put("heart", "p1", {"x": 1.0}, T0)
    async with opened(url(server), username="turnout", password=SecretStr(PASSWORD)) as store:
        assert await store.put("heart", "p1", {"x": 1.0}, T0)


async def test_tls_with_a_certificate_of_ones_own(tmp_path: Path) -> None:
    port = free_port()
    certificate, key = self_signed(tmp_path)
    tls = ["--tls-port", str(port), "--tls-auth-clients", "no", "--tls-cert-file", str(certificate),
           "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate)]  # fmt: skip
    server = redis(tmp_path / "redis", free_port(), more=tls)
    server.start()
    server.wait()
    try:
        async with opened(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}") as store:
            assert await store.put("heart", "p1", {"x": 1.0}, T0)
            assert "p1" in await store.get_many("heart", ["p1"])
        async with opened(f"rediss://127.0.0.1:{port}/0") as store:  # nobody vouches for it
            with pytest.raises(Unavailable, match="certificate"):
                await store.put("heart", "p1", {"x": 1.0}, T0)
    finally:
        server.kill()


@pytest.mark.parametrize(
    "attempt",
    [
        lambda store: store.get_many("heart", ["p1"]),
        lambda store: store.put("heart", "p1", {"x": 1.0}, T0),
        lambda store: store.marked("heart"),
    ],
    ids=["read", "write", "mark"],
)
async def test_a_wrong_password_names_the_setting_and_is_not_told(server: Server, attempt: Attempt) -> None:
    async with opened(url(server), username="nobody", password=SecretStr(PASSWORD)) as store:
        with pytest.raises(Unavailable, match=r"refuses user 'nobody' or the password.*TURNOUT_REDIS_PASSWORD") as told:
            await attempt(store)
        assert PASSWORD not in str(told.value)


def test_a_url_with_a_password_is_refused_unquoted() -> None:
    with pytest.raises(ValidationError, match="TURNOUT_REDIS_PASSWORD") as told:
        RedisSettings(url=f"redis://me:{PASSWORD}@localhost:6379")
    assert PASSWORD not in str(told.value)
    assert PASSWORD not in repr(RedisSettings(password=SecretStr(PASSWORD)))


@pytest.mark.parametrize("missing", ["+mget", "+exec", "+set", "+unlink", "+scan"])
async def test_an_acl_without_a_command_names_it(server: Server, missing: str) -> None:
    add_user(url(server), "turnout", "turnout:", missing)
    async with opened(url(server), username="turnout", password=SecretStr(PASSWORD)) as store:
        with pytest.raises(Unavailable, match=rf"ACL does not let user 'turnout'.*{missing[1:]}.*docs/reliability"):
            await everything(store)


async def test_an_acl_of_other_keys_says_so_and_tells_no_value(server: Server) -> None:
    add_user(url(server), "turnout", "other:")
    async with opened(url(server), username="turnout", password=SecretStr(PASSWORD)) as store:
        with pytest.raises(Unavailable, match="ACL does not let") as told:
            await store.put("heart", "p1", {"x": "canary-value"}, T0)
        assert "canary-value" not in str(told.value)


async def test_the_documented_user_may_run_no_script(server: Server) -> None:
    add_user(url(server), "turnout", "turnout:")
    async with opened(url(server), username="turnout", password=SecretStr(PASSWORD)) as store:
        for words in (("EVAL", "return 1", "0"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*")):
            with pytest.raises(Unavailable, match="ACL does not let"):
                await store._command(*words)


async def test_a_full_server_says_so_and_keeps_the_last_good_value(server: Server) -> None:
    async with opened(url(server)) as store:
        await store.put("heart", "p1", {"x": 1.0}, T0)
        command(url(server), "CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Unavailable, match="maxmemory"):
            await store.put("heart", "p1", {"x": 2.0}, T0)
        assert (await store.get_many("heart", ["p1"]))["p1"].values == {"x": 1.0}


async def test_away_then_back_without_a_hand(server: Server) -> None:
    async with opened(url(server)) as store:
        await store.put("heart", "p1", {"x": 1.0}, T0)
        server.kill()
        with pytest.raises(Unavailable, match=rf"{server.address}.*is it running"):
            await store.get_many("heart", ["p1"])
        assert fails_at_once(store)
        with pytest.raises(Unavailable, match="is it running"):
            await store.put("heart", "p1", {"x": 2.0}, T0)
        server.start()
        server.wait()
        await until(lambda: not fails_at_once(store))
        # The append-only file has it.
        assert (await store.get_many("heart", ["p1"]))["p1"].values == {"x": 1.0}
        assert await store.put("heart", "p1", {"x": 2.0}, T0)


async def test_a_restart_between_two_commands_is_not_noticed(server: Server) -> None:
    async with opened(url(server)) as store:
        await asyncio.gather(*(store.marked(f"p{i}") for i in range(10)))  # several idle connections
        await store.put("heart", "p1", {"x": 1.0}, T0)
        server.stop()
        server.start()
        server.wait()
        assert await store.put("heart", "p1", {"x": 2.0}, T0)
        assert (await store.get_many("heart", ["p1"]))["p1"].values == {"x": 2.0}


async def test_a_slow_server_is_given_up_once_and_found_again(server: Server) -> None:
    async with Proxy(server.port).running() as proxy, opened(proxy.url) as store:
        await store.put("heart", "p1", {"x": 1.0}, T0)
        proxy.delay = 1.0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await store.get_many("heart", ["p1"])
        assert fails_at_once(store)
        await asyncio.sleep(2.5)  # looks that take too long change nothing
        assert fails_at_once(store)
        proxy.delay = 0.0
        await until(lambda: not fails_at_once(store))
        assert (await store.get_many("heart", ["p1"]))["p1"].values == {"x": 1.0}


async def test_a_paused_server_times_out_with_the_settings_name(server: Server) -> None:
    async with opened(url(server), timeout_ms=100) as store:
        await store.put("heart", "p1", {"x": 1.0}, T0)
        server.pause()
        results = await asyncio.gather(
            *(store.put("heart", f"p{i}", {"x": 2.0}, T0) for i in range(2000)), return_exceptions=True
        )
        assert all(isinstance(result, Unavailable) and "TURNOUT_REDIS_TIMEOUT_MS" in str(result) for result in results)
        server.resume()
        assert await store.put("heart", "p1", {"x": 3.0}, T0)


async def test_a_cancelled_commands_answer_goes_to_nobody(server: Server) -> None:
    """Two connections, cancelled at every moment of a command: a later caller must get what it asked for."""
    async with Proxy(server.port).running() as proxy, opened(proxy.url, connections=2) as store:
        names = [f"p{i}" for i in range(100)]
        await asyncio.gather(*(store.put("heart", name, {"x": name}, T0) for name in names))
        proxy.delay = 0.002
        wrong = cancelled = cycle = 0
        while cancelled < 500:
            cycle += 1
            asked = names[cycle % 100]
            victim = asyncio.ensure_future(store.marked(asked) if cycle % 3 == 0 else store.get_many("heart", [asked]))
            await asyncio.sleep((cycle % 7) * 0.0008)
            cancelled += victim.cancel()
            await asyncio.wait([victim])
            # Not behind the breaker: what is looked at here are the connections.
            store._away = None
            other = names[(cycle * 31 + 1) % 100]
            found = await store.get_many("heart", [other])
            wrong += found[other].values != {"x": other}
            wrong += await store.marked("nothing") is not None
        assert wrong == 0


async def test_a_foreign_value_is_no_crash(server: Server) -> None:
    async with opened(url(server)) as store:
        for content in ("not ours", '{"a": 1}', "7", "[]", "[1"):
            command(url(server), "SET", "turnout:f:heart:p1", content)
            command(url(server), "SET", "turnout:s:heart:p1", "not ours")
            with pytest.raises(Unavailable, match="TURNOUT_REDIS_PREFIX"):
                await store.get_many("heart", ["p1"])
            results = await asyncio.gather(
                store.put("heart", "p1", {"x": 1.0}, T0), store.put("heart", "p2", {"x": 1.0}, T0),
                return_exceptions=True,
            )  # fmt: skip
            assert isinstance(results[0], Unavailable)
            assert results[1] is True
            with pytest.raises(Unavailable, match="TURNOUT_REDIS_PREFIX"):
                await store.get_score("heart", "p1")


async def test_nothing_goes_because_it_is_old_unless_asked_and_then_reading_keeps_it(server: Server) -> None:
    async with opened(url(server)) as store:
        await store.put("heart", "p1", {"x": 1.0}, T0 - timedelta(days=3650))
        assert command(url(server), "TTL", "turnout:f:heart:p1") == -1
    async with opened(url(server), retention_days=1 / 86_400) as store:
        await store.put("heart", "p2", {"x": 1.0}, T0)
        await store.put("heart", "p3", {"x": 1.0}, T0)
        for _ in range(25):  # longer than the second that it may live
            await asyncio.sleep(0.1)
            assert "p2" in await store.get_many("heart", ["p2"])
        assert not await store.get_many("heart", ["p3"])
        assert "p1" in await store.get_many("heart", ["p1"])


async def test_two_processes_that_fight_for_one_key_both_get_through(server: Server) -> None:
    async with opened(url(server)) as one, opened(url(server)) as two, opened(url(server)) as three:
        stores = (one, two, three)
        rounds = [(stores[i % 3], f"c{i}") for i in range(300)]
        kept = await asyncio.gather(*(store.put("heart", "p1", {column: 1.0}, T0) for store, column in rounds))
        assert all(kept)
        assert len((await one.get_many("heart", ["p1"]))["p1"].values) == 300


async def test_scoring_answers_while_redis_is_slow_killed_and_back(environment: Environment, server: Server) -> None:
    async with Proxy(server.port).running() as proxy, opened(proxy.url) as store:
        environment.__dict__["online"] = store
        await store.put("p", "e-1", OLD, T0)
        async with standing(environment, features_ms=20.0) as stand:
            await stand.give(graphs.good(), "1")
            await environment.bus.publish(builders.routing(1, "1"))
            await stand.until_state("1", "on")

            async def ask() -> list[tuple[str, str | None]]:
                rows = (await stand.score({}, OLD, entities=["e-1", "e-1"]))["rows"]
                return [(row["version"], row["reason"]) for row in rows]

            async def until_whole() -> None:
                async with asyncio.timeout(30):
                    while await ask() != [("1", None), ("1", None)]:
                        await asyncio.sleep(0.02)

            degraded = [("baseline", "features"), ("1", None)]
            await until_whole()
            proxy.delay = 1.0
            assert await ask() == degraded
            assert fails_at_once(store)
            for _ in range(20):
                assert await ask() == degraded
            proxy.delay = 0.0
            await until_whole()
            asking = [asyncio.ensure_future(ask()) for _ in range(20)]
            server.kill()
            assert all(answer in (degraded, [("1", None), ("1", None)]) for answer in await asyncio.gather(*asking))
            assert await ask() == degraded
            server.start()
            await asyncio.to_thread(server.wait)
            await until_whole()
