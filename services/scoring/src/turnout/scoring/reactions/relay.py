"""Sends what the outbox holds on to the bus, in order, for as long as it takes.

The order: published, then marked as relayed. Dying between the two publishes again; the ids are the same, so every
consumer ignores what it has.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from turnout.common import telemetry
from turnout.common.bus.port import Bus
from turnout.common.errors import Unavailable
from turnout.common.runtime.crash import crash_point
from turnout.scoring.ports import Outbox

log = structlog.get_logger()

BATCH = 500
# Requests that come one after the other share a publication; nobody waits for it.
GATHER_SECONDS = 0.01
LOOK_SECONDS = 1.0
LONGEST_PAUSE = 5.0


class Relay:
    """See the module. `trouble` says why the bus takes nothing now, or is None."""

    def __init__(self, outbox: Outbox, bus: Bus) -> None:
        self._outbox = outbox
        self._bus = bus
        self.trouble: str | None = None

    async def run(self) -> None:
        """For ever."""
        pause = 0.1
        while True:
            try:
                busy = await self.once()
            except Unavailable as error:
                self.trouble = str(error)
                log.warning("scores wait for the bus", why=str(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            self.trouble, pause = None, 0.1
            if not busy:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._outbox.arrival()
                    await asyncio.sleep(GATHER_SECONDS)

    async def once(self) -> bool:
        """Relay what is there, `BATCH` at most; whether there was anything. Raises `Unavailable`."""
        records, position = await self._outbox.take(BATCH)
        if not records:
            telemetry.OUTBOX_WAITING.set(0)
            if self._outbox.trouble is not None:
                await self._outbox.relayed(0)  # a write that changes nothing: is there space again?
            return False
        crash_point("scoring-relay-taken")
        await self._bus.publish(*records)
        crash_point("scoring-relay-published")
        await self._outbox.relayed(position)
        telemetry.OUTBOX_WAITING.set(await self._outbox.waiting())
        return True

    async def drain(self) -> None:
        """Relay all that is there, at the end of the process; what the bus does not take stays for the next start."""
        with suppress(Unavailable):
            while await self.once():
                pass
