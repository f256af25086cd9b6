"""The development stack: every server answers, is found by another process, survives a restart, and ends."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from turnout.devstack import programs
from turnout.devstack.server import MissingError, Server, StartError, free_port, listens
from turnout.devstack.stack import NAMES, Stack, running

DEVSTACK = str(Path(sys.executable).with_name("turnout-devstack"))


def devstack(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DEVSTACK, *words], capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.stack
def test_every_server_answers(stack: Stack) -> None:
    assert set(stack.servers) == set(NAMES)
    for server in stack.servers.values():
        server.wait()
    assert httpx.get(f"{stack.mlflow}/version").text.startswith("3.")
    assert httpx.get(f"{stack.prometheus}/api/v1/query", params={"query": "up"}).json()["status"] == "success"


@pytest.mark.stack
def test_another_process_finds_and_ends_them(tmp_path: Path) -> None:
    folder = tmp_path / "stack"
    up = devstack("up", "--folder", str(folder), "--only", "redis")
    assert up.returncode == 0, up.stderr
    again = devstack("up", "--folder", str(folder), "--only", "redis")
    assert "starting" not in again.stderr
    status = devstack("status", "--folder", str(folder))
    assert re.match(r"redis +answers +127\.0\.0\.1:\d+", status.stdout)
    variables = devstack("env", "--folder", str(folder)).stdout
    port = int(re.search(r"TURNOUT_REDIS_URL=redis://127\.0\.0\.1:(\d+)", variables)[1])
    assert listens(port)
    assert devstack("down", "--folder", str(folder)).returncode == 0
    assert not listens(port)
    assert not folder.exists()


@pytest.mark.stack
def test_a_server_can_be_killed_paused_and_started_again(tmp_path: Path) -> None:
    with running(tmp_path / "stack", "redis") as own:
        server = own.servers["redis"]
        server.kill()
        assert not server.answers()
        server.start()
        server.wait()
        port = server.port
    assert not listens(port)


def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    server = Server("odd", tmp_path / "odd", free_port(), ["sh", "-c", "echo no room; exit 3"], lambda: False)
    server.start()
    with pytest.raises(StartError, match=r"odd ended while it started(.|\n)*no room"):
        server.wait()


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="apt-get install default-jre-headless"):
        programs.program("java")


@pytest.mark.parametrize("word", ["status", "env"])
def test_nothing_started_is_said(tmp_path: Path, word: str) -> None:
    done = devstack(word, "--folder", str(tmp_path / "none"))
    assert done.returncode == 3
    assert "nothing was started" in done.stderr


def test_an_unknown_server_is_refused_with_those_there_are(tmp_path: Path) -> None:
    done = devstack("up", "--folder", str(tmp_path / "none"), "--only", "oracle")
    assert done.returncode == 2
    assert "no server is called oracle; there are cassandra" in " ".join(done.stderr.split())
