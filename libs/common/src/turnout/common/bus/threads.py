"""The embedded bus's two threads, each with a connection of its own: one commits, the other reads and keeps watch."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog

from turnout.common.bus.log import Fenced, Log
from turnout.common.errors import Unavailable

T = TypeVar("T")
log = structlog.get_logger()

POLL_SECONDS = 0.025
# Records in one commit: beyond this the flush is cheap beside the rest, and others have waited long enough.
COMMIT_RECORDS = 5_000
MAX_WAITING = 50_000


@dataclass
class Call(Generic[T]):
    """Something to do with the log, and who waits for it. `weight`: records it writes; `alone`: no transaction
    around it; `after`: called on the thread when it is done."""

    work: Callable[[Log], T]
    loop: asyncio.AbstractEventLoop | None = None
    future: asyncio.Future[T] | None = None
    weight: int = 1
    alone: bool = False
    after: Callable[[], object] | None = None
    result: T | None = None
    error: BaseException | None = None

    def perform(self, log: Log) -> None:
        """Do it. `Fenced` concerns this call alone: it is raised before anything is written."""
        self.error = None
        try:
            self.result = self.work(log)
        except Fenced as error:
            self.error = error


class LogThread:
    """A thread with a connection and a queue of calls; started by the first call."""

    def __init__(self, name: str, open_log: Callable[[], Log]) -> None:
        self._name = name
        self._open = open_log
        self._log: Log | None = None
        self._queue: queue.SimpleQueue[Call[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Start the thread if it does not run."""
        with self._starting:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name=f"bus-{self._name}", daemon=True)
                self._thread.start()

    def put(self, work: Callable[[Log], object], **options: Any) -> None:
        """Do it in turn; nobody waits. On a closed bus it is not done."""
        with contextlib.suppress(Unavailable):
            self._enqueue(Call(work, **options))

    async def call(self, work: Callable[[Log], T], **options: Any) -> T:
        """Do it in turn, and wait. Raises what `work` raises, `Unavailable` on a closed or overrun bus."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._enqueue(Call(work, loop, future, **options))
        return await future

    def close(self) -> None:
        """Do what is queued, then end; blocks."""
        with self._starting:
            self._closed = True
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _enqueue(self, call: Call[Any]) -> None:
        if self._closed:
            raise Unavailable("the bus", "it is closed")
        if self._queue.qsize() > MAX_WAITING:
            raise Unavailable("the bus", f"more than {MAX_WAITING} calls are waiting for the disk")
        self._queue.put(call)
        self.start()

    def _opened(self) -> Log:
        if self._log is None:
            self._log = self._open()
        return self._log

    def _run(self) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        if self._log is not None:
            self._log.close()
        while not self._queue.empty():
            late = self._queue.get()
            if late is not None:
                late.error = Unavailable("the bus", "it is closed")
                _resolve([late])


class Writer(LogThread):
    """Commits what waits as one transaction; `grown` hears which partitions have grown to which offset."""

    def __init__(self, open_log: Callable[[], Log], grown: Callable[[Mapping[int, int]], None]) -> None:
        super().__init__("writer", open_log)
        self._grown = grown
        self._kept: Call[Any] | None = None

    def _run(self) -> None:
        while (call := self._kept or self._queue.get()) is not None:
            self._kept = None
            calls, ended = self._gather(call)
            self._commit(calls)
            if ended:
                break
        self._end()

    def _gather(self, first: Call[Any]) -> tuple[list[Call[Any]], bool]:
        """What can be committed together with `first`, and whether the queue has ended."""
        calls, weight = [first], first.weight
        while not first.alone and weight < COMMIT_RECORDS and not self._queue.empty():
            following = self._queue.get()
            if following is None:
                return calls, True
            if following.alone:
                self._kept = following
                break
            calls.append(following)
            weight += following.weight
        return calls, False

    def _commit(self, calls: Sequence[Call[Any]]) -> None:
        try:
            self._perform(self._opened(), calls)
        except Exception as error:  # noqa: BLE001 (whoever waits must hear of it)
            if len(calls) > 1 and not isinstance(error, Unavailable):
                for call in calls:  # one of them is a bug; the others shall not suffer for it
                    self._commit([call])
                return
            for call in calls:
                call.error = error
        _resolve(calls)

    def _perform(self, log: Log, calls: Sequence[Call[Any]]) -> None:
        if calls[0].alone:
            calls[0].perform(log)
            return
        with log.transaction():
            for call in calls:
                call.perform(log)
        self._grown(log.grown)


class Reader(LogThread):
    """Answers calls, and between them looks whether the file has changed: `look(log, changed)`."""

    def __init__(self, open_log: Callable[[], Log], look: Callable[[Log, bool], None]) -> None:
        super().__init__("reader", open_log)
        self._look = look

    def _run(self) -> None:
        version = -1
        looked = 0.0
        while True:
            try:
                call = self._queue.get(timeout=max(0.0, looked + POLL_SECONDS - time.monotonic()))
            except queue.Empty:
                pass
            else:
                if call is None:
                    break
                self._answer(call)
            if time.monotonic() - looked >= POLL_SECONDS:
                looked = time.monotonic()
                version = self._watch(version)
        self._end()

    def _watch(self, version: int) -> int:
        found = version
        try:
            opened = self._opened()
            found = opened.data_version()
            self._look(opened, found != version)
        except Unavailable:
            return version
        except Exception:
            log.exception("the bus's watch failed")
        return found

    def _answer(self, call: Call[Any]) -> None:
        try:
            opened = self._opened()
            with opened.reading():
                call.perform(opened)
        except Exception as error:  # noqa: BLE001 (whoever waits must hear of it)
            call.error = error
        _resolve([call])


def _resolve(calls: Sequence[Call[Any]]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[Call[Any]]] = defaultdict(list)
    for call in calls:
        if call.loop is not None:
            by_loop[call.loop].append(call)
        if call.after is not None:
            call.after()
    for loop, waiting in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, waiting)


def _settle(calls: Sequence[Call[Any]]) -> None:
    for call in calls:
        if call.future is None or call.future.done():
            continue
        if call.error is not None:
            call.future.set_exception(call.error)
        else:
            call.future.set_result(call.result)
