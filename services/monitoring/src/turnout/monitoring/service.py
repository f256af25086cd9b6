"""Monitoring put together: the only file that reads settings."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

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
from turnout.monitoring.ports import KeyedState
from turnout.monitoring.reactions import COUNTED, FOLLOWED, Expiry, Follow, Watch
from turnout.monitoring.settings import MonitoringSettings

if TYPE_CHECKING:
    from turnout.monitoring.adapters.faust import FaustState


def build(env: Environment) -> Service:
    """Monitoring over the environment's bus and history store."""
    settings = MonitoringSettings()
    state, source = _state(env)
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
            Reaction("counts", COUNTED, watch.counted, source=source),
            Reaction("removed", (PipelineRemoved,), watch.removed),
            Reaction("forgotten", (EntityForgotten,), watch.forgotten),
        ),
        app=http.app(watch, http.Reports(watch, env.history, progress), callers),
        background=(
            Follow(env.bus, progress, watch.learn).milestones,
            expiry.run,
            *((source.follow_changes,) if source is not None else ()),
        ),
        follows=FOLLOWED,
        waiting_for=lambda: [] if source is None or source.ready else ["what was counted to be read"],
        close=state.close,
    )


def _state(env: Environment) -> tuple[KeyedState, FaustState | None]:
    """Where tallies are; on Kafka it is also what delivers the events that are counted."""
    folder = env.home / "monitoring"
    if env.settings.bus != "kafka":
        return SqliteState(folder / "state.sqlite"), None
    from turnout.common.bus.kafka.bus import KafkaBus  # noqa: PLC0415 (an extra that embedded mode does without)
    from turnout.common.bus.kafka.settings import KafkaSettings  # noqa: PLC0415
    from turnout.monitoring.adapters.faust import FaustState  # noqa: PLC0415

    assert isinstance(env.bus, KafkaBus)
    made = FaustState(KafkaSettings(), env.bus, env.bus.ensure_topics, folder=folder / "faust")
    return made, made
