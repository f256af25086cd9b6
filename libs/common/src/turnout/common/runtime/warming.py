"""What takes a service seconds once, done before the first event has to wait for it.

Imports in the executor's workers, the first connection to a store: on real servers a service is not ready before this
has been tried, so that whoever waits for readiness waits no more afterwards. A server that is away ends the try;
whether it is there is for others to say. On the embedded bus, where everything shares one machine with whoever starts
it, being ready soon counts for more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import structlog

from turnout.common.errors import Unavailable
from turnout.common.runtime.environment import Environment

log = structlog.get_logger()

# Seconds after which a service that is still at it is ready nevertheless.
PATIENCE = 30.0


class Warming:
    """`in_worker` once for each of the executor's workers (it crosses the process border), and each of `here`."""

    def __init__(
        self,
        environment: Environment,
        in_worker: Callable[[], object],
        *here: Callable[[], Awaitable[object]],
        embedded_after: float | None = None,
    ) -> None:
        self._environment = environment
        self._in_worker = in_worker
        self._here = here
        self._embedded_after = embedded_after
        self._under_way = environment.settings.bus == "kafka"

    def waiting_for(self) -> Sequence[str]:
        """What a service that warms up is not ready for."""
        return ["the first use to be prepared"] if self._under_way else []

    async def warm_up(self) -> None:
        """Do it; on the embedded bus `embedded_after` seconds from now, or not at all. Never fails."""
        if not self._under_way:
            if self._embedded_after is None:
                return
            await asyncio.sleep(self._embedded_after)
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(PATIENCE):
                results = await asyncio.gather(*self._all(), return_exceptions=True)
            for error in (result for result in results if isinstance(result, Exception)):
                told = log.warning if isinstance(error, Unavailable) else partial(log.error, exc_info=error)
                told("the first use will take longer", error=str(error))
        except TimeoutError:
            log.warning("the first use will take longer", error=f"not prepared within {PATIENCE:.0f} s")
        finally:
            self._under_way = False
        log.info("first use prepared", milliseconds=round((asyncio.get_running_loop().time() - began) * 1000))

    def _all(self) -> list[Awaitable[object]]:
        environment = self._environment
        loop = asyncio.get_running_loop()
        # One at a time is what a worker takes: while one is at it the others take theirs.
        workers = [
            loop.run_in_executor(environment.executor, self._in_worker) for _ in range(environment.settings.workers)
        ]
        return [*workers, *(call() for call in self._here)]
