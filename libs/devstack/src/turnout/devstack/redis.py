"""Redis, with an append-only file so that a restart keeps what was acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from turnout.devstack.programs import program
from turnout.devstack.server import Server, listens


def redis(folder: Path, port: int, *, more: Sequence[str] = ()) -> Server:
    """A server at `port`; `more` are further words of its command line. Raises `MissingError`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        program("redis-server"), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder),
        "--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--daemonize", "no", *more,
    ]  # fmt: skip
    return Server("redis", folder, port, command, lambda: listens(port))
