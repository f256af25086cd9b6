"""Places where a test may ask a process to die."""

from __future__ import annotations

import os
import signal


def crash_point(name: str) -> None:
    """Die as by kill -9 if `TURNOUT_CRASH_POINT` is `name`; nothing otherwise."""
    if os.environ.get("TURNOUT_CRASH_POINT") == name:
        os.kill(os.getpid(), signal.SIGKILL)
