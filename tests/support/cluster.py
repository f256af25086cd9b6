"""Services as processes of their own on the real servers, several of each, to be stopped, killed and paused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx
from system import TURNOUT, free_port

from turnout.common.runtime.environment import Environment
from turnout.common.runtime.health import EXIT_STUCK
from turnout.common.runtime.settings import RuntimeSettings
from turnout.devstack.stack import BUCKET, Stack

SERVICES = ("ingestion", "preparation", "segregation", "training", "evaluation", "scoring", "monitoring")
# Ten seconds are what a supervisor gives a process after SIGTERM.
DRAIN_SECONDS = 10


def apart(stack: Stack) -> dict[str, str]:
    """The variables that point at the servers, at a place there that no other test uses."""
    name = f"t{uuid4().hex[:10]}"
    return stack.environment() | {
        "TURNOUT_KAFKA_TOPIC_PREFIX": f"{name}.",
        "TURNOUT_REDIS_PREFIX": f"{name}:",
        "TURNOUT_CASSANDRA_KEYSPACE": name,
        "TURNOUT_LAKE_URI": f"s3://{BUCKET}/{name}",
        # A busy node takes its time to make tables, and here nobody starts a process again.
        "TURNOUT_PATIENCE_SECONDS": "120",
    }


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Settings read inside of the block are these."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def opened(home: Path) -> Environment:
    """An environment whose ports have read their settings already, as they are now."""
    made = Environment(RuntimeSettings(home=home))
    _ = made.bus, made.online, made.history, made.jobs, made.lake, made.registry
    return made


@dataclass
class Member:
    """One process of a service. `place` is its home: two processes of a service are on two machines."""

    service: str
    place: Path
    environment: Mapping[str, str]
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, **more: str) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        command = [TURNOUT, "run", self.service, "--home", str(self.place), "--port", str(self.port)]
        with (self.place / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **self.environment, **more},
            )  # fmt: skip

    def waiting(self) -> str | None:
        """What it is not ready for; None when it is ready."""
        try:
            reply = httpx.get(f"{self.url}/readyz", timeout=5)
        except httpx.TransportError as error:
            return type(error).__name__
        return None if reply.is_success else reply.text

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """A signal to the process and the workers it started."""
        assert self.process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.send(signal.SIGKILL)
            self.process.wait()

    def drain(self) -> tuple[int, float]:
        """SIGTERM to the process; its exit code and how many seconds it took."""
        assert self.process
        began = time.monotonic()
        self.process.terminate()
        code = self.process.wait(DRAIN_SECONDS * 3)
        return code, time.monotonic() - began

    def said(self, what: str) -> str:
        """The lines of its log that have `what` in them."""
        lines = (self.place / "log").read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if what in line)

    def tail(self, lines: int = 15) -> str:
        path = self.place / "log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


class Cluster:
    """Members by service; `environment` is a view of the same servers from outside."""

    def __init__(self, folder: Path, values: Mapping[str, str], sources: Path, *, each: int = 1) -> None:
        self.values = {
            **values,
            "TURNOUT_SOURCE_ROOTS": json.dumps([str(sources)]),
            "TURNOUT_WORKERS": "1",
        }
        self.members = [
            Member(service, folder / f"{service}-{number}", self.values)
            for service in SERVICES
            for number in range(each)
        ]
        with variables(self.values):
            self.environment = opened(folder / "outside")

    def of(self, service: str) -> list[Member]:
        return [member for member in self.members if member.service == service]

    def url(self, service: str) -> str:
        """Of the first process of a service that is there."""
        return next(member.url for member in self.of(service) if member.alive())

    async def start(self, members: Iterable[Member] | None = None) -> None:
        chosen = list(self.members if members is None else members)
        for member in chosen:
            member.start()
        await self.ready(chosen)

    def supervise(self) -> None:
        """Start again who ended because it was stuck, as whoever runs it would; it is said, for it is worth a look."""
        for member in self.members:
            if member.process is not None and member.process.poll() == EXIT_STUCK:
                print(f"{member.service} was stuck and is started again:\n{member.said('no progress')}", flush=True)
                member.start()

    async def ready(self, members: Sequence[Member] | None = None, seconds: float = 300) -> None:
        """Wait until each is ready."""
        until = time.monotonic() + seconds
        for member in self.members if members is None else members:
            while (waiting := await asyncio.to_thread(member.waiting)) is not None:
                self.supervise()
                assert member.alive(), f"{member.service} ended:\n{member.tail()}"
                assert time.monotonic() < until, f"{member.service} waits for {waiting}\n{member.tail()}"
                await asyncio.sleep(0.1)

    async def quiet(self, seconds: float = 300) -> None:
        """Wait until nothing is left to do: no lag and no job, three times in a row."""
        until = time.monotonic() + seconds
        calm = 0
        while calm < 3:
            self.supervise()
            busy = {m.service: left for m in self.members if m.alive() and (left := await _left(m))}
            calm = 0 if busy else calm + 1
            assert time.monotonic() < until, f"still busy: {busy}"
            await asyncio.sleep(0.3)

    async def close(self) -> None:
        for member in self.members:
            member.kill()
        await self.environment.close()


async def _left(member: Member) -> float:
    try:
        async with httpx.AsyncClient(timeout=30) as http:
            metrics = (await http.get(f"{member.url}/metrics")).text
    except httpx.TransportError:  # it has just ended or begun: a look later tells
        return 1.0
    names = ("turnout_consumer_lag_records", "turnout_jobs_waiting")
    return sum(float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(names))


def turnout(values: Mapping[str, str], *words: str, home: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command line against the servers."""
    return subprocess.run(
        [TURNOUT, *words, "--home", str(home)], capture_output=True, text=True, timeout=180, cwd=cwd, check=False,
        env={**os.environ, **values, "NO_COLOR": "1", "COLUMNS": "200"},
    )  # fmt: skip
