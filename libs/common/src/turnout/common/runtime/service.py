"""What a service is: reactions, routes of its own, and what it waits for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fastapi import FastAPI

from turnout.common.bus.port import Topic
from turnout.common.events import Event

# A batch of events in, events out. It returns what it produced; the runtime publishes it and moves the offset.
Handle = Callable[[Sequence[Event]], Awaitable[Sequence[Event]]]


@dataclass(frozen=True)
class Reaction:
    """One async function and the topics it reacts to.

    A short reaction gets what a poll brought, several events at once. A `long` one (reads a file, trains a model)
    gets one event as a job: the offset moves when the job is recorded, jobs run `parallel` at a time, those with
    one key in order. The consumer group and the job queue are both named `SERVICE.NAME`.

    What a reaction raises: `Invalid` sends the event to the dead letters (and, for a `long` one, a `StageFailed`
    tells the pipeline); `Unavailable` is tried again with backoff; anything else is a bug, logged, tried three times
    and then dead-lettered too.
    """

    name: str
    topics: Sequence[Topic]
    handle: Handle
    long: bool = False
    parallel: int = 1


@dataclass
class Service:
    """A list of reactions and a small web application.

    `app` holds the service's own routes; the runtime adds `/livez`, `/readyz` and `/metrics`. `background` are
    coroutines that run as long as the service (a relay, a tick). `follows` names the topics that it reads beside its
    reactions, from their first record and without a group: its views, for the documents. `waiting_for` says what the
    service is not ready for; empty means ready. `close` is awaited at the end.
    """

    name: str
    reactions: Sequence[Reaction] = ()
    app: FastAPI = field(default_factory=FastAPI)
    background: Sequence[Callable[[], Awaitable[None]]] = ()
    follows: Sequence[Topic] = ()
    waiting_for: Callable[[], Sequence[str]] = tuple
    close: Callable[[], Awaitable[None]] | None = None


Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The clock of production."""
    return datetime.now(UTC)
