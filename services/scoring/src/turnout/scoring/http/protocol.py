"""The Open Inference Protocol, version 2, over REST (see `turnout.scoring.domain.tensors` for the source)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import Receive, Scope

from turnout.common.errors import Invalid
from turnout.common.events import ModelReady, ScoreProduced
from turnout.common.telemetry import release
from turnout.scoring.domain import tensors
from turnout.scoring.domain.answer import Answer
from turnout.scoring.domain.signature import Signature
from turnout.scoring.http import body, replies
from turnout.scoring.http.replies import Reply
from turnout.scoring.reactions.answering import BASELINE, Answering, Request
from turnout.scoring.reactions.asking import MAX_ROWS
from turnout.scoring.reactions.fleet import Fleet

PLATFORM = "onnx_onnxv1"
EXTENSIONS = ("router", "outcomes")
FIELDS = ("id", "parameters", "inputs", "outputs")
MICROSECONDS = 1000.0


class Protocol:
    """The protocol's routes; each returns a reply. Errors are raised; the edge makes `{"error": …}` of them."""

    def __init__(self, fleet: Fleet, answering: Answering) -> None:
        self._fleet = fleet
        self._answering = answering

    def server(self) -> Reply:
        """Name, version and extensions of the server."""
        return replies.json({"name": "turnout", "version": release(), "extensions": EXTENSIONS})

    def server_ready(self) -> Reply:
        """Whether every version that routing names is loaded."""
        waiting = self._fleet.waiting_for()
        return replies.json({"ready": not waiting}, 503 if waiting else 200)

    def metadata(self, model: str, version: str | None = None) -> Reply:
        """Versions, inputs and outputs of a model."""
        ready = self._ready(model, version)
        known = self._fleet.lineup(model).known
        return replies.json(
            {
                "name": model,
                "versions": [version] if version is not None else list(known),
                "platform": PLATFORM,
                "inputs": tensors.inputs_of(Signature(ready.inputs)),
                "outputs": tensors.outputs_of(ready.target),
            }
        )

    def model_ready(self, model: str, version: str | None = None) -> Reply:
        """Whether a model (or one version of it) can be asked now."""
        lineup = self._fleet.lineup(model)
        if version is not None:
            self._fleet.ready(model, version)
            lane = lineup.lanes.get(version)
            is_ready = lane is not None and lane.available
        else:
            chain = [lineup.lanes.get(step.version) for step in lineup.router.chain()]
            is_ready = any(lane is not None and lane.available for lane in chain)
        return replies.json({"name": model, "ready": is_ready}, 200 if is_ready else 503)

    async def infer(self, model: str, version: str | None, scope: Scope, receive: Receive) -> Reply:
        """Score tensors. Without a version the router chooses; with one, nobody else answers."""
        arrived, tried = body.before(scope)
        given = body.an_object(body.parse(await body.read(scope, receive)), FIELDS)
        ident = given.get("id")
        if ident is not None and not isinstance(ident, str):
            raise Invalid("id", "a text is expected")
        parameters = _parameters(given.get("parameters"))
        ready = self._ready(model, version)
        request = Request(
            model,
            tensors.rows_of(given.get("inputs"), Signature(ready.inputs), MAX_ROWS),
            version=version,
            timeout_ms=body.milliseconds(parameters.get("timeout"), "parameters.timeout", MICROSECONDS),
            together=True,
            where="inputs[row {}].",
            arrived=arrived,
            traceparent=body.traceparent(scope),
            tried=tried,
        )
        if given.get("outputs") is not None:
            tensors.wanted_names(given["outputs"], [o["name"] for o in tensors.outputs_of(ready.target)])
        scores = await self._answering.score(request)
        answers = [Answer(score.value, dict(score.probabilities)) for score in scores]
        content: dict[str, Any] = {
            "model_name": model,
            "model_version": replies.distinct([score.version for score in scores]),
            "parameters": _account(scores),
            "outputs": tensors.tensors_of(answers, ready.target, given.get("outputs")),
        }
        if ident is not None:
            content["id"] = ident
        return replies.json(content)

    def router(self, model: str) -> Reply:
        """The live chain, each version's state, the last decisions."""
        lineup = self._fleet.lineup(model)
        now = time.monotonic()
        roles = {step.version: step.role for step in lineup.router.chain()}
        shown: list[dict[str, Any]] = []
        for version in dict.fromkeys([*roles, *lineup.lanes]):
            lane = lineup.lanes.get(version)
            state = "refused" if version in lineup.refused else lineup.router.state(version, now)
            shown.append(
                {
                    "version": version,
                    "role": roles.get(version),
                    "state": state,
                    "off_for_seconds": round(lineup.router.off_for(version, now), 3),
                    "runs": None if lane is None else "inline" if lane.inline else "apart",
                    "runs_seen": lane.waits.count if lane else 0,
                    "p50_ms": lane.waits.p50 if lane else None,
                    "p99_ms": lane.waits.p99 if lane else None,
                    "why": lineup.refused.get(version),
                }
            )
        table = lineup.router.table
        return replies.json(
            {
                "pipeline": model,
                "slo_ms": lineup.slo_ms,
                "baseline": lineup.baseline,
                "table": table.model_dump(mode="json") if table else None,
                "chain": [*(step.version for step in lineup.router.chain()), *([BASELINE] if lineup.baseline else [])],
                "versions": shown,
                "decisions": [decision._asdict() for decision in reversed(lineup.decisions)],
            }
        )

    def _ready(self, model: str, version: str | None) -> ModelReady:
        if version is not None:
            return self._fleet.ready(model, version)
        return self._answering.contract(model)


def _parameters(found: object) -> Mapping[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Invalid("parameters", "an object is expected")
    for name, value in found.items():
        if not isinstance(value, str | int | float | bool):
            raise Invalid(f"parameters.{name}", "a text, a number or true/false is expected")
    return found


def _account(scores: Sequence[ScoreProduced]) -> dict[str, str | bool]:
    """The router's account of the rows as scalars: the protocol knows no lists there."""
    first = scores[0]
    account: dict[str, str | bool] = {
        "score_id": ",".join(score.score_id for score in scores),
        "served_by": replies.distinct([score.served_by for score in scores]),
        "fallback": any(score.reason is not None for score in scores),
        "attempted": replies.distinct([a.version for score in scores for a in score.attempts]),
    }
    if first.requested_version is not None:
        account["requested_version"] = first.requested_version
    if reasons := [score.reason for score in scores if score.reason is not None]:
        account["fallback_reason"] = replies.distinct(reasons)
    return account
