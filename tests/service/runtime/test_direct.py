"""Requests answered below ASGI: over real sockets, in every order and in any pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from environment import listening
from fastapi import FastAPI, Request

from turnout.common.runtime.direct import ARRIVED, TRIED, Exchange, Headers
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Service


class Echo:
    """Answers a POST to /echo after `pause` seconds with the body; gives back what begins with `back`."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.taken: list[bytes] = []

    def serves(self, path: bytes) -> bool:
        return path.startswith(b"/echo")

    def take(self, path: bytes, headers: Headers, body: bytes, exchange: Exchange) -> bool:
        if body.startswith(b"no"):
            return False
        self.taken.append(body)
        loop = asyncio.get_running_loop()
        if body.startswith(b"back"):
            loop.call_later(self.pause, exchange.give_back, "tried")
            loop.call_later(self.pause, exchange.reply, b'"too late"')
        else:
            loop.call_later(self.pause, exchange.reply, b'"direct %b"' % body)
        return True


def app() -> FastAPI:
    made = FastAPI()

    @made.post("/echo")
    async def echo(request: Request) -> dict[str, object]:
        state = request.scope["state"]
        content = (await request.body()).decode()
        return {"app": content, "tried": state.get(TRIED), "arrived": ARRIVED in state, "method": request.method}

    return made


@asynccontextmanager
async def served(environment: Environment, echo: Echo) -> AsyncIterator[tuple[str, int]]:
    async with listening(environment, Service("scoring", app=app(), direct=echo)) as (_, url):
        assert url.port is not None
        yield url.host, url.port


def post(body: bytes, *more: bytes) -> bytes:
    lines = [b"POST /echo HTTP/1.1", b"host: x", b"content-length: %d" % len(body), *more, b"", b""]
    return b"\r\n".join(lines) + body


async def said(place: tuple[str, int], pieces: Sequence[bytes], replies: int, pause: float = 0.0) -> list[bytes]:
    """Send the pieces, `pause` seconds between them, and read so many replies."""
    reader, writer = await asyncio.open_connection(*place)
    found: list[bytes] = []
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        async with asyncio.timeout(30):
            for _ in range(replies):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                found.append(head + await reader.readexactly(length))
    finally:
        writer.close()
    return found


async def test_what_is_whole_is_answered_directly(environment: Environment) -> None:
    echo = Echo()
    async with served(environment, echo) as place:
        replies = await said(place, [post(b"1"), post(b"2")], 2, pause=0.1)
        assert [reply.endswith(b'"direct %d"' % n) for n, reply in enumerate(replies, 1)] == [True, True]
        assert all(reply.startswith(b"HTTP/1.1 200 OK\r\n") and b"\r\ndate: " in reply for reply in replies)
        assert echo.taken == [b"1", b"2"]


async def test_what_comes_in_pieces_goes_the_usual_way(environment: Environment) -> None:
    echo = Echo()
    whole = post(b"in pieces")
    async with served(environment, echo) as place:
        for cut in (10, len(whole) - 9, len(whole) - 4):
            (reply,) = await said(place, [whole[:cut], whole[cut:]], 1, pause=0.05)
            assert b'"app":"in pieces"' in reply or (cut == 10 and b"direct in pieces" in reply)
        chunked = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nsome\r\n0\r\n\r\n"
        (reply,) = await said(place, [chunked], 1)
        assert reply.endswith(b'"direct some"')


@pytest.mark.parametrize("body", [b"no", b"back"])
async def test_what_is_not_taken_or_given_back_the_application_answers(environment: Environment, body: bytes) -> None:
    async with served(environment, Echo()) as place:
        (reply,) = await said(place, [post(body)], 1)
        tried = b'"tried"' if body == b"back" else b"null"
        arrived = b"true" if body == b"back" else b"false"
        assert reply.endswith(
            b'{"app":"%b","tried":%b,"arrived":%b,"method":"POST"}' % (body, tried, arrived)
        )  # fmt: skip


@pytest.mark.parametrize("pause", [0.0, 0.1])
async def test_requests_in_one_segment_are_answered_in_order(environment: Environment, pause: float) -> None:
    """HTTP pipelining: whoever answers, the replies come in the order of the requests."""
    get = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
    async with served(environment, Echo(pause)) as place:
        segment = post(b"1") + get + post(b"back 2") + post(b"3") + post(b"no 4") + get + post(b"5")
        replies = await said(place, [segment], 7)
        marks = [b"direct 1", b"alive", b"back 2", b"3", b"no 4", b"alive", b"5"]
        assert [mark in reply for mark, reply in zip(marks, replies, strict=True)] == [True] * 7
        # A request that was given back late, with others behind it.
        replies = await said(place, [post(b"back 1") + get + post(b"2")], 3)
        assert [m in r for m, r in zip([b'"app":"back 1"', b"alive", b"2"], replies, strict=True)] == [True] * 3
        assert b'"method":"POST"' in replies[0]


async def test_a_client_that_goes_takes_nobody_with_it(environment: Environment) -> None:
    async with served(environment, Echo(0.1)) as place:
        for body in (b"1", b"back"):
            _, writer = await asyncio.open_connection(*place)
            writer.write(post(body))
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.transport.abort()
        await asyncio.sleep(0.2)
        (reply,) = await said(place, [post(b"still there")], 1)
        assert reply.endswith(b'"direct still there"')


async def test_the_last_reply_before_the_end_says_so(environment: Environment) -> None:
    echo = Echo(0.3)
    async with served(environment, echo) as place:
        reader, writer = await asyncio.open_connection(*place)
        writer.write(post(b"1"))
        while not echo.taken:
            await asyncio.sleep(0.01)
    reply = await asyncio.wait_for(reader.read(), 30)
    assert reply.endswith(b'"direct 1"')
    assert b"connection: close" in reply
    writer.close()


@pytest.mark.parametrize(
    "request_",
    [
        post(b"x", b"connection: close"),
        post(b"x").replace(b"HTTP/1.1", b"HTTP/1.0"),
        post(b"x", b"expect: 100-continue"),
    ],
)
async def test_odd_ways_to_speak_are_the_applications(environment: Environment, request_: bytes) -> None:
    echo = Echo()
    async with served(environment, echo) as place:
        replies = await said(place, [request_], 1) if b"expect" not in request_ else [await _continued(place, request_)]
        assert b'"app":"x"' in replies[0]
        assert not echo.taken


async def _continued(place: tuple[str, int], request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*place)
    writer.write(request)
    async with asyncio.timeout(30):
        first = await reader.readuntil(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 100")
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
    writer.close()
    return body
