"""Named places to die at, so that a test can kill the process between any two effects."""

from __future__ import annotations

import os
import signal
from collections import Counter
from multiprocessing import parent_process
from typing import NoReturn

VARIABLE = "TURNOUT_CRASH_POINT"
_passed: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Die here, as by `kill -9`, if `TURNOUT_CRASH_POINT` is `name` (or `name:3`: at the third passing).

    In a worker process of the executor the process that owns it dies too: the machine lost power, as it were.
    """
    asked = os.environ.get(VARIABLE)
    if asked is None or asked.partition(":")[0] != name:
        return
    _passed[name] += 1
    if _passed[name] >= int(asked.partition(":")[2] or 1):
        _die()


def _die() -> NoReturn:
    owner = parent_process()
    if owner is not None and owner.pid is not None:
        os.kill(owner.pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL returned")
