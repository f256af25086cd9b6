"""The service put together."""

from __future__ import annotations

import asyncio
from functools import partial

from turnout.common.events import ModelTrained, PipelineDeclared, PipelineRemoved, RoutingChanged
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Reaction, Service
from turnout.common.runtime.warming import Warming
from turnout.evaluation import measuring
from turnout.evaluation.reactions import Evaluate, Project


def build(env: Environment) -> Service:
    """Evaluation on the ports of `env`."""
    evaluate = Evaluate(
        lake=env.lake,
        registry=env.registry,
        pipelines=env.pipelines,
        routes=env.routes,
        executor=env.executor,
        bus=env.bus,
        now=env.now,
        parallel=env.settings.workers,
    )
    warming = Warming(
        env,
        partial(measuring.warm, env.lake),
        # MLflow takes seconds to import.
        lambda: asyncio.to_thread(env.registry.versions, "warm-up"),
        lambda: asyncio.to_thread(env.lake.warm),
    )
    return Service(
        name="evaluation",
        reactions=(
            Reaction("decide", (ModelTrained,), evaluate, long=True),
            Reaction("aliases", (RoutingChanged, PipelineRemoved), Project(env.registry)),
        ),
        background=(warming.warm_up,),
        follows=(PipelineDeclared, PipelineRemoved, RoutingChanged),
        waiting_for=warming.waiting_for,
    )
