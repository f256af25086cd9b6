"""MLflow's SQLite store and artefact files under one folder of this machine.

<folder>/mlflow.sqlite     runs, versions, aliases; `mlflow ui --backend-store-uri sqlite:///…` shows them
<folder>/artefacts/<run>/  curves and reports
"""

from __future__ import annotations

import fcntl
import shutil
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnout.common.errors import Unavailable
from turnout.common.models.client import client_class, in_words

if TYPE_CHECKING:
    from mlflow import MlflowClient

_WHAT = "the model registry"


class Folder:
    """A `Home` in `folder`, made when first used. Safe for several threads and processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._lock = threading.RLock()
        self._opened: MlflowClient | None = None

    @contextmanager
    def client(self) -> Generator[MlflowClient]:
        """The client, for one caller at a time on this machine."""
        with self._lock:
            made = client_class()
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                with (self._folder / ".lock").open("wb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    if self._opened is None:
                        uri = f"sqlite:///{self._folder / 'mlflow.sqlite'}"
                        self._opened = made(tracking_uri=uri, registry_uri=uri)
                        self._opened.search_experiments(max_results=1)
                    yield self._opened
            except OSError as error:
                raise Unavailable(_WHAT, error.strerror or str(error)) from error
            except Exception as error:
                if type(error).__module__.partition(".")[0] not in ("mlflow", "sqlalchemy"):
                    raise
                known = in_words(error)
                raise known or Unavailable(_WHAT, str(error).partition("\n")[0]) from error

    def artefacts(self, pipeline: str) -> str | None:
        """Where a pipeline's artefacts lie."""
        return self._place(pipeline).as_uri()

    def forget(self, client: MlflowClient, pipeline: str, runs: Iterable[Any]) -> None:
        """Runs go for good, not into MLflow's bin."""
        store: Any = client._tracking_client.store  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001 (`mlflow gc` does so)
        for run in runs:
            client.delete_run(run.info.run_id)
            store._hard_delete_run(run.info.run_id)  # noqa: SLF001
        shutil.rmtree(self._place(pipeline), ignore_errors=True)

    def _place(self, pipeline: str) -> Path:
        return self._folder / "artefacts" / pipeline
