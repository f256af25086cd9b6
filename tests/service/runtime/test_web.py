"""The web side of a process: health, problem documents, limits, over real sockets where they matter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from environment import running
from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.runtime import connections, limits
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.run import serve
from turnout.common.runtime.service import Service


class Row(BaseModel):
    age: int
    name: str = ""


def app() -> FastAPI:
    made = FastAPI()

    @made.post("/rows")
    async def rows(row: Row) -> Row:
        return row

    @made.post("/body")
    @made.post("/v2/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    @made.get("/fails/{how}")
    @made.get("/v2/fails/{how}")
    async def fails(how: str) -> None:
        raise {
            "invalid": Invalid("rows[0].age", "is no number", fix="send 63"),
            "unknown": Unknown.name("pipeline", "pipeline", "hart", ["heart"]),
            "away": Unavailable("the history", "it is away"),
            "teapot": HTTPException(418, "short and stout"),
            "bug": KeyError("secret detail"),
        }[how]

    @made.get("/{anything}")
    async def anything(anything: str) -> str:
        return anything

    return made


@pytest.fixture
async def client(environment: Environment) -> AsyncIterator[httpx.AsyncClient]:
    services = [Service("scoring", app=app()), Service("ingestion", app=app())]
    async with running(environment, *services, root="scoring") as (_, client):
        yield client


@pytest.mark.parametrize(
    ("how", "status", "content"),
    [
        ("invalid", 422, {"title": "Unprocessable Entity", "detail": "is no number", "field": "rows[0].age",
                          "fix": "send 63"}),
        ("unknown", 404, {"title": "Not Found", "detail": "unknown pipeline 'hart'", "field": "pipeline",
                          "fix": "did you mean 'heart'?"}),
        ("away", 503, {"title": "Service Unavailable", "detail": "the history is not available: it is away"}),
        ("teapot", 418, {"title": "I'm a Teapot", "detail": "short and stout"}),
        ("bug", 500, {"title": "Internal Server Error", "detail": "this is a fault of ours; it has been logged"}),
    ],
)  # fmt: skip
async def test_an_error_is_a_problem_document(
    client: httpx.AsyncClient, how: str, status: int, content: dict[str, object]
) -> None:
    reply = await client.get(f"/fails/{how}")
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json() == {"type": "about:blank", "status": status, **content}
    assert "secret detail" not in reply.text


@pytest.mark.parametrize(("how", "status"), [("invalid", 422), ("unknown", 404), ("away", 503), ("bug", 500)])
async def test_under_v2_it_is_the_protocols_error(client: httpx.AsyncClient, how: str, status: int) -> None:
    reply = await client.get(f"/v2/fails/{how}")
    assert reply.status_code == status
    assert list(reply.json()) == ["error"]
    assert isinstance(reply.json()["error"], str)


@pytest.mark.parametrize(
    ("content", "status", "field"),
    [(b'{"age": 1', 400, "body"), (b'{"age": "x"}', 422, "body.age"), (b"{}", 422, "body.age"), (b"[]", 422, "body"),
     (b'{"age": 1, "name": "\\ud800"}', 400, "body"), (b'{"age": NaN}', 400, "body"), (b"", 422, "body"),
     (b"[" * 500 + b"]" * 500, 400, "body")],
)  # fmt: skip
async def test_a_body_that_does_not_fit(client: httpx.AsyncClient, content: bytes, status: int, field: str) -> None:
    reply = await client.post("/rows", content=content, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json().get("field")) == (status, field), reply.text


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/no/such/path", 404), ("PUT", "/rows", 405)])
async def test_what_is_not_there(client: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    reply = await client.request(method, path)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"


async def test_each_service_has_its_place(client: httpx.AsyncClient) -> None:
    assert (await client.post("/rows", json={"age": 1})).json() == {"age": 1, "name": ""}
    assert (await client.post("/services/ingestion/rows", json={"age": 2})).json() == {"age": 2, "name": ""}
    assert (await client.post("/services/scoring/rows", json={"age": 3})).json() == {"age": 3, "name": ""}
    assert (await client.get("/services/nobody/rows")).status_code == 404


@pytest.mark.parametrize("prefix", ["", "/services/scoring", "/services/ingestion"])
async def test_health_comes_before_a_services_own_routes(client: httpx.AsyncClient, prefix: str) -> None:
    assert (await client.get(f"{prefix}/livez")).json() == {"status": "alive"}
    assert (await client.get(f"{prefix}/readyz")).json() == {"status": "ready"}
    metrics = await client.get(f"{prefix}/metrics")
    assert "turnout_build_info{" in metrics.text
    assert metrics.headers["content-type"].startswith("text/plain")


async def test_readiness_says_what_it_waits_for(environment: Environment) -> None:
    missing = ["the models of 'heart' to be loaded"]
    waiting = Service("scoring", waiting_for=lambda: missing)
    async with running(environment, waiting, Service("ingestion")) as (_, client):
        reply = await client.get("/readyz?verbose")
        assert (reply.status_code, reply.json()) == (503, {
            "status": "waiting",
            "waiting_for": {"scoring": missing},
            "services": {"scoring": "waiting", "ingestion": "ready"},
        })  # fmt: skip
        assert (await client.get("/services/ingestion/readyz")).status_code == 200
        assert (await client.get("/livez")).status_code == 200
        assert 'turnout_ready{service="scoring"} 0.0' in (await client.get("/metrics")).text
        missing.clear()
        assert (await client.get("/readyz")).status_code == 200


async def test_keys(environment: Environment, client: httpx.AsyncClient) -> None:
    guarded = FastAPI()

    @guarded.get("/who")
    async def who(name: str = Depends(environment.keys.require("read"))) -> str:
        return name

    async with running(environment, Service("monitoring", app=guarded)) as (_, http):
        assert (await http.get("/who")).json() == "anonymous"
        reader, scorer, boss = [
            await asyncio.to_thread(environment.keys.add, f"{scope}er", scope) for scope in ("read", "score", "admin")
        ]

        async def ask(key: str | None) -> tuple[int, object]:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            reply = await http.get("/who", headers=headers)
            return reply.status_code, reply.json() if reply.is_success else reply.json()["detail"]

        assert await ask(reader) == (200, "reader")
        assert await ask(boss) == (200, "adminer")
        assert await ask(None) == (401, "a key is needed: send `Authorization: Bearer KEY`")
        assert await ask("turnout_wrong") == (401, "the key is not known")
        assert await ask(scorer) == (403, "the key of 'scoreer' has scope score, this needs read")


# --- over a real socket ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(environment: Environment, made: FastAPI) -> AsyncIterator[tuple[str, int]]:
    stop, url = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def started(found: str) -> None:
        url.set_result(found)

    task = asyncio.create_task(
        serve(environment, [Service("scoring", app=made)], port=0, watchdog=False, stop=stop, started=started)
    )
    await asyncio.wait({task, url}, return_when=asyncio.FIRST_COMPLETED)
    try:
        found = httpx.URL(await url)
        assert found.port is not None
        yield found.host, found.port
    finally:
        stop.set()
        await task


async def spoken(place: tuple[str, int], talk: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> bytes:
    """What a server says to a client that talks in its own way."""
    reader, writer = await asyncio.open_connection(*place)
    try:
        await talk(writer)
        return await asyncio.wait_for(reader.read(65536), 30)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


HEAD = b"POST /body HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize("path", ["/body", "/v2/body"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_too_large_is_refused_however_it_comes(environment: Environment, path: str, chunked: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    async with served(environment, app()) as (host, port), httpx.AsyncClient(base_url=f"http://{host}:{port}") as http:
        reply = await http.post(path, content=chunks() if chunked else b"x" * 2_000_000)
        assert reply.status_code == 413
        assert "1048576 bytes" in (reply.json()["error"] if "v2" in path else reply.json()["detail"])
        assert (await http.post(path, content=b'"' + b"x" * 1_048_574 + b'"')).json() == 1_048_576


async def test_a_body_that_dawdles_is_refused(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.Limits.__init__, "__kwdefaults__", {"max_body": 1024, "read_seconds": 0.3})

    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"content-length: 10\r\n\r\nabc")

    async with served(environment, app()) as place:
        assert (await spoken(place, talk)).startswith(b"HTTP/1.1 408")


async def test_a_head_that_dawdles_is_refused(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_SECONDS", 0.3)

    async def silent(_: asyncio.StreamWriter) -> None:
        return

    async def slow(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)

    async def twice(writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.write(HEAD)
        await asyncio.sleep(0.6)

    async with served(environment, app()) as place:
        assert (await spoken(place, silent)).startswith(b"HTTP/1.1 408")
        assert (await spoken(place, slow)).startswith(b"HTTP/1.1 408")
        both = await spoken(place, twice)
        assert both.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 408" in both


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (HEAD + b"".join(b"x-%d: %s\r\n" % (n, b"y" * 1000) for n in range(100)), b"HTTP/1.1 431"),
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n", b"HTTP/1.1 200"),
    ],
    ids=["endless headers", "no HTTP", "an honest request"],
)
async def test_what_a_connection_may_say(environment: Environment, said: bytes, status: bytes) -> None:
    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()

    async with served(environment, app()) as place:
        assert (await spoken(place, talk)).startswith(status)


async def test_a_port_that_is_taken_is_said(environment: Environment) -> None:
    async with served(environment, app()) as (_, port):
        with pytest.raises(Invalid, match=f"cannot listen at 127.0.0.1:{port}"):
            await serve(environment, [Service("other")], port=port)


async def test_lifespans_run(environment: Environment) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        seen.append("begin")
        yield
        seen.append("end")

    async def background() -> None:
        seen.append("background")

    async def close() -> None:
        seen.append("close")

    made = Service("scoring", app=FastAPI(lifespan=lifespan), background=[background], close=close)
    async with running(environment, made):
        await asyncio.sleep(0.05)
    assert seen == ["begin", "background", "close", "end"]


async def test_background_work_that_fails_is_started_again(environment: Environment) -> None:
    starts = 0
    again = asyncio.Event()

    async def relay() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise Unavailable("the bus", "it is away")
        if starts == 2:
            raise KeyError("bug")
        again.set()

    async with asyncio.timeout(30), running(environment, Service("scoring", background=[relay])):
        await again.wait()
