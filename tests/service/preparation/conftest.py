"""Preparation on an environment of the test's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from workbench import Workbench

from turnout.common.runtime.environment import Environment


@pytest.fixture
def bench(environment: Environment) -> Workbench:
    """Raw batches and reactions; threads, because the work is too small for processes."""
    environment.__dict__["executor"] = ThreadPoolExecutor(2)
    return Workbench(environment)
