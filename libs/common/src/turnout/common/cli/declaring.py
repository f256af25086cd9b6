"""`turnout apply FILE`: declare a pipeline, announce its data, and watch until there is a model."""

from __future__ import annotations

import asyncio
import getpass
import shlex
import sys
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from difflib import unified_diff
from pathlib import Path
from typing import Annotated

import httpx
import orjson
import typer
import yaml
from rich.text import Text

from turnout.common import pipeline as pipelines
from turnout.common.bus.cloudevents import DEAD
from turnout.common.bus.port import Received
from turnout.common.cli.console import Home, environment, errors, out, run
from turnout.common.cli.describe import described
from turnout.common.cli.following import followed, line
from turnout.common.errors import Invalid, Unknown
from turnout.common.events import (
    CandidateRefused,
    DataSegregated,
    Event,
    FeaturesGenerated,
    ModelReady,
    ModelTrained,
    PipelineDeclared,
    RawDataExtracted,
    RoutingChanged,
    SourceDataAvailable,
    StageFailed,
    VersionEjected,
)
from turnout.common.pipeline import PipelineFile
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.home import Address, address

CHAIN: tuple[type[Event], ...] = (
    SourceDataAvailable, RawDataExtracted, FeaturesGenerated, DataSegregated, ModelTrained, ModelReady,
    CandidateRefused, VersionEjected, RoutingChanged, StageFailed,
)  # fmt: skip
# After the model is ready, its route follows in moments, unless a person has to approve it.
ROUTE_SECONDS = 10.0
READY_SECONDS = 0.1
TOLD_SECONDS = 2.0
MAX_WARNINGS = 8
_NO_VERSION = "no candidate became a version"


def apply(
    file: Annotated[Path, typer.Argument(help="The pipeline file.")],
    home: Home = None,
    wait: Annotated[bool, typer.Option(help="Show progress until there is a model or a reason why not.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a declared pipeline is changed.")] = False,
) -> None:
    """Declare a pipeline and announce its data; the difference to what is declared comes first."""

    async def work() -> int:
        spec = await asyncio.to_thread(pipelines.read, file)
        async with environment(home) as env:
            before = await _declared(env, spec.pipeline)
            changed = _show_difference(before, spec)
            if dry_run:
                return 0
            if changed and before is not None and not yes and sys.stdin.isatty():
                typer.confirm("Change it?", abort=True)
            began = env.now()
            await _publish(env, spec, declare=changed or before is None)
            if spec.source.uri is None:
                out.print("declared; announce its data with `turnout publish SourceDataAvailable …`", markup=False)
                return 0
            if not wait:
                return 0
            if await asyncio.to_thread(address, env.home) is None:
                errors.print(f"nothing runs on {env.home}: the work waits there for `turnout up`", markup=False)
                return 0
            return await watch(env, spec, began)

    if code := run(work):
        raise typer.Exit(code)


async def watch(env: Environment, spec: PipelineFile, since: datetime) -> int:
    """Print what happens to a pipeline until it has a model, or a reason why not; the exit code."""
    topics = [kind.topic() + suffix for kind in CHAIN for suffix in ("", DEAD)]
    progress = Progress(spec)
    if (route := await env.routes.newest(spec.pipeline)) is not None:  # the same data make the same version again
        progress.routed |= {route.table.champion, route.table.challenger}
    async with aclosing(followed(env.bus, topics, since)) as records:
        while not (progress.finished and progress.told):
            patience = TOLD_SECONDS if progress.finished else ROUTE_SECONDS if progress.version else None
            try:
                async with asyncio.timeout(patience):
                    received = await anext(records)
            except TimeoutError:
                break
            if described(received)[0] == spec.pipeline:
                out.print(line(received))
                progress.see(received)
                for message in _warnings(received):
                    out.print(Text(f"          {message}", style="yellow"))
    there = await asyncio.to_thread(address, env.home)
    ready = progress.ready
    if there is None or ready is None or progress.failure or spec.deployment.approval == "manual":
        out.print(progress.verdict())
        return progress.code
    await _answering(there, ready.pipeline, ready.version)
    out.print(progress.verdict())
    out.print(example(ready, there), markup=False)
    return progress.code


def example(ready: ModelReady, there: Address) -> str:
    """A request that the version answers, as a person would type it."""
    row = ready.sample[0] if ready.sample else {column.name: None for column in ready.inputs}
    body = orjson.dumps({"rows": [row]}).decode()
    return "\n".join((
        f"Ask it:  curl {there.url}/pipelines/{ready.pipeline}/score -H 'content-type: application/json' \\",
        f"  -d {shlex.quote(body)}",
    ))  # fmt: skip


async def _answering(there: Address, name: str, version: str) -> None:
    """Wait a little until scoring has the version loaded, so that the next request meets it."""
    async with httpx.AsyncClient(base_url=there.url, timeout=5) as http:
        for _ in range(int(ROUTE_SECONDS / READY_SECONDS)):
            with suppress(httpx.HTTPError):
                if (await http.get(f"/v2/models/{name}/versions/{version}/ready")).is_success:
                    return
            await asyncio.sleep(READY_SECONDS)


@dataclass
class Progress:
    """Where a pipeline's data have got to."""

    spec: PipelineFile
    ready: ModelReady | None = None
    failure: str | None = None
    finished: bool = False
    candidates: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    routed: set[str | None] = field(default_factory=set)
    ejected: dict[str, str] = field(default_factory=dict)

    def see(self, received: Received) -> None:  # noqa: C901 (one case an event)
        """Take a record of the pipeline into account."""
        if received.record.topic.endswith(DEAD):
            self._fail(f"{received.record.topic.removesuffix(DEAD)} could not be handled: {described(received)[1]}")
            return
        try:
            event = received.event()
        except Invalid:
            return  # it will come again as a dead letter
        match event:
            case FeaturesGenerated() if self.spec.task == "features":
                self.finished = True
            case ModelTrained():
                self.candidates[event.run_id] = event.candidates
            case ModelReady():
                self.ready = event
            case RoutingChanged():
                self.routed |= {event.table.champion, event.table.challenger}
            case VersionEjected() if not event.admitted:
                self.ejected[event.version] = event.why
            case CandidateRefused():
                self.refused[event.run_id] = self.refused.get(event.run_id, 0) + (event.candidate is not None)
                if event.candidate is None:
                    self._fail(_NO_VERSION)
            case StageFailed():
                self._fail(event.error + (f"; {event.fix}" if event.fix and event.fix not in event.error else ""))
            case _:
                pass
        self._conclude()

    def _conclude(self) -> None:
        """Topics come side by side, so a route may be heard of before the version that it leads to."""
        if self.ready is not None:
            if self.ready.version in self.ejected:
                self._fail(f"version {self.ready.version} was refused: {self.ejected[self.ready.version]}")
            elif self.ready.version in self.routed or self.spec.deployment.approval == "manual":
                self.finished = True
        if any(self.refused.get(run, 0) >= candidates for run, candidates in self.candidates.items()):
            self._fail(_NO_VERSION)

    @property
    def told(self) -> bool:
        """Whether it is known of every candidate of the version's run what became of it."""
        run = self.ready.run_id if self.ready and not self.failure else None
        return run is None or self.refused.get(run, 0) + 1 >= self.candidates.get(run, 0)

    @property
    def version(self) -> str | None:
        """The version that came of the data, once there is one."""
        return self.ready.version if self.ready else None

    def _fail(self, why: str) -> None:
        self.failure = why
        self.finished = True

    @property
    def code(self) -> int:
        """The exit code: 2 if the input was at fault."""
        return 2 if self.failure else 0

    def verdict(self) -> Text:
        """The last line."""
        if self.failure:
            return Text(self.failure, style="red")
        if self.version is None:
            return Text(f"{self.spec.pipeline} is ready", style="green")
        waits = (
            ""
            if self.spec.deployment.approval == "automatic"
            else f"; `turnout promote {self.spec.pipeline} {self.version}` puts it to work"
        )
        return Text(f"version {self.version} of {self.spec.pipeline} is ready{waits}", style="green")


async def _declared(env: Environment, name: str) -> PipelineDeclared | None:
    try:
        return await env.pipelines.declared(name)
    except Unknown:
        return None


def _show_difference(before: PipelineDeclared | None, spec: PipelineFile) -> bool:
    if before is None:
        out.print(f"{spec.pipeline} is new", markup=False)
        return True
    if before.spec_id == spec.spec_id:
        out.print(f"{spec.pipeline} is declared as it is in the file", markup=False)
        return False
    out.print(f"{spec.pipeline} changes:", markup=False)
    for text in unified_diff(_yaml(before.spec), _yaml(spec), "declared", "file", lineterm="", n=1):
        style = {"+": "green", "-": "red", "@": "dim"}.get(text[:1], "")
        out.print(Text(f"  {text}", style=style))
    return True


def _yaml(spec: PipelineFile) -> list[str]:
    content = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).splitlines()


async def _publish(env: Environment, spec: PipelineFile, *, declare: bool) -> None:
    now, events = env.now(), list[Event]()
    if declare:
        events.append(
            PipelineDeclared.first(
                source="/cli", at=now, pipeline=spec.pipeline, spec=spec, spec_id=spec.spec_id, by=user()
            )
        )
    if spec.source.uri is not None:
        events.append(
            SourceDataAvailable.first(
                source="/cli", at=now, pipeline=spec.pipeline, uri=spec.source.uri, format=spec.source.format,
                spec_id=spec.spec_id, train=True,
            )
        )  # fmt: skip
    await env.bus.publish(*events)


def _warnings(received: Received) -> list[str]:
    """What an event says that a person ought to look at; the first few."""
    try:
        event = received.event()
    except Invalid:
        return []
    if not isinstance(event, RawDataExtracted | FeaturesGenerated | DataSegregated):
        return []
    messages = [warning.message for warning in event.warnings]
    more = len(messages) - MAX_WARNINGS
    return [*messages[:MAX_WARNINGS], *([f"and {more} more"] if more > 0 else [])]


def user() -> str:
    """Who runs the command, as far as the machine knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
