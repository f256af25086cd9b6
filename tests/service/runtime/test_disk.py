"""A full disk: what was acknowledged stays, what was refused is not there, and it goes on when there is room."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from environment import environment_in

from turnout.common.bus.port import Record

# A limit on the size of files stands for a full disk; it is the process's own, so another process has to try it.
CODE = """
import asyncio, json, resource, sys
from pathlib import Path
from turnout.common.bus.embedded import EmbeddedBus
from turnout.common.bus.port import Record
from turnout.common.errors import Unavailable

async def main(folder):
    bus, kept, refused = EmbeddedBus(folder), [], []
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    await bus.publish(Record("t", b"k", b"first"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    for number in range(40):
        records = [Record("t", b"k", f"{number}-{part}".encode() + b" " * 20_000) for part in range(3)]
        try:
            await bus.publish(*records)
        except Unavailable as error:
            refused.append(str(error))
        else:
            kept.append(number)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await bus.publish(Record("t", b"k", b"last"))
    await bus.close()
    print(json.dumps({"kept": kept, "refused": refused}))

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    environment = environment_in(tmp_path)
    words = [sys.executable, "-c", CODE, str(environment.home / "bus")]
    done = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["kept"]
    assert said["refused"]
    assert all("the bus at" in text and "is not available" in text for text in said["refused"])
    found = [received.record async for received in environment.bus.replay("t")]
    values = [(record.value or b"").strip().decode() for record in found]
    assert values == ["first", *(f"{n}-{part}" for n in said["kept"] for part in range(3)), "last"]
    await environment.bus.publish(Record("t", b"k", b"again"))
    await environment.close()
