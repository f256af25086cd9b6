"""One loaded version and the way to it: requests that are there together share one run.

A version starts apart, in a killable process. Proven fast (see `PROVEN_RUNS`, `PROVEN_MS`) it comes inline, onto the
event loop; a run that has to be ended there sends it apart again, and it has to prove itself four times as long.
Nobody ever waits for a batch to fill: a run takes what is there.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from turnout.common.events import ModelReady
from turnout.scoring.domain.answer import Answer, Fault, read
from turnout.scoring.domain.latency import Latencies
from turnout.scoring.domain.router import Outcome
from turnout.scoring.domain.signature import Row, Signature
from turnout.scoring.ports import Apart, BrokenError, Inline, Output, Runners, TerminatedError

log = structlog.get_logger()

Results = Sequence[Answer | Fault]

PROVEN_RUNS = 200
PROVEN_MS = 1.0
# Rows of one inline run. Trees are fastest at 64 rows a run (benchmarks), and nobody waits long behind one.
INLINE_ROWS = 64
APART_ROWS = 1024
# Of the SLO: the longest inline run. The rest is for the next version, and for everybody who waits for the loop.
INLINE_SHARE = 0.5
# Beyond this a version is asked more than it can answer; the next in the chain is asked instead.
MAX_WAITING = 2048
WARM_UP = 20
# Of the SLO: the latest moment at which a next version is asked.
LEAST_HEAD_START = 0.15
_RESTART_DELAYS = (0.0, 0.5, 2.0, 10.0, 30.0)


@dataclass(slots=True)
class _Ticket:
    """One request's rows; `missing` pieces are still to come."""

    future: asyncio.Future[Results]
    results: list[Answer | Fault]
    missing: int


@dataclass(slots=True)
class _Piece:
    """Part of a ticket that fits into one run: its rows and where they begin."""

    ticket: _Ticket
    rows: Sequence[Row]
    start: int


@dataclass(frozen=True, slots=True)
class Hooks:
    """Whom a lane tells. `observed(version, outcome, milliseconds)` after each run, `changed()` when `available` does;
    `alone()` says whether the chain has nobody else."""

    observed: Callable[[str, Outcome, float], None]
    changed: Callable[[], None]
    alone: Callable[[], bool]


@dataclass(slots=True)
class _Places:
    """Where the version runs now."""

    apart: Apart | None = None
    inline: Inline | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])


class Lane:
    """See the module. `slo` in seconds is the longest a run may take; `expected_ms` is what its trial took."""

    def __init__(
        self, ready: ModelReady, content: bytes, signature: Signature, runners: Runners, hooks: Hooks, *, slo: float,
        expected_ms: float,
    ) -> None:  # fmt: skip
        self.ready = ready
        self.version = ready.version
        self.signature = signature
        self.slo = slo
        self.available = False
        self.waits = Latencies()
        self.runs = Latencies()
        self._expected_ms = expected_ms
        self._content = content
        self._runners = runners
        self._hooks = hooks
        self._places = _Places()
        self._waiting: deque[_Piece] = deque()
        self._flushing = False
        self._working: asyncio.Task[None] | None = None
        self._needed = PROVEN_RUNS
        self._moving = False
        self._failed_starts = 0
        self._closed = False

    @property
    def head_start(self) -> float:
        """Seconds before the deadline at which it has to be asked to answer in time: half more than its p99, and never
        less than `LEAST_HEAD_START` of the SLO, for a version that is seldom asked is slower than when it was tried."""
        ms = self.waits.p99 if self.waits.p99 is not None else 3 * self._expected_ms
        return max(1.5 * ms / 1000, LEAST_HEAD_START * self.slo)

    @property
    def inline(self) -> bool:
        """Whether it runs on the event loop now."""
        return self._places.inline is not None

    @property
    def prompt(self) -> bool:
        """Whether what is asked now is answered in the next turn of the loop: inline, and nobody before it."""
        return self._places.inline is not None and len(self._waiting) <= INLINE_ROWS

    async def open(self) -> None:
        """Bring the version up, apart. Raises `BrokenError`."""
        apart = self._runners.apart(self.ready, self._content)
        await apart.start()
        self._places.apart = apart
        await self._warm(apart)
        self._set_available(True)

    def submit(self, rows: Sequence[Row]) -> asyncio.Future[Results]:
        """Ask for the answers to `rows`; the future never raises. Cancel it when nobody waits any more."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Results] = loop.create_future()
        if len(self._waiting) >= MAX_WAITING:
            future.set_result([Fault("more requests wait for it than it can answer", late=True)] * len(rows))
            return future
        if len(rows) <= INLINE_ROWS:
            self._waiting.append(_Piece(_Ticket(future, [], 1), rows, 0))
        else:
            starts = range(0, len(rows), INLINE_ROWS)
            ticket = _Ticket(future, [Fault("")] * len(rows), len(starts))
            self._waiting.extend(_Piece(ticket, rows[at : at + INLINE_ROWS], at) for at in starts)
        self._go(loop)
        return future

    def at_once(self, rows: Sequence[Row]) -> Results:
        """The answers to rows of one request each, before this returns; where `prompt` is true.

        Fewer than rows if it has left the event loop meanwhile, or overran: the rest was not asked.
        """
        results: list[Answer | Fault] = []
        for at in range(0, len(rows), INLINE_ROWS):
            inline = self._places.inline
            if inline is None or self._moving:
                break
            some = rows[at : at + INLINE_ROWS]
            results += self._run_inline(inline, some, [1] * len(some))
        return results

    async def close(self) -> None:
        """Let go of the version when its last run is back; whoever still waits after that is told."""
        if self._working is not None:
            await asyncio.wait([self._working], timeout=self.slo + 1.0)
        while self._waiting and self._places.inline is not None:
            self._flush()
        self._closed = True
        self._set_available(False)
        for task in tuple(self._places.tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._refuse_all("it was unloaded")
        if self._places.inline is not None:
            self._places.inline.close()
        if self._places.apart is not None:
            await self._places.apart.close()

    async def _warm(self, apart: Apart) -> None:
        """First runs are slow; no request shall be the first. They also say how long the way there takes."""
        zero = tuple("" if column.kind == "category" else 0.0 for column in self.signature.columns)
        rows = [self.signature.row(self.signature.lenient(values)) for values in self.ready.sample[:WARM_UP]] or [zero]
        with suppress(TerminatedError, BrokenError):  # requests will tell
            for index in range(WARM_UP):
                started = time.perf_counter()
                await apart.run(self.signature.feeds([rows[index % len(rows)]]), self.slo)
                if index:
                    self.waits.add((time.perf_counter() - started) * 1000)

    # --- running -----------------------------------------------------------------------------------------------

    def _go(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._places.inline is not None:
            if not self._flushing:
                self._flushing = True
                loop.call_soon(self._flush)
        elif self._working is None:
            self._working = self._start(self._work())

    def _flush(self) -> None:
        """One inline run over what is there; what does not fit into it has the next turn."""
        self._flushing = False
        inline = self._places.inline
        pieces = self._take(INLINE_ROWS)
        if inline is None or not pieces:
            self._waiting.extendleft(reversed(pieces))
            if self._waiting:
                self._go(asyncio.get_running_loop())
            return
        _share(pieces, self._run_inline(inline, _rows(pieces), [len(piece.rows) for piece in pieces]))
        if self._waiting:
            self._go(asyncio.get_running_loop())

    async def _work(self) -> None:
        """Runs apart, one after the other, until nobody waits or the version has moved."""
        try:
            while self._waiting and self._places.inline is None:
                apart = self._places.apart
                if apart is None or not apart.alive:
                    self._bring_back()
                    self._refuse_all("its process is starting")
                    return
                if pieces := self._take(APART_ROWS):
                    await self._run_apart(apart, pieces)
        finally:
            self._working = None
            if self._waiting and not self._closed:
                self._go(asyncio.get_running_loop())

    async def _run_apart(self, apart: Apart, pieces: Sequence[_Piece]) -> None:
        started = time.perf_counter()
        try:
            output, ms = await apart.run(self.signature.feeds(_rows(pieces)), self.slo)
        except TerminatedError as error:
            self._late(pieces, str(error))
        except BrokenError as error:
            if len(pieces) > 1 and apart.alive:
                for piece in pieces:
                    await self._run_apart(apart, [piece])
            else:
                self._broken(pieces, str(error))
        except BaseException:
            self._broken(pieces, "it was unloaded")
            raise
        else:
            self._answered(pieces, output, ms, (time.perf_counter() - started) * 1000)
        if not apart.alive:
            self._bring_back()

    def _run_inline(self, inline: Inline, rows: Sequence[Row], parts: Sequence[int]) -> Results:
        """One run of rows that belong to `parts` requests, so many each.

        A graph that raises raises for all rows of a run: then each request is tried alone, so that one bad row fails
        alone.
        """
        started, worked = time.perf_counter(), time.thread_time()
        try:
            output = inline.run(self.signature.feeds(rows), self.slo * INLINE_SHARE)
        except TerminatedError as error:
            self._send_apart()
            return self._overran(len(rows), str(error))
        except BrokenError as error:
            if len(parts) == 1:
                self._hooks.observed(self.version, "error", 0.0)
                return [Fault(str(error))] * len(rows)
            results: list[Answer | Fault] = []
            for count in parts:
                results += self._run_inline(inline, rows[len(results) : len(results) + count], (count,))
            return results
        run_ms = (time.thread_time() - worked) * 1000
        return self._results(output, len(rows), run_ms, (time.perf_counter() - started) * 1000)

    def _take(self, most: int) -> list[_Piece]:
        """Pieces for one run of at most `most` rows; those nobody waits for any more are dropped."""
        pieces: list[_Piece] = []
        rows = 0
        while self._waiting:
            piece = self._waiting[0]
            if piece.ticket.future.done():
                self._waiting.popleft()
                continue
            rows += len(piece.rows)
            if pieces and rows > most:
                break
            pieces.append(self._waiting.popleft())
        return pieces

    # --- results -----------------------------------------------------------------------------------------------

    def _answered(self, pieces: Sequence[_Piece], output: Output, run_ms: float, waited_ms: float) -> None:
        _share(pieces, self._results(output, sum(len(piece.rows) for piece in pieces), run_ms, waited_ms))
        if self._places.inline is None and not self._moving and self.runs.proven(self._needed, PROVEN_MS):
            self._moving = True
            self._start(self._come_inline())

    def _results(self, output: Output, rows: int, run_ms: float, waited_ms: float) -> Results:
        """What a run that came back says of `rows` rows, and of its version."""
        results = read(output, self.ready.target, rows)
        self.waits.add(waited_ms)
        self.runs.add(run_ms)
        outcome: Outcome = "late" if waited_ms > self.slo * 1000 else "ok"
        if any(type(result) is Fault for result in results):
            outcome = "error"
        self._hooks.observed(self.version, outcome, waited_ms)
        return results

    def _late(self, pieces: Sequence[_Piece], why: str) -> None:
        _share(pieces, self._overran(sum(len(piece.rows) for piece in pieces), why))

    def _overran(self, rows: int, why: str) -> Results:
        self.waits.add(self.slo * 1000)
        self._hooks.observed(self.version, "late", self.slo * 1000)
        return [Fault(why, late=True)] * rows

    def _broken(self, pieces: Sequence[_Piece], why: str) -> None:
        for piece in pieces:
            _give(piece, [Fault(why)] * len(piece.rows))
        self._hooks.observed(self.version, "error", 0.0)

    def _refuse_all(self, why: str) -> None:
        while self._waiting:
            piece = self._waiting.popleft()
            _give(piece, [Fault(why)] * len(piece.rows))

    # --- where it runs -----------------------------------------------------------------------------------------

    async def _come_inline(self) -> None:
        """Proven fast: onto the event loop; the process is let go when its last run is back."""
        try:
            inline = await self._runners.inline(self.ready, self._content)
        except BrokenError as error:
            log.warning("version stays apart", version=self.version, why=str(error))
            return
        self._places.inline = inline
        self._moving = False
        if self._working is not None:
            await asyncio.wait([self._working])
        if self._places.apart is not None:
            await self._places.apart.close()
            self._places.apart = None

    def _send_apart(self) -> None:
        """It overran on the event loop: into a process. Meanwhile others answer; if there is nobody, it still does."""
        if self._moving:
            return
        self._moving = True
        self._needed *= 4
        self.runs.clear()
        if not self._hooks.alone():
            self._set_available(False)
        self._start(self._leave())

    async def _leave(self) -> None:
        apart = self._runners.apart(self.ready, self._content)
        try:
            await apart.start()
        except (BrokenError, TimeoutError) as error:
            log.warning("version could not be sent apart", version=self.version, why=str(error))
            self._moving = False
            return
        inline, self._places.inline = self._places.inline, None
        self._places.apart = apart
        self._moving = False
        if inline is not None:
            inline.close()
        self._set_available(True)

    def _bring_back(self) -> None:
        """Its process is gone: start it again, later each time it happens in a row."""
        if self._moving or self._closed:
            return
        self._moving = True
        self._set_available(False)
        self._start(self._restart())

    async def _restart(self) -> None:
        while True:
            await asyncio.sleep(_RESTART_DELAYS[min(self._failed_starts, len(_RESTART_DELAYS) - 1)])
            apart = self._places.apart or self._runners.apart(self.ready, self._content)
            try:
                await apart.start()
            except (BrokenError, TimeoutError, OSError) as error:
                self._failed_starts += 1
                log.warning("version does not start", version=self.version, why=str(error))
                continue
            self._places.apart = apart
            self._failed_starts = 0
            self._moving = False
            self._set_available(True)
            return

    def _set_available(self, available: bool) -> None:
        if self.available != available:
            self.available = available
            self._hooks.changed()

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._places.tasks.add(task)
        task.add_done_callback(self._places.tasks.discard)
        return task


def _rows(pieces: Sequence[_Piece]) -> Sequence[Row]:
    if len(pieces) == 1:
        return pieces[0].rows
    return [row for piece in pieces for row in piece.rows]


def _share(pieces: Sequence[_Piece], results: Results) -> None:
    """To each piece the results of its rows."""
    at = 0
    for piece in pieces:
        _give(piece, results[at : at + len(piece.rows)] if len(pieces) > 1 else results)
        at += len(piece.rows)


def _give(piece: _Piece, results: Results) -> None:
    ticket = piece.ticket
    if ticket.future.done():
        return
    if ticket.missing == 1 and not ticket.results:
        ticket.future.set_result(results)
        return
    ticket.results[piece.start : piece.start + len(results)] = results
    ticket.missing -= 1
    if not ticket.missing:
        ticket.future.set_result(ticket.results)
