"""A Redis server of the test's own, the user that the documents describe, and a proxy that makes the server slow."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import redis
from environment import ROOT

PASSWORD = "canary-9b1c"
_ACL = re.search(r"^ACL SETUSER turnout (.+)$", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
assert _ACL is not None
_RULES = _ACL[1].split()


def rules(prefix: str, *without: str) -> list[str]:
    """The rules of the user in docs/reliability.md, for another key prefix and `without` some."""
    escaped = re.sub(r"([\\*?\[\]])", r"\\\1", prefix)
    given = {"~turnout:*": f"~{escaped}*", ">PASSWORD": f">{PASSWORD}"}
    assert given.keys() <= set(_RULES)
    return [given.get(rule, rule) for rule in _RULES if rule not in without]


def command(url: str, *words: str) -> object:
    """One command as the server's default user."""
    with closing(redis.Redis.from_url(url)) as client:
        return client.execute_command(*words)


def add_user(url: str, name: str, prefix: str, *without: str) -> None:
    """Make the documented user on a server."""
    command(url, "ACL", "SETUSER", name, *rules(prefix, *without))


class Proxy:
    """Between a client and the server at `port`: passes on what comes, the answers `delay` seconds later."""

    def __init__(self, port: int, delay: float = 0.0) -> None:
        self.delay = delay
        self._to = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        self._server = await asyncio.start_server(self._meet, "127.0.0.1", 0)
        try:
            yield self
        finally:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._to)
        ways = [self._pass(reader, back_writer, delayed=False), self._pass(back_reader, writer, delayed=True)]
        for way in ways:
            task = asyncio.create_task(way)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, delayed: bool) -> None:
        try:
            while data := await reader.read(65_536):
                if delayed and self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
