"""Fixtures of every kind of test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from environment import Clock, environment_in
from hypothesis import settings

from turnout.common.runtime.environment import Environment

# The real servers: the option --stack and the fixture `stack`.
pytest_plugins = ["real_servers"]

# The same examples in every run, so that a change is judged by what it changed; HYPOTHESIS_PROFILE=search looks for new
# ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


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
