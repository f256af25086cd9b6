"""Clients of aiokafka as we want them, and the gate before them: nobody knocks at a closed door more than now and then.

What aiokafka does not offer publicly is asked of its inside here and nowhere else; the version is pinned.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.producer.message_accumulator import BatchBuilder

from turnout.common.bus.kafka.settings import KafkaSettings
from turnout.common.bus.kafka.tolerating import WHOLE, tolerate
from turnout.common.bus.kafka.troubles import FAILURES, PAUSE_SECONDS, again, quieten, unavailable
from turnout.common.bus.port import Record
from turnout.common.errors import Invalid, Unavailable

T = TypeVar("T")

SESSION_SECONDS = 6.0
HEARTBEAT_SECONDS = 2.0
RETRY_MILLISECONDS = 250
# A client that does not stop by itself within this is taken apart.
STOP_SECONDS = 2.0
# The bytes of a prebuilt batch: below the 1 MiB that a broker takes unless told otherwise.
BATCH_BYTES = 512 * 1024
FETCH_BYTES = 1024 * 1024


class Connecting:
    """Makes clients. Raises `Unavailable`, at once while the last attempt is not `PAUSE_SECONDS` ago."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._well = False
        self._closed: tuple[float, Unavailable] | None = None
        self._knocking = asyncio.Lock()
        self._common: dict[str, Any] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        quieten()
        tolerate()

    async def ready(self) -> None:
        """Return if Kafka answers, as far as is known. Raises `Unavailable`."""
        if self._well:
            return
        async with self._knocking:
            if self._well:
                return
            if self._closed is not None and time.monotonic() < self._closed[0]:
                raise again(self._closed[1])
            try:
                await self._knock()
            except FAILURES as error:
                raise self.failed(error) from error
            self._well = True

    def failed(self, error: BaseException, doing: str = "connecting") -> Unavailable:
        """Close the gate for a moment; the error in our words."""
        said = unavailable(error, self.settings, doing)
        self._well = False
        self._closed = (time.monotonic() + PAUSE_SECONDS, said)
        return said

    async def producer(self) -> AIOKafkaProducer:
        """A started producer: idempotent, acknowledged by all replicas that are in sync."""
        await self.ready()
        common = await self._options()
        producer = AIOKafkaProducer(
            **common,
            enable_idempotence=True,
            acks="all",
            max_batch_size=BATCH_BYTES,
            max_request_size=BATCH_BYTES * 64,
        )
        return await self._started(producer.start, lambda: abandon(producer), producer)

    async def consumer(
        self,
        group: str | None = None,
        instance: str | None = None,
        subscribe: Callable[[AIOKafkaConsumer], None] | None = None,
    ) -> AIOKafkaConsumer:
        """A started consumer: without a group, or a static member of `group` that `subscribe` tells what to read.

        A member gets whole batches (`Fetched`), the others records.
        """
        await self.ready()
        common = await self._options()
        consumer = AIOKafkaConsumer(
            **common,
            group_id=group,
            group_instance_id=instance,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            session_timeout_ms=int(SESSION_SECONDS * 1000),
            rebalance_timeout_ms=int(SESSION_SECONDS * 1000),
            heartbeat_interval_ms=int(HEARTBEAT_SECONDS * 1000),
            max_partition_fetch_bytes=FETCH_BYTES,
            value_deserializer=None if group is None else WHOLE,
        )
        if subscribe is not None:
            subscribe(consumer)
        return await self._started(consumer.start, lambda: self.stop(consumer), consumer)

    async def admin(self) -> AIOKafkaAdminClient:
        """A started client for topics and offsets of groups."""
        await self.ready()
        admin = AIOKafkaAdminClient(**await self._options())
        return await self._started(admin.start, admin.close, admin)

    async def stop(self, consumer: AIOKafkaConsumer) -> None:
        """Stop a consumer; one that hangs goes on stopping behind our back."""
        task = asyncio.create_task(_stopped(consumer))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        await asyncio.wait([task], timeout=STOP_SECONDS)

    async def close(self) -> None:
        """Wait for consumers that are still stopping, then end them."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=STOP_SECONDS)
        for task in list(self._leaving):
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def _started(self, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]], client: T) -> T:
        try:
            # Joining a group waits for its other members.
            async with asyncio.timeout(self.settings.timeout_seconds + 2 * SESSION_SECONDS):
                await start()
        except FAILURES as error:
            await stop()
            if getattr(error, "retriable", True):
                raise self.failed(error) from error
            raise
        except BaseException:
            await stop()
            raise
        return client

    async def _knock(self) -> None:
        common = dict(await self._options())
        common.pop("bootstrap_servers")
        common.pop("retry_backoff_ms")
        problem: BaseException | None = None
        for host, port, _ in collect_hosts(self.settings.servers):
            try:
                connection = await create_conn(host, port, **common)
            except FAILURES as error:
                problem = error
            else:
                connection.close()
                return
        if problem is not None:
            raise problem

    async def _options(self) -> dict[str, Any]:
        if self._common is None:
            self._common = await asyncio.to_thread(options_of, self.settings)
        return self._common


def is_member(consumer: AIOKafkaConsumer) -> bool:
    """Whether the broker has not told this consumer that it is no member any more.

    A commit of one that was told so carries no generation, and an empty group would take it.
    """
    coordinator: Any = consumer._coordinator  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return coordinator is not None and coordinator.generation >= 0


def fill(batch: BatchBuilder, records: Sequence[Record], begin: int) -> int:
    """Append records from index `begin` on until the batch is full; the index of the first that found no room."""
    # `batch.append` does the same and takes half as long again.
    append: Any = batch._builder.append  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    offset, now = batch.record_count(), int(time.time() * 1000)
    index = begin
    for index in range(begin, len(records)):
        _, key, value, headers = records[index]
        if append(offset, now, key, value, list(headers)) is None:
            batch.close()
            break
        offset += 1
    else:
        index = len(records)
    batch._relative_offset = offset  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return index


async def abandon(producer: AIOKafkaProducer) -> None:
    """End a producer without waiting for what it cannot send: an idempotent one tries for ever."""
    with contextlib.suppress(*FAILURES):
        async with asyncio.timeout(STOP_SECONDS):
            await producer.stop()
            return
    with contextlib.suppress(*FAILURES):
        async with asyncio.timeout(STOP_SECONDS):
            await producer._sender.close()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    with contextlib.suppress(*FAILURES):
        async with asyncio.timeout(STOP_SECONDS):
            await producer.client.close()


async def _stopped(consumer: AIOKafkaConsumer) -> None:
    with contextlib.suppress(*FAILURES):
        await consumer.stop()


def options_of(settings: KafkaSettings) -> dict[str, Any]:
    """What every client takes; reads the certificates."""
    sasl = settings.username is not None
    options: dict[str, Any] = {
        "bootstrap_servers": settings.servers,
        "client_id": "turnout",
        "request_timeout_ms": int(settings.timeout_seconds * 1000),
        "retry_backoff_ms": RETRY_MILLISECONDS,
        "security_protocol": {
            (False, False): "PLAINTEXT", (False, True): "SASL_PLAINTEXT", (True, False): "SSL", (True, True): "SASL_SSL"
        }[settings.tls, sasl],
    }  # fmt: skip
    if settings.tls:
        options["ssl_context"] = _tls(settings)
    if sasl:
        if settings.password is None:
            raise Invalid("TURNOUT_KAFKA_PASSWORD", "there is a user and no password", fix="set it")
        options |= {
            "sasl_mechanism": settings.mechanism,
            "sasl_plain_username": settings.username,
            "sasl_plain_password": settings.password.get_secret_value(),
        }
    return options


def _tls(settings: KafkaSettings) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        if settings.ca_file is not None:
            context.load_verify_locations(settings.ca_file)
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        raise Invalid(
            "TURNOUT_KAFKA_CA_FILE, _CERT_FILE, _KEY_FILE", f"they cannot be read ({error})", fix="name PEM files"
        ) from error
    return context
