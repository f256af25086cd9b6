from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from warm import Warm, environment_with, warmed

from turnout.common.runtime.environment import Environment


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with warmed(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture
async def env(warm: Warm, tmp_path: Path) -> AsyncIterator[Environment]:
    async with environment_with(warm, tmp_path) as environment:
        yield environment
