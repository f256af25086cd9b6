"""Functions for worker processes: a test module itself cannot be imported there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from turnout.common.errors import Invalid


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    raise Invalid("a", "is wrong", fix="b")


def begin_and_sleep(begun: Path) -> None:
    begun.touch()
    time.sleep(600)
