"""A score's event as the outbox keeps it, without building the event first.

Only for answers that need no explanation: the first version that was asked gave them. What does not change from score
to score is taken from a specimen that went through the same encoder as every other event.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from turnout.common import tracing
from turnout.common.bus.cloudevents import encode
from turnout.common.events import ScoreProduced
from turnout.scoring.domain.answer import Answer
from turnout.scoring.domain.router import Step
from turnout.scoring.ports import Kept

_IDENT = "0123456789abcdef" * 2
_AT = datetime(2001, 2, 3, 4, 5, 6, 789, UTC)
_TRACE = tracing.continued(None, _IDENT, correlation=_IDENT)


class Envelope:
    """For the scores of one step of one pipeline's chain."""

    def __init__(self, source: str, pipeline: str, step: Step) -> None:
        self.pipeline = pipeline
        self.step = step
        specimen = ScoreProduced.first(
            id=_IDENT, source=source, at=_AT, pipeline=pipeline, score_id=_IDENT, version=step.version,
            served_by=step.role, values={}, value=0.0, milliseconds=0.0,
        )  # fmt: skip
        record = encode(specimen)
        headers = orjson.dumps([(name, value.decode()) for name, value in record.headers]).decode().replace("%", "%%")
        headers = headers.replace(_TRACE, "%(trace)s").replace(_IDENT, "%(id)s").replace(_AT.isoformat(), "%(at)s")
        self._headers = headers
        self._topic = record.topic

    def keep(self, content: Mapping[str, Any], at: str, traceparent: str | None) -> Kept:
        """The score whose fields are `content`, to be appended; `at` in ISO 8601, `traceparent` the caller's."""
        ident = content["score_id"]
        trace = tracing.continued(traceparent, ident, correlation=ident)
        headers = self._headers % {"id": ident, "at": at, "trace": trace}
        value = orjson.dumps(content)
        return ident, self.pipeline, None, self._topic, ident.encode(), headers.encode(), value

    def content(self, score_id: str, values: Mapping[str, Any], answer: Answer, milliseconds: float) -> dict[str, Any]:
        """The fields of a `ScoreProduced`."""
        version = self.step.version
        return {
            "pipeline": self.pipeline,
            "score_id": score_id,
            "entity": None,
            "version": version,
            "requested_version": None,
            "served_by": self.step.role,
            "reason": None,
            "attempts": [{"version": version, "outcome": "ok", "milliseconds": milliseconds, "detail": None}],
            "values": values,
            "value": answer.value,
            "probabilities": answer.probabilities,
            "milliseconds": milliseconds,
        }
