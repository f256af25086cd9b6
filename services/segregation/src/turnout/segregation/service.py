"""The service put together."""

from __future__ import annotations

import asyncio
from functools import partial

from turnout.common.events import FeaturesGenerated, PipelineDeclared, PipelineRemoved
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Reaction, Service
from turnout.common.runtime.warming import Warming
from turnout.segregation import parts
from turnout.segregation.reactions import Segregate


def build(env: Environment) -> Service:
    """Segregation on the ports of `env`."""
    segregate = Segregate(env.lake, env.pipelines, env.executor, env.now)
    warming = Warming(env, partial(parts.warm, env.lake), lambda: asyncio.to_thread(env.lake.warm))
    return Service(
        name="segregation",
        reactions=(Reaction("split", (FeaturesGenerated,), segregate, long=True),),
        background=(warming.warm_up,),
        follows=(PipelineDeclared, PipelineRemoved),
        waiting_for=warming.waiting_for,
    )
