"""`turnout doctor`: what is there, what is missing, what to do."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import typer
from rich.text import Text

from turnout.common.bus.cloudevents import DEAD
from turnout.common.cli.console import Home, environment, out, run, settings_of
from turnout.common.cli.running import installed
from turnout.common.errors import TurnoutError
from turnout.common.events import REGISTRY
from turnout.common.lake.settings import LakeSettings
from turnout.common.models.settings import MlflowSettings
from turnout.common.runtime.dead_letters import left_to_replay
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.home import address, open_home
from turnout.common.runtime.keys import ApiKeys
from turnout.common.runtime.settings import RuntimeSettings

if TYPE_CHECKING:  # the lake's port needs pyarrow
    from turnout.common.lake.port import Lake

LITTLE_SPACE = 1024**3
EXIT_TROUBLE = 3


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `well` None means that it is worth knowing, no more."""

    well: bool | None
    what: str
    fix: str = ""


def doctor(home: Home = None) -> None:
    """Say what is reachable, what is missing, and what to do about it."""
    settings = settings_of(home)
    findings = [*_services(), *_home(settings), *_servers(home), *_process(settings), *_sources(settings)]
    findings += _keys(settings)
    if all(f.well is not False for f in findings):
        findings += _letters(home)
    for finding in findings:
        mark, style = {True: ("ok  ", "green"), False: ("bad ", "red"), None: ("note", "yellow")}[finding.well]
        out.print(
            Text.assemble((mark, style), " ", finding.what, (f"  → {finding.fix}" if finding.fix else "", "bold"))
        )
    if any(f.well is False for f in findings):
        raise typer.Exit(EXIT_TROUBLE)


def _services() -> Iterable[Finding]:
    entries = installed()
    if not entries:
        yield Finding(False, "no service is installed", "make install, or pip install turnout-scoring …")
    for entry in entries:
        module = entry.value.partition(":")[0]
        there = _try(lambda module=module: find_spec(module) is not None) is True
        fix = "" if there else f"install turnout-{entry.name} again"
        yield Finding(there, f"service {entry.name}" + ("" if there else f": {module} is not there"), fix)


def _home(settings: RuntimeSettings) -> Iterable[Finding]:
    home = settings.home
    if not home.exists():
        yield Finding(
            None, f"no home at {home.absolute()} yet", "turnout up makes it; --home or TURNOUT_HOME names another"
        )
        return
    trouble = _try(lambda: open_home(home))
    if isinstance(trouble, Exception):
        yield Finding(False, str(trouble))
        return
    yield Finding(True, f"home {home.absolute()}")
    free = shutil.disk_usage(home).free
    enough = free > LITTLE_SPACE
    yield Finding(
        enough or None, f"{free / 1024**3:.1f} GB free", "" if enough else "make room: a full disk stops everything"
    )


def _servers(home: Path | None) -> Iterable[Finding]:
    """Every server that the settings name is asked something small."""
    settings = settings_of(home)
    lake, models = LakeSettings(), MlflowSettings()
    looks: list[tuple[bool, str, Callable[[Environment], Awaitable[object]]]] = [
        (settings.bus == "kafka", "bus on Kafka", lambda env: env.bus.lag("turnout.doctor")),
        (settings.online == "redis", "online store on Redis", lambda env: env.online.get_many("doctor", ["doctor"])),
        (settings.history == "cassandra", "history store on Cassandra", lambda env: env.history.count_scores("doctor")),
        (settings.jobs == "cassandra", "jobs on Cassandra", lambda env: env.jobs.waiting("doctor")),
        (lake.uri is not None, f"lake at {lake.uri}", lambda env: asyncio.to_thread(_some, env.lake)),
        (models.uri is not None, f"models at {models.uri}", lambda env: asyncio.to_thread(env.registry.versions, "d")),
    ]

    async def work() -> list[Finding]:
        found: list[Finding] = []
        async with environment(home) as env:
            for named, what, look in looks:
                if not named:
                    continue
                try:
                    await look(env)
                except (TurnoutError, ImportError) as error:
                    fix = getattr(error, "fix", None) or "start it, or mend the setting; docs/settings.md lists them"
                    found.append(Finding(False, f"{what}: {error}", fix))
                else:
                    found.append(Finding(True, what))
        return found

    return run(work) if any(named for named, *_ in looks) else []


def _some(lake: Lake) -> object:
    return list(islice(lake.manifests("raw", "doctor"), 1))


def _process(settings: RuntimeSettings) -> Iterable[Finding]:
    there = address(settings.home)
    if there is None:
        yield Finding(None, "nothing runs on this home", "turnout up")
        return
    try:
        reply = httpx.get(f"{there.url}/readyz?verbose", timeout=5)
        found = reply.json()
    except (httpx.HTTPError, ValueError) as error:
        yield Finding(
            False, f"process {there.pid} does not answer at {there.url} ({error})", "look into its log; start it again"
        )
        return
    yield Finding(True, f"process {there.pid} answers at {there.url}")
    for service, reasons in found.get("waiting_for", {}).items():
        yield Finding(False, f"{service} waits for {'; '.join(reasons)}", "")


def _sources(settings: RuntimeSettings) -> Iterable[Finding]:
    for root in settings.source_roots:
        there = root.is_dir()
        fix = "" if there else "make it, or set TURNOUT_SOURCE_ROOTS"
        yield Finding(
            there, f"sources may lie under {root.absolute()}" + ("" if there else ", which is not there"), fix
        )


def _keys(settings: RuntimeSettings) -> Iterable[Finding]:
    path = settings.home / "keys.json"
    try:
        names = ApiKeys(path).names()
    except TurnoutError as error:
        yield Finding(False, str(error))
        return
    if names:
        yield Finding(True, f"keys: {', '.join(f'{name} ({scope})' for name, scope in names.items())}")
    else:
        yield Finding(None, "no key is set: every caller may do everything", "turnout keys add NAME --scope admin")


def _letters(home: Path | None) -> Iterable[Finding]:
    settings = settings_of(home)
    if settings.bus == "embedded" and not (settings.home / "bus").exists():
        return []

    async def work() -> list[Finding]:
        found: list[Finding] = []
        async with environment(home) as env:
            for name in sorted(REGISTRY):
                left = await left_to_replay(env.bus, name)
                if left:
                    words = f"{left} dead letter{'' if left == 1 else 's'} of {name}"
                    fix = f"turnout events --topic {name}{DEAD}; when the cause is gone: turnout replay {name}"
                    found.append(Finding(None, words, fix))
        return found or [Finding(True, "no dead letters are left")]

    return run(work)


def _try(look: Callable[[], object]) -> object:
    try:
        return look()
    except (TurnoutError, ImportError, OSError) as error:
        return error
