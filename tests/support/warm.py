"""Environments that share what takes seconds to start: worker processes and MLflow."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from environment import environment_in

from turnout.common.executor.processes import ProcessExecutor
from turnout.common.models.mlflow import MlflowRegistry
from turnout.common.runtime.environment import Environment
from turnout.training import fitting


@dataclass(frozen=True)
class Warm:
    """Worker processes and a registry that many tests use one after the other."""

    executor: ProcessExecutor
    registry: MlflowRegistry


@contextmanager
def warmed(folder: Path) -> Iterator[Warm]:
    """Started now, stopped at the end."""
    executor = ProcessExecutor(1)
    yield Warm(executor, MlflowRegistry(folder))
    executor.shutdown(wait=False, cancel_futures=True)


@asynccontextmanager
async def environment_with(warm: Warm, folder: Path) -> AsyncIterator[Environment]:
    """An environment of its own, but for what is warm. The registry holds nothing of the pipeline `p`."""
    environment = environment_in(folder, workers=1)
    shared = {"executor": warm.executor, "registry": warm.registry}
    environment.__dict__.update(shared)
    warm.registry.remove("p")
    yield environment
    for name in shared:
        environment.__dict__.pop(name)
    await environment.close()


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with warmed(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture
async def env(warm: Warm, tmp_path: Path) -> AsyncIterator[Environment]:
    async with environment_with(warm, tmp_path) as environment:
        yield environment


def dies_for_trees(*work: Any) -> fitting.Fitted:
    """`fit_candidate`, but a decision tree takes its process down."""
    if any(getattr(one, "algorithm", "") == "decision_tree" for one in work):
        os.kill(os.getpid(), signal.SIGKILL)
    return fitting.fit_candidate(*work)
