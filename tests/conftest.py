"""Fixtures of every kind of test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from environment import Clock, environment_in

from turnout.common.runtime.environment import Environment


@pytest.fixture
async def environment(tmp_path: Path) -> AsyncIterator[Environment]:
    """Everything embedded, under the test's own folder; closed afterwards."""
    made = environment_in(tmp_path)
    yield made
    await made.close()


@pytest.fixture
def clock() -> Clock:
    """Time that passes when the test says so."""
    return Clock()
