"""The executor port is `concurrent.futures.Executor` itself: a process pool here, `Client.get_executor()` on Dask.

What is submitted is a module-level function on picklable arguments; a `Lake` is picklable.
"""

from concurrent.futures import Executor

from turnout.common.errors import Unavailable

__all__ = ["Executor", "WorkerLost"]


class WorkerLost(Unavailable):
    """A worker process died under the work (out of memory, killed): it may be tried again, but not for ever."""
