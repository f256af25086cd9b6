"""What a client may do with a connection before there is a request: uvicorn's HTTP protocol with bounds on the head."""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from turnout.common.runtime.limits import READ_SECONDS
from turnout.common.runtime.problems import problem

MAX_HEAD = 64 * 1024
MAX_CONNECTIONS = 2_000


class BoundedProtocol(HttpToolsProtocol):
    """Request line and headers: at most 64 KiB, within ten seconds of the connection or of their first byte."""

    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    _head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A client that says nothing does not stay."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._stop()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head, self._head = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """From here on the body's limits count."""
        self.head_ends()
        super().on_headers_complete()

    def head_ends(self) -> None:
        """The head is there; its clock stops."""
        self._in_head = False
        self._stop()

    def data_received(self, data: bytes) -> None:
        """Count while the head is not complete."""
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head += len(data)
        if self._head > MAX_HEAD:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {MAX_HEAD} bytes before the body")
        elif self._timer is None:
            self._wait()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets a problem document too."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _wait(self) -> None:
        self._timer = self.loop.call_later(READ_SECONDS, self._too_slow)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time")

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._stop()
        if self.transport.is_closing():
            return
        document = problem(status, why)
        head = [f"HTTP/1.1 {int(status)} {status.phrase}".encode()]
        head += [name + b": " + value for name, value in document.raw_headers]
        self.transport.write(b"\r\n".join([*head, b"connection: close", b"", bytes(document.body)]))
        self.transport.close()


def allow_connections() -> None:
    """Let this process open as many files as the system lets it; the usual soft limit is near our own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
