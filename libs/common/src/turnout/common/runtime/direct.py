"""Requests that are answered below ASGI: no scope, no task and no queue for each, only the bytes in and out.

A service may offer to answer some paths directly (`Service.direct`). It is asked for requests that arrived whole, in
one piece; whatever it does not take, or gives back, goes the usual way through the application, which knows how to
refuse, to stream and to wait. What is answered directly is answered with 200.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from turnout.common.runtime.connections import BoundedProtocol

Headers = Sequence[tuple[bytes, bytes]]

# Where the application finds when a request arrived (on the monotonic clock), and what was tried already.
ARRIVED = "arrived"
TRIED = "tried"


class Direct(Protocol):
    """What a service answers directly."""

    def serves(self, path: bytes) -> bool:
        """Whether a POST to `path` (with its query, if it has one) may be taken."""
        ...

    def take(self, path: bytes, headers: Headers, body: bytes, exchange: Exchange) -> bool:
        """Take a request, and answer it or give it back later; False: not this one. Raises nothing."""
        ...


class Exchange:
    """One request that was taken. While it is open uvicorn sees it as the connection's request under way.

    One of `reply` and `give_back` has to be called; what is called after that has no effect.
    """

    __slots__ = (
        "_body", "_headers", "_open", "_protocol", "_url",
        "arrived", "disconnected", "keep_alive", "response_complete",
    )  # fmt: skip

    def __init__(self, protocol: DirectProtocol, url: bytes, headers: Headers, body: bytes) -> None:
        self._protocol = protocol
        self._url = url
        self._headers = headers
        self._body = body
        self._open = True
        self.arrived = time.monotonic()
        self.keep_alive = True  # until uvicorn says otherwise, because it ends
        self.response_complete = False
        self.disconnected = False

    def reply(self, content: bytes) -> None:
        """Answer with JSON."""
        if not self._open:
            return
        self._open, self.response_complete = False, True
        if not self._protocol.transport.is_closing():
            self._protocol.answer(content, keep_alive=self.keep_alive)

    def give_back(self, tried: object = None) -> None:
        """Let the application answer; it finds `tried` in its scope's state."""
        if not self._open:
            return
        self._open = False
        if not self._protocol.transport.is_closing():
            state = {ARRIVED: self.arrived, TRIED: tried}
            self._protocol.pass_on(self, self._url, self._headers, self._body, state)

    # What uvicorn asks of a request under way, beyond the names above.

    @property
    def message_event(self) -> Exchange:
        """There is nothing to wait for: the request is whole."""
        return self

    def set(self) -> None:
        """See `message_event`."""


class DirectProtocol(BoundedProtocol):
    """Offers to `direct` what arrives whole; hands everything else on as if it had just come."""

    direct: Direct

    _held = False
    _body = b""
    # The headers that every reply has, and the same as lines; uvicorn makes the list anew each second, for its `date`.
    _usual: object = None
    _lines = b""

    def on_headers_complete(self) -> None:
        """Hold the request back until its body is there, if it may be answered directly."""
        if self._may_be_direct():
            self._held, self._body = True, b""
            self.head_ends()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Gather the body of what is held back."""
        if self._held:
            self._body = self._body + body if self._body else body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Offer what was held back."""
        if not self._held:
            super().on_message_complete()
            return
        self._held = False
        exchange = Exchange(self, self.url, self.headers, self._body)
        if self.direct.take(self.url, self.headers, self._body, exchange):
            self.cycle: Any = exchange
        else:
            self._hand_on(self._body)
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """What has not come whole by now may take its time: that is the application's."""
        super().data_received(data)
        if self._held:
            self._held = False
            self._hand_on(self._body)

    def answer(self, content: bytes, *, keep_alive: bool) -> None:
        """Write a reply; `keep_alive` false ends the connection."""
        usual = self.server_state.default_headers
        if self._usual is not usual:
            self._usual, self._lines = usual, b"".join(b"%b: %b\r\n" % header for header in usual)
        self.transport.write(
            b"HTTP/1.1 200 OK\r\n%b%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (self._lines, b"" if keep_alive else b"connection: close\r\n", len(content), content)
        )
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    def pass_on(self, exchange: Exchange, url: bytes, headers: Headers, body: bytes, state: dict[str, object]) -> None:
        """Let the application answer what was taken. Requests that came behind it wait until it has."""
        behind = self.cycle if self.cycle is not exchange else None
        kept = self.url, self.headers, self.scope
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        self.scope["state"] = self.app_state | state
        self.cycle = None
        self._hand_on(body)
        self.scope["method"] = "POST"  # the parser may be at a request behind it by now
        self.cycle.more_body = False
        self.cycle.keep_alive = exchange.keep_alive
        self.cycle.message_event.set()
        if behind is not None:
            self.cycle = behind
            self.url, self.headers, self.scope = kept

    def _may_be_direct(self) -> bool:
        parser = self.parser
        return (
            parser is not None
            and parser.get_method() == b"POST"
            and not self.expect_100_continue
            and (self.cycle is None or self.cycle.response_complete)
            and (self.limit_concurrency is None or len(self.connections) < self.limit_concurrency)
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and self.direct.serves(self.url)
        )

    def _hand_on(self, body: bytes) -> None:
        super().on_headers_complete()
        if body:
            super().on_body(body)


def protocol(direct: Direct | None) -> type[BoundedProtocol]:
    """The protocol of a server whose service answers `direct` itself."""
    return type("DirectProtocol", (DirectProtocol,), {"direct": direct}) if direct is not None else BoundedProtocol
