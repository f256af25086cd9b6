"""Requests for one row each, nothing about them special: those of one turn of the event loop share a run and a commit.

Nobody waits for a batch to fill. What comes of a request that its version fails is not decided here: it is given back,
with who was tried, and goes the long way through the chain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import structlog

from turnout.common.errors import Unavailable
from turnout.common.runtime.crash import crash_point
from turnout.common.runtime.direct import Exchange
from turnout.common.runtime.service import Clock
from turnout.scoring.domain.answer import Fault
from turnout.scoring.domain.router import Step
from turnout.scoring.domain.signature import Row
from turnout.scoring.ports import Kept, Outbox
from turnout.scoring.reactions import meters
from turnout.scoring.reactions.answering import Tried
from turnout.scoring.reactions.envelope import Envelope
from turnout.scoring.reactions.fleet import DECISIONS, SOURCE, Decision, Lineup
from turnout.scoring.reactions.lane import Lane

log = structlog.get_logger()

# The fields of a `ScoreProduced`.
Content = dict[str, Any]


@dataclass(slots=True)
class Asked:
    """One request: its row as the version takes it and as the caller wrote it, and how to word the reply."""

    exchange: Exchange
    score_id: str
    row: Row
    values: Mapping[str, Any]
    traceparent: str | None
    word: Callable[[Content], bytes]


@dataclass(slots=True)
class _Group:
    """The requests of this turn for one version."""

    lineup: Lineup
    step: Step
    asked: list[Asked] = field(default_factory=list[Asked])


class Turns:
    """See the module."""

    def __init__(self, outbox: Outbox, *, now: Clock) -> None:
        self._outbox = outbox
        self._now = now
        self._groups: dict[Lane, _Group] = {}

    def ask(self, lineup: Lineup, step: Step, lane: Lane, asked: Asked) -> None:
        """Take a request for `lane`, which is `step` of the chain and `prompt`."""
        if not self._groups:
            asyncio.get_running_loop().call_soon(self._turn)
        group = self._groups.get(lane)
        if group is None:
            group = self._groups[lane] = _Group(lineup, step)
        group.asked.append(asked)

    def _turn(self) -> None:
        groups, self._groups = self._groups, {}
        at = self._now().isoformat()
        kept: list[Kept] = []
        answered: list[tuple[Asked, Content]] = []
        for lane, group in groups.items():
            try:
                found = self._answer(lane, group, at)
            except Exception:
                log.exception("a turn failed", pipeline=group.lineup.pipeline, requests=len(group.asked))
                for asked in group.asked:
                    asked.exchange.give_back()
                continue
            for asked, content, row in found:
                answered.append((asked, content))
                kept.append(row)
        if kept:
            self._outbox.append(kept, lambda error: _settle(answered, error))

    def _answer(self, lane: Lane, group: _Group, at: str) -> list[tuple[Asked, Content, Kept]]:
        """Those of the group that have an answer; the others are given back."""
        began = time.monotonic()
        results = lane.at_once([asked.row for asked in group.asked])
        now = time.monotonic()
        step = group.step
        envelope = _envelope(group.lineup.pipeline, step)
        found: list[tuple[Asked, Content, Kept]] = []
        for asked, result in zip(group.asked, results, strict=False):
            if isinstance(result, Fault):
                asked.exchange.give_back(Tried(step, result, (now - began) * 1000))
                continue
            content = envelope.content(asked.score_id, asked.values, result, (now - asked.exchange.arrived) * 1000)
            found.append((asked, content, envelope.keep(content, at, asked.traceparent)))
        for asked in group.asked[len(results) :]:
            asked.exchange.give_back()
        for _, content, _ in found[-DECISIONS:]:
            spent = round(content["milliseconds"], 3)
            group.lineup.decisions.append(Decision(content["score_id"], at, step.version, step.role, None, spent))
        return found


def _settle(answered: Sequence[tuple[Asked, Content]], error: Unavailable | None) -> None:
    """Reply to everybody whose score is durable; those whose score is not are told so the long way."""
    if error is not None:
        for asked, _ in answered:
            asked.exchange.give_back()
        return
    crash_point("scoring-durable")
    for asked, content in answered:
        asked.exchange.reply(asked.word(content))
        meters.answered(content["pipeline"], content["version"], content["milliseconds"], meant=None, reason=None)


@lru_cache(maxsize=1000)
def _envelope(pipeline: str, step: Step) -> Envelope:
    return Envelope(SOURCE, pipeline, step)
