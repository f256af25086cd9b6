"""Run services in this process: their reactions, jobs, background work and routes, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import structlog
import uvicorn

from turnout.common import telemetry
from turnout.common.errors import Invalid, Unavailable
from turnout.common.executor.processes import ProcessExecutor
from turnout.common.runtime.connections import MAX_CONNECTIONS, allow_connections
from turnout.common.runtime.consuming import Consumer
from turnout.common.runtime.direct import protocol
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.handling import Handling, pause
from turnout.common.runtime.health import Health, Progress, Watchdog
from turnout.common.runtime.service import Reaction, Service
from turnout.common.runtime.web import at_root, lifespans, site
from turnout.common.runtime.working import Backlog, Recorder, Worker

log = structlog.get_logger()

# How soon a reaction that comes or goes is noticed.
PASSING_SECONDS = 0.5
# Of the ten seconds that a supervisor waits after SIGTERM.
GRACE_SECONDS = 5.0
# By then the process is gone whatever a thread in it still waits for: a call to a server cannot be cancelled.
LAST_SECONDS = 9.0
# How long a thread keeps the interpreter's lock while the event loop waits for it: five milliseconds, as Python has it,
# are most of what an answer may take.
SWITCH_SECONDS = 0.001
MAINTENANCE_SECONDS = 3600.0
# Not in the busy first moments, but also where a process lives only minutes.
FIRST_MAINTENANCE_SECONDS = 60.0
LEFTOVERS = timedelta(days=1)
ROOT = "scoring"
BACKGROUND = "background"


@dataclass(frozen=True)
class Passing:
    """A reaction that came, and may go."""

    service: Service
    reaction: Reaction
    loops: Sequence[Consumer | Worker]
    tasks: Sequence[asyncio.Task[None]]


@dataclass
class Running:
    """The tasks of services that run; made by `start`."""

    environment: Environment
    services: dict[str, Service]
    health: dict[str, Health]
    progress: Progress
    loops: list[Consumer | Worker] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    passing: dict[str, Passing] = field(default_factory=dict)

    async def measure(self) -> None:
        """Set the gauges that say what is left to do."""
        bus, jobs = self.environment.bus, self.environment.jobs
        for service in self.services.values():
            for reaction in (*service.reactions, *(p.reaction for p in self.passing.values() if p.service is service)):
                group = f"{service.name}.{reaction.name}"
                with contextlib.suppress(Unavailable):
                    for topic, behind in (await bus.lag(group)).items():
                        telemetry.CONSUMER_LAG.labels(topic, group).set(behind)
                    if reaction.long:
                        telemetry.JOBS_WAITING.labels(group).set(await jobs.waiting(group))

    async def stop(self) -> None:
        """`halt`, then `close`."""
        await self.halt()
        await self.close()

    async def halt(self) -> None:
        """Take nothing more, let what is being handled end within the grace, give the rest back."""
        for loop in self.loops:
            loop.stop()
        for task in self.tasks:
            if task.get_name() == BACKGROUND:
                task.cancel()
        if self.tasks:
            _, left = await asyncio.wait(self.tasks, timeout=GRACE_SECONDS)
            for task in left:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)

    async def close(self) -> None:
        """Close what the services hold."""
        for service in self.services.values():
            if service.close is not None:
                await service.close()


def start(environment: Environment, services: Sequence[Service], *, patience: float | None = None) -> Running:
    """Start the reactions, jobs and background work of `services` on the running loop."""
    running = Running(
        environment,
        {s.name: s for s in services},
        {},
        Progress(environment.settings.patience_seconds if patience is None else patience),
    )
    views = (
        ("the pipelines to be read", lambda: environment.pipelines.ready),
        ("the routing tables to be read", lambda: environment.routes.ready),
    )
    for service in services:
        health = running.health[service.name] = Health(service, views)
        for reaction in service.reactions:
            _start_reaction(running, service, reaction, health)
        _background(running, f"{service.name} passing", lambda s=service, h=health: _come_and_go(running, s, h), health)
        for work in service.background:
            _background(running, f"{service.name} {getattr(work, '__name__', 'background')}", work, health)
    for name, follow in (("pipelines", environment.pipelines.follow), ("routes", environment.routes.follow)):
        for health in running.health.values():
            _background(running, name, follow, health)
            break
    for health in running.health.values():
        _background(running, "topics", environment.bus.ensure_topics, health)
        break
    _background(running, "build", lambda: asyncio.to_thread(telemetry.describe_build), None)
    _background(running, "maintenance", lambda: _maintain(environment), None)
    return running


async def serve(
    environment: Environment,
    services: Sequence[Service],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    patience: float | None = None,
    watchdog: bool = True,
    stop: asyncio.Event | None = None,
    started: Callable[[str], Awaitable[None]] | None = None,
) -> None:
    """Run `services` behind one port until SIGTERM, SIGINT or `stop`; `started` gets the URL once it answers.

    Port 0 takes a free one. Raises `Invalid` if the port is taken.
    """
    stop = stop or asyncio.Event()
    allow_connections()
    sys.setswitchinterval(SWITCH_SECONDS)
    with _listening(host, port) as listener, _signals(stop):
        running = start(environment, services, patience=patience)
        guard = Watchdog(running.progress)
        if watchdog:
            guard.start()
            _background(running, "loop", lambda: _beat(running.progress), None)
            _background(running, "polls", lambda: _watch_polls(running), None)
        try:
            async with lifespans(running.services):
                url = f"http://{host}:{listener.getsockname()[1]}"
                await _answer(running, listener, stop, lambda: _started(running, url, started))
        finally:
            guard.stop()
            await running.stop()


def web_server(running: Running) -> uvicorn.Server:
    """The web server of the services that run."""
    root = at_root(running.services, ROOT)
    config = uvicorn.Config(
        site(running.services, running.health, ROOT, running.measure),
        http=protocol(root.direct if root else None), ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=int(GRACE_SECONDS), timeout_keep_alive=10,
        limit_concurrency=MAX_CONNECTIONS,
    )  # fmt: skip
    return _Server(config)


async def _answer(
    running: Running, listener: socket.socket, stop: asyncio.Event, started: Callable[[], Awaitable[None]]
) -> None:
    """Run the web server until `stop`; meanwhile and afterwards nobody else's work is lost."""
    server = web_server(running)
    web = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    try:
        while not server.started and not web.done():  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0.005)
        await started()
        await asyncio.wait({web, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        server.should_exit = True
        await asyncio.gather(web, running.halt())


async def _started(running: Running, url: str, then: Callable[[str], Awaitable[None]] | None) -> None:
    for health in running.health.values():
        health.started = True
    executor = running.environment.executor
    if isinstance(executor, ProcessExecutor):  # the first piece of CPU work shall not wait for its workers to start
        _background(running, "executor", lambda: asyncio.to_thread(executor.warm), None)
    log.info("serving", url=url, services=sorted(running.services))
    if then is not None:
        await then(url)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals are `serve`'s: the web server is only one of the things to stop."""
        yield


@contextlib.contextmanager
def _listening(host: str, port: int) -> Generator[socket.socket]:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Invalid("port", f"cannot listen at {host}:{port} ({error.strerror})", fix="take another --port") from None
    try:
        yield listener
    finally:
        listener.close()


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Generator[None]:
    loop = asyncio.get_running_loop()
    names = (signal.SIGTERM, signal.SIGINT)

    def told() -> None:
        if not stop.is_set():
            stop.set()
            last = threading.Timer(LAST_SECONDS, _leave)
            last.daemon = True
            last.start()

    try:
        for name in names:
            loop.add_signal_handler(name, told)
    except (RuntimeError, ValueError, NotImplementedError):  # not the main thread: somebody else stops us
        yield
        return
    try:
        yield
    finally:
        for name in names:
            loop.remove_signal_handler(name)


def _leave() -> None:
    """End here and now. What a thread had begun is done again by whoever takes it over, as after a kill."""
    log.warning("the process ends although something in it goes on", after=LAST_SECONDS)
    os._exit(0)


def _start_reaction(running: Running, service: Service, reaction: Reaction, health: Health) -> Passing:
    environment, bus = running.environment, running.environment.bus
    handling = Handling(service.name, reaction, health, running.progress, environment.now)
    loops: list[Consumer | Worker] = [Consumer(reaction.source or bus, handling)]
    if reaction.long:
        backlog = Backlog(environment.jobs)
        loops = [Recorder(bus, handling, backlog), Worker(bus, handling, backlog)]
    tasks = [asyncio.create_task(_kept_alive(handling.group, loop.run, health), name="reaction") for loop in loops]
    running.loops += loops
    running.tasks += tasks
    return Passing(service, reaction, loops, tasks)


async def _come_and_go(running: Running, service: Service, health: Health) -> None:
    """Start what `service.passing` names anew, end what it names no more."""
    while True:
        wanted = {f"{service.name}.{reaction.name}": reaction for reaction in service.passing()}
        for group, there in list(running.passing.items()):
            if there.service is service and wanted.get(group) != there.reaction:
                await _end(running, running.passing.pop(group))
                health.well(group)
                log.info("a reaction went", reaction=group)
        for group, reaction in wanted.items():
            if group not in running.passing:
                running.passing[group] = _start_reaction(running, service, reaction, health)
                log.info("a reaction came", reaction=group)
        await asyncio.sleep(PASSING_SECONDS)


async def _end(running: Running, passing: Passing) -> None:
    for loop in passing.loops:
        loop.stop()
    _, left = await asyncio.wait(passing.tasks, timeout=GRACE_SECONDS)
    for task in left:
        task.cancel()
    await asyncio.gather(*passing.tasks, return_exceptions=True)
    running.loops = [loop for loop in running.loops if loop not in passing.loops]
    running.tasks = [task for task in running.tasks if task not in passing.tasks]


def _background(running: Running, name: str, work: Callable[[], Awaitable[None]], health: Health | None) -> None:
    running.tasks.append(asyncio.create_task(_kept_alive(name, work, health), name=BACKGROUND))


async def _kept_alive(name: str, work: Callable[[], Awaitable[None]], health: Health | None) -> None:
    """Start `work` again when it fails: with a warning if something was not available, loudly if it is a bug."""
    failures = 0
    while True:
        try:
            await work()
        except Exception as error:
            failures += 1
            if _only_unavailable(error):
                log.warning("not available, trying again", what=name, error=str(error))
            else:
                log.exception("a loop failed, it starts again", what=name)
            if health is not None:
                health.trouble(name, str(error))
            await asyncio.sleep(pause(failures))
            if health is not None:
                health.well(name)
        else:
            return


def _only_unavailable(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_only_unavailable(e) for e in error.exceptions)
    return isinstance(error, Unavailable)


async def _beat(progress: Progress) -> None:
    """The event loop's own sign of life."""
    while True:
        progress.beat("event loop")
        await asyncio.sleep(1)


async def _watch_polls(running: Running) -> None:
    """A consumer that looks for nothing, while the bus can be reached, is stuck: aiokafka and faust know how."""
    bus, polled = running.environment.bus, dict[str, float | None]()
    while True:
        consumers = [loop for loop in running.loops if isinstance(loop, Consumer)]
        polled = dict.fromkeys(polled.keys() | {loop.group for loop in consumers})
        with contextlib.suppress(Unavailable):
            if consumers:
                await bus.lag(consumers[0].group)
                polled |= {loop.group: loop.polled for loop in consumers}
        for group, at in polled.items():
            if at is None:
                running.progress.rest(f"{group} polls")
            else:
                running.progress.beat(f"{group} polls", at)
        await asyncio.sleep(running.progress.patience / 8)


async def _maintain(environment: Environment) -> None:
    """Remove what is past its retention, a minute after the start and every hour."""
    await asyncio.sleep(FIRST_MAINTENANCE_SECONDS)
    while True:
        now = environment.now()
        gone = {"records": await environment.bus.purge(now), "jobs": await environment.jobs.purge(now)}
        if "lake" in environment.__dict__:
            gone["files"] = await asyncio.to_thread(environment.lake.sweep, now - LEFTOVERS)
        log.info("removed what is past its retention", **gone)
        await asyncio.sleep(MAINTENANCE_SECONDS)
