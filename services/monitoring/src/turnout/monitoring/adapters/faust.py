"""Keyed state on Kafka: a Faust table drives the operator, its changelog moves the state from process to process.

Faust does here what it does well: it shares the partitions of the counted topics among processes, keeps the table of
the partitions that are ours and restores it from the changelog. The rest is the runtime's: each event of the agent is
handed on as a delivery, so that retries, dead letters, readiness and the watchdog are those of every other reaction.

1. The agent takes one event and hands it on. (`take()` and writes to a table do not go together.)
2. The reaction folds it into an overlay over the table, and decides.
3. `done`: what was produced is published; then the agent, inside its own iteration, writes the overlay to the table.
4. Faust sends the table's changes to the changelog, then commits the offset (at least once: with
   `processing_guarantee="exactly_once"` it consumed nothing).

A death between two of these does the event again, and the operator ignores what it has seen. A process that was stopped
and wakes up may write an old value behind the new owner's; the gap that it leaves in the numbers shows, and the
pipeline is counted again from the log and the history store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import orjson
import structlog
from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from turnout.common.bus.cloudevents import as_record
from turnout.common.bus.kafka.connecting import Connecting, options_of
from turnout.common.bus.kafka.settings import KafkaSettings
from turnout.common.bus.port import Bus, Delivery, Received, Record, Topic, name_of
from turnout.common.errors import Unavailable
from turnout.common.events import Event
from turnout.monitoring.domain.tally import Json, State

T = TypeVar("T")

# As the bus's own members; a process that is gone hands its partitions on after as long.
SESSION_SECONDS = 6.0
HEARTBEAT_SECONDS = 2.0
# How long the table's changes wait for company: what a report of another process lags behind.
COMMIT_SECONDS = 0.25
LOOK_SECONDS = 1.0
CHANGELOG = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1", "max.compaction.lag.ms": "3600000"}
STOP_SECONDS = 3.0
# An app that has something to read and hands nothing on for so long is made anew; one that restores gets longer.
STALL_SECONDS, RESTORE_SECONDS = 30.0, 180.0
# Faust's own alarm is for streams that are stuck; ours may wait for a store as long as it takes.
NEVER = 1e9

log = structlog.get_logger()


class FaustState:
    """See `KeyedState`; also what delivers to the reaction that folds (`consume`, `lag`, `polled` as on the bus).

    `prepare` makes the topics: they must exist before Faust starts. A new app is made whenever the reaction begins to
    consume, since one that failed does not start again.
    """

    def __init__(
        self, settings: KafkaSettings, bus: Bus, prepare: Callable[[], Awaitable[None]], *, folder: Path
    ) -> None:
        self._settings = settings
        self._bus = bus
        self._prepare = prepare
        self._folder = folder
        self._running: _Running | None = None
        self._seen: dict[str, Json] = {}
        self._made = asyncio.Event()
        self._read = False

    # --- the reaction's source --------------------------------------------------------------------------------------

    async def consume(self, *topics: Topic, group: str) -> AsyncGenerator[Delivery]:
        """Deliveries of one event each from the partitions that are ours. Raises `Unavailable`."""
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        await self._prepare()
        await self._make_changelog([name_of(topic) for topic in topics])
        running = _Running(self._settings, [name_of(topic) for topic in topics], group, self._folder, self._bus)
        try:
            await running.start()
            self._running = running
            self._made.set()
            while True:
                yield await running.next()
        finally:
            self._running = None
            await running.stop()

    def polled(self, group: str) -> float | None:  # noqa: ARG002 (there is one)
        """See `Bus.polled`."""
        return None if self._running is None else self._running.polled

    async def _make_changelog(self, topics: Sequence[str]) -> None:
        """Make the topic of the table's changes where it is not there. Raises `Unavailable`."""
        connecting, name, factor = (
            Connecting(self._settings),
            changelog(self._settings),
            self._settings.replication_factor,
        )
        try:
            admin = await connecting.admin()
            try:
                found: Any = await admin.describe_topics()
                if any(topic["topic"] == name for topic in found) or not self._settings.create_topics:
                    return
                # The library takes -1 ("as the broker decides") only beside an assignment, which may be empty.
                new = NewTopic(name, _partitions(topics), factor, {} if factor == -1 else None, CHANGELOG)
                answer: Any = await admin.create_topics([new])
                for _, code, *_ in answer.topic_errors:
                    if code not in (0, TopicAlreadyExistsError.errno):
                        raise for_code(code)(name)
            finally:
                await admin.close()
        except (KafkaError, OSError, TimeoutError) as error:
            raise Unavailable(f"Kafka at {self._settings.servers}", f"making the topic {name}: {error}") from error
        finally:
            await connecting.close()

    # --- the state --------------------------------------------------------------------------------------------------

    async def fold(self, work: Callable[[State], T]) -> T:
        """See `KeyedState.fold`: for the delivery at hand."""
        delivery = None if self._running is None else self._running.at_hand
        if self._running is None or delivery is None:
            raise Unavailable("monitoring's state", "its partition moved to another process")
        overlay = _Overlay(self._running.table, dict(delivery.changes))
        result = work(overlay)
        delivery.changes = overlay.changes
        return result

    async def look(self, work: Callable[[Mapping[str, Json]], T]) -> T:
        """See `KeyedState.look`: over everybody's changes, as the changelog tells them."""
        if not self._read:
            raise Unavailable("monitoring's state", "it is being read")
        return work(self._seen)

    @property
    def ready(self) -> bool:
        """Whether the changelog was read to its end."""
        return self._read

    async def follow_changes(self) -> None:
        """Keep what `look` sees up to date, for ever. Raises `Unavailable`."""
        await self._made.wait()
        name = changelog(self._settings)
        fresh: dict[str, Json] = {}
        async for received in self._bus.replay(name):
            _apply(fresh, received.record)
        self._seen, self._read = fresh, True
        async with contextlib.aclosing(self._bus.follow(name)) as records:
            async for received in records:
                _apply(self._seen, received.record)

    async def close(self) -> None:
        """See `KeyedState.close`."""
        if self._running is not None:
            await self._running.stop()


def changelog(settings: KafkaSettings) -> str:
    """The topic of the table's changes, as it is called on the cluster."""
    return f"{settings.topic_prefix}monitoring.counts-tallies-changelog"


def _apply(state: dict[str, Json], record: Record) -> None:
    key = orjson.loads(record.key or b'""')
    value = None if record.value is None else orjson.loads(record.value)
    if value is None:
        state.pop(key, None)
    else:
        state[key] = value


@dataclass(eq=False)
class _Handed:
    """A `Delivery` of one event, and what it will change."""

    received: Sequence[Received]
    bus: Bus
    changes: dict[str, Json | None] = field(default_factory=dict[str, Json | None])
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    applied: asyncio.Event = field(default_factory=asyncio.Event)

    async def done(self, *produced: Event | Record) -> None:
        """Publish, then let the agent write and go on."""
        if produced:
            await self.bus.publish(*[as_record(one) for one in produced])
        self.finished.set()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.applied.wait()
        except TimeoutError:
            raise Unavailable("monitoring's state", "its partition moved to another process") from None


class _Overlay(MutableMapping[str, Json]):
    """The table as it will be: changes over it, None for a key that goes."""

    def __init__(self, table: Mapping[str, Json], changes: dict[str, Json | None]) -> None:
        self._table = table
        self.changes = changes

    def __getitem__(self, key: str) -> Json:
        found = self.changes[key] if key in self.changes else self._table.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def __setitem__(self, key: str, value: Json) -> None:
        self.changes[key] = value

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self.changes[key] = None

    def __contains__(self, key: object) -> bool:
        return (self.changes[str(key)] if key in self.changes else self._table.get(str(key))) is not None

    def __iter__(self) -> Iterator[str]:
        return iter([key for key in {**dict(self._table), **self.changes} if key in self])

    def __len__(self) -> int:
        return len(list(iter(self)))


class _Running:
    """One Faust app in this event loop: no worker process of its own, no web server, no signal handlers."""

    def __init__(self, settings: KafkaSettings, topics: Sequence[str], group: str, folder: Path, bus: Bus) -> None:
        self._settings = settings
        self._bus = bus
        self._handed: asyncio.Queue[_Handed] = asyncio.Queue(1)
        self._looked = time.monotonic()
        self._stopped = False
        self._sources = {settings.topic_prefix + topic for topic in topics}
        self.at_hand: _Handed | None = None
        self._app = self._made(topics, group, folder)

    @property
    def polled(self) -> float:
        """When Faust last looked for records (monotonic seconds). Without a partition there is nothing to look at."""
        consumer = self._app.consumer
        if not self._app.started or not consumer.assignment():
            return time.monotonic()
        return self._looked

    async def start(self) -> None:
        """Join the group and restore the table. Raises `Unavailable`."""
        try:
            async with asyncio.timeout(self._settings.timeout_seconds + 2 * SESSION_SECONDS):
                await self._app.start()
        except Exception as error:
            raise self._unavailable(error) from error

    async def next(self) -> _Handed:
        """The next delivery. Raises `Unavailable` when the app has ended."""
        self.at_hand = None
        began = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    self.at_hand = await self._handed.get()
                    return self.at_hand
            if self._app.crashed or self._app.should_stop:
                raise self._unavailable(self._app.crash_reason)
            if time.monotonic() - began > (RESTORE_SECONDS if self._restores() else STALL_SECONDS):
                if unread := await self._unread():
                    raise Unavailable(f"Kafka at {self._settings.servers}", f"faust does not read {unread}")
                began = time.monotonic()

    def _restores(self) -> bool:
        return bool(self._app.rebalancing or self._app.tables.recovery.in_recovery)

    async def _unread(self) -> str | None:
        """A partition of ours that holds more than was read. Raises `Unavailable`."""
        consumer = self._app.consumer
        ours = [tp for tp in consumer.assignment() if tp.topic in self._sources]
        try:
            ends = await consumer.highwaters(*ours) if ours else {}
        except Exception as error:
            raise self._unavailable(error) from error
        # What was read last, or, before the first record, where the group stood.
        read = {tp: consumer._read_offset.get(tp) for tp in ours}  # noqa: SLF001 (it tells nobody else)
        behind = [tp for tp in ours if (ends.get(tp) or 0) > (-1 if read[tp] is None else read[tp]) + 1]
        return f"{behind[0].topic}, partition {behind[0].partition}" if behind else None

    async def stop(self) -> None:
        """Leave the group; one that hangs is left behind."""
        if self._stopped:
            return
        self._stopped = True
        stopping = asyncio.create_task(self._app.stop())
        _, hanging = await asyncio.wait([stopping], timeout=STOP_SECONDS)
        for task in hanging:
            log.warning("faust does not stop")
            task.cancel()
        await asyncio.gather(stopping, return_exceptions=True)

    def _unavailable(self, error: BaseException | None) -> Unavailable:
        why = f"{type(error).__name__}: {error}" if error is not None else "it stopped"
        return Unavailable(f"Kafka at {self._settings.servers}", f"monitoring's counts: {why}")

    def _made(self, topics: Sequence[str], group: str, folder: Path) -> Any:
        import faust  # noqa: PLC0415 (only where Kafka is the bus)
        from faust.transport.drivers import aiokafka as driver  # noqa: PLC0415

        for name in ("faust", "mode", "aiokafka"):
            logging.getLogger(name).setLevel(logging.ERROR)
        prefix, running = self._settings.topic_prefix, self

        class Consumer(driver.Consumer):
            """Faust's, that says when it last looked."""

            async def _getmany(self, active_partitions: Any, timeout: float) -> Any:  # noqa: ASYNC109
                found = await super()._getmany(active_partitions, timeout)
                running._looked = time.monotonic()  # pyright: ignore[reportPrivateUsage]
                return found

        class Transport(driver.Transport):
            """Faust's, with that consumer."""

        Transport.Consumer = Consumer
        servers = ";".join(f"kafka://{server.strip()}" for server in self._settings.servers.split(","))
        app = faust.App(
            prefix + group,
            broker=servers,
            loop=asyncio.get_running_loop(),
            datadir=str(folder),
            store="memory://",
            web_enabled=False,
            autodiscover=False,
            processing_guarantee="at_least_once",
            broker_credentials=_credentials(self._settings),
            broker_session_timeout=SESSION_SECONDS,
            broker_heartbeat_interval=HEARTBEAT_SECONDS,
            broker_rebalance_timeout=SESSION_SECONDS,
            broker_commit_interval=COMMIT_SECONDS,
            consumer_auto_offset_reset="earliest",
            table_standby_replicas=0,
            stream_wait_empty=False,
            stream_processing_timeout=NEVER,
            topic_replication_factor=1,  # it makes no topic
            topic_allow_declare=False,
            topic_disable_leader=True,
            key_serializer="json",
            value_serializer="json",
        )
        app.transport = Transport(app.conf.broker, app, loop=app.loop)
        changes = app.topic(
            changelog(self._settings),
            key_type=None,
            value_type=None,
            key_serializer="json",
            value_serializer="json",
            compacting=True,
            deleting=False,
            partitions=_partitions(topics),
            internal=True,
        )
        self.table: Any = app.Table(
            "tallies", partitions=_partitions(topics), changelog_topic=changes,
        )  # fmt: skip
        source = app.topic(
            *[prefix + topic for topic in topics],
            key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", allow_empty=True,
        )  # fmt: skip

        async def hand_on(stream: Any) -> None:
            async for event in stream.events():
                await self._hand_on(event.message, prefix)

        app.agent(source, name=f"{group}.hand_on")(hand_on)
        app.finalize()
        return app

    async def _hand_on(self, message: Any, prefix: str) -> None:
        """Give the event to the reaction, wait for it, and write what it changed: here, where Faust allows it."""
        record = Record(
            message.topic.removeprefix(prefix), message.key, message.value, tuple(dict(message.headers or {}).items())
        )
        at = datetime.fromtimestamp(message.timestamp, UTC)
        handed = _Handed([Received(record, message.partition, message.offset, at)], self._bus)
        await self._handed.put(handed)
        await handed.finished.wait()
        for key, value in handed.changes.items():
            if value is not None:
                self.table[key] = value
            elif key in self.table:
                del self.table[key]
        handed.applied.set()


def _partitions(topics: Sequence[str]) -> int:
    from turnout.common.events import REGISTRY  # noqa: PLC0415

    return max(REGISTRY[topic].partitions for topic in topics)


def _credentials(settings: KafkaSettings) -> Any:
    import faust  # noqa: PLC0415

    options = options_of(settings)
    context = options.get("ssl_context")
    if settings.username is None:
        return faust.SSLCredentials(context=context) if context is not None else None
    return faust.SASLCredentials(
        username=options["sasl_plain_username"],
        password=options["sasl_plain_password"],
        mechanism=options["sasl_mechanism"],
        ssl_context=context,
    )
