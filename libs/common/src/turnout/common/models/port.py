"""The model registry port. The methods block: call them from a thread, never on the event loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import JsonValue

from turnout.common.events import ModelFile


@dataclass(frozen=True)
class Version:
    """A registered version of a pipeline's model; `tags` say what it was made from."""

    pipeline: str
    version: str
    file: ModelFile
    tracking_id: str | None
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


class Registry(Protocol):
    """Runs (one per candidate), versions and aliases. Methods raise `Unavailable` while it cannot be reached."""

    def log_candidate(
        self,
        pipeline: str,
        key: str,
        *,
        parameters: Mapping[str, JsonValue],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        artefacts: Mapping[str, bytes] | None = None,
    ) -> str:
        """Record a candidate under `key` (the same key again updates the same run); returns its tracking id."""
        ...

    def add_artefacts(self, tracking_id: str, files: Mapping[str, bytes]) -> None:
        """Keep files (curves, reports) with a run, by path."""
        ...

    def register(
        self, pipeline: str, key: str, file: ModelFile, *, tracking_id: str | None, tags: Mapping[str, str]
    ) -> Version:
        """Make a version; the same `key` again returns the version it made before."""
        ...

    def version(self, pipeline: str, version: str) -> Version | None:
        """One version."""
        ...

    def versions(self, pipeline: str) -> list[Version]:
        """A pipeline's versions, oldest first, with their aliases."""
        ...

    def set_aliases(self, pipeline: str, aliases: Mapping[str, str | None]) -> None:
        """Point aliases (`champion`, `previous`, `challenger`) at versions; None removes one."""
        ...

    def remove(self, pipeline: str) -> None:
        """Remove the pipeline's runs and versions."""
        ...
