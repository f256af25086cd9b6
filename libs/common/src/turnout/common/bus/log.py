"""The embedded bus on disk: an append-only log in one SQLite file. Synchronous; `EmbeddedBus` drives it.

A record lies at `position`, its partition's number in the upper bits and its offset in the lower 40: one table,
appended to in order, read by a range. Offsets grow by one and are never used twice, also when records are gone.

A group's claim on a partition has an `epoch` that grows with each new holder: who was thought dead and comes back
holds an old epoch and is refused. Leases count in the machine's monotonic time, which a wrong clock cannot move.
"""

from __future__ import annotations

import os
import sqlite3
import time
import zlib
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from turnout.common.bus.port import Received, Record, Standing
from turnout.common.errors import Unavailable
from turnout.common.events import REGISTRY
from turnout.common.liveness import gone, host
from turnout.common.wal import Synchronous, open_wal

FORMAT = 1
OFFSET_BITS = 40
FOREIGN_PARTITIONS = 4
FOREIGN_RETENTION = timedelta(days=30)
# A superseded record of a compacted topic stays this long, for groups that are behind.
COMPACTION_LAG = timedelta(days=1)
LEASE_SECONDS = 6.0
BATCH_RECORDS = 500
BATCH_BYTES = 8 * 1024 * 1024
# Rows in one INSERT: each statement lets go of the interpreter lock once, so few long ones beat many short ones.
INSERT_ROWS = 100

_SCHEMA = """
CREATE TABLE IF NOT EXISTS partitions (
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, number INTEGER NOT NULL, next INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, number)
);
CREATE TABLE IF NOT EXISTS records (
    position INTEGER PRIMARY KEY, timestamp INTEGER NOT NULL, key BLOB, value BLOB, headers BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS offsets (
    name TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL DEFAULT 0,
    holder TEXT, epoch INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (name, partition)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS members (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, topics BLOB NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
    until REAL NOT NULL
) WITHOUT ROWID;
"""
_COLUMNS = "(position, timestamp, key, value, headers)"
_READ = """
SELECT position, timestamp, key, value, headers FROM records WHERE position >= ?1 AND position < ?2 ORDER BY position
"""
_NEWEST = "SELECT max(position) FROM records WHERE position >= ?3 AND position < ?2 GROUP BY key"
_COMPACTED = f"""
SELECT position, timestamp, key, value, headers FROM records WHERE position >= ?1 AND position < ?2
AND value IS NOT NULL AND (key IS NULL OR position IN ({_NEWEST})) ORDER BY position
"""  # noqa: S608


@dataclass(frozen=True)
class Claim:
    """The right of a member to read the partition `id` for its group; `offset` is where the group stands."""

    id: int
    topic: str
    number: int
    epoch: int
    offset: int


@dataclass(frozen=True)
class Partition:
    """A topic's partition: its id in the file, and the offset that the next record gets."""

    id: int
    topic: str
    number: int
    next: int


@dataclass(frozen=True)
class Membership:
    """A member as it stands in the file."""

    id: str
    group: str
    topics: tuple[str, ...]
    alive: bool


class Fenced(Exception):  # noqa: N818 (not an error: the bus says it in its own words)
    """The member no longer holds the partition."""


class Log:
    """One connection to the file; used by one thread at a time. Raises `Unavailable` when SQLite cannot go on."""

    def __init__(self, folder: Path, *, synchronous: Synchronous = "FULL") -> None:
        self.path = folder / "bus.sqlite"
        self.grown: dict[int, int] = {}
        """Partitions that the newest transaction has appended to, each with its next offset."""
        self._known: dict[str, tuple[int, ...]] = {}
        self._turn = 0
        with self._reported():
            self._db = open_wal(self.path, synchronous=synchronous, first="PRAGMA auto_vacuum=INCREMENTAL;")
            self._db.executescript(
                "PRAGMA journal_size_limit=67108864; PRAGMA cache_size=-16384; PRAGMA secure_delete=FAST;"
            )
            with self._transaction():
                self._prepare()

    def _prepare(self) -> None:
        found = self._one("PRAGMA user_version")
        if found > FORMAT:
            raise Unavailable(str(self.path), f"it has format {found}, this version of Turnout reads up to {FORMAT}")
        for statement in _SCHEMA.split(";"):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version={FORMAT}")

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """What happens inside is one commit, or nothing."""
        self.grown = {}
        with self._reported(), self._transaction():
            yield

    @contextmanager
    def reading(self) -> Generator[None]:
        """What is read inside is one snapshot."""
        with self._reported():
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("COMMIT")

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # After a full disk SQLite has rolled back already.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._known.clear()
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _reported(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise Unavailable(f"the bus at {self.path}", str(error)) from error

    # --- what is there ------------------------------------------------------------------------------------------

    def data_version(self) -> int:
        """Changes when another connection, of this process or another, has committed."""
        with self._reported():
            return self._one("PRAGMA data_version")

    def partitions(self, topics: Iterable[str] | None = None) -> list[Partition]:
        """Every partition, or those of `topics` that exist."""
        rows = self._db.execute("SELECT id, topic, number, next FROM partitions ORDER BY topic, number")
        wanted = None if topics is None else set(topics)
        return [Partition(*row) for row in rows.fetchall() if wanted is None or row[1] in wanted]

    def read(
        self, partition: Partition | Claim, start: int, end: int, *, compact: bool = False
    ) -> tuple[list[Received], int]:
        """Records from offset `start` and before `end`, at most a batch of them; and the offset to go on from.

        `compact`: only each key's newest, and no tombstones.
        """
        base = partition.id << OFFSET_BITS
        bounds = (base + start, base + end)
        rows = self._db.execute(_COMPACTED, (*bounds, base)) if compact else self._db.execute(_READ, bounds)
        found: list[Received] = []
        room = BATCH_BYTES
        for position, timestamp, key, value, headers in rows:
            record = Record(partition.topic, key, value, unpack_headers(headers))
            found.append(Received(record, partition.number, position - base, from_micros(timestamp)))
            room -= len(value or b"") + len(headers)
            if room < 0 or len(found) == BATCH_RECORDS:
                rows.close()
                return found, found[-1].offset + 1
        return found, end

    def lag(self, group: str) -> dict[str, int]:
        """How many offsets of each topic lie before the group."""
        rows = self._db.execute(
            "SELECT topic, sum(p.next - max(o.next, coalesce("
            "  (SELECT min(position) FROM records WHERE position >= p.id << 40 AND position < (p.id + 1) << 40)"
            "  - (p.id << 40), p.next)))"
            " FROM offsets o JOIN partitions p ON p.id = o.partition WHERE o.name = ? GROUP BY topic",
            (group,),
        )
        return {topic: max(0, behind) for topic, behind in rows.fetchall()}

    def standing(self, topic: str, group: str) -> dict[int, Standing]:
        """Where the group stands in each partition of a topic."""
        rows = self._db.execute(
            "SELECT p.number, max(coalesce(o.next, 0), coalesce("
            "  (SELECT min(position) FROM records WHERE position >= p.id << 40 AND position < (p.id + 1) << 40)"
            "  - (p.id << 40), p.next)), p.next"
            " FROM partitions p LEFT JOIN offsets o ON o.partition = p.id AND o.name = ? WHERE p.topic = ?",
            (group, topic),
        )
        return {number: Standing(next, end) for number, next, end in rows.fetchall()}  # noqa: A001

    # --- append -------------------------------------------------------------------------------------------------

    def append(self, records: Sequence[Record], now: datetime) -> None:
        """Append in order, inside a transaction."""
        by_partition: dict[int, list[Record]] = defaultdict(list)
        for record in records:
            by_partition[self._place(record)].append(record)
        moment = to_micros(now)
        for partition, placed in by_partition.items():
            self.grown[partition] = self._append(partition, placed, moment)

    def _append(self, partition: int, records: Sequence[Record], moment: int) -> int:
        start: int = self._one("SELECT next FROM partitions WHERE id = ?", partition)
        position = (partition << OFFSET_BITS) + start
        for first in range(0, len(records), INSERT_ROWS):
            rows = records[first : first + INSERT_ROWS]
            values: list[Any] = []
            for record in rows:
                values += (position, moment, record.key, record.value, pack_headers(record.headers))
                position += 1
            self._db.execute(f"INSERT INTO records {_COLUMNS} VALUES " + ",".join(["(?,?,?,?,?)"] * len(rows)), values)  # noqa: S608
        self._db.execute("UPDATE partitions SET next = ? WHERE id = ?", (start + len(records), partition))
        return start + len(records)

    def _place(self, record: Record) -> int:
        partitions = self._known.get(record.topic) or self.make_topic(record.topic)
        if record.key is None:
            self._turn += 1
            return partitions[self._turn % len(partitions)]
        return partitions[zlib.crc32(record.key) % len(partitions)]

    def make_topic(self, topic: str) -> tuple[int, ...]:
        """The topic's partitions, made if they are not there; inside a transaction."""
        ids = self._topic_ids(topic)
        if not ids:
            count = REGISTRY[topic].partitions if topic in REGISTRY else FOREIGN_PARTITIONS
            self._db.executemany(
                "INSERT INTO partitions (topic, number) VALUES (?, ?)", [(topic, n) for n in range(count)]
            )
            # Not remembered: this transaction may yet be rolled back.
            return self._topic_ids(topic)
        self._known[topic] = ids
        return ids

    def _topic_ids(self, topic: str) -> tuple[int, ...]:
        rows = self._db.execute("SELECT id FROM partitions WHERE topic = ? ORDER BY number", (topic,))
        return tuple(row[0] for row in rows.fetchall())

    # --- groups -------------------------------------------------------------------------------------------------

    def join(self, member: str, group: str, topics: Sequence[str]) -> None:
        """Become a member of a group; its offsets start at the first record. Inside a transaction."""
        for topic in topics:
            for partition in self.make_topic(topic):
                self._db.execute("INSERT OR IGNORE INTO offsets (name, partition) VALUES (?, ?)", (group, partition))
        self._db.execute(
            "INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?, ?)",
            (member, group, orjson.dumps(list(topics)), host(), os.getpid(), time.monotonic() + LEASE_SECONDS),
        )

    def leave(self, member: str) -> None:
        """Give up membership and every partition. Inside a transaction."""
        self._db.execute("DELETE FROM members WHERE id = ?", (member,))
        self._db.execute("UPDATE offsets SET holder = NULL, epoch = epoch + 1 WHERE holder = ?", (member,))

    def renew(self, members: Mapping[str, tuple[str, Sequence[str]]]) -> None:
        """Renew leases; a member that was taken for dead joins again. Inside a transaction."""
        until = time.monotonic() + LEASE_SECONDS
        for member, (group, topics) in members.items():
            if not self._db.execute("UPDATE members SET until = ? WHERE id = ?", (until, member)).rowcount:
                self.join(member, group, topics)

    def members(self) -> list[Membership]:
        """Every member, dead ones included."""
        rows = self._db.execute("SELECT id, name, topics, host, pid, until FROM members ORDER BY id").fetchall()
        return [
            Membership(ident, name, tuple(orjson.loads(topics)), _alive(where, pid, until))
            for ident, name, topics, where, pid, until in rows
        ]

    def bury(self) -> None:
        """Remove members that are dead and free their partitions. Inside a transaction."""
        for member in self.members():
            if not member.alive:
                self.leave(member.id)

    def holders(self, group: str) -> dict[int, tuple[str | None, int]]:
        """Who holds each partition of a group, and at which epoch."""
        rows = self._db.execute("SELECT partition, holder, epoch FROM offsets WHERE name = ?", (group,))
        return {partition: (holder, epoch) for partition, holder, epoch in rows.fetchall()}

    def claim(self, member: str, group: str, partitions: Iterable[Partition]) -> list[Claim]:
        """Take those of `partitions` that nobody else holds. Inside a transaction."""
        taken: list[Claim] = []
        for partition in partitions:
            row = self._db.execute(
                "UPDATE offsets SET holder = ?1, epoch = epoch + 1"
                " WHERE name = ?2 AND partition = ?3 AND coalesce(holder, ?1) = ?1 RETURNING epoch, next",
                (member, group, partition.id),
            ).fetchone()
            if row is not None:
                taken.append(Claim(partition.id, partition.topic, partition.number, *row))
        return taken

    def release(self, group: str, claim: Claim) -> None:
        """Give a partition up. Inside a transaction."""
        self._db.execute(
            "UPDATE offsets SET holder = NULL, epoch = epoch + 1 WHERE name = ? AND partition = ? AND epoch = ?",
            (group, claim.id, claim.epoch),
        )

    def move(self, group: str, claim: Claim, offset: int) -> None:
        """Set the group's offset. Inside a transaction. Raises `Fenced` if the claim is no longer held."""
        found = self._db.execute(
            "UPDATE offsets SET next = max(next, ?)"
            " WHERE name = ? AND partition = ? AND epoch = ? AND holder IS NOT NULL",
            (offset, group, claim.id, claim.epoch),
        )
        if not found.rowcount:
            raise Fenced

    def held(self, group: str, claim: Claim) -> None:
        """Raise `Fenced` if the claim is no longer held. Inside a transaction."""
        if self.holders(group).get(claim.id, (None, -1))[1] != claim.epoch:
            raise Fenced

    # --- removal ------------------------------------------------------------------------------------------------

    def purge(self, now: datetime) -> int:
        """Remove what is past its topic's retention, and what compaction makes superfluous. Inside a transaction."""
        gone = 0
        for partition in self.partitions():
            kind = REGISTRY.get(partition.topic)
            base, end = partition.id << OFFSET_BITS, (partition.id + 1) << OFFSET_BITS
            retention = kind.retention if kind else FOREIGN_RETENTION
            if retention is not None:
                gone += self._delete("position < ?", base, end, self._first_since(base, end, now - retention))
            if kind is not None and kind.compacted:
                newest = "SELECT max(position) FROM records WHERE position >= ? AND position < ? GROUP BY key"
                old = f"timestamp < ? AND key IS NOT NULL AND (value IS NULL OR position NOT IN ({newest}))"
                gone += self._delete(old, base, end, to_micros(now - COMPACTION_LAG), base, end)
        return gone

    def erase(self, topic: str, key: bytes) -> int:
        """Remove every record with `key`. Inside a transaction; `tidy` afterwards."""
        self._db.execute("PRAGMA secure_delete=ON").fetchall()
        gone = sum(
            self._delete("key = ?", p.id << OFFSET_BITS, (p.id + 1) << OFFSET_BITS, key)
            for p in self.partitions([topic])
        )
        self._db.execute("PRAGMA secure_delete=FAST").fetchall()
        return gone

    def _first_since(self, base: int, end: int, moment: datetime) -> int:
        row = self._db.execute(
            "SELECT position FROM records WHERE position >= ? AND position < ? AND timestamp >= ?"
            " ORDER BY position LIMIT 1",
            (base, end, to_micros(moment)),
        ).fetchone()
        return end if row is None else row[0]

    def tidy(self) -> None:
        """Give free pages back and empty the write-ahead log, so that what was removed is nowhere on disk."""
        with self._reported():
            self._db.execute("PRAGMA incremental_vacuum").fetchall()
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _delete(self, condition: str, base: int, end: int, *values: object) -> int:
        statement = f"DELETE FROM records WHERE position >= ? AND position < ? AND {condition}"  # noqa: S608
        return self._db.execute(statement, (base, end, *values)).rowcount

    def _one(self, statement: str, *values: object) -> int:
        return self._db.execute(statement, values).fetchone()[0]


def pack_headers(headers: Sequence[tuple[str, bytes]]) -> bytes:
    """Headers as JSON; latin-1 carries any byte there and back."""
    return orjson.dumps([(name, value.decode("latin-1")) for name, value in headers])


def unpack_headers(packed: bytes) -> tuple[tuple[str, bytes], ...]:
    """What `pack_headers` packed."""
    return tuple((name, value.encode("latin-1")) for name, value in orjson.loads(packed))


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_micros(micros: int) -> datetime:
    """The moment, in UTC."""
    return _EPOCH + timedelta(microseconds=micros)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _alive(where: str, pid: int, until: float) -> bool:
    now = time.monotonic()
    # A lease that ends later than any lease can was given before the machine was started again.
    return now < until <= now + LEASE_SECONDS and not gone(where, pid)
