"""The online store on Redis 7.0 or newer: one packed value per entity, many read by one MGET.

A write compares on the server and needs no script: WATCH, MGET, then MULTI … SET … EXEC, which the server carries out
only if none of the keys has changed since. Writes that wait, and those of one `put_many`, share such transactions,
whichever entities they are of; if somebody else wrote one of the keys, each half is tried again by itself.

Features have no time to live unless `retention_days` is set: the last good value stays until a newer one replaces it,
the entity is forgotten or the pipeline removed, and its event time says how old it is. With `retention_days` a key goes
when for so long nobody wrote *or read* it: what is in use stays, however long its source has failed.

What Redis acknowledged survives what its own persistence survives: with `appendfsync everysec` a killed server, and all
but the last second of a power cut; with `always` that too. What is lost is filled again (preparation's refill).
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

import redis.asyncio as aioredis
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from turnout.common.errors import Invalid, Unavailable
from turnout.common.events import Values
from turnout.common.online import packing
from turnout.common.online.lanes import Connection, Lanes, pipelined
from turnout.common.online.port import EntityFeatures, Put

# Keys of one MGET, of one transaction, and of one UNLINK; a server serves nobody else meanwhile.
_READ_AT_ONCE = 10_000
_WRITTEN_AT_ONCE = 500
_SCANNED_AT_ONCE = 1_000
# Transactions of one `put_many` under way: while the server works on one, the next is put together here.
_TRANSACTIONS = 2
# Transactions of one key that somebody else may win before the store gives up.
_CONFLICTS = 100
# Seconds: a read that its caller gave up sooner says nothing of the server.
_IMPATIENT = 0.005
# Seconds between looks at a server that is away: the first, the longest.
_LOOK, _LOOK_AT_MOST = 0.05, 2.0
# Keys whose time to live was renewed of late, remembered so that not every read renews it.
_RENEWED = 100_000

# What a transaction changes a key's value to; None keeps it. Called again when somebody else was faster.
Change = Callable[[bytes | None], bytes | None]
# Changes of one transaction, in order, each with its key.
Batch = Sequence[tuple[bytes, Change]]


class RedisSettings(BaseSettings):
    """Where Redis is and who asks, from `TURNOUT_REDIS_…` variables."""

    # A refused URL is not quoted: it may hold a password.
    model_config = SettingsConfigDict(env_prefix="TURNOUT_REDIS_", frozen=True, hide_input_in_errors=True)

    url: str = Field(
        default="redis://localhost:6379/0",
        description="The server: redis://HOST:PORT/DB, with TLS rediss://HOST:PORT/DB?ssl_ca_certs=FILE.",
    )
    username: str | None = Field(default=None, description="The ACL user; unset: Redis's `default`.")
    password: SecretStr | None = Field(default=None, description="The user's password.")
    prefix: str = Field(
        default="turnout:", min_length=1, description="What every key begins with; the ACL's key pattern."
    )
    timeout_ms: float = Field(default=1000.0, gt=0, description="Longest wait for an answer, in milliseconds.")
    connections: int = Field(default=16, ge=2, description="Most connections of one process.")
    retention_days: float | None = Field(
        default=None, gt=0, description="Days after which a key that nobody wrote or read goes; unset: never."
    )

    @field_validator("url")
    @classmethod
    def _without_a_password(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"redis", "rediss", "unix"}:
            raise ValueError("redis://HOST:PORT/DB or rediss://HOST:PORT/DB is expected")
        if "@" in parts.netloc or "password=" in parts.query or "username=" in parts.query:
            raise ValueError("holds a user or password; set TURNOUT_REDIS_USERNAME and TURNOUT_REDIS_PASSWORD instead")
        return url


@dataclass(frozen=True)
class _Write:
    """A change of one key, and who waits for whether it was made."""

    key: bytes
    change: Change
    done: asyncio.Future[bool]

    def tell(self, result: bool | Exception) -> None:
        """Whether it was made, or why that is not known."""
        if self.done.done():  # nobody waits any more
            return
        if isinstance(result, Exception):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)


class RedisOnlineStore:
    """An `OnlineStore` in the Redis server of `settings`; it connects on first use, and belongs to one event loop.

    While the server is away or slow, reads fail at once instead of each waiting: one look at a time finds out
    when it is back. Writes always try.
    """

    def __init__(self, settings: RedisSettings | None = None) -> None:
        self._settings = settings = settings or RedisSettings()
        self._prefix = settings.prefix
        password = settings.password
        pool: Any = aioredis.ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
            settings.url,
            username=settings.username,
            password=password.get_secret_value() if password is not None else None,
            # An exchange has its time as a whole; a limit on each of its steps would cost a task for each.
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            # Commands beyond those that the documented ACL allows are not sent.
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        self._server: Mapping[str, Any] = pool.connection_kwargs
        self._lanes = Lanes(pool.make_connection, most=settings.connections, seconds=settings.timeout_ms / 1000)
        self._waiting: list[_Write] = []
        self._writer: asyncio.Task[None] | None = None
        self._closed = False
        self._away: str | None = None
        self._looking: asyncio.Task[None] | None = None
        days = settings.retention_days
        self._retention = None if days is None else timedelta(days=days) // timedelta(milliseconds=1)
        self._renewed: dict[bytes, float] = {}
        self._renewing: asyncio.Task[None] | None = None

    async def put(self, pipeline: str, entity: str, values: Values, event_time: datetime) -> bool:
        """Keep each value unless a newer one of its column is there; whether any was kept.

        Raises `Invalid` for a value that JSON cannot hold.
        """
        packing.check(entity, values)
        stamp = packing.microseconds(event_time)
        return await self._write(self._features(pipeline, entity), lambda found: packing.merged(found, values, stamp))

    async def put_many(self, pipeline: str, puts: Sequence[Put]) -> int:
        """See `OnlineStore.put_many`."""
        self._check_open()
        packing.check_all(puts)
        head = f"{self._prefix}f:{pipeline}:"
        # All changes of a key in one transaction: two at once would be in each other's way.
        by_key: dict[bytes, list[Change]] = {}
        for entity, values, at in puts:
            change = partial(packing.merged, values=values, stamp=packing.microseconds(at))
            by_key.setdefault(_encoded(head + entity), []).append(change)
        keys = list(by_key)
        batches = [
            [(key, change) for key in keys[start : start + _WRITTEN_AT_ONCE] for change in by_key[key]]
            for start in range(0, len(keys), _WRITTEN_AT_ONCE)
        ]
        kept = 0
        for start in range(0, len(batches), _TRANSACTIONS):
            together = (self._exchange(batch) for batch in batches[start : start + _TRANSACTIONS])
            for results in await asyncio.gather(*together, return_exceptions=True):
                kept += self._kept(results)
        return kept

    async def get_many(self, pipeline: str, entities: Sequence[str]) -> Mapping[str, EntityFeatures]:
        """Features of those entities that have some."""
        names = list(dict.fromkeys(entities))
        head = f"{self._prefix}f:{pipeline}:"
        keys = [_encoded(head + name) for name in names]
        packed = await self._read(keys)
        try:
            return packing.features(names, packed)
        except ValueError:
            raise self._foreign(head) from None

    async def put_score(self, pipeline: str, key: str, score: str, at: datetime) -> None:
        """Keep a score unless a newer one is there."""
        stamp = packing.microseconds(at)
        await self._write(self._score(pipeline, key), lambda found: packing.newest_score(found, score, stamp))

    async def get_score(self, pipeline: str, key: str) -> tuple[str, datetime] | None:
        """The score under `key` and when it was made."""
        (packed,) = await self._read([self._score(pipeline, key)])
        try:
            return None if packed is None else packing.score(packed)
        except ValueError:
            raise self._foreign(f"{self._prefix}s:{pipeline}:") from None

    async def forget(self, pipeline: str, entity: str) -> None:
        """Remove an entity's features, and the score kept under its name."""
        await self._command("UNLINK", self._features(pipeline, entity), self._score(pipeline, entity))

    async def remove(self, pipeline: str) -> None:
        """Remove everything of a pipeline, by looking through all keys of the database."""
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", self._prefix) + f"[fsm]:{pipeline}:*"
        cursor = b"0"
        while True:
            answer = await self._command("SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED_AT_ONCE)
            cursor, keys = cast("tuple[bytes, list[bytes]]", answer)
            if keys:
                await self._command("UNLINK", *keys)
            if cursor == b"0":
                return

    async def mark(self, pipeline: str, text: str) -> None:
        """Keep a note about what the store holds of a pipeline; it is lost when the store's contents are."""
        await self._command("SET", self._marker(pipeline), text.encode())

    async def marked(self, pipeline: str) -> str | None:
        """The note of `mark`; None where there was none, or the store lost what it had."""
        found = cast("bytes | None", await self._command("GET", self._marker(pipeline)))
        return None if found is None else found.decode()

    async def close(self) -> None:
        """Finish what is waiting, then let go of the connections; the second time does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._writer is not None:
            await asyncio.wait([self._writer])
        for task in (self._looking, self._renewing):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        await self._lanes.close()

    # --- reading --------------------------------------------------------------------------------------------------

    async def _read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """The keys' values; fails at once while the server is known to be away or slow."""
        self._check_open()
        if self._away is not None:
            raise Unavailable(self.name, self._away)
        if not keys:
            return []
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            found: list[bytes | None] = []
            for start in range(0, len(keys), _READ_AT_ONCE):
                some = await self._lanes.ask("MGET", *keys[start : start + _READ_AT_ONCE])
                found += cast("list[bytes | None]", some)
        except asyncio.CancelledError:
            waited = clock() - began
            if waited >= _IMPATIENT:
                self._look_out(f"a read was given up after {waited * 1000:.0f} ms", waited)
            raise
        except exceptions.RedisError as error:
            failure = self._unavailable(error)
            self._look_out(failure.why, self._settings.timeout_ms / 1000)
            raise failure from None
        if self._retention is not None:
            self._renew([key for key, value in zip(keys, found, strict=True) if value is not None])
        return found

    def _look_out(self, why: str, seconds: float) -> None:
        """Let reads fail at once until a look is answered within `seconds`."""
        if self._away is None and not self._closed:
            self._away = why
            self._looking = asyncio.create_task(self._look(seconds))

    async def _look(self, seconds: float) -> None:
        clock = asyncio.get_running_loop().time
        pause = _LOOK
        while True:
            try:
                # The first may have to connect; the second is what a request would wait for.
                await self._lanes.ask("MGET", self._marker(""))
                began = clock()
                await self._lanes.ask("MGET", self._marker(""))
                if clock() - began < seconds:
                    self._away = None
                    return
            except exceptions.RedisError as error:
                self._away = self._unavailable(error).why
            # Not all processes at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 (no secret)
            pause = min(2 * pause, _LOOK_AT_MOST)

    def _renew(self, keys: Sequence[bytes]) -> None:
        """Let keys that were read live on, behind the read; each at most ten times in its time to live."""
        assert self._retention is not None
        now = asyncio.get_running_loop().time()
        due = [key for key in keys if self._renewed.get(key, -1e18) < now - self._retention / 10_000]
        if not due or (self._renewing is not None and not self._renewing.done()):
            return
        if len(self._renewed) > _RENEWED:
            self._renewed.clear()
        self._renewed.update(dict.fromkeys(due, now))
        self._renewing = asyncio.create_task(self._expire(due, self._retention))

    async def _expire(self, keys: Sequence[bytes], milliseconds: int) -> None:
        try:
            commands = [("PEXPIRE", key, milliseconds) for key in keys]
            await self._lanes.exchange(lambda connection: pipelined(connection, commands))
        except exceptions.RedisError:
            for key in keys:
                self._renewed.pop(key, None)

    # --- writing --------------------------------------------------------------------------------------------------

    async def _write(self, key: bytes, change: Change) -> bool:
        self._check_open()
        write = _Write(key, change, asyncio.get_running_loop().create_future())
        self._waiting.append(write)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._work())
        return await write.done

    async def _work(self) -> None:
        """Carry out what waits, in order, many at a time."""
        while self._waiting:
            batch, self._waiting = self._waiting[:_WRITTEN_AT_ONCE], self._waiting[_WRITTEN_AT_ONCE:]
            batch = [write for write in batch if not write.done.done()]
            try:
                results = await self._exchange([(write.key, write.change) for write in batch])
                for write, result in zip(batch, results, strict=True):
                    write.tell(result)
            except exceptions.RedisError as error:
                self._give_up(batch, self._unavailable(error))
            except Unavailable as error:
                self._give_up(batch, error)
            except BaseException as error:
                self._give_up(batch, error if isinstance(error, Exception) else Unavailable(self.name, "it is closed"))
                raise

    def _give_up(self, batch: Sequence[_Write], error: Exception) -> None:
        # Whoever waits behind them would wait for the same server.
        failed, self._waiting = [*batch, *self._waiting], []
        for write in failed:
            write.tell(error)

    def _kept(self, results: Sequence[bool | Exception] | BaseException) -> int:
        """How many changes were made. Raises what went wrong with any."""
        if isinstance(results, exceptions.RedisError):
            raise self._unavailable(results) from None
        if isinstance(results, BaseException):
            raise results
        for result in results:
            if isinstance(result, Exception):
                raise result
        return sum(1 for result in results if result)

    async def _exchange(self, batch: Batch, conflicts: int = 0) -> list[bool | Exception]:
        """Make the changes in one transaction, the halves by themselves if one of the keys changed; which were made."""
        keys = list(dict.fromkeys(key for key, _ in batch))
        if not keys:
            return []
        results = await self._lanes.exchange(lambda connection: self._transact(connection, batch, keys))
        if results is not None:
            return results
        if len(keys) == 1 and conflicts >= _CONFLICTS:
            raise Unavailable(self.name, f"others changed a key {conflicts} times meanwhile")
        await asyncio.sleep(random.uniform(0, 0.001) * min(conflicts, 10))  # noqa: S311 (no secret)
        first = set(keys[: (len(keys) + 1) // 2])
        halves = [[n for n, (key, _) in enumerate(batch) if (key in first) is which] for which in (True, False)]
        made: dict[int, bool | Exception] = {}
        for half in halves:
            made |= zip(half, await self._exchange([batch[n] for n in half], conflicts + 1), strict=True)
        return [made[n] for n in range(len(batch))]

    async def _transact(
        self, connection: Connection, batch: Batch, keys: Sequence[bytes]
    ) -> list[bool | Exception] | None:
        """Whether each change was made; None if somebody else changed one of the keys meanwhile: then none was."""
        _, found = await pipelined(connection, [("WATCH", *keys), ("MGET", *keys)])
        there = dict(zip(keys, cast("list[bytes | None]", found), strict=True))
        changed: dict[bytes, bytes] = {}
        results: list[bool | Exception] = []
        for key, change in batch:
            try:
                new = change(changed.get(key, there[key]))
            except ValueError:
                results.append(self._foreign(key.decode()))
                continue
            results.append(new is not None)
            if new is not None:
                changed[key] = new
        if not changed:
            await pipelined(connection, [("UNWATCH",)])
            return results
        lives = () if self._retention is None else ("PX", self._retention)
        sets = [("SET", key, value, *lives) for key, value in changed.items()]
        *_, done = await pipelined(connection, [("MULTI",), *sets, ("EXEC",)])
        return None if done is None else results

    # --- both -----------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Which server, for messages."""
        server = self._server
        if "path" in server:
            return f"Redis at {server['path']}"
        return f"Redis at {server.get('host', 'localhost')}:{server.get('port', 6379)}"

    async def _command(self, *words: bytes | str | int) -> object:
        self._check_open()
        try:
            return await self._lanes.ask(*words)
        except exceptions.RedisError as error:
            raise self._unavailable(error) from None

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(self.name, "the online store is closed")

    def _features(self, pipeline: str, entity: str) -> bytes:
        return _encoded(f"{self._prefix}f:{pipeline}:{entity}")

    def _score(self, pipeline: str, key: str) -> bytes:
        return _encoded(f"{self._prefix}s:{pipeline}:{key}")

    def _marker(self, pipeline: str) -> bytes:
        return _encoded(f"{self._prefix}m:{pipeline}:")

    def _foreign(self, key: str) -> Unavailable:
        return Unavailable(self.name, f"somebody else wrote what lies under {key}; choose another TURNOUT_REDIS_PREFIX")

    def _unavailable(self, error: exceptions.RedisError) -> Unavailable:
        said = str(error)
        user = self._settings.username or "default"
        match error:
            case exceptions.AuthenticationError() if error.status_code == "NOAUTH":
                why = "it asks for a password; set TURNOUT_REDIS_USERNAME and TURNOUT_REDIS_PASSWORD"
            case exceptions.AuthenticationError():
                why = f"it refuses user '{user}' or the password; mend TURNOUT_REDIS_USERNAME or TURNOUT_REDIS_PASSWORD"
            # A transaction is discarded for the same reason.
            case exceptions.ResponseError() if isinstance(error, exceptions.NoPermissionError) or "NOPERM" in said:
                why = f"its ACL does not let user '{user}' do this ({said}); see docs/reliability.md for the ACL"
            case exceptions.OutOfMemoryError():
                why = "its memory is full; raise its maxmemory"
            case exceptions.ReadOnlyError():
                why = "it is a replica that takes no writes; TURNOUT_REDIS_URL must name the primary"
            case exceptions.BusyLoadingError():
                why = "it is loading its data"
            case exceptions.TimeoutError():
                why = f"no answer within {self._settings.timeout_ms:g} ms (TURNOUT_REDIS_TIMEOUT_MS)"
            case exceptions.ConnectionError():
                why = f"{said}; is it running, and is TURNOUT_REDIS_URL right?"
            case _:
                why = said
        return Unavailable(self.name, why)


def _encoded(key: str) -> bytes:
    try:
        return key.encode()
    except UnicodeEncodeError:
        raise Invalid("entity", "is not valid text") from None
