"""The heart clinic's bracelets: every command of the example's page, on the embedded default and on real servers.

On both, each way has taken every request's features once, also where the process was killed in the middle of a pull.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from builders import declared
from cluster import Member, apart, variables
from environment import ROOT, dead_letters, published
from system import TURNOUT, System

from turnout.common.bus.port import Record
from turnout.common.events import ObservationReceived, ScoreProduced, TopicPulled, TopicPullRequested
from turnout.common.pipeline import parse
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.settings import RuntimeSettings
from turnout.devstack.stack import Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("bracelet")]

EXAMPLE = ROOT / "examples" / "bracelet"
WAYS = ("live", "on-request", "scheduled")
READINGS, MORE = 120, 20


class Clinic:
    """The example in a folder of the test, under names that nobody else on the servers has."""

    def __init__(self, folder: Path, values: Mapping[str, str], name: str) -> None:
        self.name = name
        self.values = values
        self.place = folder / "clinic"
        self.place.mkdir()
        for path in EXAMPLE.iterdir():
            if path.is_file():
                text = path.read_text()
                # The schedule's pace is for people; a test has less time.
                self.put(path.name, text if path.suffix == ".md" else text.replace("every: 10s", "every: 2s"))
        self.system = System(folder / "home", self.place)

    def put(self, name: str, text: str) -> None:
        named = re.sub(r"\bbracelet(?=-|\b)(?!/)", self.name, text) if self.name != "bracelet" else text
        (self.place / name).write_text(named)

    def start(self, **more: str) -> bool:
        return self.system.start(environment={**self.values, **more}, seconds=180)

    def run(self, line: str) -> str:
        """A command line of the page; what it printed."""
        line = line.replace("python bracelets.py", f"python bracelets.py --url {self.system.url}")
        ran = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, timeout=240, check=False, cwd=self.place,
            env={
                **os.environ, **self.values, "TURNOUT_HOME": str(self.system.home), "NO_COLOR": "1", "COLUMNS": "200",
                "PATH": f"{Path(TURNOUT).parent}:{os.environ['PATH']}",
            },
        )  # fmt: skip
        assert ran.returncode == 0, f"$ {line}\n{ran.stdout}{ran.stderr}\n{self.system.tail()}"
        return ran.stdout

    def outside(self) -> Environment:
        """The same bus and stores from here."""
        environment = Environment(RuntimeSettings(home=self.system.home))
        _ = environment.bus, environment.history
        return environment


@pytest.fixture(params=["embedded", pytest.param("servers", marks=pytest.mark.stack)])
def clinic(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Clinic]:
    if request.param == "embedded":
        clinic = Clinic(tmp_path, {}, "bracelet")
    else:
        values = apart(request.getfixturevalue("stack"))
        clinic = Clinic(tmp_path, {**values, "TURNOUT_WORKERS": "1"}, f"b{uuid4().hex[:8]}")
    with variables(clinic.values):
        try:
            assert clinic.start(), clinic.system.tail()
            yield clinic
        finally:
            clinic.system.kill()


def commands(text: str) -> list[tuple[str, str]]:
    """Each line after `$ ` of the page, and what the page shows below it."""
    found = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    parts = [part for block in found for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(line, shown) for line, _, shown in (part.partition("\n") for part in parts)]


def shape(text: str) -> str:
    """A line without its numbers, times and paths."""
    return re.sub(r"\S*[\d/]\S*", "#", text).strip()


async def rows(environment: Environment, pipeline: str) -> list[ObservationReceived]:
    """What the history store has of a pipeline."""
    seen = [e for e in await published(environment.bus, ObservationReceived) if e.pipeline == pipeline]
    each = [await environment.history.features(pipeline, name, limit=10_000) for name in {e.entity for e in seen}]
    return [row for found in each for row in found]


async def all_taken(clinic: Clinic, environment: Environment, count: int) -> None:
    """Every way has `count` rows in the end, those of the scores, each once; and so has the lake."""
    scores = [s for s in await published(environment.bus, ScoreProduced) if s.pipeline == clinic.name]
    assert len({score.id for score in scores}) == count
    asked = sorted((score.entity or "", score.time, json.dumps(dict(score.values))) for score in scores)
    for way in WAYS:
        pipeline = f"{clinic.name}-{way}"
        until = time.monotonic() + 90
        found: list[ObservationReceived] = []
        while len(found) < count and time.monotonic() < until:
            found = await rows(environment, pipeline)
            await asyncio.sleep(0.2)
        assert sorted((r.entity, r.event_time, json.dumps(dict(r.values))) for r in found) == asked, pipeline
        while len(kept := raw_rows(environment, pipeline)) < count and time.monotonic() < until:
            await asyncio.sleep(0.2)
        assert len(kept) == len(set(kept)) == count, pipeline


def raw_rows(environment: Environment, pipeline: str) -> list[int]:
    """Row numbers in the lake."""
    manifests = list(environment.lake.manifests("raw", pipeline))
    return [n for m in manifests for n in environment.lake.read(m.ref, columns=["_row"]).column(0).to_pylist()]


async def test_every_command_of_the_page_and_all_three_ways(clinic: Clinic) -> None:
    page = commands((clinic.place / "README.md").read_text())
    assert len(page) >= 10
    environment = clinic.outside()
    try:
        for line, shown in page:
            if line == "python features.py":  # the schedule has its time
                await all_taken(clinic, environment, READINGS)
            said = clinic.run(line)
            lines = {shape(text) for text in said.splitlines()}
            for text in shown.splitlines():
                if not text.startswith(("…", "partition", "  ")) and not text.endswith("…"):
                    assert shape(text) in lines, f"$ {line}\nshows: {text}\nsays:\n{said}"
            if line.startswith("turnout pull"):
                assert said.startswith(f"{READINGS} taken from {clinic.name}-feed in"), said
            if line == "python features.py":
                assert said.count(f": {READINGS} rows of 20 patients") == len(WAYS), said
        clinic.run(f"turnout pull {clinic.name}-on-request")
        await all_taken(clinic, environment, READINGS + MORE)
        assert await dead_letters(environment.bus, f"{clinic.name}-feed") == []
    finally:
        await environment.close()


@pytest.mark.parametrize("point", ["ingestion-pull-before-done", "ingestion-pull-after-done"])
async def test_a_pull_survives_kill_9_and_its_sum_holds(clinic: Clinic, point: str) -> None:
    pipeline, topic, count = f"{clinic.name}-on-request", f"{clinic.name}-feed", 3_000
    environment = clinic.outside()
    try:
        clinic.run("turnout apply on_request.yaml")
        at = "2026-03-01T08:00:00Z"
        good = [
            Record(topic, b"p-%d" % (n % 9), json.dumps({"patient": f"p-{n % 9}", "at": at, "thalach": n}).encode())
            for n in range(count)
        ]
        bad = [Record(topic, b"p-%d" % n, b"{}") for n in range(9)]
        for start in range(0, count, 500):
            await environment.bus.publish(*good[start : start + 500])
        await environment.bus.publish(*bad)
        clinic.system.kill()
        assert clinic.start(TURNOUT_CRASH_POINT=f"{point}:2"), clinic.system.tail()
        clinic.run(f"turnout pull {pipeline} --no-wait")
        assert clinic.system.died(60), "the crash point was not passed"
        assert clinic.start(), clinic.system.tail()

        async with asyncio.timeout(180):
            while not (told := [p for p in await published(environment.bus, TopicPulled) if p.pipeline == pipeline]):
                await asyncio.sleep(0.2)
            while len(await rows(environment, pipeline)) < count:
                await asyncio.sleep(0.5)

        assert [(p.taken, p.refused, p.left) for p in told] == [(count, len(bad), 0)]
        assert sum(part.last - part.first + 1 for part in told[0].parts) == count + len(bad)
        found = await rows(environment, pipeline)
        assert sorted(row.values["thalach"] for row in found) == list(range(count))  # pyright: ignore[reportArgumentType]
        letters = await dead_letters(environment.bus, topic)
        assert {letter.record.value for letter in letters} == {b"{}"}
        while len(kept := raw_rows(environment, pipeline)) < count:
            await asyncio.sleep(0.2)
        assert len(kept) == len(set(kept)) == count
    finally:
        await environment.close()


@pytest.mark.stack
async def test_a_pull_moves_to_another_process_when_its_own_dies(tmp_path: Path, stack: Stack) -> None:
    """Two processes of ingestion on two machines: one is killed with messages in its hands, the other ends the job."""
    name, count = f"b{uuid4().hex[:8]}", 2_000
    pipeline, topic = f"{name}-on-request", f"{name}-feed"
    text = re.sub(r"\bbracelet(?=-)", name, (EXAMPLE / "on_request.yaml").read_text())
    values = {**apart(stack), "TURNOUT_WORKERS": "1"}
    members = [Member(service, tmp_path / f"{service}-{n}", values) for service, n in (
        ("ingestion", 0), ("ingestion", 1), ("preparation", 0)
    )]  # fmt: skip
    with variables(values):
        environment = Environment(RuntimeSettings(home=tmp_path / "outside"))
        try:
            await environment.bus.publish(declared(parse(text)))
            # Its tables are there before anybody is measured by how soon it makes progress.
            assert await environment.history.features(pipeline, "p-0") == []
            at = "2026-03-01T08:00:00Z"
            messages = [
                Record(topic, b"p-%d" % (n % 9), json.dumps({"patient": f"p-{n % 9}", "at": at, "age": n}).encode())
                for n in range(count)
            ]
            for start in range(0, count, 500):
                await environment.bus.publish(*messages[start : start + 500])
            first, second, third = members
            first.start(TURNOUT_CRASH_POINT="ingestion-pull-after-done:2")
            third.start()
            for member in (first, third):
                while await asyncio.to_thread(member.waiting) is not None:
                    assert member.alive(), member.tail()
                    await asyncio.sleep(0.2)
            await environment.bus.publish(
                TopicPullRequested.first(source="/test", at=datetime.now(UTC), pipeline=pipeline)
            )
            async with asyncio.timeout(120):
                while first.alive():
                    await asyncio.sleep(0.1)
            assert await published(environment.bus, TopicPulled) == []
            second.start()

            async with asyncio.timeout(240):
                while not (told := await published(environment.bus, TopicPulled)):
                    await asyncio.sleep(0.5)
                while len(found := await rows(environment, pipeline)) < count:
                    await asyncio.sleep(0.5)
                while len(kept := raw_rows(environment, pipeline)) < count:
                    await asyncio.sleep(0.5)
            assert [(p.taken, p.refused, p.left) for p in told] == [(count, 0, 0)]
            assert sorted(row.values["age"] for row in found) == list(range(count))  # pyright: ignore[reportArgumentType]
            assert len(kept) == len(set(kept)) == count
        finally:
            for member in members:
                member.kill()
            await environment.close()
