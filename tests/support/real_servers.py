"""The real servers for the tests that need them: started once for all of a run's processes, ended with it."""

from __future__ import annotations

import fcntl
from collections.abc import Generator
from pathlib import Path

import pytest

from turnout.devstack.stack import Stack, found, up

REASON = "needs real servers: `make test-stack` starts them (Java 17, Maven, redis-server and prometheus must be there)"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stack", action="store_true", help="start the real servers; a skipped test fails")


def _shared(config: pytest.Config, factory: pytest.TempPathFactory) -> Path:
    base = factory.getbasetemp()
    return (base.parent if hasattr(config, "workerinput") else base) / "stack"


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """All servers, shared by every test of the run: a test keeps to a prefix, a keyspace, a bucket of its own."""
    folder = _shared(pytestconfig, tmp_path_factory)
    folder.mkdir(exist_ok=True)
    with (folder.parent / "stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return up(folder)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("stack") is not None and not item.config.getoption("stack"):
        pytest.skip(REASON)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The process that started the others ends the servers."""
    config = session.config
    if hasattr(config, "workerinput") or not config.getoption("stack"):
        return
    factory: pytest.TempPathFactory = config._tmp_path_factory  # pyright: ignore[reportAttributeAccessIssue]
    if (started := found(_shared(config, factory))) is not None:
        started.down()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where the servers were asked for, what is skipped was not tested."""
    report = yield
    if report.skipped and item.config.getoption("stack") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"
    return report
