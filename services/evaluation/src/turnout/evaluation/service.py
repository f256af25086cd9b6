"""The service put together."""

from __future__ import annotations

from turnout.common.events import ModelTrained, PipelineDeclared, PipelineRemoved, RoutingChanged
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Reaction, Service
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
    return Service(
        name="evaluation",
        reactions=(
            Reaction("decide", (ModelTrained,), evaluate, long=True),
            Reaction("aliases", (RoutingChanged, PipelineRemoved), Project(env.registry)),
        ),
        follows=(PipelineDeclared, PipelineRemoved, RoutingChanged),
    )
