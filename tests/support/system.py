"""The seven services as one real process that can be killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

TURNOUT = str(Path(sys.executable).with_name("turnout"))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class System:
    """`turnout up` on a home folder, with `variables` on real servers.

    `start` returns when every service is ready, or the process is gone.
    """

    def __init__(self, home: Path, sources: Path, variables: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.variables = variables or {}
        self.sources = sources
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home.parent / f"{home.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, environment: Mapping[str, str] | None = None, seconds: float = 60) -> bool:
        """Start it; whether it became ready (a crash point may end it before)."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [TURNOUT, "up", "--home", str(self.home), "--port", str(self.port)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **os.environ,
                    "TURNOUT_SOURCE_ROOTS": json.dumps([str(self.sources)]),
                    **self.variables,
                    **(environment or {}),
                },
            )
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process.poll() is not None:
                return False
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == httpx.codes.OK:
                    return True
            time.sleep(0.05)
        raise AssertionError(f"not ready after {seconds} s; the log ends:\n{self.tail()}")

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL to the process and the workers it started."""
        assert self.process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def died(self, seconds: float) -> bool:
        """Whether it ends by itself within `seconds`; then what it left behind is killed too."""
        assert self.process
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self.kill()
        return True

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process
        self.process.terminate()
        try:
            return self.process.wait(20)
        finally:
            self.kill()

    def turnout(self, *words: str, cwd: Path | None = None, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """A command line against this home."""
        return subprocess.run(
            [TURNOUT, *words],
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=cwd or self.sources,
            env={**os.environ, "TURNOUT_HOME": str(self.home), "NO_COLOR": "1", "COLUMNS": "200"},
            check=False,
        )

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def running(home: Path, sources: Path) -> Iterator[System]:
    """A system that is ready, and gone afterwards."""
    system = System(home, sources)
    try:
        assert system.start(), system.tail()
        yield system
    finally:
        if system.process is not None:
            system.kill()
