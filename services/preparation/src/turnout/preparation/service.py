"""The service put together."""

from __future__ import annotations

import asyncio
from functools import partial

from turnout.common.events import (
    EntityForgotten,
    FeaturesGenerated,
    ObservationReceived,
    PipelineDeclared,
    PipelineRemoved,
    RawDataExtracted,
)
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Reaction, Service
from turnout.common.runtime.warming import Warming
from turnout.preparation import materialise
from turnout.preparation.reactions import Forget, GenerateFeatures, UpdateOnline
from turnout.preparation.refill import Refill


def build(env: Environment) -> Service:
    """Preparation on the ports of `env`."""
    generate = GenerateFeatures(env.lake, env.pipelines, env.executor, env.now)
    update = UpdateOnline(env.lake, env.online, env.history, env.pipelines)
    refill = Refill(env.lake, env.online, env.bus, env.pipelines, update)
    warming = Warming(
        env,
        partial(materialise.warm, env.lake),
        lambda: asyncio.to_thread(env.lake.warm),
        # Which also makes the tables, where there are none.
        lambda: env.history.audited([]),
    )
    return Service(
        name="preparation",
        reactions=(
            Reaction("features", (RawDataExtracted,), generate, long=True),
            Reaction("refill", (FeaturesGenerated,), refill, long=True),
            Reaction("online", (ObservationReceived,), update),
            Reaction("forget", (PipelineRemoved, EntityForgotten), Forget(env.online, env.pipelines)),
        ),
        background=(refill.watch, warming.warm_up),
        waiting_for=warming.waiting_for,
        follows=(PipelineDeclared, PipelineRemoved),
    )
