"""`turnout models PIPELINE`: which versions there are, and which of them answers."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from turnout.common.cli.console import Home, environment, out, run
from turnout.common.cli.describe import routes
from turnout.common.errors import Invalid
from turnout.common.events import Event, ModelReady, RoutingChanged
from turnout.common.runtime.environment import Environment


def models(
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    home: Home = None,
) -> None:
    """List a pipeline's versions, their metrics beside the base rate, and their roles."""

    async def work() -> None:
        async with environment(home) as env:
            await env.pipelines.declared(pipeline)
            found = await versions(env, pipeline)
            route = await env.routes.newest(pipeline)
        if not found:
            out.print(f"{pipeline} has no version yet", markup=False)
            return
        for event in found:
            _show(event, route)
        if route is not None:
            out.print(f"now: {routes(route.table)} ({route.why})", markup=False)

    run(work)


async def versions(env: Environment, pipeline: str) -> list[ModelReady]:
    """A pipeline's versions, oldest first."""
    found: dict[str, ModelReady] = {}
    async for received in env.bus.replay(ModelReady):
        try:
            event: Event = received.event()
        except Invalid:
            continue
        if isinstance(event, ModelReady) and event.pipeline == pipeline:
            found[event.version] = event
    return list(found.values())


def _show(event: ModelReady, route: RoutingChanged | None) -> None:
    when = event.time.astimezone().strftime("%Y-%m-%d %H:%M")
    role = _role(event.version, route)
    out.print(
        Text.assemble(
            (f"version {event.version}", "bold"), f"  {event.algorithm}  {when}  ", (role, "green"), f"\n  {event.why}"
        )
    )
    for name, value in sorted(event.metrics.items()):
        base = f"  (base rate {event.base_rate[name]:.3f})" if name in event.base_rate else ""
        out.print(f"    {name:<10} {value:.3f}{base}", markup=False)


def _role(version: str, route: RoutingChanged | None) -> str:
    if route is None:
        return ""
    table = route.table
    roles = {table.challenger: "challenger", table.previous: "previous", table.champion: "champion"}
    return roles.get(version, "")
