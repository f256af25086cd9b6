"""Segregation on an environment of the test's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from splitting import Splitter

from turnout.common.runtime.environment import Environment


@pytest.fixture
def splitter(environment: Environment) -> Splitter:
    """Feature sets and the reaction; threads, because the work is too small for processes."""
    environment.__dict__["executor"] = ThreadPoolExecutor(2)
    return Splitter(environment)
