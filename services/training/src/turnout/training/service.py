"""The service put together."""

from __future__ import annotations

import asyncio
from functools import partial

from turnout.common.events import DataSegregated, PipelineDeclared, PipelineRemoved, TrainingRequested
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Reaction, Service
from turnout.common.runtime.warming import Warming
from turnout.training import fitting
from turnout.training.reactions import Train
from turnout.training.settings import TrainingSettings

# Whoever starts Turnout to use it at once shall not share two cores with imports; who uses it later finds them done.
WARM_AFTER_SECONDS = 10.0


def build(env: Environment) -> Service:
    """Training on the ports of `env`."""
    settings = TrainingSettings()
    train = Train(
        lake=env.lake,
        registry=env.registry,
        pipelines=env.pipelines,
        executor=env.executor,
        publish=env.bus.publish,
        now=env.now,
        parallel=env.settings.workers,
        packages=settings.estimator_packages,
    )

    # scikit-learn takes seconds to import in each worker, and so does MLflow here.
    warming = Warming(
        env,
        partial(fitting.warm, env.lake),
        lambda: asyncio.to_thread(env.registry.versions, "warm-up"),
        lambda: asyncio.to_thread(env.lake.warm),
        embedded_after=WARM_AFTER_SECONDS,
    )
    return Service(
        name="training",
        reactions=(Reaction("train", (DataSegregated, TrainingRequested), train, long=True),),
        follows=(PipelineDeclared, PipelineRemoved),
        background=(warming.warm_up,),
        waiting_for=warming.waiting_for,
    )
