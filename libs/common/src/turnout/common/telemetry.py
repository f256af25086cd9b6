"""Every metric and every field of a log line, each with a sentence. One service's block is apart from the next.

Labels are bounded: pipelines, versions, event types; never an entity or a score.
"""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import Counter, Gauge, Histogram, Info

# --- field names of log lines -----------------------------------------------------------------------------------

PIPELINE = "pipeline"
"""The pipeline that the work is for."""
CORRELATION = "correlation_id"
"""What one first event set in motion."""
CAUSATION = "causation_id"
"""The event that is being handled."""
SERVICE = "service"
"""The service that speaks."""
REACTION = "reaction"
"""The consumer group, `SERVICE.NAME`."""

# --- every service: events -----------------------------------------------------------------------------------------

EVENTS_PROCESSED = Counter(
    "turnout_events_processed_total",
    "Events that a reaction has handled.",
    ["service", "type", "outcome"],
)
EVENTS_DEAD_LETTERED = Counter(
    "turnout_events_dead_lettered_total",
    "Events that could not be handled and lie on the topic's dead letters.",
    ["service", "type"],
)
REACTION_SECONDS = Histogram(
    "turnout_reaction_duration_seconds",
    "Time from taking a batch of events to its offset having moved.",
    ["service", "reaction"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600),
)
CONSUMER_LAG = Gauge(
    "turnout_consumer_lag_records",
    "Records that a consumer group has not yet handled.",
    ["topic", "group"],
)
JOBS_WAITING = Gauge(
    "turnout_jobs_waiting",
    "Long jobs recorded and not finished.",
    ["queue"],
)
RETRIES = Counter(
    "turnout_retries_total",
    "Attempts that found something not available.",
    ["service", "reaction"],
)
READY = Gauge("turnout_ready", "1 while a service is ready.", ["service"])
BUILD = Info("turnout_build", "The version that runs.")


def describe_build() -> None:
    """Set `turnout_build_info`."""
    BUILD.info({"version": release(), "revision": "unknown", "python": platform.python_version()})


@cache
def release() -> str:
    """The version of Turnout that is installed."""
    try:
        return version("turnout-common")
    except PackageNotFoundError:
        return "unknown"


# --- scoring -------------------------------------------------------------------------------------------------------

_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5)

INFERENCE_REQUESTS = Counter(
    "turnout_inference_requests_total",
    "Rows answered: ok (by whom it was meant for), fallback (by the next in the chain), default (by the prior), error.",
    ["model_name", "model_version", "outcome"],
)
INFERENCE_SECONDS = Histogram(
    "turnout_inference_duration_seconds",
    "Time from a request's arrival until its answer was durable.",
    ["model_name", "model_version"],
    buckets=_FAST,
)
MODEL_RUN_SECONDS = Histogram(
    "turnout_model_run_duration_seconds",
    "Time of one run of a version's graph, shared by the requests that were there.",
    ["model_name", "model_version"],
    buckets=_FAST,
)
ROUTER_FALLBACKS = Counter(
    "turnout_router_fallbacks_total",
    "Rows that another version answered than the one they were meant for.",
    ["model_name", "from_version", "to_version", "reason"],
)
ROUTER_LATE = Counter(
    "turnout_router_late_responses_total",
    "Runs of a version that took longer than the SLO, or were ended there.",
    ["model_name", "model_version"],
)
ROUTER_ACTIVE = Gauge(
    "turnout_router_active_version",
    "1 for the version that has a role in the routing table.",
    ["model_name", "role", "model_version"],
)
OUTBOX_WAITING = Gauge("turnout_outbox_waiting_records", "Events made durable here and not yet on the bus.")

# --- monitoring: what came true, what was decided ------------------------------------------------------------------

OUTCOMES = Counter(
    "turnout_outcomes_total",
    "Outcomes, by what they were: joined, duplicate, corrected, unmatched (no such score yet), unreadable.",
    ["result"],
)
OUTCOME_DELAY_SECONDS = Histogram(
    "turnout_outcome_delay_seconds",
    "Time from a score until its first outcome came.",
    buckets=(1, 60, 3600, 86_400, 7 * 86_400, 30 * 86_400),
)
MODEL_QUALITY = Gauge(
    "turnout_model_quality_ratio",
    "A version's metric over its newest scores whose outcome is known.",
    ["model_name", "model_version", "metric"],
)
VERSION_LATENCY = Gauge(
    "turnout_version_latency_seconds",
    "Quantiles of a champion's runs over all routers and all scores that are kept.",
    ["model_name", "model_version", "quantile"],
)
ROUTING_CHANGES = Counter("turnout_routing_changes_total", "New routing tables.", ["model_name"])
MODEL_DEGRADED = Counter(
    "turnout_model_degraded_total", "Verdicts that a version is too slow or too wrong.", ["model_name", "signal"]
)
