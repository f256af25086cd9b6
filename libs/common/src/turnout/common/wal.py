"""Opening an SQLite file that several processes and threads share, in write-ahead mode."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Literal

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

# How long a connection waits for another's lock, in seconds.
PATIENCE_SECONDS = 30.0

Synchronous = Literal["FULL", "NORMAL"]


def open_wal(path: Path, *, synchronous: Synchronous = "FULL", first: str = "") -> sqlite3.Connection:
    """A connection in autocommit mode, usable by one thread at a time; folders are made.

    `synchronous`: "FULL" survives a power cut, "NORMAL" only the death of the process. `first`: statements that
    must come before the file gets its form. Raises `sqlite3.Error` or `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(
        path, timeout=PATIENCE_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        # Two connections that turn a new file to write-ahead mode at once: SQLite refuses one of them without
        # asking its busy handler, for each may be waiting for the other.
        for attempt in Retrying(
            retry=retry_if_exception(_locked),
            stop=stop_after_delay(PATIENCE_SECONDS),
            wait=wait_random(0.001, 0.02),
            reraise=True,
        ):
            with attempt:
                db.executescript(f"{first} PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous};")
    except BaseException:
        db.close()
        raise
    return db


def _locked(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
