"""The service put together."""

from __future__ import annotations

from turnout.common.events import FeaturesGenerated, PipelineDeclared, PipelineRemoved
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Reaction, Service
from turnout.segregation.reactions import Segregate


def build(env: Environment) -> Service:
    """Segregation on the ports of `env`."""
    segregate = Segregate(env.lake, env.pipelines, env.executor, env.now)
    return Service(
        name="segregation",
        reactions=(Reaction("split", (FeaturesGenerated,), segregate, long=True),),
        follows=(PipelineDeclared, PipelineRemoved),
    )
