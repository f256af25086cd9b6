"""The web side of a process: every service's routes, health, metrics, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from turnout.common import telemetry
from turnout.common.runtime import problems
from turnout.common.runtime.health import Health
from turnout.common.runtime.limits import Limits, StrictJson
from turnout.common.runtime.service import Service

MOUNT = "/services/"
HEALTH = ("/livez", "/readyz", "/metrics")


# Sets the gauges that are read from elsewhere.
Measure = Callable[[], Awaitable[None]]


def equip(service: Service, health: Mapping[str, Health], measure: Measure) -> None:
    """Give a service's app problem documents and, of the services in `health`, `/livez`, `/readyz`, `/metrics`."""
    problems.install(service.app)
    routes = [route for route in service.app.routes if isinstance(route, APIRoute)]
    if any(route.body_field is not None for route in routes):
        service.app.add_middleware(StrictJson)
    if "/livez" not in {route.path for route in routes}:
        add_health(service.app, health, measure)


def add_health(app: FastAPI, health: Mapping[str, Health], measure: Measure) -> None:
    """The three paths that say how a process is. Liveness tests nothing: a dependency's absence is no cause to die."""

    async def livez() -> Response:
        return _json(200, {"status": "alive"})

    async def readyz(request: Request) -> Response:
        waiting = {name: found for name, one in health.items() if (found := one.waiting_for())}
        for name in health:
            telemetry.READY.labels(name).set(name not in waiting)
        content: dict[str, object] = {"status": "waiting" if waiting else "ready"}
        if waiting:
            content["waiting_for"] = waiting
        if "verbose" in request.query_params:
            content["services"] = {name: "waiting" if name in waiting else "ready" for name in health}
        return _json(503 if waiting else 200, content)

    async def metrics() -> Response:
        await measure()
        return Response(await asyncio.to_thread(generate_latest), media_type=CONTENT_TYPE_LATEST)

    for path, endpoint in zip(HEALTH, (livez, readyz, metrics), strict=True):
        app.add_api_route(path, endpoint, tags=["health"], response_model=None)
    # The three come first: a service may have a route with a parameter at its root.
    app.router.routes[:0] = [app.router.routes.pop() for _ in HEALTH]


class Site:
    """All apps behind one port: one service's at `/`, the others' at `/services/NAME`. Plain ASGI: nothing is
    matched twice on the way to scoring."""

    def __init__(
        self, root: Service | None, services: Mapping[str, Service], health: Mapping[str, Health], measure: Measure
    ) -> None:
        process = FastAPI(openapi_url=None)
        problems.install(process)
        add_health(process, health, measure)
        self._process: ASGIApp = process
        self._root: ASGIApp = root.app if root is not None else process
        self._mounted: dict[str, ASGIApp] = {name: service.app for name, service in services.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the app that it is for."""
        path: str = scope["path"] if scope["type"] == "http" else ""
        app = self._root
        if path in HEALTH:
            app = self._process
        elif path.startswith(MOUNT):
            name, _, _ = path[len(MOUNT) :].partition("/")
            mounted = self._mounted.get(name)
            if mounted is not None:
                app = mounted
                scope = {**scope, "root_path": scope.get("root_path", "") + MOUNT + name}
        await app(scope, receive, send)


def at_root(services: Mapping[str, Service], root: str | None) -> Service | None:
    """The service at `/`: `root` if it is there, or the only one."""
    if root is not None and root in services:
        return services[root]
    return next(iter(services.values())) if len(services) == 1 else None


def site(services: Mapping[str, Service], health: Mapping[str, Health], root: str | None, measure: Measure) -> ASGIApp:
    """The application of a process: `root` is the service at `/` (a single one is it anyway)."""
    for name, service in services.items():
        equip(service, {name: health[name]}, measure)
    return Limits(Site(at_root(services, root), services, health, measure))


@asynccontextmanager
async def lifespans(services: Mapping[str, Service]) -> AsyncGenerator[None]:
    """Run what the apps start and stop with."""
    async with AsyncExitStack() as stack:
        for service in services.values():
            await stack.enter_async_context(service.app.router.lifespan_context(service.app))
        yield


def _json(status: int, content: object) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
