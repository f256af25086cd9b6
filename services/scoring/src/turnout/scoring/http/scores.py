"""`POST /pipelines/{pipeline}/score`, `GET /scores/{score_id}`, `POST /outcomes`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from starlette.types import Receive, Scope

from turnout.common import values
from turnout.common.errors import Invalid, Unknown
from turnout.common.events import Event, OutcomeObserved, ScoreProduced, ScoreRequested
from turnout.common.history.port import HistoryStore
from turnout.common.runtime.service import Clock
from turnout.scoring.domain.signature import unknown
from turnout.scoring.http import body, replies
from turnout.scoring.http.replies import Reply
from turnout.scoring.ports import Outbox
from turnout.scoring.reactions.answering import Answering, Request, new_score_id
from turnout.scoring.reactions.asking import MAX_ROWS, Asking, rows_and_entities
from turnout.scoring.reactions.fleet import SOURCE

FIELDS = ("rows", "entities", "version", "timeout_ms", "mode", "callback")
PARAMETERS = ("version", "timeout_ms", "mode")
OUTCOME_FIELDS = ("score_id", "outcome", "time")
RETRY = {"retry-after": "1"}


class Scores:
    """The friendly routes; each takes what ASGI gives and returns a reply."""

    def __init__(
        self, answering: Answering, asking: Asking, outbox: Outbox, history: Callable[[], HistoryStore], now: Clock
    ) -> None:
        self._answering = answering
        self._asking = asking
        self._outbox = outbox
        self._history = history
        self._now = now

    async def score(self, pipeline: str, scope: Scope, receive: Receive) -> Reply:
        """Score rows and entities now, or accept them (`mode=async`) and say where the answers will be."""
        arrived, tried = body.before(scope)
        given = body.an_object(body.parse(await body.read(scope, receive)), FIELDS)
        asked = body.query(scope, PARAMETERS)
        if given.get("callback") is not None:
            raise Invalid("callback", "pushing to a URL is not there yet", fix="use mode=async and ask for the score")
        rows, entities = rows_and_entities(given.get("rows"), given.get("entities"))
        request = Request(
            pipeline,
            rows,
            entities,
            version=body.version(asked.get("version", given.get("version"))),
            timeout_ms=body.milliseconds(asked.get("timeout_ms", given.get("timeout_ms")), "timeout_ms"),
            arrived=arrived,
            traceparent=body.traceparent(scope),
            tried=tried,
        )
        mode = asked.get("mode", given.get("mode", "sync"))
        if mode == "async":
            return await self._accept(request)
        if mode != "sync":
            raise unknown("mode", "mode", mode, ("sync", "async"))
        if entities:
            request = await self._asking.complete(request)
        scores = await self._answering.score(request)
        return replies.json({"rows": [replies.row_of(score) for score in scores]})

    async def stored(self, score_id: str) -> Reply:
        """A score that was answered; 202 while it is still to be. Raises `Unknown`."""
        event = await self._find(score_id)
        if isinstance(event, ScoreRequested):
            return replies.json({"score_id": score_id, "status": "pending"}, 202, RETRY)
        if not isinstance(event, ScoreProduced):
            raise Unknown("score_id", f"there is no score '{score_id[:100]}'", fix="it may be past its retention")
        return replies.json(replies.stored(event))

    async def outcomes(self, scope: Scope, receive: Receive) -> Reply:
        """What really happened: one outcome or a list; each becomes an event, durable before the reply.

        Raises `Unknown` if a score is not known; then none of them is taken.
        """
        given = body.parse(await body.read(scope, receive))
        many = isinstance(given, list)
        items: Sequence[Any] = given if many else [given]
        if not 1 <= len(items) <= MAX_ROWS:
            raise Invalid("outcomes", f"{len(items)} outcomes", fix=f"between 1 and {MAX_ROWS}")
        events = [await self._outcome(item, f"outcomes[{index}]." if many else "") for index, item in enumerate(items)]
        await self._outbox.add(events)
        shown = [{"score_id": event.score_id, "event_id": event.id} for event in events]
        return replies.json({"accepted": len(shown), "outcomes": shown}, 202)

    # --- parts -------------------------------------------------------------------------------------------------

    async def _accept(self, request: Request) -> Reply:
        """The requests go to the bus as events by way of the outbox: what was accepted survives us."""
        self._answering.check(request)
        at = self._now()
        events = [
            ScoreRequested.first(
                id=new_score_id(),
                source=SOURCE,
                at=at,
                pipeline=request.pipeline,
                values=dict(row) or None,
                entity=request.entities[index] if request.entities else None,
                version=request.version,
                traceparent=request.traceparent,
            )
            for index, row in enumerate(request.rows)
        ]
        await self._outbox.add(events)
        ids = [event.id for event in events]
        return replies.json({"score_ids": ids}, 202, {"location": f"/scores/{ids[0]}", **RETRY})

    async def _outcome(self, item: object, where: str) -> OutcomeObserved:
        if not isinstance(item, Mapping):
            raise Invalid(where.rstrip(".") or "body", "an object is expected", fix='{"score_id": …, "outcome": …}')
        for name in item:
            if name not in OUTCOME_FIELDS:
                raise unknown(f"{where}{name}", "field", name, OUTCOME_FIELDS)
        score_id, outcome = item.get("score_id"), item.get("outcome")
        if not isinstance(score_id, str) or not 1 <= len(score_id) <= 200:
            raise Invalid(f"{where}score_id", "a score's id is expected")
        if outcome is None or not isinstance(outcome, str | int | float | bool):
            raise Invalid(f"{where}outcome", "a class or a number is expected")
        if isinstance(outcome, float):
            values.number(outcome, f"{where}outcome")
        observed = self._observed(item.get("time"), f"{where}time")
        cause = await self._find(score_id)
        if cause is None:
            raise Unknown(f"{where}score_id", f"there is no score '{score_id[:100]}'")
        of = f"{outcome!r}/{item.get('time') or observed.isoformat()}"
        return OutcomeObserved.caused_by(
            cause, source=SOURCE, at=self._now(), of=of, score_id=score_id, outcome=outcome, observed_at=observed
        )

    def _observed(self, found: object, field: str) -> datetime:
        if found is not None and not isinstance(found, str | int | float):
            raise Invalid(field, "a time is expected", fix="write it as 2026-01-31T08:15:00Z")
        return values.timestamp(found, field) or self._now()

    async def _find(self, score_id: str) -> Event | None:
        """What was answered or accepted lately is here; the rest is in the history."""
        found = self._answering.lately(score_id) or await self._outbox.find(score_id)
        if found is None or isinstance(found, ScoreRequested):
            return await self._history().score(score_id) or found
        return found
