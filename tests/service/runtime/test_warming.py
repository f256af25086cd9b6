"""What a service does once before its first event, and that nothing in it keeps the service from starting."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest

from turnout.common.errors import Unavailable
from turnout.common.runtime import warming
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.settings import RuntimeSettings
from turnout.common.runtime.warming import Warming


def environment(folder: Path, bus: Literal["embedded", "kafka"]) -> Environment:
    made = Environment(RuntimeSettings(home=folder, bus=bus, workers=2))
    made.__dict__["executor"] = ThreadPoolExecutor(2)
    return made


async def test_on_servers_a_service_waits_until_all_was_done_once(tmp_path: Path) -> None:
    workers, go = [0], asyncio.Event()
    done: list[str] = []

    def in_worker() -> None:
        workers[0] += 1

    async def here() -> None:
        await go.wait()
        done.append("here")

    warm = Warming(environment(tmp_path, "kafka"), in_worker, here)
    assert warm.waiting_for()
    working = asyncio.create_task(warm.warm_up())
    await asyncio.sleep(0.05)
    assert warm.waiting_for()
    go.set()
    await working
    assert warm.waiting_for() == []
    assert (workers, done) == ([2], ["here"])


async def test_what_cannot_be_reached_keeps_nobody_from_being_ready_and_the_rest_is_done(tmp_path: Path) -> None:
    done: list[str] = []

    def away() -> None:
        raise Unavailable("the lake", "it is away")

    async def broken() -> None:
        raise ZeroDivisionError

    async def here() -> None:
        await asyncio.sleep(0.01)
        done.append("here")

    warm = Warming(environment(tmp_path, "kafka"), away, broken, here)
    await warm.warm_up()
    assert warm.waiting_for() == []
    assert done == ["here"]


async def test_what_takes_too_long_is_waited_for_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "PATIENCE", 0.05)
    warm = Warming(environment(tmp_path, "kafka"), lambda: None, asyncio.Event().wait)
    await warm.warm_up()
    assert warm.waiting_for() == []


@pytest.mark.parametrize("after", [None, 0.0])
async def test_on_the_embedded_bus_nobody_waits(tmp_path: Path, after: float | None) -> None:
    done: list[str] = []

    async def here() -> None:
        done.append("here")

    warm = Warming(environment(tmp_path, "embedded"), lambda: None, here, embedded_after=after)
    assert warm.waiting_for() == []
    await warm.warm_up()
    assert done == ([] if after is None else ["here"])


def test_the_lake_does_not_bring_pandas_and_does_not_take_it_away() -> None:
    code = """
import sys
import turnout.common.lake.s3, turnout.common.lake.local
assert "pandas" not in sys.modules
import pandas, pyarrow
frame = pyarrow.table({"a": [1, 2]}).to_pandas()
assert isinstance(frame, pandas.DataFrame)
assert pyarrow.Table.from_pandas(frame).to_pydict() == {"a": [1, 2]}
"""
    subprocess.run([sys.executable, "-c", code], check=True)
