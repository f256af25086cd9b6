"""What a service is: reactions, routes of its own, and what it waits for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fastapi import FastAPI

from turnout.common.bus.port import Received, Record, Source, Topic
from turnout.common.errors import Invalid
from turnout.common.events import Event
from turnout.common.runtime.direct import Direct


@dataclass(frozen=True)
class Refused:
    """Said of one event of a batch by a reaction that goes on with the others: it belongs to the dead letters."""

    event: Event
    error: Invalid


# A batch of events in, events out (a record is one for somebody else's topic). It returns what it produced; the
# runtime publishes it and moves the offset.
Handle = Callable[[Sequence[Event]], Awaitable[Sequence[Event | Record | Refused]]]


@dataclass(frozen=True)
class Reaction:
    """One async function and the topics it reacts to.

    A short reaction gets what a poll brought, several events at once. A `long` one (reads a file, trains a model)
    gets one event as a job: the offset moves when the job is recorded, jobs run `parallel` at a time, those with
    one key in order. The consumer group and the job queue are both named `SERVICE.NAME`.

    What a reaction raises: `Invalid` sends the event to the dead letters (and, for a `long` one, a `StageFailed`
    tells the pipeline); `Unavailable` is tried again with backoff; anything else is a bug, logged, tried three times
    and then dead-lettered too.

    `read` makes the event of a record, or raises `Invalid`; None passes over what the reaction has nothing to do with.
    `source` delivers to a short reaction instead of the bus, for one whose state moves with its partitions.
    """

    name: str
    topics: Sequence[Topic]
    handle: Handle
    long: bool = False
    parallel: int = 1
    read: Callable[[Received], Event | None] = Received.event
    source: Source | None = None


@dataclass
class Service:
    """A list of reactions and a small web application.

    `app` holds the service's own routes; the runtime adds `/livez`, `/readyz` and `/metrics`. `background` are
    coroutines that run as long as the service (a relay, a tick). `follows` names the topics that it reads beside its
    reactions, from their first record and without a group: its views, for the documents. `passing` names the short
    reactions that come and go (a topic that a pipeline names is one): asked again and again, it gives those that shall
    run now, and one that is equal to the one before goes on. `waiting_for` says what the
    service is not ready for; empty means ready. `direct` answers some requests below ASGI, where the service is at the
    root of its port. `close` is awaited at the end.
    """

    name: str
    reactions: Sequence[Reaction] = ()
    app: FastAPI = field(default_factory=FastAPI)
    background: Sequence[Callable[[], Awaitable[None]]] = ()
    follows: Sequence[Topic] = ()
    passing: Callable[[], Sequence[Reaction]] = tuple
    waiting_for: Callable[[], Sequence[str]] = tuple
    direct: Direct | None = None
    close: Callable[[], Awaitable[None]] | None = None


Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The clock of production."""
    return datetime.now(UTC)
