"""The executor on this machine: worker processes that stay warm, give way, are replaced, and end with their owner."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, ParamSpec, TypeVar

from turnout.common.errors import Unavailable
from turnout.common.executor.port import WorkerLost

# How much less urgent than its owner a worker is, on the kernel's scale of 19.
NICE = 10

P = ParamSpec("P")
T = TypeVar("T")


class ProcessExecutor(Executor):
    """`workers` spawned processes, started by the first `submit`.

    When a worker dies, everything that was submitted and not finished fails with `WorkerLost`, and the next
    `submit` starts a new pool.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` in a worker. The future raises what `fn` raises, or `WorkerLost`."""
        with self._lock:
            try:
                inner = self._running().submit(fn, *args, **kwargs)
            except BrokenProcessPool:
                self._pool = None
                inner = self._running().submit(fn, *args, **kwargs)
        return _outer(inner)

    def warm(self) -> None:
        """Start the workers, so that the first piece of work does not wait for them."""
        for _ in range(self._workers):
            self.submit(os.getpid)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work. Without `wait` running work is killed, not waited for."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((pool._processes or {}).values())  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
        pool.shutdown(wait=wait, cancel_futures=cancel_futures)
        if not wait:
            for process in processes:
                process.kill()

    def _running(self) -> ProcessPoolExecutor:
        if self._closed:
            raise Unavailable("the executor", "it is shut down")
        if self._pool is None:
            threads = max(1, (os.cpu_count() or 1) // self._workers)
            self._pool = ProcessPoolExecutor(
                self._workers, mp_context=get_context("spawn"), initializer=_start, initargs=(threads,)
            )
        return self._pool


def _outer(inner: Future[T]) -> Future[T]:
    """A future that says `WorkerLost` where the pool says that it is broken."""
    outer: Future[T] = Future()

    def settle(done: Future[T]) -> None:
        if done.cancelled():
            outer.cancel()
            outer.set_running_or_notify_cancel()
            return
        if not outer.set_running_or_notify_cancel():
            return
        error = done.exception()
        if isinstance(error, BrokenProcessPool):
            outer.set_exception(WorkerLost("a worker process", "it died under the work"))
        elif error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(done.result())

    def withdraw(done: Future[Any]) -> None:
        if done.cancelled():
            inner.cancel()

    outer.add_done_callback(withdraw)
    inner.add_done_callback(settle)
    return outer


def _start(threads: int) -> None:
    """In a new worker: share the cores out between the workers, give way to the owner, and end when it does."""
    # Whoever waits for a score has milliseconds, whoever waits for a model has minutes: without this a training run
    # on every core makes the router's answers late. A core that nobody else wants is theirs all the same.
    os.nice(NICE)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, str(threads))
    threading.Thread(target=_end_with_owner, daemon=True).start()


def _end_with_owner() -> None:
    owner = parent_process()
    if owner is not None:
        owner.join()
        os._exit(1)
