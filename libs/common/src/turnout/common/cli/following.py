"""`turnout publish`, `turnout events`, `turnout replay`: the bus by hand."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Annotated

import orjson
import typer
from pydantic import ValidationError
from rich.text import Text

from turnout.common.bus.cloudevents import DEAD, event_class, parse_json
from turnout.common.bus.port import Bus, Received
from turnout.common.cli.console import Home, Key, environment, errors, out, run
from turnout.common.cli.describe import described
from turnout.common.errors import Invalid, Unknown
from turnout.common.events import ATTRIBUTES, REGISTRY
from turnout.common.history.port import Audit
from turnout.common.ids import new_event_id
from turnout.common.pipeline import in_words
from turnout.common.runtime.dead_letters import replay_dead_letters
from turnout.common.runtime.home import address

_BAD = ("StageFailed", "ModelDegraded", "VersionEjected", "CandidateRefused")
_GOOD = ("ModelReady", "RoutingChanged")


def publish(
    topic: Annotated[str, typer.Argument(help="Name of the event, for example SourceDataAvailable.")],
    fields: Annotated[str, typer.Argument(metavar="JSON", help="Its fields as a JSON object.")],
    home: Home = None,
) -> None:
    """Publish an event and print its id."""

    async def work() -> None:
        kind = REGISTRY.get(topic)
        if kind is None:
            raise Unknown.name("TOPIC", "event", topic, REGISTRY)
        given = parse_json(fields.encode())
        if not isinstance(given, dict):
            raise Invalid("JSON", "it is not an object", fix='for example {"pipeline": "heart-disease"}')
        ident = given.get("id") or new_event_id()
        attributes = {"id": ident, "source": "/cli", "time": datetime.now(UTC), "correlation_id": ident}
        own = {name: value for name, value in given.items() if name not in ATTRIBUTES or name == "id"}
        known = {info.alias or name for name, info in kind.model_fields.items()} - ATTRIBUTES
        for name in own:
            if name not in known and name != "id":
                raise Unknown.name(name, f"field of {topic}", name, known)
        try:
            event = kind.model_validate(own | attributes)
        except ValidationError as error:
            raise in_words(error, kind) from None
        async with environment(home) as env:
            await env.bus.publish(event)
            if address(env.home) is None:
                errors.print(f"nothing runs on {env.home}: the event waits there for `turnout up`", markup=False)
        out.print(event.id, markup=False)

    run(work)


def events(
    home: Home = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    topic: Annotated[list[str] | None, typer.Option(help="Only this event; may be given several times.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="Only this pipeline.")] = None,
    last: Annotated[int, typer.Option(help="How many of the newest to show.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show what passes on the bus, dead letters included."""

    async def work() -> None:
        topics = _topics(topic)
        async with environment(home) as env:
            shown: deque[Received] = deque(maxlen=last)
            began = datetime.now(UTC)
            for name in topics:
                async for received in env.bus.replay(name):
                    if pipeline is None or described(received)[0] == pipeline:
                        shown.append(received)
                shown = deque(sorted(shown, key=lambda r: r.timestamp), maxlen=last)
            for received in shown:
                _show(received, json=json)
            if not follow:
                return
            seen = {(r.record.topic, r.partition, r.offset) for r in shown}
            async with aclosing(followed(env.bus, topics, began)) as records:
                async for received in records:
                    place = (received.record.topic, received.partition, received.offset)
                    if place not in seen and (pipeline is None or described(received)[0] == pipeline):
                        _show(received, json=json)

    with suppress(asyncio.CancelledError):
        run(work)


def replay(
    topic: Annotated[str, typer.Argument(help="The topic whose dead letters go back to it.")],
    home: Home = None,
    key: Key = None,
) -> None:
    """Send a topic's dead letters back, each once: the same event, its attempt one higher."""

    async def work() -> None:
        name = topic.removesuffix(DEAD)
        async with environment(home) as env:
            if event_class(name) is None:
                theirs = {file.source.topic for file in await env.pipelines.newest()} - {None}
                if name not in theirs:
                    raise Unknown.name("TOPIC", "topic", topic, theirs | REGISTRY.keys())
            who = await asyncio.to_thread(env.keys.check, key, "admin")
            sent = await replay_dead_letters(env.bus, name)
            if sent:
                entry = Audit(
                    id=new_event_id(), at=env.now(), pipeline="*", who=who, action="replayed", subject=name,
                    why="asked for on the command line", detail={"letters": sent},
                )  # fmt: skip
                await env.history.add_audit(entry)
        out.print(
            f"{sent} sent back to {name}" if sent else f"no dead letters of {name} are left to send", markup=False
        )

    run(work)


# Topics are read side by side; what comes within this time is put in order.
TOGETHER_SECONDS = 0.1


async def followed(bus: Bus, topics: Sequence[str], since: datetime) -> AsyncGenerator[Received]:
    """What comes on several topics from `since` on, in the order of its coming."""
    found: asyncio.Queue[Received | BaseException] = asyncio.Queue(1_000)

    async def one(name: str) -> None:
        try:
            async with aclosing(bus.follow(name)) as records:
                async for received in records:
                    if received.timestamp >= since:
                        await found.put(received)
        except Exception as error:  # noqa: BLE001 (whoever iterates must hear of it)
            await found.put(error)

    tasks = [asyncio.create_task(one(name)) for name in topics]
    try:
        while True:
            for received in await _together(found):
                yield received
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _together(found: asyncio.Queue[Received | BaseException]) -> list[Received]:
    """What comes next and shortly after it, in order; raises what went wrong."""
    items = [await found.get()]
    await asyncio.sleep(TOGETHER_SECONDS)
    while not found.empty():
        items.append(found.get_nowait())
    for item in items:
        if isinstance(item, BaseException):
            raise item
    return sorted((item for item in items if isinstance(item, Received)), key=lambda received: received.timestamp)


def line(received: Received) -> Text:
    """A record as one line for people."""
    name = received.record.topic
    pipeline, words = described(received)
    style = "red" if name.endswith(DEAD) or name in _BAD else "green" if name in _GOOD else "cyan"
    moment = received.timestamp.astimezone().strftime("%H:%M:%S")
    return Text.assemble((moment, "dim"), "  ", (f"{name:<22}", style), " ", (pipeline, "bold"), "  ", words)


def _topics(asked: Sequence[str] | None) -> list[str]:
    if not asked:
        return [name + suffix for name in sorted(REGISTRY) for suffix in ("", DEAD)]
    for name in asked:
        if event_class(name) is None:
            raise Unknown.name("--topic", "event", name, REGISTRY)
    return list(asked)


def _show(received: Received, *, json: bool) -> None:
    if not json:
        out.print(line(received))
        return
    record = received.record
    content = {
        "topic": record.topic, "partition": received.partition, "offset": received.offset,
        "timestamp": received.timestamp,
        "headers": {name: value.decode(errors="replace") for name, value in record.headers},
        "key": None if record.key is None else record.key.decode(errors="replace"),
        "value": None if record.value is None else record.value.decode(errors="replace"),
    }  # fmt: skip
    out.print(orjson.dumps(content).decode(), markup=False)
