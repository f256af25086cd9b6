"""A service's own view of a compacted topic: each key's newest event, followed as it changes."""

from __future__ import annotations

from turnout.common.bus.port import Bus
from turnout.common.events import PipelineDeclared, RoutingChanged
from turnout.common.pipeline import PipelineFile


class Pipelines:
    """Every declared pipeline. To be run in the background by the runtime (`follow`)."""

    def __init__(self, bus: Bus) -> None: ...

    async def follow(self) -> None:
        """Keep the view up to date, for ever."""

    async def declared(self, pipeline: str, spec_id: str | None = None) -> PipelineDeclared:
        """The newest declaration. Reads the topic again before it says `Unknown`, and when `spec_id` was never seen.

        Raises `Unknown` naming the nearest pipeline.
        """
        raise NotImplementedError

    async def file(self, pipeline: str, spec_id: str | None = None) -> PipelineFile:
        """The newest pipeline file."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """Pipelines known now (a removed one is not)."""
        raise NotImplementedError


class Routes:
    """Every pipeline's newest routing table. Same life as `Pipelines`."""

    def __init__(self, bus: Bus) -> None: ...

    async def follow(self) -> None:
        """Keep the view up to date, for ever."""

    def now(self, pipeline: str) -> RoutingChanged | None:
        """The newest table as far as it is known here."""

    async def newest(self, pipeline: str) -> RoutingChanged | None:
        """The newest table, after reading the topic again."""
