"""Where each route is. The two hot ones go below FastAPI, which documents them all the same.

A route of FastAPI costs more than the answer to one row; a plain ASGI function in front of it costs nothing
(benchmarks). `Front` takes the hot paths and passes the rest on; the same handlers stand behind both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from turnout.common.runtime import problems
from turnout.common.runtime.keys import ApiKeys
from turnout.scoring.http import replies, shapes
from turnout.scoring.http.protocol import Protocol
from turnout.scoring.http.replies import Accepted, Reply, ScoresShown, StoredScore
from turnout.scoring.http.scores import Scores
from turnout.scoring.reactions.answering import LateError

Handler = Callable[[Scope, Receive], Awaitable[Reply]]


class Front:
    """ASGI in front of the application: the hot paths are answered here."""

    def __init__(self, app: ASGIApp, *, scores: Scores, protocol: Protocol, keys: ApiKeys) -> None:
        self._app = app
        self._scores = scores
        self._protocol = protocol
        self._caller = keys.require("score")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a hot path, pass the rest on."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        root = scope.get("root_path", "")
        path: str = scope["path"]
        reply = self._handle(path.removeprefix(root) if root else path, scope, receive)
        if reply is None:
            await self._app(scope, receive, send)
            return
        try:
            await self._caller(Request(scope))
            status, headers, content = await reply()
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 (the edge: whatever it is becomes an answer)
            await replies.refusal(error, path)(scope, receive, send)
            return
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        raw.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": content})

    def _handle(self, path: str, scope: Scope, receive: Receive) -> Callable[[], Awaitable[Reply]] | None:
        match path.split("/"):
            case ["", "pipelines", pipeline, "score"]:
                return lambda: self._scores.score(pipeline, scope, receive)
            case ["", "v2", "models", model, "infer"]:
                return lambda: self._protocol.infer(model, None, scope, receive)
            case ["", "v2", "models", model, "versions", version, "infer"]:
                return lambda: self._protocol.infer(model, version, scope, receive)
            case _:
                return None


def add(app: FastAPI, *, scores: Scores, protocol: Protocol, keys: ApiKeys) -> None:
    """Give `app` all of scoring's routes."""
    app.add_middleware(Front, scores=scores, protocol=protocol, keys=keys)
    app.add_exception_handler(LateError, _late)
    app.include_router(_friendly(scores, keys))
    app.include_router(_protocol(protocol, keys))


async def _late(request: Request, error: Exception) -> Response:
    return replies.refusal(error, request.url.path)


def _friendly(scores: Scores, keys: ApiKeys) -> APIRouter:
    routes = APIRouter(
        tags=["scoring"], responses=dict(problems.RESPONSES), dependencies=[Depends(keys.require("score"))]
    )

    @routes.post(
        "/pipelines/{pipeline}/score",
        response_model=ScoresShown,
        responses={
            200: shapes.example("The answers.", shapes.SCORE_REPLY),
            202: {"model": Accepted, "description": "Accepted; the scores are at `/scores/{score_id}`."},
        },
        openapi_extra=_body(
            shapes.SCORE_BODY,
            _parameter("version", "string"),
            _parameter("timeout_ms", "number"),
            _parameter("mode", "string"),
        ),
    )
    async def score(pipeline: str, request: Request) -> Response:
        """Score rows, entities, or both mixed. A fallback is 200 and says who answered and why."""
        return replies.response(await scores.score(pipeline, request.scope, request.receive))

    @routes.get(
        "/scores/{score_id}",
        response_model=StoredScore,
        responses={202: {"description": "Accepted, not answered yet; ask again after `Retry-After`."}},
    )
    async def stored(score_id: str) -> Response:
        """A score that was answered before."""
        return replies.response(await scores.stored(score_id))

    @routes.post(
        "/outcomes",
        status_code=202,
        responses={202: shapes.example("Durable; on its way to the bus.", shapes.OUTCOME_REPLY)},
        openapi_extra=_body(shapes.OUTCOME_BODY),
    )
    async def outcomes(request: Request) -> Response:
        """What really happened to the subject of a score; one outcome or a list."""
        return replies.response(await scores.outcomes(request.scope, request.receive))

    _ = score, stored, outcomes
    return routes


def _protocol(protocol: Protocol, keys: ApiKeys) -> APIRouter:
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"], responses=shapes.PROTOCOL_ERRORS)
    scoring = [Depends(keys.require("score"))]

    def get(path: str, reply: Callable[..., Reply], doc: str) -> None:
        async def endpoint(request: Request) -> Response:
            return replies.response(reply(**request.path_params))

        endpoint.__doc__ = doc
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        extra = {"parameters": [_parameter(name, "string", "path") for name in names]}
        routes.add_api_route(
            path, endpoint, name=reply.__name__, summary=doc, dependencies=scoring, openapi_extra=extra
        )

    async def live() -> Response:
        return replies.response(replies.json({"live": True}))

    async def ready() -> Response:
        return replies.response(protocol.server_ready())

    async def server() -> Response:
        return replies.response(protocol.server())

    routes.add_api_route("/health/live", live, summary="Whether the process is alive")
    routes.add_api_route("/health/ready", ready, summary="Whether every routed version is loaded")
    routes.add_api_route("", server, summary="The server")
    get("/models/{model}", protocol.metadata, "A model's versions, inputs and outputs")
    get("/models/{model}/versions/{version}", protocol.metadata, "A version's inputs and outputs")
    get("/models/{model}/ready", protocol.model_ready, "Whether a model can be asked")
    get("/models/{model}/versions/{version}/ready", protocol.model_ready, "Whether a version can be asked")
    get("/models/{model}/router", protocol.router, "The live chain, each version's state, the last decisions")

    @routes.post(
        "/models/{model}/infer",
        responses={200: shapes.example("The tensors, and who answered.", shapes.INFER_REPLY)},
        openapi_extra=_body(shapes.INFER_BODY),
        dependencies=scoring,
    )
    async def infer(model: str, request: Request) -> Response:
        """Score tensors; the router chooses the version."""
        return replies.response(await protocol.infer(model, None, request.scope, request.receive))

    @routes.post(
        "/models/{model}/versions/{version}/infer",
        responses={200: shapes.example("The tensors, and who answered.", shapes.INFER_REPLY)},
        openapi_extra=_body(shapes.INFER_BODY),
        dependencies=scoring,
    )
    async def infer_version(model: str, version: str, request: Request) -> Response:
        """Score tensors with one version, which answers or errs."""
        return replies.response(await protocol.infer(model, version, request.scope, request.receive))

    _ = infer, infer_version
    return routes


def _body(schema: dict[str, Any], *parameters: dict[str, Any]) -> dict[str, Any]:
    extra: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    return extra | ({"parameters": list(parameters)} if parameters else {})


def _parameter(name: str, kind: str, where: str = "query") -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": {"type": kind}}
