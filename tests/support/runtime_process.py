"""Two services in a process of their own: a short reaction that leads to a long one. Run until killed.

runtime_process.py HOME
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from builders import features_generated

from turnout.common.events import ATTRIBUTES, Event, FeaturesGenerated, RawDataExtracted, SourceDataAvailable
from turnout.common.runtime import logs
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.run import serve
from turnout.common.runtime.service import Reaction, Service
from turnout.common.runtime.settings import RuntimeSettings


async def read(events: Sequence[Event]) -> list[Event]:
    return [
        RawDataExtracted.caused_by(
            event, source="/ingestion", at=event.time, batches=(), columns=(), rows_read=0, rows_written=0,
            rows_quarantined=0, spec_id="s",
        )
        for event in events
    ]  # fmt: skip


async def make(events: Sequence[Event]) -> list[Event]:
    fields = features_generated().model_dump(exclude=set(ATTRIBUTES))
    return [FeaturesGenerated.caused_by(event, source="/preparation", at=event.time, **fields) for event in events]


async def stall(events: Sequence[Event]) -> list[Event]:
    """A reaction that never ends, for announcements of the pipeline `stall`."""
    if any(event.pipeline == "stall" for event in events):
        await asyncio.Event().wait()
    return []


async def hold_the_loop(events: Sequence[Event]) -> list[Event]:
    """A reaction that blocks the event loop, for announcements of the pipeline `hold`."""
    if any(event.pipeline == "hold" for event in events):
        time.sleep(600)  # noqa: ASYNC251 (that is the point)
    return []


async def wait_in_a_thread(events: Sequence[Event]) -> list[Event]:
    """A reaction that waits where nobody can cancel it, for announcements of the pipeline `thread`."""
    if any(event.pipeline == "thread" for event in events):
        await asyncio.to_thread(time.sleep, 600)
    return []


def services() -> list[Service]:
    return [
        Service("ingestion", [Reaction("read", [SourceDataAvailable], read)]),
        Service("preparation", [Reaction("make", [RawDataExtracted], make, long=True, parallel=2)]),
        Service("stalling", [Reaction("stall", [SourceDataAvailable], stall)]),
        Service("holding", [Reaction("hold", [SourceDataAvailable], hold_the_loop)]),
        Service("waiting", [Reaction("wait", [SourceDataAvailable], wait_in_a_thread)]),
    ]


async def main(home: Path, patience: float) -> None:
    environment = Environment(RuntimeSettings(home=home))
    logs.configure("info", console=False)

    async def started(url: str) -> None:
        print(url, flush=True)

    await serve(environment, services(), port=0, patience=patience, started=started)
    await environment.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 30.0))
