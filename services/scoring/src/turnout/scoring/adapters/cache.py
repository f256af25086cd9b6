"""Checksummed copies of admitted versions: `<folder>/<pipeline>/<version>.onnx` and the event beside it.

Names of folders and files are hashes: a name from an event must not become a path.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from turnout.common.errors import Unavailable
from turnout.common.events import ModelReady, RoutingChanged


class FolderCache:
    """See `ModelCache`. What cannot be read is as if it were not there: the lake has it too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, ready: ModelReady, content: bytes) -> None:
        """See `ModelCache.keep`. Raises `Unavailable` if the disk does not take it."""
        folder = self._of(ready.pipeline)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / f"{ready.file.sha256}.onnx", content)
            _write(folder / f"{_name(ready.id)}.json", ready.model_dump_json().encode())
        except OSError as error:
            raise Unavailable("the copy of a version", error.strerror or "the disk refused it") from error

    def get(self, ready: ModelReady) -> bytes | None:
        """See `ModelCache.get`."""
        folder = self._of(ready.pipeline)
        if not (folder / f"{_name(ready.id)}.json").exists():
            return None
        try:
            content = (folder / f"{ready.file.sha256}.onnx").read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == ready.file.sha256 else None

    def known(self) -> Sequence[ModelReady]:
        """See `ModelCache.known`."""
        found: list[ModelReady] = []
        for path in sorted(self._folder.glob("*/*.json")):
            try:
                found.append(ModelReady.model_validate_json(path.read_bytes()))
            except (OSError, ValidationError):
                continue
        return sorted(found, key=lambda ready: ready.time)

    def drop(self, ready: ModelReady) -> None:
        """See `ModelCache.drop`."""
        folder = self._of(ready.pipeline)
        (folder / f"{_name(ready.id)}.json").unlink(missing_ok=True)
        if not any(other.file.sha256 == ready.file.sha256 for other in self.known()):
            (folder / f"{ready.file.sha256}.onnx").unlink(missing_ok=True)

    def keep_route(self, route: RoutingChanged) -> None:
        """See `ModelCache.keep_route`. Raises `Unavailable`."""
        folder = self._of(route.pipeline)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / "route", route.model_dump_json().encode())
        except OSError as error:
            raise Unavailable("the copy of a routing table", error.strerror or "the disk refused it") from error

    def routes(self) -> Sequence[RoutingChanged]:
        """See `ModelCache.routes`."""
        found: list[RoutingChanged] = []
        for path in sorted(self._folder.glob("*/route")):
            try:
                found.append(RoutingChanged.model_validate_json(path.read_bytes()))
            except (OSError, ValidationError):
                continue
        return found

    def remove(self, pipeline: str) -> None:
        """See `ModelCache.remove`."""
        shutil.rmtree(self._of(pipeline), ignore_errors=True)

    def _of(self, pipeline: str) -> Path:
        return self._folder / _name(pipeline)


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, on the disk when this returns."""
    aside = path.with_suffix(f".{os.getpid()}.aside")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
