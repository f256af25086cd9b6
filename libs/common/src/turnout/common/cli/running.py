"""`turnout up` and `turnout run SERVICE`."""

from __future__ import annotations

import asyncio
import gc
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer
import uvloop

from turnout.common.cli.console import Home, errors, settings_of
from turnout.common.errors import Invalid, Unknown
from turnout.common.runtime import logs
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.home import announce, only_one, open_home
from turnout.common.runtime.run import serve
from turnout.common.runtime.service import Service
from turnout.common.runtime.settings import RuntimeSettings

GROUP = "turnout.services"
FIRST_PORT = 8080
# Thresholds of the garbage collector: a delivery makes some thousand objects, nearly all of which end with it.
GARBAGE = (10_000, 20, 20)


def up(
    home: Home = None,
    port: Annotated[int, typer.Option(help="Port of the web server; 0 takes a free one.")] = FIRST_PORT,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
) -> None:
    """Run every installed service in this process, with everything embedded."""
    settings = settings_of(home)
    logs.configure(settings.log_level)
    open_home(settings.home)
    with only_one(settings.home):
        uvloop.run(_serve(settings, installed(), host, port, alone=True))


def run(
    service: Annotated[str, typer.Argument(help="Name of the service.")],
    home: Home = None,
    port: Annotated[int | None, typer.Option(help="Port (default: 8081 and up, by the service's name).")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
) -> None:
    """Run one service; others may run on the same bus and stores."""
    settings = settings_of(home)
    logs.configure(settings.log_level)
    open_home(settings.home)
    known = installed()
    names = [entry.name for entry in known]
    if service not in names:
        raise Unknown.name("SERVICE", "service", service, names)
    place = FIRST_PORT + 1 + names.index(service) if port is None else port
    uvloop.run(_serve(settings, [known[names.index(service)]], host, place, alone=False))


def spare_garbage() -> None:
    """What is there now stays: to look through it for garbage over and over takes a fifth of a busy process's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)


def installed() -> list[EntryPoint]:
    """The services that are installed, by name."""
    return sorted(entry_points(group=GROUP), key=lambda entry: entry.name)


def build(entry: EntryPoint, environment: Environment) -> Service:
    """A service, put together. Raises `Invalid` if its package is not whole."""
    try:
        make = entry.load()
    except (ImportError, AttributeError) as error:
        raise Invalid(entry.name, f"the service cannot be loaded ({error})", fix="install it again") from error
    return make(environment)


async def _serve(settings: RuntimeSettings, entries: list[EntryPoint], host: str, port: int, *, alone: bool) -> None:
    if not entries:
        raise Invalid("services", "none is installed", fix="install turnout-scoring and the others")
    environment = Environment(settings)

    async def started(url: str) -> None:
        if alone:
            await asyncio.to_thread(announce, settings.home, url)
        errors.print(f"Turnout answers at {url} (home {settings.home}); Ctrl-C ends it.", markup=False)

    try:
        services = [build(entry, environment) for entry in entries]
        spare_garbage()
        await serve(environment, services, host=host, port=port, started=started)
    finally:
        await environment.close()
