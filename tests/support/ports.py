"""Ports of this machine: a free one, one that leads to another, and somebody who tries until it works."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from turnout.common.errors import Unavailable


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@asynccontextmanager
async def forwarded(port: int, address: str) -> AsyncIterator[list[float]]:
    """While inside, `port` leads to `address`; the list has the loop's time of each connection that was made."""
    host, _, there = address.rpartition(":")
    made: list[float] = []
    pairs: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.append(asyncio.get_running_loop().time())
        task = asyncio.current_task()
        assert task is not None
        pairs.add(task)
        with suppress(OSError, asyncio.CancelledError):
            away, back = await asyncio.open_connection(host, int(there))
            try:
                await asyncio.wait(
                    [asyncio.create_task(_copy(reader, back)), asyncio.create_task(_copy(away, writer))],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                back.close()
                writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield made
    finally:
        server.close()
        for task in pairs:
            task.cancel()
        await asyncio.gather(*pairs, return_exceptions=True)


async def tried_again(attempt: Callable[[], Awaitable[None]]) -> None:
    """Try until it is not unavailable any more."""
    while True:
        try:
            await attempt()
        except Unavailable:
            await asyncio.sleep(0.05)
        else:
            return


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while block := await reader.read(65_536):
            writer.write(block)
            await writer.drain()
