"""What a process hands to its services: the bus, the stores, the executor and the clock, each opened when first asked.

Which adapter stands behind a port is decided here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

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


class _Closing(Protocol):
    async def close(self) -> None: ...


C = TypeVar("C", bound=_Closing)


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
        if self.settings.bus == "kafka":
            from turnout.common.bus.kafka.bus import KafkaBus
            from turnout.common.bus.kafka.settings import KafkaSettings

            return self._closed(KafkaBus(KafkaSettings(), home=self.home))
        from turnout.common.bus.embedded import EmbeddedBus

        return self._closed(EmbeddedBus(self.home / "bus"))

    @cached_property
    def jobs(self) -> Jobs:
        """Long work."""
        if self.settings.jobs == "cassandra":
            from turnout.common.cassandra.settings import CassandraSettings
            from turnout.common.jobs.cassandra import CassandraJobs

            return self._closed(CassandraJobs(CassandraSettings()))
        from turnout.common.jobs.embedded import EmbeddedJobs

        return self._closed(EmbeddedJobs(self.home / "jobs.sqlite"))

    @cached_property
    def lake(self) -> Lake:
        """Data sets and model files."""
        from turnout.common.lake.settings import LakeSettings

        settings = LakeSettings()
        if settings.uri is not None:
            from turnout.common.lake.s3 import S3Lake

            return S3Lake(settings, self.home / "lake-staging")
        from turnout.common.lake.local import LocalLake

        return LocalLake(self.home / "lake")

    @cached_property
    def online(self) -> OnlineStore:
        """Entities' newest features."""
        if self.settings.online == "redis":
            from turnout.common.online.redis import RedisOnlineStore

            return self._closed(RedisOnlineStore())
        from turnout.common.online.embedded import EmbeddedOnlineStore

        return self._closed(EmbeddedOnlineStore(self.home / "online.sqlite"))

    @cached_property
    def history(self) -> HistoryStore:
        """Scores, outcomes, features over time, audit."""
        if self.settings.history == "cassandra":
            from turnout.common.cassandra.settings import CassandraSettings
            from turnout.common.history.cassandra import CassandraHistoryStore

            return self._closed(CassandraHistoryStore(CassandraSettings()))
        from turnout.common.history.embedded import EmbeddedHistoryStore

        return self._closed(EmbeddedHistoryStore(self.home / "history.sqlite"))

    @cached_property
    def registry(self) -> Registry:
        """Runs, versions, aliases."""
        from turnout.common.models.mlflow import MlflowRegistry
        from turnout.common.models.settings import MlflowSettings

        settings = MlflowSettings()
        return MlflowRegistry(self.home / "mlflow" if settings.uri is None else settings)

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

    def _closed(self, opened: C) -> C:
        """`opened`, which is closed with the environment."""
        self._closing.append(opened.close)
        return opened

    async def close(self) -> None:
        """Close what was opened, the last first."""
        for close in reversed(self._closing):
            await close()
        if "executor" in self.__dict__:
            self.executor.shutdown(wait=False, cancel_futures=True)
