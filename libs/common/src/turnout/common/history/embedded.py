"""The history store in one SQLite file, for one machine and several processes.

All writing of a process goes through one thread with one connection, all reading through another: nothing
blocks the event loop, and in WAL mode readers never wait for the writer.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import TypeVar

import orjson

from turnout.common.errors import Unavailable
from turnout.common.events import ObservationReceived, OutcomeObserved, ScoreProduced
from turnout.common.history.port import Audit, Joined, OutcomeKind
from turnout.common.wal import open_wal

T = TypeVar("T")

FORMAT = 1
PAGE = 5_000
# SQLite takes 32,766 parameters in a statement; far fewer keep a statement cached.
PARAMETERS = 500
# Rows deleted in one transaction, so that other writers get their turn.
CHUNK = 5_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# `score.outcome` points at the outcome that counts: the partial index then finds joined scores without a walk
# through those that have none.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS score (
    n INTEGER PRIMARY KEY, pipeline TEXT NOT NULL, id TEXT NOT NULL, version TEXT NOT NULL, entity TEXT,
    at INTEGER NOT NULL, outcome INTEGER, event TEXT NOT NULL, UNIQUE (id, pipeline));
CREATE INDEX IF NOT EXISTS score_at ON score (pipeline, at, n);
CREATE INDEX IF NOT EXISTS score_entity ON score (pipeline, entity) WHERE entity IS NOT NULL;
CREATE INDEX IF NOT EXISTS score_joined ON score (pipeline, at, n) WHERE outcome IS NOT NULL;
CREATE INDEX IF NOT EXISTS score_joined_version ON score (pipeline, version, at, n) WHERE outcome IS NOT NULL;
CREATE TABLE IF NOT EXISTS outcome (
    n INTEGER PRIMARY KEY, pipeline TEXT NOT NULL, score_id TEXT NOT NULL, at INTEGER NOT NULL,
    value TEXT NOT NULL, event TEXT NOT NULL, UNIQUE (score_id, pipeline, at, value));
CREATE INDEX IF NOT EXISTS outcome_at ON outcome (at);
CREATE TABLE IF NOT EXISTS feature (
    n INTEGER PRIMARY KEY, pipeline TEXT NOT NULL, entity TEXT NOT NULL, at INTEGER NOT NULL,
    id TEXT NOT NULL, event TEXT NOT NULL, UNIQUE (pipeline, entity, at, id));
CREATE INDEX IF NOT EXISTS feature_at ON feature (at);
CREATE TABLE IF NOT EXISTS audit (
    n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, pipeline TEXT NOT NULL, at INTEGER NOT NULL,
    who TEXT NOT NULL, action TEXT NOT NULL, subject TEXT NOT NULL, why TEXT NOT NULL, detail TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS audit_at ON audit (pipeline, at, n);
"""


class EmbeddedHistoryStore:
    """A `HistoryStore` in the file at `path`, opened at the first call.

    A commit survives a power cut (`synchronous=FULL`): the bus's offset moves behind it. What is removed is
    overwritten (`secure_delete`), so that a forgotten person's values are not left in free pages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        opening = Lock()
        self._writer = _Thread(path, "history-writer", opening, write=True)
        self._reader = _Thread(path, "history-reader", opening, write=False)

    async def add_scores(self, scores: Sequence[ScoreProduced]) -> Sequence[ScoreProduced]:
        """Keep scores; returns those that were not there already."""
        if not scores:
            return []
        rows = [(s.pipeline, s.score_id, s.version, s.entity, _micros(s.time), s.model_dump_json()) for s in scores]
        added = await self._writer.run(lambda db: _add_scores(db, rows))
        return [score for score, new in zip(scores, added, strict=True) if new]

    async def score(self, score_id: str) -> ScoreProduced | None:
        """One score."""
        found = await self._reader.run(
            lambda db: db.execute("SELECT event FROM score WHERE id = ? ORDER BY n LIMIT 1", (score_id,)).fetchone()
        )
        return ScoreProduced.model_validate_json(found[0]) if found else None

    async def scores(
        self, pipeline: str, *, since: datetime | None = None, limit: int = 1000
    ) -> Sequence[ScoreProduced]:
        """A pipeline's newest scores, newest first."""
        parameters = (pipeline, _micros(since), limit)

        def read(db: sqlite3.Connection) -> list[ScoreProduced]:
            rows = db.execute(
                "SELECT event FROM score WHERE pipeline = ? AND at >= ? ORDER BY at DESC, n DESC LIMIT ?",
                parameters,
            )
            return [ScoreProduced.model_validate_json(event) for (event,) in rows]

        return await self._reader.run(read)

    async def count_scores(self, pipeline: str) -> int:
        """How many scores are kept of a pipeline."""
        (count,) = await self._reader.run(
            lambda db: db.execute("SELECT count(*) FROM score WHERE pipeline = ?", (pipeline,)).fetchone()
        )
        return count

    async def all_scores(self, pipeline: str) -> AsyncIterator[Sequence[ScoreProduced]]:
        """Every score kept of a pipeline, oldest first, in pages."""
        at, n = _micros(None), 0
        while True:
            page, at, n = await self._reader.run(lambda db, at=at, n=n: _page(db, pipeline, at, n))
            if not page:
                return
            yield page

    async def add_outcomes(self, outcomes: Sequence[OutcomeObserved]) -> Sequence[OutcomeKind]:
        """Keep outcomes; what each one was, in order. The one observed last is a score's outcome.

        One observed before the score's outcome, or saying the same later, changes nothing: "duplicate".
        """
        if not outcomes:
            return []
        return await self._writer.run(lambda db: [_add_outcome(db, outcome) for outcome in outcomes])

    async def joined_of(self, pipeline: str, score_ids: Sequence[str]) -> Sequence[Joined]:
        """Those of the scores that have an outcome, in no particular order."""

        def read(db: sqlite3.Connection) -> list[Joined]:
            found: list[Joined] = []
            for ids in _chunks(score_ids):
                query = f"{_JOINED} WHERE s.pipeline = ? AND s.id IN ({_marks(ids)})"
                found += _joined(db.execute(query, (pipeline, *ids)))
            return found

        return await self._reader.run(read)

    async def joined(
        self, pipeline: str, *, version: str | None = None, since: datetime | None = None, limit: int = 1000
    ) -> Sequence[Joined]:
        """Scores that have an outcome, newest score first."""
        of_version = "AND s.version = ?" if version is not None else ""
        query = (
            f"{_JOINED} WHERE s.pipeline = ? {of_version} AND s.outcome IS NOT NULL AND s.at >= ?"
            " ORDER BY s.at DESC, s.n DESC LIMIT ?"
        )
        parameters = (pipeline, *([version] if version is not None else []), _micros(since), limit)
        return await self._reader.run(lambda db: _joined(db.execute(query, parameters)))

    async def add_features(self, observations: Sequence[ObservationReceived]) -> None:
        """Keep features over time."""
        rows = [(o.pipeline, o.entity, _micros(o.event_time), o.id, o.model_dump_json()) for o in observations]
        await self._writer.run(
            lambda db: db.executemany(
                "INSERT OR IGNORE INTO feature (pipeline, entity, at, id, event) VALUES (?, ?, ?, ?, ?)", rows
            )
        )

    async def features(
        self, pipeline: str, entity: str, *, until: datetime | None = None, limit: int = 100
    ) -> Sequence[ObservationReceived]:
        """An entity's observations up to and at `until`, newest first."""
        last = _micros(until) if until is not None else 2**63 - 1

        def read(db: sqlite3.Connection) -> list[ObservationReceived]:
            rows = db.execute(
                "SELECT event FROM feature WHERE pipeline = ? AND entity = ? AND at <= ?"
                " ORDER BY at DESC, n DESC LIMIT ?",
                (pipeline, entity, last, limit),
            )
            return [ObservationReceived.model_validate_json(event) for (event,) in rows]

        return await self._reader.run(read)

    async def add_audit(self, *entries: Audit) -> None:
        """Append to the audit trail."""
        rows = [
            (
                e.id,
                e.pipeline,
                _micros(e.at),
                e.who,
                e.action,
                e.subject,
                e.why,
                orjson.dumps(dict(e.detail)).decode(),
            )
            for e in entries
        ]
        await self._writer.run(
            lambda db: db.executemany(
                "INSERT OR IGNORE INTO audit (id, pipeline, at, who, action, subject, why, detail)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
        )

    async def audit(self, pipeline: str, *, limit: int = 100) -> Sequence[Audit]:
        """A pipeline's audit trail, newest first."""

        def read(db: sqlite3.Connection) -> list[Audit]:
            rows = db.execute(
                "SELECT id, at, pipeline, who, action, subject, why, detail FROM audit WHERE pipeline = ?"
                " ORDER BY at DESC, n DESC LIMIT ?",
                (pipeline, limit),
            )
            return [
                Audit(ident, _moment(at), of, who, action, subject, why, orjson.loads(detail))
                for ident, at, of, who, action, subject, why, detail in rows
            ]

        return await self._reader.run(read)

    async def audited(self, ids: Sequence[str]) -> Collection[str]:
        """Those of the ids that are in the audit trail."""

        def read(db: sqlite3.Connection) -> set[str]:
            found: set[str] = set()
            for some in _chunks(ids):
                rows = db.execute(f"SELECT id FROM audit WHERE id IN ({_marks(some)})", tuple(some))  # noqa: S608 (question marks)
                found.update(ident for (ident,) in rows)
            return found

        return await self._reader.run(read)

    async def expire(self, before: datetime) -> int:
        """Remove scores, outcomes and features from before; never the audit trail. How many rows went.

        A score takes its outcomes along; an outcome of a score that stays, stays.
        """
        limit = _micros(before)
        gone = 0
        for table, where in (("score", "at < ?"), ("outcome", _WITHOUT_SCORE), ("feature", "at < ?")):
            while removed := await self._writer.run(lambda db, t=table, w=where: _expire(db, t, w, limit)):
                gone += removed
        return gone

    async def forget(self, pipeline: str, entity: str) -> None:
        """Remove scores, outcomes and features of an entity."""
        await self._writer.run(lambda db: _remove(db, "pipeline = ? AND entity = ?", (pipeline, entity)))
        await self._writer.run(_truncate_log, transaction=False)

    async def remove(self, pipeline: str) -> None:
        """Remove scores, outcomes and features of a pipeline; the audit trail stays."""

        def everything(db: sqlite3.Connection) -> None:
            _remove(db, "pipeline = ?", (pipeline,))
            db.execute("DELETE FROM outcome WHERE pipeline = ?", (pipeline,))

        await self._writer.run(everything)
        await self._writer.run(_truncate_log, transaction=False)

    async def close(self) -> None:
        """Let go of the file; what was asked before is finished first."""
        await self._writer.close()
        await self._reader.close()


class _Thread:
    """One connection that only one thread ever touches."""

    def __init__(self, path: Path, name: str, opening: Lock, *, write: bool) -> None:
        self._path = path
        self._opening = opening
        self._write = write
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._db: sqlite3.Connection | None = None

    async def run(self, work: Callable[[sqlite3.Connection], T], *, transaction: bool = True) -> T:
        """What `work` returns; when writing, in one transaction of its own. Raises `Unavailable`."""
        try:
            future = asyncio.get_running_loop().run_in_executor(
                self._pool, self._in_transaction if self._write and transaction else self._plain, work
            )
        except RuntimeError:
            raise Unavailable(f"history store {self._path}", "it is closed") from None
        # A caller that goes away must not leave half of its statements behind: the thread finishes its work.
        return await asyncio.shield(future)

    async def close(self) -> None:
        """Finish what was asked, then close the connection."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._close)
        except RuntimeError:
            return
        self._pool.shutdown(wait=False)

    def _in_transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return self._plain(lambda db: _transaction(db, work))

    def _plain(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._db is None:
                # Two connections that turn WAL on at the same moment find the file locked.
                with self._opening:
                    self._db = _open(self._path)
            return work(self._db)
        except sqlite3.DatabaseError as error:
            raise Unavailable(f"history store {self._path}", str(error)) from error
        except OSError as error:
            raise Unavailable(f"history store {self._path}", error.strerror or str(error)) from error

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _open(path: Path) -> sqlite3.Connection:
    # Transactions are begun here, by name, so that a write lock is taken before the first read.
    db = open_wal(path)
    try:
        db.execute("PRAGMA secure_delete=ON")
        found = _known_format(db, path)
        if found < FORMAT:
            _transaction(db, _create)
    except BaseException:
        db.close()
        raise
    return db


def _known_format(db: sqlite3.Connection, path: Path) -> int:
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found > FORMAT:
        raise Unavailable(
            f"history store {path}",
            f"it has format {found}, this Turnout knows {FORMAT}: use the newer Turnout",
        )
    return found


def _create(db: sqlite3.Connection) -> None:
    for statement in _SCHEMA.split(";"):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {FORMAT}")


def _transaction(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    db.execute("BEGIN IMMEDIATE")
    try:
        result = work(db)
        db.execute("COMMIT")
    except BaseException:
        # A full disk may have rolled back already.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result


def _truncate_log(db: sqlite3.Connection) -> None:
    """Bring the write-ahead log into the file and empty it: it still holds what was removed."""
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _add_scores(db: sqlite3.Connection, rows: Sequence[tuple[object, ...]]) -> list[bool]:
    added: list[bool] = []
    for pipeline, ident, version, entity, at, event in rows:
        cursor = db.execute(
            _ADD_SCORE,
            (pipeline, ident, version, entity, at, event),
        )
        added.append(cursor.rowcount == 1)
    return added


# The outcome of pipeline ?1 and score ?2 observed last; of two at one moment, the one that came last.
_LAST_OUTCOME = "SELECT n FROM outcome WHERE score_id = ?2 AND pipeline = ?1 ORDER BY at DESC, n DESC LIMIT 1"
_ADD_SCORE = f"""
INSERT INTO score (pipeline, id, version, entity, at, event, outcome)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ({_LAST_OUTCOME})) ON CONFLICT DO NOTHING"""  # noqa: S608 (a constant)
_WITHOUT_SCORE = """
at < ? AND NOT EXISTS (SELECT 1 FROM score s WHERE s.id = outcome.score_id AND s.pipeline = outcome.pipeline)"""
_JOINED = "SELECT s.event, o.event FROM score s JOIN outcome o ON o.n = s.outcome"


def _add_outcome(db: sqlite3.Connection, outcome: OutcomeObserved) -> OutcomeKind:
    score = (outcome.pipeline, outcome.score_id)
    value = orjson.dumps(outcome.outcome).decode()
    before = db.execute(
        f"SELECT n, value FROM outcome WHERE n = ({_LAST_OUTCOME})",  # noqa: S608 (a constant)
        score,
    ).fetchone()
    added = db.execute(
        "INSERT OR IGNORE INTO outcome (pipeline, score_id, at, value, event) VALUES (?, ?, ?, ?, ?)",
        (*score, _micros(outcome.observed_at), value, outcome.model_dump_json()),
    ).rowcount
    if not added:
        return "duplicate"
    (last,) = db.execute(_LAST_OUTCOME, score).fetchone()
    scored = db.execute("UPDATE score SET outcome = ? WHERE pipeline = ? AND id = ?", (last, *score)).rowcount
    if before is None:
        return "joined" if scored else "unmatched"
    (now,) = db.execute("SELECT value FROM outcome WHERE n = ?", (last,)).fetchone()
    if now == before[1]:
        return "duplicate"
    return "corrected" if scored else "unmatched"


def _page(db: sqlite3.Connection, pipeline: str, at: int, n: int) -> tuple[list[ScoreProduced], int, int]:
    rows = db.execute(
        "SELECT event, at, n FROM score WHERE pipeline = ? AND (at, n) > (?, ?) ORDER BY at, n LIMIT ?",
        (pipeline, at, n, PAGE),
    ).fetchall()
    if not rows:
        return [], at, n
    return [ScoreProduced.model_validate_json(event) for event, _, _ in rows], rows[-1][1], rows[-1][2]


def _joined(rows: Iterable[tuple[str, str]]) -> list[Joined]:
    return [
        Joined(ScoreProduced.model_validate_json(score), OutcomeObserved.model_validate_json(outcome))
        for score, outcome in rows
    ]


def _expire(db: sqlite3.Connection, table: str, where: str, before: int) -> int:
    some = f"SELECT n FROM {table} WHERE {where} LIMIT {CHUNK}"  # noqa: S608 (constants)
    outcomes = 0
    if table == "score":
        outcomes = db.execute(_outcomes_of(f"n IN ({some})"), (before,)).rowcount
    return outcomes + db.execute(f"DELETE FROM {table} WHERE n IN ({some})", (before,)).rowcount  # noqa: S608


def _remove(db: sqlite3.Connection, where: str, parameters: tuple[str, ...]) -> None:
    db.execute(_outcomes_of(where), parameters)
    db.execute(f"DELETE FROM score WHERE {where}", parameters)  # noqa: S608 (constants)
    db.execute(f"DELETE FROM feature WHERE {where}", parameters)  # noqa: S608


def _outcomes_of(scores: str) -> str:
    return f"DELETE FROM outcome WHERE (score_id, pipeline) IN (SELECT id, pipeline FROM score WHERE {scores})"  # noqa: S608


def _chunks(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    unique = list(dict.fromkeys(ids))
    return (unique[start : start + PARAMETERS] for start in range(0, len(unique), PARAMETERS))


def _marks(ids: Sequence[str]) -> str:
    return ", ".join("?" * len(ids))


def _micros(moment: datetime | None) -> int:
    """Microseconds since 1970, exact; None is before everything."""
    return -(2**63) if moment is None else (moment - _EPOCH) // _MICROSECOND


def _moment(micros: int) -> datetime:
    return _EPOCH + micros * _MICROSECOND
