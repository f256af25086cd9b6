"""The online store in one SQLite file with the entities in use held in memory.

All SQL runs on one thread of the store's own, first come first served; whatever is waiting when the thread gets to
it shares one transaction (group commit). Several processes may use one file: SQLite's `data_version` tells when
another one wrote, and the memory is dropped. It is asked at most every `TRUST` seconds, so that a read of entities in
memory costs neither a thread nor a system call, and is behind another process by `TRUST` at most.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import orjson

from turnout.common.errors import Invalid, Unavailable
from turnout.common.events import Values
from turnout.common.online.packing import check, check_all, microseconds, moment
from turnout.common.online.port import EntityFeatures, Put
from turnout.common.wal import open_wal

# Seconds for which the memory is believed before another process's writes are looked for.
TRUST = 0.02
# Entities in memory; the ones kept longest go first.
REMEMBERED = 100_000
FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS features (
    pipeline TEXT NOT NULL, entity TEXT NOT NULL, packed BLOB NOT NULL, PRIMARY KEY (pipeline, entity)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scores (
    pipeline TEXT NOT NULL, key TEXT NOT NULL, score TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (pipeline, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS marks (pipeline TEXT NOT NULL PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
"""
# Parameters of one SELECT; SQLite's own limit is 32,766.
_AT_ONCE = 10_000
# Writes of one `put_many` in one transaction; nobody else is served meanwhile.
_WRITTEN_AT_ONCE = 1_000

Result = TypeVar("Result")
Key = tuple[str, str]


@dataclass(frozen=True)
class _Work:
    """One operation waiting for the store's thread; it runs inside a transaction if it `writes`."""

    run: Callable[[sqlite3.Connection], Any]
    future: Future[Any]
    writes: bool


class EmbeddedOnlineStore:
    """An `OnlineStore` in the SQLite file at `path`; the file is made on first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="online-store")
        self._guard = threading.Lock()
        self._waiting: list[_Work] = []
        self._closed = False
        # Touched by the store's thread alone, except that the event loop looks an entity up (one dict.get).
        self._memory: dict[Key, EntityFeatures | None] = {}
        self._connection: sqlite3.Connection | None = None
        self._seen = -1
        self._checked = -TRUST

    async def put(self, pipeline: str, entity: str, values: Values, event_time: datetime) -> bool:
        """Keep each value unless a newer one of its column is there; whether any was kept.

        Raises `Invalid` for a value that JSON cannot hold.
        """
        # Found here, not on the store's thread: there it would fail its neighbours of the same transaction.
        check(entity, values)
        stamp = microseconds(event_time)
        return await self._submit(lambda c: self._put(c, (pipeline, entity), values, stamp), writes=True)

    async def put_many(self, pipeline: str, puts: Sequence[Put]) -> int:
        """See `OnlineStore.put_many`."""
        check_all(puts)
        kept = 0
        for start in range(0, len(puts), _WRITTEN_AT_ONCE):
            some = puts[start : start + _WRITTEN_AT_ONCE]
            kept += await self._submit(lambda c, some=some: self._put_many(c, pipeline, some), writes=True)
        return kept

    async def get_many(self, pipeline: str, entities: Sequence[str]) -> Mapping[str, EntityFeatures]:
        """Features of those entities that have some."""
        if not self._closed and time.monotonic() - self._checked < TRUST:
            found = {entity: self._memory.get((pipeline, entity), _ABSENT) for entity in entities}
            if _ABSENT not in found.values():
                return {entity: features for entity, features in found.items() if features is not None}
        return await self._submit(lambda c: self._get_many(c, pipeline, entities), writes=False)

    async def put_score(self, pipeline: str, key: str, score: str, at: datetime) -> None:
        """Keep a score unless a newer one is there."""
        row = (pipeline, key, score, microseconds(at))
        await self._submit(lambda c: _put_score(c, row), writes=True)

    async def get_score(self, pipeline: str, key: str) -> tuple[str, datetime] | None:
        """The score under `key` and when it was made."""
        return await self._submit(lambda c: _get_score(c, pipeline, key), writes=False)

    async def forget(self, pipeline: str, entity: str) -> None:
        """Remove an entity's features, and the score kept under its name."""
        await self._submit(lambda c: self._forget(c, (pipeline, entity)), writes=True)

    async def remove(self, pipeline: str) -> None:
        """Remove everything of a pipeline."""
        await self._submit(lambda c: self._remove(c, pipeline), writes=True)

    async def mark(self, pipeline: str, text: str) -> None:
        """Keep a note about what the store holds of a pipeline."""
        statement = "INSERT INTO marks VALUES (?, ?) ON CONFLICT DO UPDATE SET text = excluded.text"
        await self._submit(lambda c: c.execute(statement, (pipeline, text)).rowcount, writes=True)

    async def marked(self, pipeline: str) -> str | None:
        """The note of `mark`; None where there was none, or the store lost what it had."""
        return await self._submit(lambda c: _marked(c, pipeline), writes=False)

    async def close(self) -> None:
        """Finish what is waiting, then let go of the file; the second time does nothing."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)

    # --- the store's thread ---------------------------------------------------------------------------------------

    async def _submit(self, run: Callable[[sqlite3.Connection], Result], *, writes: bool) -> Result:
        if self._closed:
            raise Unavailable("the online store", "it is closed")
        future: Future[Result] = Future()
        with self._guard:
            self._waiting.append(_Work(run, future, writes))
        self._thread.submit(self._work)
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        with self._guard:
            waiting, self._waiting = self._waiting, []
        waiting = [work for work in waiting if work.future.set_running_or_notify_cancel()]
        if not waiting:
            return
        try:
            results = self._run(waiting)
        except sqlite3.Error as error:
            self._give_up(waiting, Unavailable("the online store", f"{self._path}: {error}"))
        except OSError as error:
            self._give_up(waiting, Unavailable("the online store", f"{self._path}: {error.strerror or error}"))
        except Exception as error:  # noqa: BLE001 (whoever waits must hear of it)
            self._give_up(waiting, error)
        else:
            for work, result in zip(waiting, results, strict=True):
                work.future.set_result(result)

    def _run(self, waiting: Sequence[_Work]) -> list[Any]:
        connection = self._connect()
        if not any(work.writes for work in waiting):
            self._look_for_others(connection)
            return [work.run(connection) for work in waiting]
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._look_for_others(connection)
            results = [work.run(connection) for work in waiting]
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._memory.clear()
            raise
        return results

    def _give_up(self, waiting: Sequence[_Work], error: Exception) -> None:
        self._memory.clear()
        for work in waiting:
            work.future.set_exception(error)

    def _connect(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        # The offset moves when `put` returns, so what it wrote must survive a power cut.
        connection = open_wal(self._path, synchronous="FULL")
        try:
            # Forgotten values are overwritten, not only unlinked.
            connection.execute("PRAGMA secure_delete=ON")
            self._refuse_newer(connection)
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version={FORMAT}")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _refuse_newer(self, connection: sqlite3.Connection) -> None:
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found > FORMAT:
            problem = f"was written by a newer Turnout (format {found})"
            raise Invalid(str(self._path), problem, fix="use that version, or another home")

    def _disconnect(self) -> None:
        self._memory.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _look_for_others(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        if version != self._seen:
            self._memory.clear()
            self._seen = version
        self._checked = time.monotonic()

    def _put(self, connection: sqlite3.Connection, key: Key, values: Values, stamp: int) -> bool:
        row = connection.execute("SELECT packed FROM features WHERE pipeline = ? AND entity = ?", key).fetchone()
        cells: dict[str, list[Any]] = orjson.loads(row[0]) if row else {}
        newer = {name: [value, stamp] for name, value in values.items() if name not in cells or cells[name][1] <= stamp}
        if not newer:
            return False
        cells |= newer
        connection.execute(
            "INSERT INTO features VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET packed = excluded.packed",
            (*key, orjson.dumps(cells)),
        )
        self._remember(key, _features(cells))
        return True

    def _put_many(self, connection: sqlite3.Connection, pipeline: str, puts: Sequence[Put]) -> int:
        return sum(self._put(connection, (pipeline, who), values, microseconds(at)) for who, values, at in puts)

    def _get_many(
        self, connection: sqlite3.Connection, pipeline: str, entities: Sequence[str]
    ) -> dict[str, EntityFeatures]:
        found: dict[str, EntityFeatures] = {}
        names = list(dict.fromkeys(entities))
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = connection.execute(
                f"SELECT entity, packed FROM features WHERE pipeline = ? AND entity IN ({marks})",  # noqa: S608 (marks)
                (pipeline, *some),
            )
            found |= {entity: _features(orjson.loads(packed)) for entity, packed in rows}
        for name in names:
            self._remember((pipeline, name), found.get(name))
        return found

    def _forget(self, connection: sqlite3.Connection, key: Key) -> None:
        connection.execute("DELETE FROM features WHERE pipeline = ? AND entity = ?", key)
        connection.execute("DELETE FROM scores WHERE pipeline = ? AND key = ?", key)
        self._memory.pop(key, None)

    def _remove(self, connection: sqlite3.Connection, pipeline: str) -> None:
        connection.execute("DELETE FROM features WHERE pipeline = ?", (pipeline,))
        connection.execute("DELETE FROM scores WHERE pipeline = ?", (pipeline,))
        connection.execute("DELETE FROM marks WHERE pipeline = ?", (pipeline,))
        self._memory.clear()

    def _remember(self, key: Key, features: EntityFeatures | None) -> None:
        self._memory.pop(key, None)
        self._memory[key] = features
        if len(self._memory) > REMEMBERED:
            del self._memory[next(iter(self._memory))]


_ABSENT = EntityFeatures({}, moment(0))


def _put_score(connection: sqlite3.Connection, row: tuple[str, str, str, int]) -> None:
    connection.execute(
        "INSERT INTO scores VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET score = excluded.score, at = excluded.at WHERE excluded.at >= scores.at",
        row,
    )


def _get_score(connection: sqlite3.Connection, pipeline: str, key: str) -> tuple[str, datetime] | None:
    query = "SELECT score, at FROM scores WHERE pipeline = ? AND key = ?"
    row = connection.execute(query, (pipeline, key)).fetchone()
    return (row[0], moment(row[1])) if row else None


def _marked(connection: sqlite3.Connection, pipeline: str) -> str | None:
    row = connection.execute("SELECT text FROM marks WHERE pipeline = ?", (pipeline,)).fetchone()
    return row[0] if row else None


def _features(cells: Mapping[str, Sequence[Any]]) -> EntityFeatures:
    newest = max(stamp for _, stamp in cells.values())
    return EntityFeatures({name: value for name, (value, _) in cells.items()}, moment(newest))
