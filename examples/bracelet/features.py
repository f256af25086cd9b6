"""What the history store holds of the patients: features over time, as each pipeline took them from the topic.

    python examples/bracelet/features.py [PIPELINE …] [--patient NAME]

Where the store is (a file below the home, or Cassandra) the same variables say as for every command of Turnout.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

from turnout.common.events import ObservationReceived
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.settings import RuntimeSettings

WAYS = ("bracelet-live", "bracelet-on-request", "bracelet-scheduled")


async def show(pipelines: Sequence[str], patient: str | None) -> None:
    """Print how many rows there are of how many patients, or the rows of one."""
    environment = Environment(RuntimeSettings())
    try:
        for pipeline in pipelines:
            names = {patient} if patient else await _patients(environment, pipeline)
            rows = [row for name in sorted(names) for row in await environment.history.features(pipeline, name)]
            print(f"{pipeline}: {len(rows)} rows of {len(names)} patients")
            for row in rows if patient else ():
                print(f"  {row.event_time:%H:%M:%S}  " + ", ".join(f"{n}={v}" for n, v in row.values.items()))
    finally:
        await environment.close()


async def _patients(environment: Environment, pipeline: str) -> set[str]:
    """Whoever was observed: the store is asked by patient."""
    events = [received.event() async for received in environment.bus.replay(ObservationReceived)]
    return {event.entity for event in events if isinstance(event, ObservationReceived) and event.pipeline == pipeline}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Show features over time.")
    parser.add_argument("pipelines", nargs="*", default=WAYS)
    parser.add_argument("--patient", help="one patient's rows, newest first")
    asked = parser.parse_args()
    asyncio.run(show(asked.pipelines, asked.patient))


if __name__ == "__main__":
    main()
