"""One connection to a cluster: opened at the first call, statements prepared once, answers brought to the event loop.

The driver connects and prepares in a thread of its own; requests are sent from the event loop, which does not block,
and answered on the driver's thread, from where they are handed over. A node that is away makes calls `Unavailable`
and is looked for again by the driver; a cluster that was away when we opened is tried again by the next call, at most
once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from turnout.common.cassandra.settings import CassandraSettings
from turnout.common.errors import Unavailable

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]

# Rows of one page. An event is about a kilobyte.
PAGE = 1_000
# Requests sent before others have their turn on the event loop; each takes it about 0.1 ms.
_BREATH = 16
# Seconds between two attempts to open: the driver cannot wait for a cluster that it never reached.
_TRY_AGAIN = 1.0
# Seconds between the driver's own attempts at a node that it lost: the first, the longest.
_RECONNECT, _RECONNECT_AT_MOST = 1.0, 5.0
# Making a table takes a round through the cluster.
_SCHEMA_SECONDS = 60.0
# The oldest protocol with durable checks of what is sent (Cassandra 4.0).
_PROTOCOL = 5


_TABLE = re.compile(r"\b(FROM|INTO|UPDATE) (\w+)")
_FORMAT_TABLE = "CREATE TABLE IF NOT EXISTS format (store text PRIMARY KEY, format int)"


@dataclass(frozen=True)
class Cql:
    """A statement: `read`; `write` of one effect however often it is done; `once`, a lightweight transaction whose
    repetition could change the answer, so that the driver must not do it by itself."""

    text: str
    kind: Literal["read", "write", "once"] = "read"


@dataclass(frozen=True)
class Tables:
    """What a store keeps: the statements that make its tables, under a name and a number that grows with them."""

    name: str
    format: int
    create: tuple[str, ...]
    statements: tuple[Cql, ...]


class Cassandra:
    """A connection for one store on one event loop."""

    def __init__(self, settings: CassandraSettings, tables: Tables) -> None:
        self._settings = settings
        self._tables = tables
        self._what = f"Cassandra at {settings.hosts}"
        self._opening: asyncio.Future[_Opened] | None = None
        self._room = asyncio.Semaphore(settings.in_flight)
        self._opened: _Opened | None = None
        self._failed: tuple[float, Unavailable] | None = None
        self._closed = False

    async def rows(self, cql: Cql, *values: object) -> Rows:
        """Everything that a read finds, or the answer of a lightweight transaction. Raises `Unavailable`."""
        found: Rows = []
        async for page in self.pages(cql, *values):
            found = found + page if found else page
        return found

    async def pages(self, cql: Cql, *values: object) -> AsyncGenerator[Rows]:
        """What a read finds, page by page, none of them empty."""
        opened = await self._open()
        at: bytes | None = None
        while True:
            page, at = await self._send(opened, opened.statements[cql].bind(values), cql, at)
            if page:
                yield page
            if at is None:
                return

    async def run(self, cql: Cql, *values: object) -> None:
        """Do a write."""
        await self.rows(cql, *values)

    async def each(self, cql: Cql, values: Iterable[Sequence[object]]) -> list[Rows]:
        """The same statement with each of the values, side by side; first pages only.

        When one fails, the others are waited for before the failure is raised.
        """
        opened = await self._open()
        statement = opened.statements[cql]
        sent: list[asyncio.Future[_Answer]] = []
        try:
            for number, some in enumerate(values):
                if number % _BREATH == 0:
                    await asyncio.sleep(0)
                sent.append(await self._sent(opened, statement.bind(some), cql, None))
        finally:
            # Also when the store was closed meanwhile: an answer nobody took would be a complaint in the log.
            answers = await asyncio.gather(*sent, return_exceptions=True)
        found: list[Rows] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            found.append(answer[0])
        return found

    async def together(self, statements: Sequence[tuple[Cql, Sequence[object]]], *, once: bool = False) -> Rows:
        """Writes to one partition as one: all of them or none. With conditions, what the transaction answered."""
        from cassandra.query import BatchStatement, BatchType  # noqa: PLC0415 (a process without Cassandra)

        opened = await self._open()
        batch = BatchStatement(BatchType.UNLOGGED)
        for cql, values in statements:
            batch.add(opened.statements[cql].bind(values))
        batch.is_idempotent = not once
        answer, _ = await self._send(opened, batch, Cql("", "once" if once else "write"), None)
        return answer

    async def close(self) -> None:
        """Let go of the cluster; requests under way are answered first, calls fail from now on."""
        self._closed = True
        if self._opening is not None:
            await asyncio.wait({self._opening})
        if self._opened is not None:
            opened, self._opened = self._opened, None
            if opened.under_way:
                await asyncio.wait(opened.under_way, timeout=self._settings.timeout_seconds)
            await asyncio.to_thread(opened.cluster.shutdown)
            # The driver answers nobody once it is shut down.
            for answer in opened.under_way:
                if not answer.done():
                    answer.set_exception(Unavailable(self._what, "the store is closed"))

    # --- opening ------------------------------------------------------------------------------------------------

    async def _open(self) -> _Opened:
        if self._closed:
            raise Unavailable(self._what, "the store is closed")
        if self._opened is not None:
            return self._opened
        if self._opening is None:
            if self._failed is not None and time.monotonic() < self._failed[0] + _TRY_AGAIN:
                raise Unavailable(self._failed[1].what, self._failed[1].why)
            self._opening = asyncio.ensure_future(self._connected())
            # If everybody who waits for it goes away, its failure is nobody's.
            self._opening.add_done_callback(lambda done: done.cancelled() or done.exception())
        # A caller that goes away must not leave a cluster behind that nobody closes.
        return await asyncio.shield(self._opening)

    async def _connected(self) -> _Opened:
        try:
            self._opened = await asyncio.to_thread(self._connect, asyncio.get_running_loop())
        except Unavailable as error:
            self._failed = (time.monotonic(), error)
            raise
        else:
            return self._opened
        finally:
            self._opening = None

    def _connect(self, loop: asyncio.AbstractEventLoop) -> _Opened:
        cluster = open_cluster(self._settings)
        try:
            session = cluster.connect()
            # Deletes and lightweight transactions get their times from the same clocks, the nodes'.
            session.use_client_timestamp = False
            session.default_fetch_size = PAGE
            self._make_tables(session)
            statements: dict[Cql, Any] = {}
            for cql in self._tables.statements:
                statements[cql] = session.prepare(_qualified(cql.text, self._settings.keyspace))
                statements[cql].is_idempotent = cql.kind != "once"
        except BaseException as error:
            cluster.shutdown()
            if isinstance(error, Exception) and (why := _why(error)) is not None:
                raise Unavailable(self._what, why) from error
            raise
        return _Opened(cluster, session, statements, loop)

    def _make_tables(self, session: Any) -> None:
        """Make what is not there. A node that is asked twice at once makes a thing once."""
        from cassandra.query import SimpleStatement  # noqa: PLC0415 (a process without Cassandra)

        settings, tables = self._settings, self._tables
        found = _format(session, settings.keyspace, tables.name)
        if found is not None and found > tables.format:
            raise Unavailable(
                f"{self._what}, keyspace {settings.keyspace}",
                f"its {tables.name} has format {found}, this Turnout knows {tables.format}: use the newer Turnout",
            )
        if found == tables.format:
            return
        if not settings.create_schema:
            raise Unavailable(
                f"{self._what}, keyspace {settings.keyspace}",
                f"it has no tables of {tables.name}: set TURNOUT_CASSANDRA_CREATE_SCHEMA once, with a role that may",
            )
        copies = ", ".join(f"'{where}': {number}" for where, number in settings.replication.items())
        session.execute(
            f"CREATE KEYSPACE IF NOT EXISTS {settings.keyspace}"
            f" WITH replication = {{'class': 'NetworkTopologyStrategy', {copies}}}",
            timeout=_SCHEMA_SECONDS,
        )
        for statement in (_FORMAT_TABLE, *tables.create):
            session.execute(SimpleStatement(statement, keyspace=settings.keyspace), timeout=_SCHEMA_SECONDS)
        note = SimpleStatement("INSERT INTO format (store, format) VALUES (%s, %s)", keyspace=settings.keyspace)
        session.execute(note, (tables.name, tables.format))

    # --- sending ------------------------------------------------------------------------------------------------

    async def _send(self, opened: _Opened, bound: Any, cql: Cql, at: bytes | None) -> _Answer:
        return await (await self._sent(opened, bound, cql, at))

    async def _sent(self, opened: _Opened, bound: Any, cql: Cql, at: bytes | None) -> asyncio.Future[_Answer]:
        """The answer to come. Waits while too many requests are under way."""
        await self._room.acquire()
        if self._closed:
            self._room.release()
            raise Unavailable(self._what, "the store is closed")
        answer: asyncio.Future[_Answer] = opened.loop.create_future()
        try:
            response = opened.session.execute_async(
                bound, execution_profile="read" if cql.kind == "read" else "write", paging_state=at
            )
        except Exception as error:
            self._room.release()
            raise self._translated(error) from error
        opened.under_way.add(answer)
        response.add_callbacks(
            callback=lambda rows: self._hand_over(opened, answer, response, rows, None),
            errback=lambda error: self._hand_over(opened, answer, response, None, error),
        )
        return answer

    def _hand_over(self, opened: _Opened, answer: Any, response: Any, rows: Any, error: Any) -> None:
        """On the driver's thread: leave the answer where the event loop finds it, and wake the loop once."""
        opened.answered.append((answer, response, rows, error))
        if not opened.waking:
            opened.waking = True
            # The loop may be gone when the process ends.
            with contextlib.suppress(RuntimeError):
                opened.loop.call_soon_threadsafe(self._take_over, opened)

    def _take_over(self, opened: _Opened) -> None:
        # Before looking: an answer that comes while we look then wakes us again.
        opened.waking = False
        while opened.answered:
            answer, response, rows, error = opened.answered.popleft()
            self._room.release()
            opened.under_way.discard(answer)
            if answer.done():
                continue
            if error is not None:
                answer.set_exception(self._translated(error))
            else:
                answer.set_result((list(rows or ()), response._paging_state))  # noqa: SLF001 (not to be had without a blocking ResultSet)

    def _translated(self, error: Exception) -> Exception:
        why = _why(error)
        if why is None:
            return error
        if _tables_are_gone(error) and self._opened is not None:
            # Somebody emptied the cluster: open again, which makes them anew.
            opened, self._opened = self._opened, None
            asyncio.get_running_loop().run_in_executor(None, opened.cluster.shutdown)
        unavailable = Unavailable(self._what, why)
        unavailable.__cause__ = error
        return unavailable


@dataclass
class _Opened:
    cluster: Any
    session: Any
    statements: Mapping[Cql, Any]
    loop: asyncio.AbstractEventLoop
    answered: deque[tuple[Any, Any, Any, Any]] = field(default_factory=deque)
    waking: bool = False
    under_way: set[Any] = field(default_factory=set)


# Rows, and where the next page begins.
_Answer = tuple[Rows, bytes | None]


def open_cluster(settings: CassandraSettings) -> Any:
    """The driver's cluster with our policies, not connected yet. Raises `Unavailable`."""
    what = f"Cassandra at {settings.hosts}"
    try:
        from cassandra import ConsistencyLevel, DependencyException  # noqa: PLC0415 (a process without Cassandra)
    except ImportError as error:
        raise Unavailable(what, "its driver is not installed: pip install 'turnout-common[cassandra]'") from error
    try:
        from cassandra.auth import PlainTextAuthProvider  # noqa: PLC0415
        from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile  # noqa: PLC0415
        from cassandra.io.libevreactor import LibevConnection  # noqa: PLC0415
        from cassandra.policies import (  # noqa: PLC0415
            ConstantSpeculativeExecutionPolicy,
            DCAwareRoundRobinPolicy,
            ExponentialReconnectionPolicy,
            TokenAwarePolicy,
        )
        from cassandra.query import dict_factory  # noqa: PLC0415
    except (ImportError, DependencyException) as error:
        # Without it the driver falls back to asyncore, which Python 3.12 no longer has, or to reactors it calls
        # experimental.
        raise Unavailable(
            what,
            "its driver was built without the libev reactor: install the wheel (pip install --only-binary :all:"
            " --force-reinstall cassandra-driver), or libev's headers before building it",
        ) from error
    from turnout.common.cassandra.policies import OnceElsewhere, speak_sparingly  # noqa: PLC0415

    speak_sparingly()

    def profile(speculation: Any = None) -> Any:
        return ExecutionProfile(
            load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(settings.datacenter or "")),
            retry_policy=OnceElsewhere(),
            consistency_level=getattr(ConsistencyLevel, settings.consistency),
            serial_consistency_level=getattr(ConsistencyLevel, settings.serial_consistency),
            request_timeout=settings.timeout_seconds,
            row_factory=dict_factory,
            speculative_execution_policy=speculation,
        )

    # Reads only: a second copy of a write is more work for a cluster that is slow already, and gains nothing.
    read = profile(ConstantSpeculativeExecutionPolicy(settings.speculate_after_ms / 1000, 1))
    addresses = settings.addresses()
    login = None
    if settings.user is not None:
        password = settings.password.get_secret_value() if settings.password is not None else ""
        login = PlainTextAuthProvider(settings.user, password)
    return Cluster(
        contact_points=addresses,
        port=addresses[0][1],
        connection_class=LibevConnection,
        protocol_version=_PROTOCOL,
        auth_provider=login,
        ssl_context=_tls(settings) if settings.tls else None,
        execution_profiles={"read": read, "write": profile(), EXEC_PROFILE_DEFAULT: profile()},
        reconnection_policy=ExponentialReconnectionPolicy(_RECONNECT, _RECONNECT_AT_MOST),
        # Without it a write of several segments waits 40 ms for the acknowledgement of the first.
        sockopts=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        connect_timeout=cast("int", settings.connect_timeout_seconds),
    )


def _tls(settings: CassandraSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.tls_ca_file)
    context.check_hostname = settings.tls_check_hostname
    if settings.tls_certificate_file is not None:
        context.load_cert_chain(settings.tls_certificate_file, settings.tls_key_file)
    return context


def _qualified(text: str, keyspace: str) -> str:
    """The statement with its table's full name; nodes warn of statements prepared without it."""
    return _TABLE.sub(rf"\1 {keyspace}.\2", text, count=1)


def _format(session: Any, keyspace: str, store: str) -> int | None:
    known = session.execute(
        "SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s AND table_name = 'format'", (keyspace,)
    ).one()
    if known is None:
        return None
    found = session.execute(f"SELECT format FROM {keyspace}.format WHERE store = %s", (store,)).one()  # noqa: S608 (a checked name)
    return None if found is None else int(found["format"])


def _why(error: Exception) -> str | None:  # noqa: PLR0911 (one answer per kind)
    """What to tell of the driver's error; None if it is a fault of ours. Never holds values."""
    import cassandra  # noqa: PLC0415 (a process without Cassandra)
    from cassandra import protocol  # noqa: PLC0415
    from cassandra.cluster import NoHostAvailable  # noqa: PLC0415
    from cassandra.connection import ConnectionException  # noqa: PLC0415

    match error:
        case NoHostAvailable():
            errors: Any = error.errors or ()
            causes = list(errors.values()) if isinstance(errors, dict) else list(errors)
            told = [why for cause in causes if isinstance(cause, Exception) and (why := _why(cause)) is not None]
            return told[0] if told else "no node answers"
        case cassandra.AuthenticationFailed():
            return (
                "it refused the login: mend TURNOUT_CASSANDRA_USER and TURNOUT_CASSANDRA_PASSWORD"
                " (PasswordAuthenticator: the role needs LOGIN = true)"
            )
        case cassandra.Unauthorized():
            return f"the role of TURNOUT_CASSANDRA_USER may not do this: {error}"
        case cassandra.InvalidRequest() if _tables_are_gone(error):
            return "its keyspace is gone; with TURNOUT_CASSANDRA_CREATE_SCHEMA it is made anew when next asked"
        case cassandra.AlreadyExists():
            return "its tables are being made by another process"
        case cassandra.ConfigurationException():
            return f"it refuses TURNOUT_CASSANDRA_REPLICATION or the tables: {error}"
        case cassandra.UnresolvableContactPoints():
            return "no name of TURNOUT_CASSANDRA_HOSTS is known"
        case (
            protocol.ServerError()
            | protocol.RequestExecutionException()
            | cassandra.RequestExecutionException()
            | cassandra.OperationTimedOut()
        ):
            return f"{type(error).__name__}: {error}"
        case ConnectionException() | OSError():
            return f"no connection: {error}"
        case _:
            return None


def _tables_are_gone(error: Exception) -> bool:
    import cassandra  # noqa: PLC0415 (a process without Cassandra)

    # "unconfigured table score", "Keyspace 'turnout' does not exist", "table … does not exist"
    return isinstance(error, cassandra.InvalidRequest) and any(
        sign in str(error) for sign in ("unconfigured table", "does not exist")
    )
