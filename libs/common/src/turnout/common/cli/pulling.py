"""`turnout pull PIPELINE`: take what lies on a pipeline's topic now, and watch until it is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from datetime import datetime, timedelta
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from turnout.common.cli.console import Home, environment, errors, out, run
from turnout.common.cli.declaring import user
from turnout.common.cli.following import followed
from turnout.common.errors import Invalid
from turnout.common.events import Event, StageFailed, TopicPullAdvanced, TopicPulled, TopicPullRequested
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.home import address

TOLD = (TopicPullAdvanced, TopicPulled, StageFailed)


def pull(
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    home: Home = None,
    wait: Annotated[bool, typer.Option(help="Show progress until everything is taken.")] = True,
) -> None:
    """Take the messages that lie on a pipeline's topic now; a job that survives the death of its process."""

    async def work() -> int:
        async with environment(home) as env:
            file = (await env.pipelines.declared(pipeline)).spec
            if file.source.topic is None:
                raise Invalid("PIPELINE", f"'{pipeline}' takes no topic", fix="name one as source.topic in its file")
            standing = await env.bus.standing(file.source.topic, f"ingestion.topic.{pipeline}")
            began = env.now()
            request = TopicPullRequested.first(
                source="/cli", at=began, pipeline=pipeline, by=user(),
                ends={partition: at.end for partition, at in standing.items()},
            )  # fmt: skip
            await env.bus.publish(request)
            if not wait:
                out.print(request.id, markup=False)
                return 0
            if env.settings.bus == "embedded" and await asyncio.to_thread(address, env.home) is None:
                errors.print(f"nothing runs on {env.home}: the work waits there for `turnout up`", markup=False)
                return 0
            # The bus may keep another clock; what is told of the request names it.
            since = began - timedelta(minutes=5)
            return await _watch(env, request, {partition: at.next for partition, at in standing.items()}, since)

    if code := run(work):
        raise typer.Exit(code)


async def _watch(env: Environment, request: TopicPullRequested, begin: Mapping[int, int], since: datetime) -> int:
    """Show how far it is until it has ended; the exit code."""
    ends = request.ends or {}
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=errors,
        transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(request.pipeline, total=sum(end - begin[n] for n, end in ends.items()))
        reached: dict[int, int] = {}
        async with aclosing(_told(env, request, since)) as events:
            async for event in events:
                match event:
                    case TopicPullAdvanced():
                        reached[event.part.partition] = event.part.last + 1 - begin.get(event.part.partition, 0)
                        bar.update(task, completed=sum(reached.values()))
                    case TopicPulled():
                        bar.stop()
                        out.print(_line(event), markup=False)
                        return 0
                    case StageFailed():
                        bar.stop()
                        errors.print(event.error, style="red", markup=False)
                        return 2
                    case _:
                        pass
    raise AssertionError("the bus was followed to its end")


def _line(pulled: TopicPulled) -> str:
    """What a pull took, for people."""
    words = [f"{pulled.taken} taken from {pulled.source_topic} in {pulled.seconds:.1f} s"]
    if pulled.refused:
        words.append(f"{pulled.refused} refused (see `turnout events`, or `turnout replay {pulled.source_topic}`)")
    words += [f"partition {part.partition}: {part.first} to {part.last}" for part in pulled.parts]
    return "\n".join(words)


async def _told(env: Environment, request: TopicPullRequested, since: datetime) -> AsyncGenerator[Event]:
    """What is said of the request from now on."""
    async with aclosing(followed(env.bus, [kind.topic() for kind in TOLD], since)) as records:
        async for received in records:
            if ("ce_causationid", request.id.encode()) in received.record.headers:
                with suppress(Invalid):  # anybody can write anything
                    yield received.event()
