"""The executor port is `concurrent.futures.Executor` itself: a process pool here, `Client.get_executor()` on Dask.

What is submitted is a module-level function on picklable arguments; a `Lake` is picklable.
"""

from concurrent.futures import Executor

__all__ = ["Executor"]
