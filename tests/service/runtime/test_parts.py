"""The smaller parts of the runtime: views, keys, home, executor, watchdog, redaction."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from builders import AT, declared, pipeline_file, routing
from environment import until
from workers import begin_and_sleep, kill_me, refuse

from turnout.common.bus.port import Record
from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.events import PipelineDeclared, PipelineRemoved
from turnout.common.executor.port import WorkerLost
from turnout.common.executor.processes import NICE, ProcessExecutor
from turnout.common.runtime import home
from turnout.common.runtime.crash import VARIABLE, crash_point
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.health import Progress, Watchdog
from turnout.common.runtime.keys import ApiKeys
from turnout.common.runtime.redaction import redact

# --- views ------------------------------------------------------------------------------------------------------------


def heart(ratio: float = 0.8, **fields: object) -> PipelineDeclared:
    text = f"pipeline: heart\ntask: clustering\nsegregation: {{ratio: {ratio}}}"
    return declared(pipeline_file(text.replace("{", "{{").replace("}", "}}")), **fields)


async def test_a_declared_pipeline_is_known_before_anybody_follows(environment: Environment) -> None:
    await environment.bus.publish(heart(0.7), heart(0.9))
    assert (await environment.pipelines.file("heart")).segregation.ratio == 0.9
    assert environment.pipelines.names() == ["heart"]


async def test_an_unknown_pipeline_comes_with_the_nearest(environment: Environment) -> None:
    await environment.bus.publish(heart())
    with pytest.raises(Unknown, match="unknown pipeline 'haert'; did you mean 'heart'"):
        await environment.pipelines.declared("haert")


async def test_a_spec_never_seen_is_looked_for(environment: Environment) -> None:
    pipelines = environment.pipelines
    await environment.bus.publish(heart(0.7))
    await pipelines.declared("heart")
    newer = heart(0.6)
    await environment.bus.publish(newer)
    assert (await pipelines.declared("heart")).spec.segregation.ratio == 0.7, "nobody follows here"
    assert (await pipelines.declared("heart", newer.spec_id)).spec.segregation.ratio == 0.6


async def test_a_removed_pipeline_is_unknown_until_it_is_declared_again(environment: Environment) -> None:
    removed = PipelineRemoved.first(source="/t", at=AT + timedelta(hours=1), pipeline="heart")
    await environment.bus.publish(heart(), removed)
    with pytest.raises(Unknown):
        await environment.pipelines.declared("heart")
    later = heart().model_copy(update={"time": AT + timedelta(hours=2)})
    await environment.bus.publish(later)
    assert await environment.pipelines.declared("heart") == later
    await environment.bus.publish(Record("PipelineDeclared", b"heart", None))
    following = asyncio.create_task(environment.pipelines.follow())
    await until(lambda: environment.pipelines.ready)
    following.cancel()


async def test_routes_follow_what_changes_and_never_go_back(environment: Environment) -> None:
    routes, bus = environment.routes, environment.bus
    assert routes.now("p") is None
    assert await routes.newest("p") is None
    following = asyncio.create_task(routes.follow())
    await bus.publish(routing(1, "1"), Record("RoutingChanged", b"p", b"poison"), routing(2, "2", previous="1"))
    await until(lambda: (found := routes.now("p")) is not None and found.table.version == 2)
    await bus.publish(Record("RoutingChanged", b"p", None))
    await until(lambda: routes.now("p") is None)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_is_never_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = ApiKeys(path).add("ann", "admin")
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keys = ApiKeys(path)
    assert keys.check(key, "read") == "ann"
    assert keys.names() == {"ann": "admin"}
    with pytest.raises(Invalid, match="there is a key for 'ann' already"):
        keys.add("ann", "read")
    with pytest.raises(Invalid, match="unknown scope 'root'; one of: score, read, admin"):
        keys.add("bob", "root")  # pyright: ignore[reportArgumentType]
    with pytest.raises(Invalid, match="one is needed"):
        keys.check(None, "read")
    with pytest.raises(Invalid, match="it is not known"):
        keys.check("turnout_no", "read")


def test_a_key_file_that_cannot_be_read_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(Unavailable, match="repair or remove it"):
        ApiKeys(tmp_path / "keys.json").check(None, "read")


# --- home -------------------------------------------------------------------------------------------------------------


def test_a_home_is_made_once_and_opened_again(tmp_path: Path) -> None:
    place = tmp_path / "a" / "home"
    home.open_home(place)
    marker = json.loads((place / "format.json").read_text())
    assert marker["format"] == home.FORMAT
    home.open_home(place)


def test_a_home_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "format.json").write_text('{"format": 99, "release": "9.0.0"}')
    with pytest.raises(Invalid, match="it has format 99, this release of Turnout knows up to 1; update Turnout"):
        home.open_home(tmp_path)
    (tmp_path / "format.json").write_text("nonsense")
    with pytest.raises(Invalid, match="it is not what Turnout wrote"):
        home.open_home(tmp_path)


def test_an_older_home_is_brought_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(home, "FORMAT", 3)
    monkeypatch.setattr(home, "UPGRADES", {1: lambda _: steps.append(1), 2: lambda _: steps.append(2)})
    (tmp_path / "format.json").write_text('{"format": 1, "release": "0.1.0"}')
    home.open_home(tmp_path)
    assert steps == [1, 2]
    assert json.loads((tmp_path / "format.json").read_text())["format"] == 3


def test_one_process_at_a_time(tmp_path: Path) -> None:
    home.open_home(tmp_path)
    with home.only_one(tmp_path):
        home.announce(tmp_path, "http://127.0.0.1:1")
        there = home.address(tmp_path)
        assert there is not None
        assert (there.pid, there.url) == (os.getpid(), "http://127.0.0.1:1")
        with pytest.raises(Invalid, match="runs on it already"), home.only_one(tmp_path):
            pass
    assert home.address(tmp_path) is None
    (tmp_path / "turnout.json").write_text('{"pid": 999999999, "url": "http://127.0.0.1:1"}')
    assert home.address(tmp_path) is None, "who died without a word is not there"
    with home.only_one(tmp_path):
        pass


# --- executor ---------------------------------------------------------------------------------------------------------


def test_workers_work_stay_and_are_replaced() -> None:
    executor = ProcessExecutor(1)
    try:
        first = executor.submit(os.getpid).result(60)
        assert first != os.getpid()
        assert executor.submit(os.getpid).result(60) == first, "it stays warm"
        with pytest.raises(Invalid, match="a: is wrong; b"):
            executor.submit(refuse).result(60)
        with pytest.raises(WorkerLost, match="it died under the work"):
            executor.submit(kill_me).result(60)
        assert executor.submit(os.getpid).result(60) != first
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(Unavailable):
        executor.submit(os.getpid)


def test_workers_give_way_to_their_owner() -> None:
    executor = ProcessExecutor(1)
    try:
        executor.warm()
        assert executor.submit(os.getpriority, os.PRIO_PROCESS, 0).result(60) == min(os.nice(0) + NICE, 19)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def test_shutdown_does_not_wait_for_long_work(tmp_path: Path) -> None:
    executor = ProcessExecutor(1)
    futures = [executor.submit(begin_and_sleep, tmp_path / f"begun-{n}") for n in range(4)]
    while not (tmp_path / "begun-0").exists():
        time.sleep(0.01)
    began = time.monotonic()
    executor.shutdown(wait=False, cancel_futures=True)
    for future in futures:
        assert future.cancelled() or isinstance(future.exception(30), WorkerLost)
    assert time.monotonic() - began < 30


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_workers_die_with_their_owner() -> None:
    code = (
        "from turnout.common.executor.processes import ProcessExecutor; import os, time\n"
        "if __name__ == '__main__':\n"
        "    e = ProcessExecutor(2)\n"
        "    a = e.submit(os.getpid); print(a.result(), flush=True); time.sleep(600)"
    )
    script = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert script.stdout is not None
    worker = int(script.stdout.readline())
    script.kill()
    script.wait()
    for _ in range(1000):
        if not Path(f"/proc/{worker}/stat").exists() or " Z " in Path(f"/proc/{worker}/stat").read_text():
            return
        time.sleep(0.02)
    raise AssertionError("the worker still runs")


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_crash_points_do_nothing_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    crash_point("any")
    monkeypatch.setenv(VARIABLE, "other")
    crash_point("any")


@pytest.mark.parametrize(("asked", "passed"), [("here", 0), ("here:3", 2)])
def test_a_crash_point_kills(asked: str, passed: int) -> None:
    code = (
        "from turnout.common.runtime.crash import crash_point\n"
        "for _ in range(9): crash_point('here'); print('passed', flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, VARIABLE: asked}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.count("passed")) == (-signal.SIGKILL, passed)


def test_the_watchdog_speaks_of_what_stands_still() -> None:
    progress = Progress(patience=0.5)
    found: list[dict[str, float]] = []
    dog = Watchdog(progress, found.append)
    progress.beat("moves")
    progress.beat("rests")
    progress.beat("stands")
    progress.rest("rests")
    dog.start()
    until_found = time.monotonic() + 30
    while not found and time.monotonic() < until_found:
        progress.beat("moves")
        time.sleep(0.05)
    dog.stop()
    assert list(found[0]) == ["stands"]


def test_after_a_pause_of_the_whole_process_nobody_is_blamed() -> None:
    progress = Progress(patience=5)
    progress.beat("was asleep with the rest", at=time.monotonic() - 60)
    assert progress.stuck()
    progress.forgive()
    assert not progress.stuck()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://bob:hunter2@host:1/0 is away", "redis://***@host:1/0 is away"),
        ("password=hunter2, user=bob", "password=***, user=bob"),
        ('{"api_key": "hunter2"}', '{"api_key": "***"}'),
        ("AWS_SECRET_ACCESS_KEY: hunter2", "AWS_SECRET_ACCESS_KEY: ***"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("turnout_abcdefghijklmnopqrstuvwxyz", "***"),
        ("the column 'password' is constant", "the column 'password' is constant"),
        ("a plain sentence: nothing here", "a plain sentence: nothing here"),
    ],
)
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_a_text_is_not_endless() -> None:
    assert len(redact("x" * 100_000)) < 2_000
