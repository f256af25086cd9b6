"""A server as a process of its own: started, waited for, stopped, killed, paused, and found again by its record."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

# Cassandra takes 6 s on an idle machine; this is for a busy one.
START_SECONDS = 120.0
STOP_SECONDS = 20.0


class MissingError(Exception):
    """Something that a server needs is not on this machine; the message says how to get it."""


class StartError(Exception):
    """The server did not answer; the message holds the end of its log."""


@dataclass
class Server:
    """A server in `folder`, listening at `port` of this machine.

    `command` is run there, with `environment` added to this process's. `answers` says whether it can be used.
    """

    name: str
    folder: Path
    port: int
    command: Sequence[str]
    answers: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    pid: int | None = None
    born: float | None = None

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process, without waiting until it answers. One that runs already is left alone."""
        if self.alive():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 (our own command)
                self.command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )
        self.pid = process.pid
        self.born = psutil.Process(process.pid).create_time()

    def wait(self, seconds: float = START_SECONDS) -> None:
        """Return when it answers. Raises `StartError` if it ends before, or does not within `seconds`."""
        until = time.monotonic() + seconds
        while not self.answers():
            if not self.alive():
                raise StartError(f"{self.name} ended while it started; its log ends:\n{self._tail()}")
            if time.monotonic() > until:
                raise StartError(f"{self.name} does not answer after {seconds:.0f} s; its log ends:\n{self._tail()}")
            time.sleep(0.1)

    def alive(self) -> bool:
        """Whether the process that was started is there."""
        return self._process() is not None

    def stop(self) -> None:
        """End it, its children too; the kind way first."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _process(self) -> psutil.Process | None:
        if self.pid is None:
            return None
        found: psutil.Process | None = None
        try:
            found = psutil.Process(self.pid)
            # The number may have gone to somebody else's process meanwhile.
            if self.born is None or abs(found.create_time() - self.born) >= 1:
                return None
            if found.status() != psutil.STATUS_ZOMBIE:
                return found
            # Its first thread has ended. The others may not have: only when a parent can collect it, all is closed.
            if found.ppid() == os.getpid():
                found.wait(0)
        except psutil.NoSuchProcess:
            return None
        except psutil.TimeoutExpired:
            return found
        return None

    def _end(self, first: signal.Signals) -> None:
        if self._process() is None:
            return
        for number in (first, signal.SIGKILL):
            self._signal(number)
            until = time.monotonic() + STOP_SECONDS
            while time.monotonic() < until:
                if self._process() is None:
                    return
                time.sleep(0.02)

    def _signal(self, number: signal.Signals) -> None:
        if (process := self._process()) is not None:
            try:
                os.killpg(os.getpgid(process.pid), number)
            except ProcessLookupError:
                return

    def _tail(self) -> str:
        path = self.folder / "log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-20:]) if path.exists() else "(none)"


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def kept_port(path: Path) -> int:
    """A free port, written down in `path` and the same one ever after."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(free_port()))
    return int(path.read_text())


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket() as caller:
        caller.settimeout(1)
        return caller.connect_ex(("127.0.0.1", port)) == 0


def replies(url: str) -> bool:
    """Whether a GET is answered with success."""
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False
