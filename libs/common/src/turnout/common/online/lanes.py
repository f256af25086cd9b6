"""Connections to one Redis server, each carrying one exchange at a time.

A connection goes back among the idle ones only after its last answer was read whole. One whose exchange was cancelled,
timed out or failed is closed: its late answer has nowhere to arrive, least of all with the next caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar, cast

import hiredis
from redis import exceptions

Word = bytes | str | int
Result = TypeVar("Result")


class Connection(Protocol):
    """What is used of `redis.asyncio.Connection`, which connects, encrypts and logs in at the first command."""

    async def send_packed_command(self, command: bytes) -> None:
        """Send one command or several."""
        ...

    async def read_response(self) -> object:
        """The next answer; raises one that is an error."""
        ...

    async def disconnect(self, nowait: bool = False) -> None:
        """Close it."""
        ...


class Lanes:
    """At most `most` connections that `make` makes; an exchange takes at most `seconds`, waiting for one included."""

    def __init__(self, make: Callable[[], Connection], *, most: int, seconds: float) -> None:
        self._make = make
        self._seconds = seconds
        self._free = asyncio.Semaphore(most)
        self._idle: list[Connection] = []

    async def ask(self, *words: Word) -> object:
        """One command and its answer. Raises what `redis.exceptions` has."""
        packed = _packed(words)

        async def talk(connection: Connection) -> object:
            await connection.send_packed_command(packed)
            return await connection.read_response()

        return await self.exchange(talk)

    async def exchange(self, talk: Callable[[Connection], Awaitable[Result]]) -> Result:
        """What `talk` makes of a connection that is its own meanwhile; it reads every answer that it asks for.

        It is called twice if an idle connection turns out to be closed.
        """
        try:
            async with asyncio.timeout(self._seconds), self._free:
                if self._idle:
                    try:
                        return await self._on(self._idle.pop(), talk)
                    except exceptions.AuthenticationError:
                        raise
                    except exceptions.ConnectionError:
                        # The server has closed the others too, most likely.
                        await self.close()
                return await self._on(self._make(), talk)
        except TimeoutError:
            raise exceptions.TimeoutError("no answer") from None

    async def close(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect(nowait=True)

    async def _on(self, connection: Connection, talk: Callable[[Connection], Awaitable[Result]]) -> Result:
        try:
            result = await talk(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._idle.append(connection)
        return result


async def pipelined(connection: Connection, commands: Sequence[Sequence[Word]]) -> list[object]:
    """Send the commands together, read their answers in order."""
    await connection.send_packed_command(b"".join(_packed(words) for words in commands))
    return [await connection.read_response() for _ in commands]


def _packed(words: Sequence[Word]) -> bytes:
    pack = cast("Callable[[tuple[Word, ...]], bytes]", hiredis.pack_command)
    return pack(tuple(words))
