"""The servers together: on free ports, remembered in a folder, so that another process can use and end them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from turnout.devstack import web
from turnout.devstack.cassandra import cassandra
from turnout.devstack.kafka import kafka
from turnout.devstack.redis import redis
from turnout.devstack.server import Server, StartError, free_port

# Also the order of starting: the slow ones first.
KINDS: Mapping[str, Callable[[Path, int], Server]] = {
    "cassandra": cassandra,
    "mlflow": web.mlflow,
    "kafka": kafka,
    "s3": web.s3,
    "prometheus": web.prometheus,
    "redis": redis,
}
NAMES = tuple(KINDS)
BUCKET = "turnout"
_RECORD = "stack.json"


@dataclass(frozen=True)
class Stack:
    """Servers that run; a property of one that does not raises `KeyError`."""

    folder: Path
    servers: Mapping[str, Server]

    @property
    def kafka(self) -> str:
        """Bootstrap server."""
        return self.servers["kafka"].address

    @property
    def redis(self) -> str:
        """URL."""
        return f"redis://{self.servers['redis'].address}"

    @property
    def cassandra(self) -> str:
        """Contact point: host and port."""
        return self.servers["cassandra"].address

    @property
    def mlflow(self) -> str:
        """URL of the tracking server."""
        return f"http://{self.servers['mlflow'].address}"

    @property
    def s3(self) -> str:
        """URL of the S3 endpoint; any credentials will do."""
        return f"http://{self.servers['s3'].address}"

    @property
    def prometheus(self) -> str:
        """URL."""
        return f"http://{self.servers['prometheus'].address}"

    def environment(self) -> dict[str, str]:
        """The variables that point Turnout's processes at these servers."""
        found: dict[str, str] = {}
        if "kafka" in self.servers:
            found |= {"TURNOUT_BUS": "kafka", "TURNOUT_KAFKA_SERVERS": self.kafka}
        if "redis" in self.servers:
            found |= {"TURNOUT_ONLINE": "redis", "TURNOUT_REDIS_URL": self.redis}
        if "cassandra" in self.servers:
            found |= {
                "TURNOUT_HISTORY": "cassandra",
                "TURNOUT_JOBS": "cassandra",
                "TURNOUT_CASSANDRA_HOSTS": self.cassandra,
            }
        if "mlflow" in self.servers:
            found["TURNOUT_MLFLOW_URI"] = self.mlflow
        if "s3" in self.servers:
            found |= {
                "TURNOUT_LAKE_URI": f"s3://{BUCKET}/lake",
                "TURNOUT_LAKE_ENDPOINT": self.s3,
                "TURNOUT_LAKE_ACCESS_KEY": "devstack",
                "TURNOUT_LAKE_SECRET_KEY": "devstack",
            }
        return found

    def down(self) -> None:
        """End every server and forget them; their data go too."""
        for server in self.servers.values():
            server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def up(folder: Path, names: Sequence[str] = NAMES, *, told: Callable[[str], None] = lambda _: None) -> Stack:
    """Start those of the servers that do not run yet, and wait for them; `told` hears what is going on.

    Raises `MissingError`, `StartError`; then nothing that was started here is left.
    """
    folder = folder.absolute()
    before = found(folder)
    servers = {name: server for name, server in before.servers.items() if server.alive()} if before else {}
    started: dict[str, Server] = {}
    try:
        for name in KINDS:
            if name in names and name not in servers:
                told(f"starting {name}")
                started[name] = KINDS[name](folder / name, free_port())
                started[name].start()
        stack = Stack(folder, servers | started)
        _remember(stack)
        for name, server in started.items():
            server.wait()
            told(f"{name} answers at {server.address}")
        if "s3" in started:
            _make_bucket(stack.s3)
    except BaseException:
        for server in started.values():
            server.kill()
        raise
    return stack


def found(folder: Path) -> Stack | None:
    """The servers that were started in `folder`, by whichever process; None if there is no record of any."""
    record = folder.absolute() / _RECORD
    if not record.exists():
        return None
    servers: dict[str, Server] = {}
    for name, entry in json.loads(record.read_text()).items():
        server = KINDS[name](folder.absolute() / name, entry["port"])
        server.pid, server.born = entry["pid"], entry["born"]
        servers[name] = server
    return Stack(folder.absolute(), servers)


@contextmanager
def running(folder: Path, *names: str) -> Generator[Stack]:
    """Servers for as long as the block lasts."""
    stack = up(folder, names or NAMES)
    try:
        yield stack
    finally:
        stack.down()


def _remember(stack: Stack) -> None:
    record = stack.folder / _RECORD
    entries = {name: {"port": s.port, "pid": s.pid, "born": s.born} for name, s in stack.servers.items()}
    aside = record.with_suffix(".part")
    aside.write_text(json.dumps(entries))
    aside.rename(record)


def _make_bucket(endpoint: str) -> None:
    made = httpx.put(f"{endpoint}/{BUCKET}", timeout=10)
    if not made.is_success:
        raise StartError(f"s3 does not make a bucket: {made.text[:200]}")
