"""How the driver treats a slow or failing node; imported only once the driver is known to be there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Lock
from typing import Any

from cassandra.policies import RetryPolicy

# Loggers of the driver that speak about nodes that are away, each several times per attempt.
_TALKATIVE = tuple(
    "cassandra" + module for module in ("", ".cluster", ".connection", ".metadata", ".policies", ".pool", ".protocol")
)


class OnceElsewhere(RetryPolicy):
    """A request that is safe to repeat is tried once more, at another node; everything else is the caller's.

    Once, because whoever calls us retries with backoff: many retries here would make a slow cluster slower. At
    another node, because the one that answered badly probably will again. Never at a lower consistency: that
    would be an answer to another question.
    """

    def on_read_timeout(self, *_: Any, retry_num: int, **__: Any) -> Any:
        """A read has no effect: once more."""
        return self._once(retry_num, safe=True)

    def on_write_timeout(self, query: Any, *_: Any, retry_num: int, **__: Any) -> Any:
        """Only what the statement says is safe to repeat."""
        return self._once(retry_num, safe=bool(query.is_idempotent))

    def on_unavailable(self, *_: Any, retry_num: int, **__: Any) -> Any:
        """Nothing was done yet; another node may see more of its peers alive."""
        return self._once(retry_num, safe=True)

    def on_request_error(self, query: Any, *_: Any, retry_num: int, **__: Any) -> Any:
        """The node was overloaded, starting up, or the connection broke under the request."""
        return self._once(retry_num, safe=bool(query.is_idempotent))

    def _once(self, retry_num: int, *, safe: bool) -> Any:
        return (self.RETRY_NEXT_HOST if safe and retry_num == 0 else self.RETHROW), None


class Sparingly(logging.Filter):
    """Lets one line through each `every` seconds; the driver writes several for each attempt at a dead node."""

    def __init__(self, every: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every = every
        self._clock = clock
        self._next = 0.0
        self._lock = Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if record.levelno < logging.WARNING:
            return True
        with self._lock:
            now = self._clock()
            if now < self._next:
                return False
            self._next = now + self._every
            return True


_sparingly = Sparingly(every=2.0)


def speak_sparingly() -> None:
    """Make the driver's loggers of this process write at most one warning every two seconds, together."""
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_sparingly)
