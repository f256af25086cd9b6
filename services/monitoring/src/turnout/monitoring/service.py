"""Monitoring put together: the only file that reads settings."""

from __future__ import annotations

from datetime import timedelta

from turnout.common.events import (
    EntityForgotten,
    ModelReady,
    OutcomeObserved,
    PipelineRemoved,
    ScoreProduced,
    VersionEjected,
    VersionRestored,
)
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Reaction, Service
from turnout.monitoring import http
from turnout.monitoring.adapters.sqlite import SqliteState
from turnout.monitoring.domain.progress import Progress
from turnout.monitoring.reactions import COUNTED, FOLLOWED, Expiry, Follow, Watch
from turnout.monitoring.settings import MonitoringSettings


def build(env: Environment) -> Service:
    """Monitoring over the environment's bus and history store."""
    settings = MonitoringSettings()
    state = SqliteState(env.home / "monitoring" / "state.sqlite")
    watch = Watch(
        bus=env.bus, history=env.history, state=state, pipelines=env.pipelines, routes=env.routes, now=env.now
    )
    progress = Progress()
    expiry = Expiry(
        env.history,
        keep=timedelta(days=settings.retention_days),
        every=timedelta(seconds=settings.expiry_seconds),
        now=env.now,
    )
    callers = http.Callers(read=env.keys.require("read"), admin=env.keys.require("admin"))
    return Service(
        name="monitoring",
        reactions=(
            Reaction("versions", (ModelReady, VersionEjected, VersionRestored), watch.versions),
            Reaction("scores", (ScoreProduced,), watch.scored),
            Reaction("outcomes", (OutcomeObserved,), watch.observed),
            Reaction("counts", COUNTED, watch.counted),
            Reaction("removed", (PipelineRemoved,), watch.removed),
            Reaction("forgotten", (EntityForgotten,), watch.forgotten),
        ),
        app=http.app(watch, http.Reports(watch, env.history, progress), callers),
        background=(Follow(env.bus, progress, watch.learn).milestones, expiry.run),
        follows=FOLLOWED,
        close=state.close,
    )
