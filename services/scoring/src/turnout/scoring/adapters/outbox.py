"""Events on their way to the bus, in one SQLite file of this worker; and how far their scores are summarised.

One thread writes. It takes all that waits and commits it at once, so the requests of one turn of the event loop share
one commit. `synchronous=FULL` survives a power cut, `NORMAL` a killed process (sqlite.org/pragma.html). With `NORMAL` a
commit is a write to memory, cheaper than the way to a thread and back: then the scores of a turn are committed on the
event loop itself, on a connection that never waits, neither for a lock (the thread takes over) nor for the disk (the
thread moves the log into the file).
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

import orjson

from turnout.common.bus.cloudevents import encode
from turnout.common.bus.port import Received, Record
from turnout.common.errors import TurnoutError, Unavailable
from turnout.common.events import Event, ScoreProduced
from turnout.common.summary import Gathered
from turnout.common.wal import Synchronous, open_wal
from turnout.scoring.ports import Kept, Taken

# Relayed events stay this long to be found by their id, and at most this many.
KEPT = 50_000
SOURCE = "/scoring"
# In place of a topic: a score that reaches the bus another way, kept to be counted.
COUNTED = ".counted"
# More appends than this at once wait their turn.
_GROUP = 500
_PATIENCE = 5.0
# So many rows committed on the event loop, and the log is begun anew (about 50 MB): while it is written to all the time
# SQLite never comes to it by itself.
_LOG_ROWS = 20_000
# Rows kept in memory until they are relayed, about 1 kB each.
_FRESH = 20_000

_SCHEMA = """
create table if not exists outbox (
    position integer primary key autoincrement, ident text not null, pipeline text not null, entity text,
    topic text not null, key blob, headers blob not null, value blob not null
);
create index if not exists outbox_ident on outbox (ident);
create table if not exists relayed (only_one integer primary key check (only_one = 0), position integer not null);
insert or ignore into relayed values (0, 0);
create table if not exists summarised (
    only_one integer primary key check (only_one = 0), position integer not null, outbox text not null
);
create table if not exists sequence (
    pipeline text not null, version text not null, number integer not null, primary key (pipeline, version)
) without rowid;
"""
# The file's own name, for as long as it lives: its summaries are numbered under it. In a file from before there were
# summaries, what was relayed was counted by others.
_NAMED = "insert or ignore into summarised select 0, position, ? from relayed"


class SqliteOutbox:
    """See `Outbox`. A worker has a file of its own, on a volume that outlives it."""

    def __init__(self, path: Path, *, synchronous: Synchronous = "FULL") -> None:
        self._path = path
        self._synchronous: Synchronous = synchronous
        self._work: SimpleQueue[_Task | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._trouble: str | None = None
        self._arrived = asyncio.Event()
        # The event loop's own connection; made by the thread, with `NORMAL` only.
        self._here: sqlite3.Connection | None = None
        self._logged = 0
        # What it committed last, with positions: the relay need not read it from the file.
        self._fresh: deque[tuple[int, Kept]] = deque(maxlen=_FRESH)

    @property
    def trouble(self) -> str | None:
        """See `Outbox.trouble`."""
        return self._trouble

    async def add(self, events: Sequence[Event]) -> None:
        """See `Outbox.add`."""
        await self._ask(events=events)
        self._arrived.set()

    def append(self, kept: Sequence[Kept], done: Callable[[Unavailable | None], None]) -> None:
        """See `Outbox.append`."""
        here = self._here
        last = _commit_now(here, kept) if here is not None else None
        if last is not None:
            self._logged += len(kept)
            self._fresh.extend(zip(range(last - len(kept) + 1, last + 1), kept, strict=True))
            done(None)
        else:
            loop = asyncio.get_running_loop()
            late = loop.call_later(_PATIENCE, lambda: done(_too_slow()))

            def tell(_: object, error: Unavailable | None) -> None:
                if loop.time() < late.when():
                    late.cancel()
                    done(error)

            self._put(_Task(_Waiter(loop, tell), rows=kept))
        self._arrived.set()

    async def count(self, scores: Sequence[ScoreProduced]) -> None:
        """See `Outbox.count`."""
        rows = [_counted(score) for score in scores]
        await self._ask(call=lambda db: _insert(db, rows), writes=True)
        self._arrived.set()

    async def find(self, ident: str) -> Event | None:
        """See `Outbox.find`."""
        row = await self._ask(call=lambda db: _find(db, ident))
        return None if row is None else _event(row)

    async def take(self, most: int) -> Taken:
        """See `Outbox.take`."""
        self._arrived.clear()
        return await self._ask(call=lambda db: self._take(db, most))

    async def relayed(self, position: int) -> None:
        """See `Outbox.relayed`."""
        await self._ask(call=lambda db: _relayed(db, position), writes=True)

    async def scores(self, after: int | None, most: int) -> tuple[Sequence[Record], int]:
        """See `Outbox.scores`."""
        return await self._ask(call=lambda db: _scores(db, after, most))

    async def summarise(self, parts: Sequence[Gathered], position: int) -> None:
        """See `Outbox.summarise`."""
        await self._ask(call=lambda db: _summarise(db, parts, position), writes=True)
        self._arrived.set()

    async def arrival(self) -> None:
        """See `Outbox.arrival`."""
        await self._arrived.wait()

    async def waiting(self) -> int:
        """See `Outbox.waiting`."""
        return await self._ask(call=_waiting)

    async def erase(self, pipeline: str, entity: str | None = None) -> None:
        """See `Outbox.erase`."""
        await self._ask(call=lambda db: _erase(db, pipeline, entity), writes=True)

    async def close(self) -> None:
        """See `Outbox.close`."""
        if self._thread is not None:
            self._work.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None
        if self._here is not None:
            self._here.close()
            self._here = None

    async def _ask(self, *, events: Sequence[Event] = (), call: _Call | None = None, writes: bool = False) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._put(_Task(_Waiter(loop, partial(_settle, future)), events=events, call=call, writes=writes))
        try:
            async with asyncio.timeout(_PATIENCE):
                return await future
        except TimeoutError:
            raise _too_slow() from None

    def _put(self, task: _Task) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="outbox", daemon=True)
            self._thread.start()
        self._work.put(task)

    # --- in the thread -------------------------------------------------------------------------------------------

    def _write(self) -> None:
        db: sqlite3.Connection | None = None
        while (task := self._work.get()) is not None:
            group = [task]
            ended = False
            while len(group) < _GROUP:
                try:
                    following = self._work.get_nowait()
                except Empty:
                    break
                if following is None:
                    ended = True
                    break
                group.append(following)
            try:
                db = db or self._open()
            except (sqlite3.Error, OSError) as error:
                _tell(self._failed(group, error))
            else:
                self._commit(db, group)
            if ended:
                break
        if db is not None:
            db.close()

    def _commit(self, db: sqlite3.Connection, group: Sequence[_Task]) -> None:
        """One transaction for all appends; the other tasks after it, each by itself."""
        results: list[_Result] = []
        appends: list[_Task] = []
        rows: list[tuple[Any, ...]] = []
        for task in group:
            if task.call is not None:
                continue
            try:
                rows += task.rows or [_row(event) for event in task.events]
            except TurnoutError as error:
                results.append((task.waiter, None, error))
            else:
                appends.append(task)
        if appends:
            results += self._transaction(db, appends, lambda db: _insert(db, rows), writes=True)
        for task in group:
            if task.call is not None:
                results += self._transaction(db, [task], task.call, writes=task.writes)
        _tell(results)
        if self._logged > _LOG_ROWS:
            self._logged = 0
            with suppress(sqlite3.Error):
                db.execute("pragma wal_checkpoint(restart)").fetchall()

    def _transaction(
        self, db: sqlite3.Connection, tasks: Sequence[_Task], call: _Call, *, writes: bool
    ) -> list[_Result]:
        try:
            with db:
                db.execute("begin immediate" if writes else "begin")
                result = call(db)
        except (sqlite3.Error, OSError) as error:
            return self._failed(tasks, error)
        if writes:
            self._trouble = None
        return [(task.waiter, result, None) for task in tasks]

    def _failed(self, tasks: Sequence[_Task], error: Exception) -> list[_Result]:
        self._trouble = str(error) or type(error).__name__
        return [(task.waiter, None, Unavailable("the outbox", self._trouble)) for task in tasks]

    def _take(self, db: sqlite3.Connection, most: int) -> Taken:
        (start,) = db.execute("select position from relayed").fetchone()
        fresh, rows = self._fresh, list[Kept]()
        while fresh and fresh[0][0] <= start:
            fresh.popleft()
        while fresh and len(rows) < most:
            position, row = fresh.popleft()  # the event loop may have let go of the first meanwhile: look at this one
            if position != start + len(rows) + 1:
                break
            rows.append(row)
        if rows:
            return Taken([_record(row[3:]) for row in rows], start, start + len(rows), whole=True)
        return _take(db, start, most)

    def _open(self) -> sqlite3.Connection:
        db = _open(self._path, self._synchronous)
        if self._synchronous == "NORMAL" and self._here is None:
            here = open_wal(self._path, synchronous=self._synchronous)
            here.executescript("pragma busy_timeout = 0; pragma wal_autocheckpoint = 0;")
            self._here = here
        return db


_Call = Callable[[sqlite3.Connection], Any]


@dataclass(frozen=True, slots=True)
class _Waiter:
    """Who waits for a task, on which loop: told the result, or the error."""

    loop: asyncio.AbstractEventLoop
    tell: Callable[[Any, Any], None]


_Result = tuple[_Waiter, Any, Exception | None]


@dataclass(frozen=True, slots=True)
class _Task:
    """Events or rows to append, or a call on the database (`writes`: it changes something)."""

    waiter: _Waiter
    events: Sequence[Event] = ()
    rows: Sequence[Kept] = ()
    call: _Call | None = None
    writes: bool = False


def _tell(results: Sequence[_Result]) -> None:
    """Wake the event loop once for a whole group: each wake-up is a system call."""
    if results:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            results[0][0].loop.call_soon_threadsafe(_tell_all, results)


def _tell_all(results: Sequence[_Result]) -> None:
    for waiter, result, error in results:
        waiter.tell(result, error)


def _too_slow() -> Unavailable:
    return Unavailable("the outbox", f"the disk did not answer within {_PATIENCE:.0f} s")


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _commit_now(db: sqlite3.Connection, rows: Sequence[Kept]) -> int | None:
    """Commit the rows at once; the position of the last one, the others stand right before it. None: nothing was."""
    try:
        db.execute("begin immediate")
    except sqlite3.Error:
        return None
    try:
        last = _insert(db, rows)
        db.execute("commit")
    except sqlite3.Error:
        db.rollback()
        return None
    return last


_INSERT = "insert into outbox (ident, pipeline, entity, topic, key, headers, value) values (?, ?, ?, ?, ?, ?, ?)"
# Rows of one statement, at most.
_ROWS = 64


@cache
def _statement(rows: int) -> str:
    return _INSERT + ", (?, ?, ?, ?, ?, ?, ?)" * (rows - 1)


def _insert(db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> int | None:
    """Append rows; the position of the last one.

    Many by one statement: each lets go of the interpreter's lock, and whoever takes it keeps it for a while.
    """
    last: int | None = None
    for at in range(0, len(rows), _ROWS):
        some = rows[at : at + _ROWS]
        last = db.execute(_statement(len(some)), [cell for row in some for cell in row]).lastrowid
    return last


def _open(path: Path, synchronous: Synchronous) -> sqlite3.Connection:
    db = open_wal(path, synchronous=synchronous)
    db.executescript(_SCHEMA)
    db.execute(_NAMED, (str(uuid4()),))
    return db


def _row(event: Event) -> tuple[Any, ...]:
    record = encode(event)
    ident = getattr(event, "score_id", None) or event.id
    headers = orjson.dumps([(name, value.decode()) for name, value in record.headers])
    entity = getattr(event, "entity", None)
    return ident, event.pipeline, entity, record.topic, record.key, headers, record.value


def _counted(score: ScoreProduced) -> tuple[Any, ...]:
    attempts = [{"version": a.version, "outcome": a.outcome, "milliseconds": a.milliseconds} for a in score.attempts]
    value = {name: getattr(score, name) for name in ("pipeline", "version", "served_by", "value", "milliseconds")}
    value |= {"values": dict(score.values), "attempts": attempts}
    headers = orjson.dumps([("ce_time", score.time.isoformat())])
    return score.score_id, score.pipeline, score.entity, COUNTED, None, headers, orjson.dumps(value)


def _find(db: sqlite3.Connection, ident: str) -> tuple[Any, ...] | None:
    """The score under `ident` if there is one, else whatever is (a request still to be answered)."""
    return db.execute(
        "select topic, key, headers, value from outbox where ident = ? and topic in ('ScoreProduced', 'ScoreRequested')"
        " order by topic = 'ScoreProduced' desc, position limit 1",
        (ident,),
    ).fetchone()


def _take(db: sqlite3.Connection, start: int, most: int) -> Taken:
    rows = db.execute(
        "select position, topic, key, headers, value from outbox where position > ? order by position limit ?",
        (start, most),
    ).fetchall()
    records = [_record(row[1:]) for row in rows if row[1] != COUNTED]
    # Only what an event asked for may have been answered before, by this process or another.
    return Taken(records, start, rows[-1][0] if rows else 0, len(records) == len(rows))


def _relayed(db: sqlite3.Connection, position: int) -> None:
    db.execute("update relayed set position = max(position, ?)", (position,))
    _tidy(db)


def _tidy(db: sqlite3.Connection) -> None:
    """Remove what was relayed and summarised long ago."""
    db.execute(
        "delete from outbox where position <= (select min(r.position - ?, s.position) from relayed r, summarised s)",
        (KEPT,),
    )


def _scores(db: sqlite3.Connection, after: int | None, most: int) -> tuple[list[Record], int]:
    (summarised,) = db.execute("select position from summarised").fetchone()
    start = summarised if after is None else after
    (end,) = db.execute(
        "select coalesce(max(position), ?1) from (select position from outbox"
        " where position > ?1 and position <= (select position from relayed) order by position limit ?2)",
        (start, most),
    ).fetchone()
    # A request that was delivered twice may have been answered twice; the first answer is the one that is kept.
    rows = db.execute(
        "select topic, key, headers, value from outbox o where position > ? and position <= ?"
        " and topic in ('ScoreProduced', '.counted') and not exists (select 1 from outbox e where e.ident = o.ident"
        " and e.topic in ('ScoreProduced', '.counted') and e.position < o.position) order by position",
        (start, end),
    ).fetchall()
    return [_record(row) for row in rows], end


def _summarise(db: sqlite3.Connection, parts: Sequence[Gathered], position: int) -> None:
    (outbox,) = db.execute("select outbox from summarised").fetchone()
    for part in parts:
        (number,) = db.execute(
            "insert into sequence values (?, ?, 1) on conflict do update set number = number + 1 returning number",
            (part.pipeline, part.version),
        ).fetchone()
        _insert(db, [_row(part.event(SOURCE, outbox, number))])
    db.execute("update summarised set position = max(position, ?)", (position,))
    _tidy(db)


def _waiting(db: sqlite3.Connection) -> int:
    (count,) = db.execute("select count(*) from outbox where position > (select position from relayed)").fetchone()
    return count


def _erase(db: sqlite3.Connection, pipeline: str, entity: str | None) -> None:
    if entity is None:
        db.execute("delete from outbox where pipeline = ? and position <= (select position from relayed)", (pipeline,))
    else:
        db.execute("delete from outbox where pipeline = ? and entity = ?", (pipeline, entity))


def _record(row: tuple[Any, ...]) -> Record:
    topic, key, headers, value = row
    return Record(topic, key, value, tuple((name, text.encode()) for name, text in orjson.loads(headers)))


def _event(row: tuple[Any, ...]) -> Event:
    return Received(_record(row), partition=0, offset=0, timestamp=datetime.fromtimestamp(0, UTC)).event()
