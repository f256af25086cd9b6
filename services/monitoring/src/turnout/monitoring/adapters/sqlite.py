"""Keyed state in one SQLite file, for all processes of a machine: what the embedded bus drives the operator over."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import orjson

from turnout.common.errors import Unavailable
from turnout.common.wal import open_wal
from turnout.monitoring.domain.tally import Json, State

T = TypeVar("T")

_SCHEMA = "CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;"


class SqliteState:
    """See `KeyedState`. One thread, one connection; a change survives a power cut, as the bus's offset does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="monitoring-state")
        self._db: sqlite3.Connection | None = None

    async def fold(self, work: Callable[[State], T]) -> T:
        """See `KeyedState.fold`."""
        return await self._run(work, "BEGIN IMMEDIATE")

    async def look(self, work: Callable[[Mapping[str, Json]], T]) -> T:
        """See `KeyedState.look`."""
        return await self._run(work, "BEGIN")

    async def close(self) -> None:
        """See `KeyedState.close`."""
        await asyncio.to_thread(self._thread.shutdown)
        if self._db is not None:
            self._db.close()
            self._db = None

    async def _run(self, work: Callable[[State], T], begin: str) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work, begin)

    def _transaction(self, work: Callable[[State], T], begin: str) -> T:
        try:
            if self._db is None:
                self._db = open_wal(self._path)
                self._db.executescript(_SCHEMA)
            with self._db:
                self._db.execute(begin)
                return work(_Rows(self._db))
        except (sqlite3.Error, OSError) as error:
            raise Unavailable("monitoring's state", str(error) or type(error).__name__) from error


class _Rows(MutableMapping[str, Json]):
    """The table as a mapping, inside a transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __getitem__(self, key: str) -> Json:
        row = self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return orjson.loads(row[0])

    def __setitem__(self, key: str, value: Json) -> None:
        self._db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, orjson.dumps(value)))

    def __delitem__(self, key: str) -> None:
        if not self._db.execute("DELETE FROM state WHERE key = ?", (key,)).rowcount:
            raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter([key for (key,) in self._db.execute("SELECT key FROM state ORDER BY key")])

    def __len__(self) -> int:
        (count,) = self._db.execute("SELECT count(*) FROM state").fetchone()
        return count
