"""What people ask of a pipeline: who answers, how fast, on what, and how right. Plain data for JSON and for a page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from pydantic import BaseModel, Field, JsonValue

from turnout.common.events import RoutingTable
from turnout.common.history.port import Audit, Joined
from turnout.common.summary import VERSIONLESS, Summary
from turnout.monitoring.domain.drift import FeatureReport, compare
from turnout.monitoring.domain.progress import Stage
from turnout.monitoring.domain.standing import Standing
from turnout.monitoring.domain.verdict import wilson_interval

# Classes in a confusion matrix; the rarest others share one row.
MAX_CLASSES = 20
# Points of a scatter plot: more cannot be told apart.
MAX_POINTS = 300
OTHERS = "(others)"


class Times(BaseModel):
    """Milliseconds of a version's runs that ended; p50 and p99 within 1 %."""

    minimum: float | None = None
    mean: float | None = None
    p50: float | None = None
    p99: float | None = None
    maximum: float | None = None


class Confusion(BaseModel):
    """Counts by class: `counts[i][j]` scores that predicted `predicted[j]` where `actual[i]` came true."""

    actual: list[str]
    predicted: list[str]
    counts: list[list[int]]


class Scatter(BaseModel):
    """Predicted against actual numbers: some points, and what all pairs come to."""

    points: list[tuple[float, float]]
    mae: float
    rmse: float
    bias: float


class Quality(BaseModel):
    """A version's outcomes beside what evaluation promised.

    `live` is `metric` over the newest `outcomes` scores whose outcome is known; for accuracy, `low` and `high` are
    the ends of its 95 % Wilson interval. `unreadable` outcomes were neither a number nor a class.
    """

    metric: str | None = None
    promised: float | None = None
    live: float | None = None
    low: float | None = None
    high: float | None = None
    outcomes: int = 0
    unreadable: int = 0
    confusion: Confusion | None = None
    scatter: Scatter | None = None


class VersionReport(BaseModel):
    """One version. `served` answers were its own, by role in `roles`; `fallbacks`: somebody else had to, by why."""

    version: str
    algorithm: str = ""
    role: str = ""
    ready: datetime | None = None
    deployed: datetime | None = None
    fit: bool = True
    served: int = 0
    roles: dict[str, int] = Field(default_factory=dict)
    milliseconds: Times = Times()
    late: int = 0
    errors: int = 0
    attempts: dict[str, int] = Field(default_factory=dict)
    fallbacks: dict[str, int] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    base_rate: dict[str, float] = Field(default_factory=dict)
    why: str = ""
    predictions: dict[str, float] = Field(default_factory=dict)
    prior: dict[str, float] = Field(default_factory=dict)
    quality: Quality = Quality()
    features: list[FeatureReport] = Field(default_factory=list)


class PipelineLine(BaseModel):
    """A pipeline in a list."""

    pipeline: str
    task: str | None = None
    stage: Stage | None = None
    champion: str | None = None
    previous: str | None = None
    pinned: bool = False
    served: int = 0
    answers: dict[str, int] = Field(default_factory=dict)


class PipelineReport(PipelineLine):
    """A pipeline whole. `answers` counts who answered, the prior and the cache too; `outcomes` what came true."""

    table: RoutingTable | None = None
    why: str = ""
    by: str = ""
    since: datetime | None = None
    outcomes: int = 0
    versions: list[VersionReport] = Field(default_factory=list)


class AuditLine(BaseModel):
    """One decision: who did what, and why."""

    id: str
    at: datetime
    who: str
    action: str
    subject: str
    why: str
    detail: dict[str, JsonValue]


def line(standing: Standing, stage: Stage | None) -> PipelineLine:
    """The pipeline in a list."""
    table = standing.table
    answers = Counter[str]()
    for summary in standing.summaries.values():
        answers.update(summary.served)
    return PipelineLine(
        pipeline=standing.pipeline,
        task=standing.file.task if standing.file else None,
        stage=stage,
        champion=table.champion if table else None,
        previous=table.previous if table else None,
        pinned=bool(table and table.pinned),
        served=answers.total(),
        answers=dict(answers),
    )


def report(standing: Standing, stage: Stage | None, joined: Mapping[str, Sequence[Joined]]) -> PipelineReport:
    """The pipeline whole; `joined` are each version's newest scores with an outcome."""
    routing = standing.routing
    return PipelineReport(
        **line(standing, stage).model_dump(),
        table=standing.table,
        why=routing.why if routing else "",
        by=routing.by if routing else "",
        since=routing.time if routing else None,
        outcomes=sum(len(pairs) for pairs in joined.values()),
        versions=[_version(standing, v, joined.get(v, ())) for v in versions(standing)],
    )


def versions(standing: Standing) -> list[str]:
    """Every version that is known or was asked, the newest first."""
    asked = {v for v, s in standing.summaries.items() if s.attempts or _own(s)}
    return sorted(asked | standing.versions.keys(), key=_age, reverse=True)


def quality(standing: Standing, version: str, joined: Sequence[Joined]) -> Quality:
    """Predicted against actual for one version."""
    reference = standing.reference(version)
    pairs = [
        (pair.score.value, actual)
        for pair in joined
        if pair.score.served_by not in VERSIONLESS and (actual := standing.actual(pair)) is not None
    ]
    classes = [(p, a) for p, a in pairs if isinstance(p, str) and isinstance(a, str)]
    numbers = [(float(p), float(a)) for p, a in pairs if not isinstance(p, str) and not isinstance(a, str)]
    readable = len(classes) or len(numbers)
    found = Quality(
        metric=reference.metric if reference else None,
        promised=reference.value if reference else None,
        outcomes=readable,
        unreadable=len(joined) - readable,
        confusion=_confusion(classes) if classes else None,
        scatter=_scatter(numbers) if numbers else None,
    )
    if reference is None or not readable:
        return found
    if reference.metric == "accuracy":
        right = sum(p == a for p, a in classes)
        low, high = wilson_interval(right, readable)
        return found.model_copy(update={"live": right / readable, "low": low, "high": high})
    return found.model_copy(update={"live": reference.live([reference.loss(p, a) for p, a in numbers])})


def audit_line(entry: Audit) -> AuditLine:
    """A decision as people read it."""
    return AuditLine(
        id=entry.id,
        at=entry.at,
        who=entry.who,
        action=entry.action,
        subject=entry.subject,
        why=entry.why,
        detail=dict(entry.detail),
    )


def _version(standing: Standing, version: str, joined: Sequence[Joined]) -> VersionReport:
    summary = standing.summaries.get(version, Summary())
    ready = standing.versions.get(version)
    live = summary.features
    return VersionReport(
        version=version,
        algorithm=ready.algorithm if ready else "",
        role=_role(standing.table, version),
        ready=ready.time if ready else None,
        deployed=standing.deployed.get(version),
        fit=version not in standing.unfit,
        served=_own(summary),
        roles={role: count for role, count in summary.served.items() if role not in VERSIONLESS},
        milliseconds=_times(summary),
        late=summary.attempts["late"],
        errors=summary.attempts["error"],
        attempts=dict(summary.attempts),
        fallbacks=dict(summary.fallbacks),
        metrics=dict(ready.metrics) if ready else {},
        base_rate=dict(ready.base_rate) if ready else {},
        why=ready.why if ready else "",
        predictions=_predictions(summary),
        prior=dict(ready.prior.probabilities) if ready else {},
        quality=quality(standing, version, joined),
        features=compare(standing.shape(version), ready.profile, live) if ready else [],
    )


def _own(summary: Summary) -> int:
    return sum(count for role, count in summary.served.items() if role not in VERSIONLESS)


def _role(table: RoutingTable | None, version: str) -> str:
    if table is None:
        return ""
    roles = {table.challenger: "challenger", table.previous: "previous", table.champion: "champion"}
    return roles.get(version, "")


def _times(summary: Summary) -> Times:
    latency = summary.latency
    return Times(
        minimum=latency.least,
        mean=summary.mean,
        p50=latency.quantile(0.5),
        p99=latency.quantile(0.99),
        maximum=latency.greatest,
    )


def _predictions(summary: Summary) -> dict[str, float]:
    """Shares of the classes, or quantiles of the numbers, that were answered."""
    total = summary.classes.total()
    if total:
        return {name: count / total for name, count in sorted(summary.classes.items())}
    found = {f"p{round(share * 100)}": summary.numbers.quantile(share) for share in (0.05, 0.25, 0.5, 0.75, 0.95)}
    return {name: value for name, value in found.items() if value is not None}


def _confusion(pairs: Sequence[tuple[str, str]]) -> Confusion:
    often = Counter(name for pair in pairs for name in pair)
    kept = sorted((name for name, _ in often.most_common(MAX_CLASSES)), key=_age)
    names = [*kept, OTHERS] if len(often) > len(kept) else kept
    at = {name: index for index, name in enumerate(names)}
    counts = [[0] * len(names) for _ in names]
    for predicted, actual in pairs:
        counts[at.get(actual, len(kept))][at.get(predicted, len(kept))] += 1
    return Confusion(actual=names, predicted=names, counts=counts)


def _scatter(pairs: Sequence[tuple[float, float]]) -> Scatter:
    differences = [predicted - actual for predicted, actual in pairs]
    step = max(1, len(pairs) // MAX_POINTS)
    return Scatter(
        points=list(pairs[::step])[:MAX_POINTS],
        mae=math.fsum(abs(d) for d in differences) / len(pairs),
        rmse=math.sqrt(math.fsum(d * d for d in differences) / len(pairs)),
        bias=math.fsum(differences) / len(pairs),
    )


def _age(name: str) -> tuple[bool, float, str]:
    """Numbers by size, then texts."""
    try:
        return (False, float(name), name)
    except ValueError:
        return (True, 0.0, name)
