"""What replies look like, and which status an error becomes that only scoring knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from turnout.common.errors import TurnoutError
from turnout.common.events import ScoreProduced, ServedBy
from turnout.common.runtime import problems
from turnout.scoring.reactions.answering import LateError

log = structlog.get_logger()

Reply = tuple[int, Mapping[str, str], bytes]


class AttemptShown(BaseModel):
    """One version that was asked or left out, and what came of it."""

    version: str
    outcome: str = Field(description="ok, late, error, off (taken off for now) or loading")
    milliseconds: float | None = None
    detail: str | None = None


class ScoreShown(BaseModel):
    """The answer to one row."""

    score_id: str = Field(description="Names the score for ever: `GET /scores/{score_id}`, `POST /outcomes`.")
    entity: str | None = None
    value: float | str = Field(description="The class, the number, or the cluster.")
    probabilities: dict[str, float] = Field(description="Per class; empty where there are none.")
    version: str = Field(description="Who answered; `baseline` is the training data's own share.")
    served_by: ServedBy
    reason: str | None = Field(
        default=None, description="Why somebody else answered than was asked first: deadline, error, circuit, loading."
    )
    attempts: list[AttemptShown] = Field(default=[], description="All that were asked or left out, in order.")


class ScoresShown(BaseModel):
    """One answer per row, in the order of the request."""

    rows: list[ScoreShown]


class StoredScore(ScoreShown):
    """A score as it was answered, with where and when."""

    pipeline: str
    time: str
    milliseconds: float


class Accepted(BaseModel):
    """The scores to ask for later."""

    score_ids: list[str]


def row_of(score: ScoreProduced) -> dict[str, Any]:
    """A score as a reply shows it (see `ScoreShown`)."""
    return {
        "score_id": score.score_id,
        "entity": score.entity,
        "value": score.value,
        "probabilities": score.probabilities,
        "version": score.version,
        "served_by": score.served_by,
        "reason": score.reason,
        "attempts": [
            {"version": a.version, "outcome": a.outcome, "milliseconds": a.milliseconds, "detail": a.detail}
            for a in score.attempts
        ],
    }


def stored(score: ScoreProduced) -> dict[str, Any]:
    """A score that was answered before (see `StoredScore`)."""
    where = {"pipeline": score.pipeline, "time": score.time.isoformat(), "milliseconds": score.milliseconds}
    return {**row_of(score), "probabilities": dict(score.probabilities), **where}


def json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A reply in JSON."""
    return status, {"content-type": "application/json", **(headers or {})}, orjson.dumps(content)


def response(reply: Reply) -> Response:
    """A reply as Starlette sends it."""
    status, headers, content = reply
    return Response(content, status, dict(headers))


def refusal(error: Exception, path: str) -> Response:
    """The response that an error becomes. What is no error on purpose is logged: it is a bug."""
    if isinstance(error, LateError):
        return problems.problem(HTTPStatus.GATEWAY_TIMEOUT, str(error), path)
    if not isinstance(error, TurnoutError | HTTPException):
        log.error("request failed", path=path, exc_info=error)
    return problems.of(error, path)


def distinct(values: Sequence[str]) -> str:
    """The different ones of `values`, in order, as one text: the inference protocol's parameters are scalars."""
    return ",".join(dict.fromkeys(values))
