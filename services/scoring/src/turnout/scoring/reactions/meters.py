"""Counting without a look-up per request: a metric's child for a version is found once and kept."""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter, Histogram

from turnout.common import telemetry
from turnout.common.events import RoutingTable
from turnout.scoring.domain.router import Outcome


@cache
def _run(pipeline: str, version: str) -> Histogram:
    return telemetry.MODEL_RUN_SECONDS.labels(pipeline, version)


@cache
def _request(pipeline: str, version: str) -> Histogram:
    return telemetry.INFERENCE_SECONDS.labels(pipeline, version)


@cache
def _answers(pipeline: str, version: str, outcome: str) -> Counter:
    return telemetry.INFERENCE_REQUESTS.labels(pipeline, version, outcome)


def ran(pipeline: str, version: str, outcome: Outcome, milliseconds: float) -> None:
    """One run of a version."""
    _run(pipeline, version).observe(milliseconds / 1000)
    if outcome == "late":
        telemetry.ROUTER_LATE.labels(pipeline, version).inc()


def answered(pipeline: str, version: str, milliseconds: float, *, meant: str | None, reason: str | None) -> None:
    """One row was answered by `version`; `meant` is the one asked first, if it was another."""
    _request(pipeline, version).observe(milliseconds / 1000)
    if meant is None:
        _answers(pipeline, version, "ok").inc()
        return
    _answers(pipeline, version, "default" if version == "baseline" else "fallback").inc()
    telemetry.ROUTER_FALLBACKS.labels(pipeline, meant, version, reason or "error").inc()


def failed(pipeline: str, version: str, rows: int) -> None:
    """Rows that nobody answered."""
    _answers(pipeline, version, "error").inc(rows)


def routed(pipeline: str, before: RoutingTable | None, now: RoutingTable) -> None:
    """The routing table was swapped."""
    for role, version in _roles(before):
        telemetry.ROUTER_ACTIVE.labels(pipeline, role, version).set(0)
    for role, version in _roles(now):
        telemetry.ROUTER_ACTIVE.labels(pipeline, role, version).set(1)


def _roles(table: RoutingTable | None) -> list[tuple[str, str]]:
    if table is None:
        return []
    roles = {"challenger": table.challenger, "champion": table.champion, "previous": table.previous}
    return [(role, version) for role, version in roles.items() if version is not None]
