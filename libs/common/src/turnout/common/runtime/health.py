"""What a process knows of itself: what it waits for, and whether it still makes progress."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from turnout.common.runtime.service import Service

log = structlog.get_logger()

# EX_SOFTWARE of sysexits.h: the supervisor starts the process again.
EXIT_STUCK = 70
_CHECK_SECONDS = 1.0
_DEPTH = 30


class Health:
    """Readiness of one service: empty `waiting_for` means ready."""

    def __init__(self, service: Service, conditions: Sequence[tuple[str, Callable[[], bool]]] = ()) -> None:
        self._service = service
        self._conditions = conditions
        self._troubles: dict[str, tuple[str, Callable[[], bool] | None]] = {}
        self.started = False

    def trouble(self, what: str, why: str, over: Callable[[], bool] | None = None) -> None:
        """Something is not available to `what`, until `well` is said or `over` says so by itself."""
        self._troubles[what] = (why, over)

    def well(self, what: str) -> None:
        """`what` goes on."""
        self._troubles.pop(what, None)

    def waiting_for(self) -> list[str]:
        """Sentences, one for each thing that is missing."""
        missing = [] if self.started else ["the service to start"]
        missing += [name for name, there in self._conditions if not there()]
        self._troubles = {
            what: (why, over) for what, (why, over) in self._troubles.items() if over is None or not over()
        }
        missing += [f"{what}: {why}" for what, (why, _) in self._troubles.items()]
        return missing + list(self._service.waiting_for())


class Progress:
    """Who is at work and when they last moved; what stands still for `patience` seconds is stuck."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._beats: dict[str, float] = {}

    def beat(self, what: str, at: float | None = None) -> None:
        """`what` is at work and has moved just now, or `at` (monotonic seconds)."""
        self._beats[what] = time.monotonic() if at is None else at

    def rest(self, what: str) -> None:
        """`what` has nothing to do."""
        self._beats.pop(what, None)

    def forgive(self) -> None:
        """Begin to count anew: the whole process was stopped for a while."""
        now = time.monotonic()
        self._beats = dict.fromkeys(self._beats, now)

    def stuck(self) -> dict[str, float]:
        """Who has not moved for longer than `patience`, and for how long."""
        now = time.monotonic()
        return {what: now - at for what, at in list(self._beats.items()) if now - at > self.patience}


class Watchdog:
    """A thread that ends the process when something in it is stuck, so that its supervisor starts it again."""

    def __init__(self, progress: Progress, give_up: Callable[[dict[str, float]], None] | None = None) -> None:
        self._progress = progress
        self._give_up = give_up or self._exit
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch; on an event loop, its tasks are told of at the end."""
        with suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._stop.wait(_CHECK_SECONDS):
            now = time.monotonic()
            if now - looked > 5 * _CHECK_SECONDS:
                self._progress.forgive()
            looked = now
            if stuck := self._progress.stuck():
                self._give_up(stuck)
                return

    def _exit(self, stuck: dict[str, float]) -> None:
        for what, seconds in stuck.items():
            log.critical("no progress, the process ends", stuck=what, seconds=round(seconds, 1))
        with suppress(Exception):  # whatever it is, the process ends
            for task in asyncio.all_tasks(self._loop) if self._loop is not None else ():
                log.error("a task waits", task=task.get_name(), where=where(task.get_coro()))
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        os._exit(EXIT_STUCK)


def where(awaited: object) -> str:
    """The functions that a coroutine waits in, the outermost first, with their lines."""
    steps: list[str] = []
    while awaited is not None and len(steps) < _DEPTH:
        for kind in ("cr", "ag", "gi"):
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                steps.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
                awaited = getattr(awaited, f"{kind}_await", None) or getattr(awaited, f"{kind}_yieldfrom", None)
                break
        else:
            break
    return " > ".join(steps)
