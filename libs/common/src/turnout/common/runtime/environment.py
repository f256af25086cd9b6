"""What a process hands to its services: the bus, the stores, the executor and the clock, each opened when first asked.

Which adapter stands behind a port is decided here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from turnout.common.bus.port import Bus
from turnout.common.jobs.port import Jobs
from turnout.common.runtime.keys import ApiKeys
from turnout.common.runtime.service import Clock, utc_now
from turnout.common.runtime.settings import RuntimeSettings
from turnout.common.runtime.views import Pipelines, Routes

if TYPE_CHECKING:  # the lake's port needs pyarrow, and a command that only publishes does not
    from turnout.common.history.port import HistoryStore
    from turnout.common.lake.port import Lake
    from turnout.common.models.port import Registry
    from turnout.common.online.port import OnlineStore


class Environment:
    """Ports, opened lazily so that a service needs only the packages it uses; `close` closes those opened."""

    def __init__(self, settings: RuntimeSettings, *, now: Clock = utc_now) -> None:
        self.settings = settings
        self.now = now
        self._closing: list[Callable[[], Awaitable[None]]] = []

    @property
    def home(self) -> Path:
        """Folder of what is kept on this machine."""
        return self.settings.home

    @cached_property
    def bus(self) -> Bus:
        """The message bus."""
        from turnout.common.bus.embedded import EmbeddedBus

        bus = EmbeddedBus(self.home / "bus")
        self._closing.append(bus.close)
        return bus

    @cached_property
    def jobs(self) -> Jobs:
        """Long work."""
        from turnout.common.jobs.embedded import EmbeddedJobs

        jobs = EmbeddedJobs(self.home / "jobs.sqlite")
        self._closing.append(jobs.close)
        return jobs

    @cached_property
    def lake(self) -> Lake:
        """Data sets and model files."""
        from turnout.common.lake.local import LocalLake

        return LocalLake(self.home / "lake")

    @cached_property
    def online(self) -> OnlineStore:
        """Entities' newest features."""
        from turnout.common.online.embedded import EmbeddedOnlineStore

        store = EmbeddedOnlineStore(self.home / "online.sqlite")
        self._closing.append(store.close)
        return store

    @cached_property
    def history(self) -> HistoryStore:
        """Scores, outcomes, features over time, audit."""
        from turnout.common.history.embedded import EmbeddedHistoryStore

        store = EmbeddedHistoryStore(self.home / "history.sqlite")
        self._closing.append(store.close)
        return store

    @cached_property
    def registry(self) -> Registry:
        """Runs, versions, aliases."""
        from turnout.common.models.mlflow import MlflowRegistry

        return MlflowRegistry(self.home / "mlflow")

    @cached_property
    def executor(self) -> Executor:
        """Where CPU work runs."""
        from turnout.common.executor.processes import ProcessExecutor

        return ProcessExecutor(self.settings.workers)

    @cached_property
    def pipelines(self) -> Pipelines:
        """Every declared pipeline, kept up to date."""
        return Pipelines(self.bus)

    @cached_property
    def routes(self) -> Routes:
        """Every pipeline's routing table, kept up to date."""
        return Routes(self.bus)

    @cached_property
    def keys(self) -> ApiKeys:
        """Who may call what."""
        return ApiKeys(self.home / "keys.json")

    async def close(self) -> None:
        """Close what was opened, the last first."""
        for close in reversed(self._closing):
            await close()
        if "executor" in self.__dict__:
            self.executor.shutdown(wait=False, cancel_futures=True)
