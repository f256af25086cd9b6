"""Functions for worker processes: a test module itself cannot be imported there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from threading import Barrier

from turnout.common.errors import Invalid
from turnout.common.wal import open_wal


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    raise Invalid("a", "is wrong", fix="b")


def begin_and_sleep(begun: Path) -> None:
    begun.touch()
    time.sleep(600)


def open_together(folder: Path, files: int, barrier: Barrier) -> int:
    """Open numbered new files at the same moments as the others behind the barrier; how many were opened."""
    for number in range(files):
        barrier.wait(timeout=30)
        open_wal(folder / f"{number}.sqlite").close()
    return files
