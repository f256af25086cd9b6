"""The service put together."""

from __future__ import annotations

import asyncio
import contextlib

from turnout.common.errors import Unavailable
from turnout.common.events import DataSegregated, PipelineDeclared, PipelineRemoved, TrainingRequested
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Reaction, Service
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

    async def warm_up() -> None:
        """scikit-learn takes seconds to import in each worker, and so does MLflow here: not when somebody waits."""
        await asyncio.sleep(WARM_AFTER_SECONDS)
        loop = asyncio.get_running_loop()
        workers = [loop.run_in_executor(env.executor, fitting.warm) for _ in range(env.settings.workers)]
        with contextlib.suppress(Unavailable):
            await asyncio.to_thread(env.registry.versions, "warm-up")
            await asyncio.gather(*workers, return_exceptions=True)

    return Service(
        name="training",
        reactions=(Reaction("train", (DataSegregated, TrainingRequested), train, long=True),),
        follows=(PipelineDeclared, PipelineRemoved),
        background=(warm_up,),
    )
