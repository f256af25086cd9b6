"""From a request's rows to answers: through the chain, within the deadline, durable before they leave.

The order for one request:

1. the values are decoded against the version's signature,
2. the first version of the chain is asked; no answer by *deadline - p99 of the next* and the next is asked too,
3. at the deadline, or as soon as nobody better can still answer, the best answer there is is taken; else the prior,
4. the scores are appended to the outbox (one commit for the requests of a turn of the loop), then the caller has them.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from turnout.common import tracing
from turnout.common.errors import TurnoutError, Unavailable
from turnout.common.events import Attempt, ModelReady, ScoreProduced, ScoreRequested, ServedBy
from turnout.common.ids import caused_event_id
from turnout.common.runtime.crash import crash_point
from turnout.common.runtime.service import Clock
from turnout.scoring.domain.answer import Answer, Fault, of_prior
from turnout.scoring.domain.deadline import Deadline
from turnout.scoring.domain.router import Plan, Step, reason
from turnout.scoring.domain.signature import Row, Signature
from turnout.scoring.ports import Outbox
from turnout.scoring.reactions import meters
from turnout.scoring.reactions.fleet import SOURCE, Decision, Fleet, Lineup
from turnout.scoring.reactions.lane import Results

log = structlog.get_logger()

BASELINE = "baseline"
RECENT = 10_000
# Seeded by the system, once: to ask it for each score lets go of the interpreter's lock, and others take it.
_RANDOM = random.Random(os.urandom(32))  # noqa: S311 (a name, not a secret)
# Between the choice and the reply lie a commit and the reply itself; this part of the deadline is kept for them.
RESERVE_SHARE = 0.2


class LateError(TurnoutError):
    """The version that the caller insists on did not answer in time."""

    def __init__(self, pipeline: str, version: str, milliseconds: float) -> None:
        super().__init__(f"version {version} of {pipeline} gave no answer within {milliseconds:.0f} ms")


@dataclass(frozen=True, slots=True)
class Tried:
    """A version that was asked for a request's only row already, and failed."""

    step: Step
    fault: Fault
    milliseconds: float


@dataclass(slots=True)
class Request:
    """Rows to score. `entities[i]` is whose row i is, or None; `score_ids` are made here unless given.

    `together`: one version is chosen for all rows (the inference protocol names one). `where` is put before a field's
    name in errors, with `{}` for the row's number. `without` are the rows that get the prior, because their features
    could not be had in time. `arrived` is on the monotonic clock; `causes` are the events that asked, one per row;
    `traceparent` is the caller's; `tried` is who need not be asked any more.
    """

    pipeline: str
    rows: Sequence[Mapping[str, Any]]
    entities: Sequence[str | None] = ()
    version: str | None = None
    timeout_ms: float | None = None
    together: bool = False
    where: str = "rows[{}]."
    arrived: float = field(default_factory=time.monotonic)
    score_ids: Sequence[str] = ()
    causes: Sequence[ScoreRequested] = ()
    without: frozenset[int] = frozenset()
    traceparent: str | None = None
    tried: Tried | None = None


@dataclass(slots=True)
class _Asked:
    """One version asked for a group of rows; `results` None while it has not answered."""

    step: Step
    started: float
    results: Results | None = None
    milliseconds: float | None = None


@dataclass(slots=True)
class _Given:
    """What one row was given."""

    answer: Answer
    version: str
    served_by: ServedBy
    attempts: tuple[Attempt, ...]
    reason: str | None = None


class Answering:
    """See the module. `reserve` in seconds is kept of every deadline for the commit and the reply."""

    def __init__(self, fleet: Fleet, outbox: Outbox, *, now: Clock, reserve: float) -> None:
        self._fleet = fleet
        self._outbox = outbox
        self._now = now
        self._reserve = reserve
        self._shadows: set[asyncio.Task[None]] = set()
        self._recent: OrderedDict[str, ScoreProduced] = OrderedDict()

    async def score(self, request: Request) -> Sequence[ScoreProduced]:
        """One durable score per row, in order.

        Raises `Unknown` (pipeline, version), `Invalid` (a value, naming it), `Unavailable` (nobody may answer, or the
        outbox takes nothing) and `LateError` (a pinned version).
        """
        scores = await self.answer(request)
        await self._outbox.add(scores)
        crash_point("scoring-durable")
        self.meter(request, scores)
        return scores

    def meter(self, request: Request, scores: Sequence[ScoreProduced]) -> None:
        """Count what was answered."""
        spent = (time.monotonic() - request.arrived) * 1000
        for score in scores:
            meant = None
            if score.reason is not None:
                meant = score.attempts[0].version if score.attempts else "none"
            meters.answered(score.pipeline, score.version, spent, meant=meant, reason=score.reason)
        first = scores[0]
        log.debug(
            "scored", pipeline=first.pipeline, rows=len(scores), score_id=first.score_id, version=first.version,
            reason=first.reason, milliseconds=spent,
        )  # fmt: skip

    async def answer(self, request: Request) -> Sequence[ScoreProduced]:
        """Like `score`, but nothing is made durable: for who publishes the scores itself."""
        lineup = self._fleet.lineup(request.pipeline)
        budget = request.timeout_ms if request.timeout_ms is not None else lineup.slo_ms
        budget = min(budget, lineup.slo_ms)
        reserve = min(self._reserve, budget / 1000 * RESERVE_SHARE)
        deadline = Deadline(request.arrived + budget / 1000 - reserve, time.monotonic)
        ids = request.score_ids or [new_score_id() for _ in request.rows]
        try:
            if request.version is not None:
                given = await self._pinned(lineup, request, deadline)
            else:
                given = await self._routed(lineup, request, ids, deadline)
        except (Unavailable, LateError):
            meters.failed(request.pipeline, request.version or "none", len(request.rows))
            raise
        scores = self._scores(lineup, request, ids, given)
        if request.causes:
            self._remember(scores)
        return scores

    def lately(self, score_id: str) -> ScoreProduced | None:
        """A score that an event asked for, answered by this process lately: it may not have come to the history."""
        return self._recent.get(score_id)

    def _remember(self, scores: Sequence[ScoreProduced]) -> None:
        for score in scores:
            self._recent[score.score_id] = score
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def check(self, request: Request) -> None:
        """Whether a request that is to be answered later fits: what `score` would refuse, without scoring."""
        lineup = self._fleet.lineup(request.pipeline)
        if request.version is not None:
            signature = Signature(self._fleet.ready(request.pipeline, request.version).inputs)
        else:
            signature = Signature(self.contract(request.pipeline).inputs)
        for index, row in enumerate(request.rows):
            if row or not request.entities:
                signature.row(row, request.where.format(index), lineup.names)

    def contract(self, pipeline: str) -> ModelReady:
        """The version whose inputs a request has to fit if it names none. Raises `Unknown`, `Unavailable`."""
        lineup = self._fleet.lineup(pipeline)
        table = lineup.router.table
        for version in (table.champion if table else None, lineup.newest):
            ready = lineup.known.get(version or "")
            if ready is not None:
                return ready
        raise Unavailable(f"pipeline {pipeline}", "no version is ready yet")

    # --- whom to ask -------------------------------------------------------------------------------------------

    async def _pinned(self, lineup: Lineup, request: Request, deadline: Deadline) -> Sequence[_Given]:
        version = request.version or ""
        lane = self._fleet.pinned(request.pipeline, version)
        rows = _decode(lineup, lane.signature, request, range(len(request.rows)))
        plan = lineup.router.pinned(version)
        asked = await self._race(lineup, plan, lambda _: rows, len(rows), deadline)
        results = asked[0].results if asked else None
        if results is None or any(isinstance(result, Fault) and result.late for result in results):
            raise LateError(request.pipeline, version, (time.monotonic() - request.arrived) * 1000)
        given: list[_Given] = []
        for one, result in zip(_settle(len(rows), asked, plan), results, strict=True):
            if not isinstance(one, _Given):
                why = result.why if isinstance(result, Fault) else "it gave no answer"
                raise Unavailable(f"version {version} of {request.pipeline}", why)
            given.append(one)
        return given

    async def _routed(
        self, lineup: Lineup, request: Request, ids: Sequence[str], deadline: Deadline
    ) -> Sequence[_Given]:
        """Rows with the same plan go together; nearly always that is all of them."""
        now = time.monotonic()
        table = lineup.router.table
        indexes: Sequence[int] = range(len(request.rows))
        if request.without:
            indexes = [index for index in indexes if index not in request.without]
        if len(indexes) == len(ids) and (len(ids) == 1 or request.together or not (table and table.challenger)):
            return await self._group(
                lineup, lineup.router.choose(_key(request, ids, 0), now), request, indexes, deadline
            )
        groups: dict[tuple[Step, ...], tuple[Plan, list[int]]] = {}
        for index in indexes:
            plan = lineup.router.choose(_key(request, ids, index), now)
            groups.setdefault(plan.steps, (plan, []))[1].append(index)
        answers = await asyncio.gather(
            *(self._group(lineup, plan, request, some, deadline) for plan, some in groups.values())
        )
        given: dict[int, _Given] = {}
        for (_, some), answered in zip(groups.values(), answers, strict=True):
            given.update(zip(some, answered, strict=True))
        for index in request.without:
            given[index] = self._prior(lineup, (), "features")
        return [given[index] for index in range(len(ids))]

    async def _group(
        self, lineup: Lineup, plan: Plan, request: Request, indexes: Sequence[int], deadline: Deadline
    ) -> Sequence[_Given]:
        tried: list[_Asked] = []
        if request.tried is not None:
            tried.append(_Asked(request.tried.step, request.arrived, [request.tried.fault], request.tried.milliseconds))
            plan = _without(plan, request.tried.step.version)
        head = _contract(lineup, plan)
        if head is None:
            return [self._prior(lineup, plan.skipped, reason(plan.skipped) or "loading")] * len(indexes)
        first = _decode(lineup, head, request, indexes)
        others: dict[str, Sequence[Row]] = {}

        def rows(version: str) -> Sequence[Row]:
            signature = lineup.lanes[version].signature
            if signature.same(head):
                return first
            if version not in others:
                others[version] = _decode(lineup, signature, request, indexes)
            return others[version]

        if plan.probe is not None and plan.probe in lineup.lanes:
            self._shadow(lineup, plan.probe, rows(plan.probe)[:1])
        asked = await self._race(lineup, plan, rows, len(indexes), deadline, tried=tried)
        nobody = "deadline" if plan.steps else "loading"
        return [
            one if isinstance(one, _Given) else self._prior(lineup, one, reason(one) or nobody)
            for one in _settle(len(indexes), asked, plan)
        ]

    # --- asking ------------------------------------------------------------------------------------------------

    async def _race(
        self,
        lineup: Lineup,
        plan: Plan,
        rows: Callable[[str], Sequence[Row]],
        count: int,
        deadline: Deadline,
        *,
        tried: Sequence[_Asked] = (),
    ) -> Sequence[_Asked]:
        """Ask the plan's versions in turn, the next one when the one before failed or its time has come."""
        asked: list[_Asked] = [*tried]
        running: dict[asyncio.Future[Results], _Asked] = {}
        steps = [*(entry.step for entry in tried), *(step for step in plan.steps if step.version in lineup.lanes)]
        try:
            while not deadline.passed:
                following = lineup.lanes.get(steps[len(asked)].version) if len(asked) < len(steps) else None
                patience = deadline.remaining() - (following.head_start if following else 0.0)
                if following is not None and (not running or patience <= 0):
                    entry = _Asked(steps[len(asked)], time.monotonic())
                    asked.append(entry)
                    future = following.submit(rows(following.version))
                    if following.prompt and not running:
                        # Its next run is bounded by itself: no timer is needed, and none is paid for.
                        entry.results = await future
                        entry.milliseconds = (time.monotonic() - entry.started) * 1000
                        if _decided(asked, count):
                            break
                    else:
                        running[future] = entry
                    continue
                if not running:
                    break
                done, _ = await asyncio.wait(running, timeout=max(0.0, patience), return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    entry = running.pop(future)
                    entry.results = future.result()
                    entry.milliseconds = (time.monotonic() - entry.started) * 1000
                if done and _decided(asked, count):
                    break
        finally:
            for future in running:
                future.cancel()
        return asked

    def _shadow(self, lineup: Lineup, version: str, rows: Sequence[Row]) -> None:
        """A trial call to a version that is off, with a real row; nobody waits for it."""
        lineup.router.probing(version, time.monotonic())
        task = asyncio.get_running_loop().create_task(self._probe(lineup, version, rows))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _probe(self, lineup: Lineup, version: str, rows: Sequence[Row]) -> None:
        lane = lineup.lanes.get(version)
        if lane is None:
            return
        started = time.monotonic()
        results = await lane.submit(rows)
        milliseconds = (time.monotonic() - started) * 1000
        late = milliseconds > lineup.slo_ms or any(isinstance(r, Fault) and r.late for r in results)
        failed = any(isinstance(result, Fault) for result in results)
        outcome = "late" if late else "error" if failed else "ok"
        self._fleet.observe(lineup, version, outcome, milliseconds, probe=True)

    # --- what comes of it --------------------------------------------------------------------------------------

    def _prior(self, lineup: Lineup, attempts: tuple[Attempt, ...], why: str) -> _Given:
        prior = lineup.prior()
        if prior is None:
            raise Unavailable(f"pipeline {lineup.pipeline}", "no version is ready yet")
        if not lineup.baseline:
            raise Unavailable(f"pipeline {lineup.pipeline}", f"no version could answer ({why})")
        return _Given(of_prior(prior), BASELINE, "baseline", attempts, why)

    def _scores(
        self, lineup: Lineup, request: Request, ids: Sequence[str], given: Sequence[_Given]
    ) -> Sequence[ScoreProduced]:
        at = self._now()
        spent = (time.monotonic() - request.arrived) * 1000
        scores: list[ScoreProduced] = []
        for index, one in enumerate(given):
            score_id = ids[index]
            cause = request.causes[index] if request.causes else None
            ident = caused_event_id(cause.id, "ScoreProduced") if cause else score_id
            correlation = cause.correlation_id if cause else score_id
            trace = cause.traceparent if cause else request.traceparent
            # Everything in it was checked on its way here: building it without a second check saves 15 µs a row.
            score = ScoreProduced.model_construct(
                id=ident,
                source=SOURCE,
                time=at,
                correlation_id=correlation,
                causation_id=cause.id if cause else None,
                traceparent=tracing.continued(trace, ident, correlation=correlation),
                pipeline=request.pipeline,
                score_id=score_id,
                entity=request.entities[index] if request.entities else None,
                version=one.version,
                requested_version=request.version,
                served_by=one.served_by,
                reason=one.reason,
                attempts=one.attempts,
                values=request.rows[index],
                value=one.answer.value,
                probabilities=one.answer.probabilities,
                milliseconds=spent,
            )
            scores.append(score)
            lineup.decisions.append(
                Decision(score_id, at.isoformat(), one.version, one.served_by, one.reason, round(spent, 3))
            )
        return scores


def new_score_id() -> str:
    """Milliseconds and 80 random bits: in the order of time, so that an index grows at its end."""
    return f"{time.time_ns() // 1_000_000:012x}{_RANDOM.getrandbits(80):020x}"


def _key(request: Request, ids: Sequence[str], index: int) -> str:
    return (request.entities[index] if request.entities else None) or ids[index]


def _contract(lineup: Lineup, plan: Plan) -> Signature | None:
    """Whose inputs a request has to fit: the first version's that is asked, else the champion's or the newest's."""
    for step in plan.steps:
        if step.version in lineup.lanes:
            return lineup.lanes[step.version].signature
    table = lineup.router.table
    ready: ModelReady | None = None
    for version in (table.champion if table else None, lineup.newest):
        ready = ready or lineup.known.get(version or "")
    return Signature(ready.inputs) if ready else None


def _without(plan: Plan, version: str) -> Plan:
    """The plan for who is left when `version` was asked already."""
    steps = tuple(step for step in plan.steps if step.version != version)
    skipped = tuple(attempt for attempt in plan.skipped if attempt.version != version)
    return replace(plan, steps=steps, skipped=skipped)


def _decode(lineup: Lineup, signature: Signature, request: Request, indexes: Sequence[int]) -> Sequence[Row]:
    return [signature.row(request.rows[index], request.where.format(index), lineup.names) for index in indexes]


def _decided(asked: Sequence[_Asked], count: int) -> bool:
    """Whether for every row the best version that can still answer has answered."""
    return all(_decided_row(asked, index) for index in range(count))


def _decided_row(asked: Sequence[_Asked], index: int) -> bool:
    for entry in asked:
        if entry.results is None:
            return False
        if isinstance(entry.results[index], Answer):
            return True
    return False


def _settle(count: int, asked: Sequence[_Asked], plan: Plan) -> Sequence[_Given | tuple[Attempt, ...]]:
    """Per row: the answer of the first version in the chain that has one, or everybody's failures."""
    return [_settle_row(index, asked, plan) for index in range(count)]


def _settle_row(index: int, asked: Sequence[_Asked], plan: Plan) -> _Given | tuple[Attempt, ...]:
    best: tuple[_Asked, Answer] | None = None
    attempts: list[Attempt] = []
    for entry in asked:
        result = entry.results[index] if entry.results is not None else None
        attempts.append(_attempt(entry, result))
        if best is None and isinstance(result, Answer):
            best = (entry, result)
    if plan.skipped:
        attempts = _in_order(plan, attempts, best[0].step.version if best else None)
    tried = tuple(attempts)
    if best is None:
        return tried
    entry, answer = best
    why = reason(tried) if tried[0].version != entry.step.version else None
    return _Given(answer, entry.step.version, entry.step.role, tried, why)


def _in_order(plan: Plan, attempts: Sequence[Attempt], answered: str | None) -> list[Attempt]:
    """Attempts in the chain's order, with those left out; behind the one that answered nobody was left out."""
    at = {version: place for place, version in enumerate(plan.order)}
    last = at.get(answered, len(at)) if answered is not None else len(at)
    skipped = [attempt for attempt in plan.skipped if at.get(attempt.version, 0) < last]
    return sorted([*skipped, *attempts], key=lambda attempt: at.get(attempt.version, len(at)))


def _attempt(entry: _Asked, result: Answer | Fault | None) -> Attempt:
    version, milliseconds = entry.step.version, entry.milliseconds
    match result:
        case Answer():
            return Attempt.model_construct(version=version, outcome="ok", milliseconds=milliseconds, detail=None)
        case Fault():
            outcome = "late" if result.late else "error"
            return Attempt(version=version, outcome=outcome, milliseconds=milliseconds, detail=result.why)
        case None:
            return Attempt(version=version, outcome="late")
