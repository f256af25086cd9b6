"""`ScoreRequested` → `ScoreProduced`: the same chain, the same deadline, asked by event."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import structlog

from turnout.common.bus.port import Record
from turnout.common.errors import Unavailable
from turnout.common.events import Event, ScoreProduced, ScoreRequested
from turnout.common.runtime.service import Clock, Refused
from turnout.common.runtime.views import Pipelines
from turnout.scoring.ports import Outbox
from turnout.scoring.reactions.answering import Answering, LateError, Request
from turnout.scoring.reactions.asking import Asking
from turnout.scoring.reactions.feed import Feed
from turnout.scoring.reactions.fleet import Fleet
from turnout.scoring.reactions.lane import INLINE_ROWS

log = structlog.get_logger()


class Requests:
    """Answers a batch of requests; those past their expiry are dropped.

    The score's id is the request's, so a request that is delivered twice has one score.
    """

    def __init__(
        self,
        fleet: Fleet,
        answering: Answering,
        asking: Asking,
        *,
        pipelines: Pipelines,
        outbox: Outbox,
        feed: Feed,
        now: Clock,
    ) -> None:
        self._fleet = fleet
        self._outbox = outbox
        self._feed = feed
        self._pipelines = pipelines
        self._answering = answering
        self._asking = asking
        self._now = now

    async def __call__(self, events: Sequence[Event]) -> list[Event | Record | Refused]:
        """The scores, in the order of the requests, and what they feed.

        Raises `Invalid` and `Unavailable` as scoring does.
        """
        if not self._feed.ready:
            raise Unavailable("the pipelines' files", "they are being read")
        now = self._now()
        requests = [e for e in events if isinstance(e, ScoreRequested) and (e.expiry is None or e.expiry > now)]
        dropped = len(events) - len(requests)
        if dropped:
            log.info("requests past their expiry dropped", count=dropped)
        produced: list[ScoreProduced] = []
        for _, group in groupby(requests, key=lambda e: (e.pipeline, e.version)):
            same = list(group)
            for at in range(0, len(same), INLINE_ROWS):
                produced += await self._score(same[at : at + INLINE_ROWS])
        return [*produced, *self._feed.fed_by(produced)]

    async def _score(self, events: Sequence[ScoreRequested]) -> Sequence[ScoreProduced]:
        first = events[0]
        if first.pipeline not in self._fleet.pipelines():
            await self._pipelines.declared(first.pipeline)  # or it is `Unknown`
            raise Unavailable(f"pipeline {first.pipeline}", "its declaration is being read")
        lineup = self._fleet.lineup(first.pipeline)
        if lineup.missing() and not any(lane.available for lane in lineup.lanes.values()):
            raise Unavailable(f"pipeline {first.pipeline}", "its versions are being loaded")
        limits = [(e.expiry - self._now()).total_seconds() * 1000 for e in events if e.expiry is not None]
        request = Request(
            first.pipeline,
            [dict(e.values or {}) for e in events],
            [e.entity for e in events],
            version=first.version,
            timeout_ms=max(1.0, min(limits)) if limits else None,
            where="values.",
            score_ids=[e.id for e in events],
            causes=events,
        )
        request = await self._asking.complete(request)
        try:
            scores = await self._answering.answer(request)
        except LateError as error:
            raise Unavailable(f"version {first.version}", str(error)) from None
        await self._outbox.count(scores)
        self._answering.meter(request, scores)
        return scores
