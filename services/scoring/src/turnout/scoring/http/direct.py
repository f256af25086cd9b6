"""The commonest requests, answered below ASGI: one row, nothing special about it, and a version that answers at once.

Whatever is odd about a request (a field too many, a text where a number belongs, an entity, a pinned version, a query)
is left to the handlers of the same paths: they know what to make of it, or how to refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from turnout.common.runtime.direct import Exchange, Headers
from turnout.common.runtime.keys import ApiKeys
from turnout.scoring.http.replies import ScoreShown
from turnout.scoring.reactions.answering import new_score_id
from turnout.scoring.reactions.fleet import Fleet, Lineup
from turnout.scoring.reactions.turns import Asked, Content, Turns

_SHOWN = tuple(ScoreShown.model_fields)


class DirectScores:
    """See `Direct`."""

    def __init__(self, fleet: Fleet, turns: Turns, keys: ApiKeys) -> None:
        self._fleet = fleet
        self._turns = turns
        self._keys = keys
        self._pipelines: dict[bytes, str] = {}

    def serves(self, path: bytes) -> bool:
        """See `Direct.serves`."""
        if path in self._pipelines:
            return True
        match path.split(b"/"):
            case [b"", b"pipelines", name, b"score"]:
                pipeline = name.decode("latin-1")
                if self._fleet.find(pipeline) is not None:
                    self._pipelines[path] = pipeline
                    return True
            case _:
                pass
        return False

    def take(self, path: bytes, headers: Headers, body: bytes, exchange: Exchange) -> bool:
        """See `Direct.take`."""
        lineup = self._fleet.find(self._pipelines[path])
        if lineup is None:
            return False
        authorization, traceparent = "", None
        for name, value in headers:
            if name == b"content-type":
                if b"json" not in value:
                    return False
            elif name == b"authorization":
                authorization = value.decode("latin-1")
            elif name == b"traceparent":
                traceparent = value.decode("latin-1")
        if not self._keys.allows(authorization, "score"):
            return False
        values = _row(body)
        return values is not None and self._ask(lineup, values, traceparent, exchange, _score)

    def _ask(
        self,
        lineup: Lineup,
        values: Mapping[str, Any],
        traceparent: str | None,
        exchange: Exchange,
        word: Callable[[Content], bytes],
    ) -> bool:
        score_id = new_score_id()
        plan = lineup.router.choose(score_id, exchange.arrived)
        if not plan.steps or plan.skipped or plan.probe is not None:
            return False
        step = plan.steps[0]
        lane = lineup.lanes.get(step.version)
        if lane is None or not lane.prompt:
            return False
        row = lane.signature.plain(values)
        if row is None:
            return False
        self._turns.ask(lineup, step, lane, Asked(exchange, score_id, row, values, traceparent, word))
        return True


def _row(body: bytes) -> Mapping[str, Any] | None:
    """The only row in a body that has nothing else."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    rows = given.get("rows") if type(given) is dict and len(given) == 1 else None
    row = rows[0] if type(rows) is list and len(rows) == 1 else None
    return row if type(row) is dict else None


def _score(content: Content) -> bytes:
    """The reply of `POST /pipelines/{pipeline}/score` (see `ScoresShown`)."""
    return orjson.dumps({"rows": [{name: content[name] for name in _SHOWN}]})
