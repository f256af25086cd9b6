"""What a client may ask of the web server: the size of a body, the time it takes to arrive. Plain ASGI."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from turnout.common.bus.cloudevents import parse_json
from turnout.common.errors import Invalid
from turnout.common.runtime.problems import problem

MAX_BODY = 1024 * 1024
READ_SECONDS = 10.0
# How much of a body that is too large is read and thrown away, in bodies of the largest size.
DRAINED_BODIES = 10


class Limits:
    """Bodies of at most `max_body` bytes, counted while they arrive, that arrive within `read_seconds`.

    Answers 413 and 408 itself, whatever the application makes of a request that was cut off.
    """

    def __init__(self, app: ASGIApp, *, max_body: int = MAX_BODY, read_seconds: float = READ_SECONDS) -> None:
        self._app = app
        self._max_body = max_body
        self._read_seconds = read_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        guard = _Guard(scope, receive, send, self._max_body, self._read_seconds)
        try:
            await self._app(scope, guard.receive, guard.send)
        except Exception:
            if not guard.refused:
                raise


class StrictJson:
    """For apps whose bodies FastAPI parses: Python's parser takes NaN, lone surrogates and any depth, this does not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at the whole body first; answers 400 itself."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False):
            messages.append(await receive())
        body = b"".join(message.get("body", b"") for message in messages)
        try:
            if body:
                parse_json(body)
        except Invalid as error:
            response = problem(HTTPStatus.BAD_REQUEST, error.problem, scope["path"], field="body", fix=error.fix)
            await response(scope, receive, send)
            return
        waiting = iter(messages)

        async def again() -> Message:
            return next(waiting, None) or await receive()

        await self._app(scope, again, send)


class _Guard:
    """One request's body."""

    __slots__ = ("_complete", "_deadline", "_max_body", "_receive", "_scope", "_send", "_size", "_started", "refused")

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body: int, read_seconds: float) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._max_body = max_body
        self._deadline = asyncio.get_running_loop().time() + read_seconds
        self._size = 0
        self._complete = False
        self._started = False
        self.refused = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            return await self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the body did not arrive in time")
        if message["type"] != "http.request":
            return message
        self._size += len(message.get("body", b""))
        if self._size > self._max_body:
            await self._drain(message)
            return await self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {self._max_body} bytes"
            )
        self._complete = not message.get("more_body", False)
        return message

    async def _drain(self, message: Message) -> None:
        """Let the rest pass by unread: a client that is cut off while it sends never sees the answer."""
        left = DRAINED_BODIES * self._max_body
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._deadline):
                while left > 0 and message["type"] == "http.request" and message.get("more_body", False):
                    message = await self._receive()
                    left -= len(message.get("body", b""))

    async def send(self, message: Message) -> None:
        self._started = True
        if not self.refused:
            await self._send(message)

    async def _refuse(self, status: HTTPStatus, why: str) -> Message:
        if not self._started and not self.refused:
            response = problem(status, why, self._scope["path"], headers={"connection": "close"})
            await response(self._scope, self._receive, self._send)
        self.refused = True
        self._complete = True
        return {"type": "http.disconnect"}
