"""Carry three raw files to a live, watched answer, then break the model and watch the switch back.

make demo            does it and exits
make up              does it and stays up
make demo BUS=kafka  does it with a process for each service, on real servers that it starts
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import make_data
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from slow_graph import slowed

from turnout.common import pipeline
from turnout.common.events import (
    BatchScored,
    CandidateRefused,
    DataSegregated,
    Event,
    FeaturesGenerated,
    ModelDegraded,
    ModelReady,
    ModelTrained,
    PipelineDeclared,
    RawDataExtracted,
    RoutingChanged,
    SourceDataAvailable,
    StageFailed,
)
from turnout.common.ids import content_id
from turnout.common.runtime import logs
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.settings import RuntimeSettings
from turnout.devstack import stack
from turnout.devstack.server import MissingError, StartError

HERE = Path(__file__).parent
SOURCE = "/demo"
SERVICES = ("scoring", "ingestion", "preparation", "segregation", "training", "evaluation", "monitoring")
# One turn of the wasteful loop takes about a microsecond: a second, twenty times the pipeline's limit.
SLOW_TURNS = 1_000_000
SLOW_WHERE = "mean radius"
WATCHED = (
    PipelineDeclared, SourceDataAvailable, RawDataExtracted, FeaturesGenerated, DataSegregated, ModelTrained,
    CandidateRefused, ModelReady, RoutingChanged, ModelDegraded, BatchScored, StageFailed,
)  # fmt: skip
WIDE = 100
INDENT = (0, 0, 0, 3)
E_ = TypeVar("E_", bound=Event)
console = Console()


class DemoError(Exception):
    """Something did not happen; the message says what, and where to look."""


@dataclass
class Seen:
    """Every event of the chain so far, in the order it came."""

    events: list[Event] = field(default_factory=list)
    more: asyncio.Condition = field(default_factory=asyncio.Condition)

    def of(self, kind: type[E_]) -> list[E_]:
        """Those of one kind."""
        return [e for e in self.events if isinstance(e, kind)]

    async def add(self, event: Event) -> None:
        """One more came."""
        async with self.more:
            self.events.append(event)
            self.more.notify_all()

    async def until(self, found: Callable[[], E_ | None], what: str, seconds: float = 60) -> E_:
        """Wait for an event; a failed stage or the clock ends the demo with a message."""
        async with self.more:
            try:
                async with asyncio.timeout(seconds):
                    while (event := found()) is None:
                        if failed := self.of(StageFailed):
                            raise DemoError(f"{failed[0].stage}: {failed[0].error}")
                        await self.more.wait()
            except TimeoutError:
                raise DemoError(f"no {what} within {seconds:.0f} s; see the log") from None
        return event


async def demo(home: Path, port: int, *, kafka: bool, stay: bool) -> None:
    """The whole way; raises `DemoError`."""
    began = time.monotonic()
    file = pipeline.read(HERE / "pipeline.yaml")
    what = "Seven services, a process each" if kafka else "Seven services, one process"
    title("1", what, f"data under {shown(home)}/, log in demo.log there")
    files = make_data.write(HERE / "data")
    async with running(home, port, kafka=kafka) as (at, environment):
        seen = Seen()
        watching = [asyncio.create_task(_watch(environment, kind, seen)) for kind in WATCHED]
        try:
            await _declare(environment, file, files)
            ready = await _follow(seen)
            _candidates(seen, ready)
            async with httpx.AsyncClient(base_url=at["scoring"], timeout=10) as http:
                await _until(f"version {ready.version} to be loaded", lambda: _loaded(http, ready))
                patients = await asyncio.to_thread(_unseen_patients, environment, seen.of(DataSegregated)[-1], ready)
                await _ask(http, file, patients)
                await _break(environment, http, file, patients, seen, ready)
                score = await _outcomes(http, at["monitoring"], file, patients)
            await _account(environment, seen, score)
        finally:
            for task in watching:
                task.cancel()
        console.print(f"\n[bold green]Done[/] in {time.monotonic() - began:.0f} s.")
        _next(at, stay=stay)
        if stay:
            await asyncio.Event().wait()


# --- 1: start -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def running(home: Path, port: int, *, kafka: bool) -> AsyncIterator[tuple[Mapping[str, str], Environment]]:
    """Every service's URL, each ready when this yields and gone afterwards.

    Embedded: `turnout up`, one process. On Kafka: the servers first, then `turnout run SERVICE` for each.
    """
    fresh(home)
    command = [str(Path(sys.executable).with_name("turnout"))]
    variables = {"TURNOUT_SOURCE_ROOTS": json.dumps([str(HERE)])}
    async with contextlib.AsyncExitStack() as cleaning:
        if kafka:
            variables |= await cleaning.enter_async_context(_servers(home))
            os.environ.update(variables)
            at = {name: f"http://127.0.0.1:{port + index}" for index, name in enumerate(SERVICES)}
            starts = [[*command, "run", name, "--port", str(port + i)] for i, name in enumerate(SERVICES)]
        else:
            at = dict.fromkeys(SERVICES, f"http://127.0.0.1:{port}")
            starts = [[*command, "up", "--port", str(port)]]
        log = cleaning.enter_context((home / "demo.log").open("ab"))
        environment = Environment(RuntimeSettings(home=home))
        cleaning.push_async_callback(environment.close)
        processes = [
            await asyncio.create_subprocess_exec(
                *start, "--home", str(home), stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **variables}
            )
            for start in starts
        ]
        cleaning.push_async_callback(_end, processes)
        with console.status("starting …"):
            for url in dict.fromkeys(at.values()):
                await _until_ready(url, processes)
                console.print(f"   [green]ready[/]  {url}" + (f"  {_who(at, url)}" if kafka else ""))
        yield at, environment


@contextlib.asynccontextmanager
async def _servers(home: Path) -> AsyncIterator[Mapping[str, str]]:
    """Kafka, Redis, Cassandra, MLflow and S3; the variables that point at them."""
    names = ("kafka", "redis", "cassandra", "mlflow", "s3")
    started = await asyncio.to_thread(stack.up, home / "stack", names, told=lambda line: console.print(f"   {line}"))
    try:
        yield started.environment()
    finally:
        await asyncio.to_thread(started.down)


async def _end(processes: list[asyncio.subprocess.Process]) -> None:
    for process in processes:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        await process.wait()


def _who(at: Mapping[str, str], url: str) -> str:
    return next(name for name, found in at.items() if found == url)


def fresh(home: Path) -> None:
    """An empty home. One that the demo made is begun anew; anything else is left alone."""
    marker = home / "made-by-demo"
    if home.exists() and any(home.iterdir()):
        if not marker.exists():
            raise DemoError(f"{home} holds somebody's data; name another folder with --home")
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    marker.touch()


async def _until_ready(url: str, processes: list[asyncio.subprocess.Process]) -> None:
    waiting = "it does not answer"
    async with httpx.AsyncClient() as http:
        for _ in range(600):
            if ended := [process for process in processes if process.returncode is not None]:
                raise DemoError(f"a process ended with exit code {ended[0].returncode}; see demo.log")
            with contextlib.suppress(httpx.TransportError):
                reply = await http.get(f"{url}/readyz")
                if reply.status_code == httpx.codes.OK:
                    return
                waiting = reply.text
            await asyncio.sleep(0.1)
    raise DemoError(f"not ready after a minute: {waiting}")


async def _watch(environment: Environment, kind: type[Event], seen: Seen) -> None:
    async for received in environment.bus.follow(kind):
        await seen.add(received.event())


# --- 2 and 3: the chain ---------------------------------------------------------------------------------------------


async def _declare(environment: Environment, file: pipeline.PipelineFile, files: list[Path]) -> None:
    title("2", "Declare the pipeline, announce the data", f"{shown(HERE)}/pipeline.yaml, {len(files)} files")
    console.print(f"   {len(make_data.DIRTY)} rows of {make_data.MONTHS[-1]} are dirty on purpose:")
    dirty = grid()
    for cells, why in make_data.DIRTY:
        what = ", ".join(f"{k} = {v!r}" for k, v in cells.items()) if cells else "three cells"
        dirty.add_row("", what, f"[dim]{why}[/]")
    console.print(dirty)
    now = datetime.now(UTC)
    declared = PipelineDeclared.first(
        source=SOURCE, at=now, pipeline=file.pipeline, spec=file, spec_id=file.spec_id, by="demo"
    )
    announced = SourceDataAvailable.caused_by(
        declared, source=SOURCE, at=now, uri=file.source.uri or "", spec_id=file.spec_id, train=True
    )
    await environment.bus.publish(declared, announced)


async def _follow(seen: Seen) -> ModelReady:
    title("3", "Every event as it passes", "each service reacts to a topic and publishes to the next")

    def routed() -> RoutingChanged | None:
        return next(iter(seen.of(RoutingChanged)), None)

    def complete() -> ModelReady | None:
        ready = next(iter(seen.of(ModelReady)), None)
        told = len(seen.of(CandidateRefused)) + 1
        return ready if ready and routed() and told >= seen.of(ModelTrained)[-1].candidates else None

    # Where nothing can be drawn over (a file, a pipe), the list is printed once, when it is whole.
    live = Live(console=console, refresh_per_second=10) if console.is_terminal else contextlib.nullcontext()
    with live as drawn:
        waiting = asyncio.create_task(seen.until(complete, "champion"))
        while not waiting.done():
            if drawn:
                drawn.update(_passed(seen))
            await asyncio.wait({waiting}, timeout=0.1)
        ready = await waiting
        if drawn:
            drawn.update(_passed(seen))
    if not console.is_terminal:
        console.print(_passed(seen))
    for event in (*seen.of(RawDataExtracted), *seen.of(FeaturesGenerated), *seen.of(DataSegregated)):
        for warning in event.warnings:
            console.print(grid_row("warning", warning.message, style="yellow"))
    return ready


def _passed(seen: Seen) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    began = seen.events[0].time if seen.events else None
    for event in sorted(seen.events, key=lambda e: e.time):
        after = f"{(event.time - began).total_seconds():6.2f} s" if began else ""
        table.add_row(f"[dim]{after}[/]", f"[bold]{type(event).__name__}[/]", describe(event))
    return table


def describe(event: Event) -> str:
    """What an event says, in one line."""
    match event:
        case PipelineDeclared():
            return event.pipeline
        case SourceDataAvailable():
            return shown(Path(event.uri))
        case RawDataExtracted():
            return (
                f"{event.rows_read} rows read = {event.rows_written} written + {event.rows_quarantined} quarantined, "
                f"{len(event.batches)} batches, {len(event.columns)} columns"
            )
        case FeaturesGenerated():
            return f"{event.rows} rows × {len(event.plan.features)} features, {len(event.warnings)} warnings"
        case DataSegregated():
            return " + ".join(f"{part.rows} to {part.name}" for part in event.parts)
        case ModelTrained():
            took = event.failure or f"{event.seconds:.1f} s"
            return f"{event.candidate + 1} of {event.candidates}: {event.algorithm}, {took}"
        case CandidateRefused():
            which = "" if event.candidate is None else f"{event.candidate + 1}: "
            return f"{which}{event.algorithm}, {event.why}"
        case ModelReady():
            return f"version {event.version}: {event.algorithm}"
        case RoutingChanged():
            return f"champion {event.table.champion}, previous {event.table.previous or 'none'}: {event.why}"
        case ModelDegraded():
            return f"version {event.version} by {event.signal}: {event.why}"
        case _:
            return ""


def _candidates(seen: Seen, ready: ModelReady) -> None:
    metrics = list(ready.metrics)
    table = compact("candidate", *metrics, "")
    table.add_row("[dim]base rate, no model[/]", *(_number(ready.base_rate.get(m)) for m in metrics), "")
    refused = {event.candidate: event.metrics for event in seen.of(CandidateRefused)}
    for candidate in sorted(seen.of(ModelTrained), key=lambda event: event.candidate):
        lost = candidate.candidate in refused
        found = refused.get(candidate.candidate, ready.metrics)
        name = f"{candidate.candidate + 1} {candidate.algorithm}"
        style, role = ("", "refused") if lost else ("bold green", "champion")
        table.add_row(name, *(_number(found.get(m)) for m in metrics), role, style=style)
    console.print()
    console.print(Padding(table, INDENT))
    console.print(f"   Why: {ready.why}.")


# --- 4: ask -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patient:
    """Somebody no candidate was trained on."""

    entity: str
    values: dict[str, Any]
    diagnosis: str


def _unseen_patients(environment: Environment, split: DataSegregated, ready: ModelReady) -> list[Patient]:
    (test,) = (part for part in split.parts if part.name == "test")
    rows = environment.lake.read(test.data).to_pylist()
    return [
        Patient(
            str(row["_entity"]),
            {c.name: row.get(f"in:{c.name}", row.get(c.name)) for c in ready.inputs},
            str(row["_label"]),
        )
        for row in rows
    ]


async def _ask(http: httpx.AsyncClient, file: pipeline.PipelineFile, patients: list[Patient]) -> None:
    title("4", "Ask the champion", "two ways to say the same")
    patient = patients[0]
    friendly = await _post(http, f"/pipelines/{file.pipeline}/score", {"rows": [patient.values]})
    console.print(f"   POST /pipelines/{file.pipeline}/score   [dim]really: {patient.diagnosis}[/]")
    _show_json(friendly)
    tensors = [{"name": k, "shape": [1, 1], "datatype": "FP64", "data": [[v]]} for k, v in patient.values.items()]
    infer = await _post(http, f"/v2/models/{file.pipeline}/infer", {"id": "demo-1", "inputs": tensors})
    console.print(f"   POST /v2/models/{file.pipeline}/infer   [dim]Open Inference Protocol[/]")
    _show_json(infer)


# --- 5: break -----------------------------------------------------------------------------------------------------


async def _break(
    environment: Environment,
    http: httpx.AsyncClient,
    file: pipeline.PipelineFile,
    patients: list[Patient],
    seen: Seen,
    champion: ModelReady,
) -> None:
    title(
        "5",
        "Deploy a version that is slow on purpose",
        f"about 1 s an answer; the limit is {file.scoring.slo_ms:.0f} ms",
    )
    slow = await _publish_slow(environment, champion)
    await seen.until(lambda: _routed_to(seen, slow.version), f"switch to version {slow.version}")
    await _until(f"version {slow.version} to be loaded", lambda: _loaded(http, slow))
    console.print(f"   version {slow.version} was fast on the sample it was admitted with; now it is the champion")
    console.print(
        f"   [dim]deadline: version {slow.version} was asked and late · circuit: it is not asked for a while[/]"
    )

    def degraded() -> ModelDegraded | None:
        return next((e for e in seen.of(ModelDegraded) if e.version == slow.version), None)

    answers: list[tuple[float, dict[str, Any]]] = []
    number = 0
    while (found := degraded()) is None and number < 1000:
        patient = patients[number % len(patients)]
        number += 1
        started = time.perf_counter()
        (answer,) = (await _post(http, f"/pipelines/{file.pipeline}/score", {"rows": [patient.values]}))["rows"]
        answers.append(((time.perf_counter() - started) * 1000, answer))
        if number in (1, 2, 3) or number % 25 == 0:
            _say(number, *answers[-1])
        await asyncio.sleep(0.02)
    found = found or await seen.until(degraded, "ModelDegraded")
    back = await seen.until(lambda: _routed_to(seen, champion.version, after=slow.version), "switch back")
    console.print(grid_row("ModelDegraded", f"version {found.version}: {found.why}", style="bold red"))
    console.print(grid_row("RoutingChanged", f"champion {back.table.champion} again", style="bold green"))
    slowest = max(milliseconds for milliseconds, _ in answers)
    console.print(f"   {len(answers)} requests meanwhile, all answered; the slowest took {slowest:.0f} ms")


async def _publish_slow(environment: Environment, champion: ModelReady) -> ModelReady:
    graph = await asyncio.to_thread(environment.lake.get_model, champion.file)
    content = slowed(graph, SLOW_WHERE, SLOW_TURNS)
    stored = await asyncio.to_thread(environment.lake.put_model, champion.pipeline, content)
    version = await asyncio.to_thread(
        environment.registry.register,
        champion.pipeline,
        content_id("demo", stored.sha256),
        stored,
        tracking_id=None,
        tags={"why": "slow on purpose"},
    )
    # The sample says nothing of the column, so the loop does not turn while the version is tried.
    sample = tuple({k: v for k, v in row.items() if k != SLOW_WHERE} for row in champion.sample)
    ready = champion.model_copy(
        update={
            "id": content_id("ready", stored.sha256), "time": datetime.now(UTC), "version": version.version,
            "file": stored, "sample": sample, "why": "slow on purpose", "causation_id": champion.id,
        }
    )  # fmt: skip
    await environment.bus.publish(ready)
    return ready


def _routed_to(seen: Seen, version: str, after: str | None = None) -> RoutingChanged | None:
    changes = seen.of(RoutingChanged)
    start = next((i for i, e in enumerate(changes) if e.table.champion == after), -1) if after else -1
    return next((e for e in changes[start + 1 :] if e.table.champion == version), None)


def _say(number: int, milliseconds: float, answer: dict[str, Any]) -> None:
    why = f" ({answer['reason']})" if answer.get("reason") else ""
    console.print(
        f"   request {number:3d}: {answer['value']} in {milliseconds:5.1f} ms "
        f"from version {answer['version']}, {answer['served_by']}{why}"
    )


# --- 6: outcomes --------------------------------------------------------------------------------------------------


async def _outcomes(
    http: httpx.AsyncClient, monitoring: str, file: pipeline.PipelineFile, patients: list[Patient]
) -> str:
    title("6", "What really happened", "outcomes join scores by id")
    body = {"rows": [p.values for p in patients]}
    answers = await _by_champion(http, f"/pipelines/{file.pipeline}/score", body)
    now = datetime.now(UTC).isoformat()
    await _post(
        http,
        "/outcomes",
        [
            {"score_id": a["score_id"], "outcome": p.diagnosis, "time": now}
            for a, p in zip(answers, patients, strict=True)
        ],
    )
    path = f"{monitoring}/services/monitoring/pipelines/{file.pipeline}"
    report: dict[str, Any] = {}

    async def joined() -> bool:
        report.update((await http.get(path)).raise_for_status().json())
        return report["outcomes"] >= len(patients)

    await _until("outcomes to be joined", joined)
    _quality(report)
    return str(answers[0]["score_id"])


async def _by_champion(http: httpx.AsyncClient, path: str, body: object) -> list[dict[str, Any]]:
    """Answers of the champion itself: on a busy machine it may be late, and another answers in its place."""
    for _ in range(50):
        answers: list[dict[str, Any]] = (await _post(http, path, body))["rows"]
        if all(answer["served_by"] == "champion" for answer in answers):
            return answers
        await asyncio.sleep(0.1)
    raise DemoError("the champion was late fifty times in a row; is this machine busy?")


def _quality(report: dict[str, Any]) -> None:
    console.print(f"   GET /services/monitoring/pipelines/{report['pipeline']}")
    table = compact("version", "role", "served", "late", "min ms", "mean", "p50", "p99", "max")
    for version in report["versions"]:
        times = (_number(version["milliseconds"][k], 1) for k in ("minimum", "mean", "p50", "p99", "maximum"))
        table.add_row(version["version"], version["role"], str(version["served"]), str(version["late"]), *times)
    console.print(Padding(table, INDENT))
    (champion,) = (v["quality"] for v in report["versions"] if v["role"] == "champion")
    confusion = champion["confusion"]
    table = compact("", *(f"predicted {name}" for name in confusion["predicted"]))
    for name, counts in zip(confusion["actual"], confusion["counts"], strict=True):
        table.add_row(f"really {name}", *map(str, counts))
    console.print(Padding(table, INDENT))
    console.print(
        f"   {champion['metric']} {champion['live']:.3f} over {champion['outcomes']} outcomes "
        f"(95 % between {champion['low']:.3f} and {champion['high']:.3f}); promised was {champion['promised']:.3f}"
    )


# --- 7: account -----------------------------------------------------------------------------------------------------


async def _account(environment: Environment, seen: Seen, score: str) -> None:
    title("7", "Where did one score come from?", "from the answer back to the bytes of the files")
    command = [str(Path(sys.executable).with_name("turnout")), "lineage", score, "--home", str(environment.home)]
    if await (await asyncio.create_subprocess_exec(*command)).wait():
        raise DemoError("lineage of a score that was answered was not found")
    _add_up(seen)


def _add_up(seen: Seen) -> None:
    extracted, features, split = (
        seen.of(kind)[-1] for kind in (RawDataExtracted, FeaturesGenerated, DataSegregated)
    )  # fmt: skip
    parts = {part.name: part.rows for part in split.parts}
    sums = (
        ("read", extracted.rows_read, {"written": extracted.rows_written, "quarantined": extracted.rows_quarantined}),
        ("written", extracted.rows_written, {"with a label": features.rows, "without": features.rows_unlabelled}),
        ("with a label", features.rows, {f"to {name}": rows for name, rows in parts.items()}),
    )
    for name, total, terms in sums:
        if total != sum(terms.values()):
            raise DemoError(f"rows {name}: {total} is not the sum of {terms}")
        console.print(f"   {total} rows {name} = " + " + ".join(f"{rows} {term}" for term, rows in terms.items()))


def _next(at: Mapping[str, str], *, stay: bool) -> None:
    console.print("What to try next:")
    if not stay:
        console.print("   make up                                   the same, and it stays up")
    console.print("   .venv/bin/turnout init my.csv --label y   a pipeline file for your own data")
    console.print("   .venv/bin/turnout apply my.yaml           … and its first version")
    console.print("   .venv/bin/turnout events --follow         every event as it passes")
    console.print(f"   {at['scoring']}/docs   {at['monitoring']}/services/monitoring/")


async def _post(http: httpx.AsyncClient, path: str, body: object) -> dict[str, Any]:
    reply = await http.post(path, json=body)
    if reply.is_error:
        raise DemoError(f"POST {path}: {reply.status_code} {reply.text}")
    return reply.json()


async def _until(what: str, done: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not await done():
        if time.monotonic() > until:
            raise DemoError(f"waited {seconds:.0f} s for {what}")
        await asyncio.sleep(0.1)


async def _loaded(http: httpx.AsyncClient, ready: ModelReady) -> bool:
    reply = await http.get(f"/v2/models/{ready.pipeline}/versions/{ready.version}/ready")
    return reply.status_code == httpx.codes.OK


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def compact(first: str, *columns: str) -> Table:
    """A table without borders that fits on a terminal of 80 columns."""
    table = Table(box=None, padding=(0, 2 if console.width >= WIDE else 1, 0, 0), header_style="dim")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right" if column else "left")
    return table


def title(number: str, what: str, more: str) -> None:
    """A step begins."""
    console.print(f"\n[bold]{number}  {what}[/]\n   [dim]{more}[/]")


def grid() -> Table:
    """Columns without lines or headers, so that a long text stays in its own."""
    return Table(box=None, show_header=False, padding=(0, 2, 0, 1))


def grid_row(name: str, text: str, *, style: str) -> Table:
    """A name and what is to be said of it."""
    table = grid()
    table.add_row("", f"[{style}]{name:<14}[/]", text)
    return table


def _show_json(data: object) -> None:
    """Indented, with lists of plain values on one line."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    console.print(Padding(JSONHighlighter()(Text(text)), INDENT))


def shown(path: Path) -> str:
    """A path as a person in this folder would type it."""
    with contextlib.suppress(ValueError):
        return str(path.resolve().relative_to(Path.cwd()))
    return str(path)


def main() -> int:
    """Run the demo; 0 if everything that it shows happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".turnout"))
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--stay", action="store_true")
    parser.add_argument("--bus", choices=("embedded", "kafka"), default="embedded")
    given = parser.parse_args()
    # As the services', but warnings alone: that this process makes topics is no news to who watches.
    logs.configure("warning")
    try:
        asyncio.run(demo(given.home, given.port, kafka=given.bus == "kafka", stay=given.stay))
    except (DemoError, MissingError, StartError) as failure:
        console.print(f"[bold red]The demo stopped:[/] {failure}")
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
