"""The service put together."""

from __future__ import annotations

from turnout.common.events import (
    EntityForgotten,
    ObservationReceived,
    PipelineDeclared,
    PipelineRemoved,
    RawDataExtracted,
)
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Reaction, Service
from turnout.preparation.reactions import Forget, GenerateFeatures, UpdateOnline


def build(env: Environment) -> Service:
    """Preparation on the ports of `env`."""
    generate = GenerateFeatures(env.lake, env.pipelines, env.executor, env.now)
    update = UpdateOnline(env.lake, env.online, env.history, env.pipelines)
    return Service(
        name="preparation",
        reactions=(
            Reaction("features", (RawDataExtracted,), generate, long=True),
            Reaction("online", (ObservationReceived,), update),
            Reaction("forget", (PipelineRemoved, EntityForgotten), Forget(env.online, env.pipelines)),
        ),
        follows=(PipelineDeclared, PipelineRemoved),
    )
