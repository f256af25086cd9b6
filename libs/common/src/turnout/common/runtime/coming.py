"""The next delivery of a consumer, waited for apart: an iterator whose wait is cancelled has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Self

from turnout.common.bus.port import Delivery


class Coming:
    """See the module. Leaving it waits for nothing more."""

    def __init__(self, deliveries: AsyncGenerator[Delivery]) -> None:
        self._deliveries = deliveries
        self._next: asyncio.Task[Delivery] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)

    def next(self) -> asyncio.Task[Delivery]:
        """Ask for it, if that was not done yet."""
        if self._next is None:
            self._next = asyncio.create_task(anext(self._deliveries))  # pyright: ignore[reportArgumentType]
        return self._next

    def taken(self) -> Delivery | None:
        """It, if it has come. Raises `Unavailable`."""
        if self._next is None or not self._next.done():
            return None
        coming, self._next = self._next, None
        return coming.result()

    async def within(self, seconds: float) -> Delivery | None:
        """It, or None if it does not come in time. Raises `Unavailable`."""
        await asyncio.wait({self.next()}, timeout=seconds)
        return self.taken()
