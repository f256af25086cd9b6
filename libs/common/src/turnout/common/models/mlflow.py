"""The model registry on MLflow: its SQLite store and artefact files under one folder of this machine.

    <folder>/mlflow.sqlite     runs, versions, aliases; `mlflow ui --backend-store-uri sqlite:///…` shows them
    <folder>/artefacts/<run>/  curves and reports

MLflow takes seconds to import, so this module imports it when it is first needed; `warm` does so early. Nothing
leaves the machine: telemetry is switched off before MLflow is imported.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.events import ModelFile
from turnout.common.models.port import Version

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What a run or a version was made for: looked up first, so that doing something twice makes one.
KEY = "turnout.key"
# MLflow's limits (mlflow.utils.validation): a longer value would be refused.
LONGEST_PARAMETER = 6_000
LONGEST_TAG = 5_000
_FILE = {"uri": "turnout.file.uri", "sha256": "turnout.file.sha256", "size": "turnout.file.size"}


class MlflowRegistry:
    """A `Registry` in `folder`, made when first used. Safe for several threads and processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._lock = threading.RLock()
        self._opened: MlflowClient | None = None

    def warm(self) -> None:
        """Import MLflow and open the store, so that the first call does not wait for it."""
        with self._client():
            pass

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
        """See `Registry.log_candidate`. A parameter keeps its first value; metrics and tags take the newest."""
        with self._client() as client:
            from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415 (takes seconds)

            run = _run(client, self._experiment(client, pipeline), key)
            known = run.data.params
            # A metric is a series in MLflow: the same value again would be a second point.
            changed = {n: v for n, v in metrics.items() if math.isfinite(v) and run.data.metrics.get(n) != v}
            client.log_batch(
                run.info.run_id,
                metrics=[Metric(name, value, 0, 0) for name, value in changed.items()],
                params=[Param(n, _text(v)[:LONGEST_PARAMETER]) for n, v in parameters.items() if n not in known],
                tags=[RunTag(name, value[:LONGEST_TAG]) for name, value in tags.items()],
            )
            _keep(client, run.info.run_id, artefacts or {})
            if run.info.status != "FINISHED":
                client.set_terminated(run.info.run_id)
            return run.info.run_id

    def add_artefacts(self, tracking_id: str, files: Mapping[str, bytes]) -> None:
        """See `Registry.add_artefacts`. Raises `Unknown` if there is no such run."""
        with self._client() as client:
            _keep(client, tracking_id, files)

    def register(
        self, pipeline: str, key: str, file: ModelFile, *, tracking_id: str | None, tags: Mapping[str, str]
    ) -> Version:
        """See `Registry.register`."""
        with self._client() as client:
            found = client.search_model_versions(f"name = '{_name(pipeline)}' and tags.`{KEY}` = '{_quoted(key)}'")
            if found:
                return _version(found[0])
            if not client.search_registered_models(f"name = '{_name(pipeline)}'"):
                client.create_registered_model(pipeline)
            described = {label: str(getattr(file, field)) for field, label in _FILE.items()}
            made = client.create_model_version(
                pipeline,
                source=file.uri,
                run_id=tracking_id,
                tags={**{n: v[:LONGEST_TAG] for n, v in tags.items()}, **described, KEY: key},
            )
            return _version(made)

    def version(self, pipeline: str, version: str) -> Version | None:
        """See `Registry.version`."""
        return next((found for found in self.versions(pipeline) if found.version == version), None)

    def versions(self, pipeline: str) -> list[Version]:
        """See `Registry.versions`."""
        with self._client() as client:
            found = [_version(one) for one in _all_versions(client, pipeline)]
            return sorted(found, key=lambda one: int(one.version))

    def set_aliases(self, pipeline: str, aliases: Mapping[str, str | None]) -> None:
        """See `Registry.set_aliases`. Raises `Unknown` for a version that is not registered, and changes nothing."""
        with self._client() as client:
            there = {str(one.version) for one in _all_versions(client, pipeline)}
            for version in aliases.values():
                if version is not None and version not in there:
                    raise Unknown.name("version", f"version of {pipeline}", version, there)
            for alias, version in aliases.items():
                if version is not None:
                    client.set_registered_model_alias(pipeline, alias, version)
                elif there:
                    client.delete_registered_model_alias(pipeline, alias)

    def remove(self, pipeline: str) -> None:
        """See `Registry.remove`. Runs go for good, not into MLflow's bin."""
        with self._client() as client:
            if client.search_registered_models(f"name = '{_name(pipeline)}'"):
                client.delete_registered_model(pipeline)
            experiment = client.get_experiment_by_name(pipeline)
            if experiment is None:
                return
            store: Any = client._tracking_client.store  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001 (`mlflow gc` does so)
            for run in _all_runs(client, experiment.experiment_id):
                client.delete_run(run.info.run_id)
                store._hard_delete_run(run.info.run_id)  # noqa: SLF001
            shutil.rmtree(self._artefacts(pipeline), ignore_errors=True)

    def _artefacts(self, pipeline: str) -> Path:
        return self._folder / "artefacts" / _name(pipeline)

    def _experiment(self, client: MlflowClient, pipeline: str) -> str:
        found = client.get_experiment_by_name(_name(pipeline))
        if found is not None:
            return found.experiment_id
        return client.create_experiment(pipeline, artifact_location=self._artefacts(pipeline).as_uri())

    @contextmanager
    def _client(self) -> Generator[MlflowClient]:
        """The client, for one caller at a time on this machine; what MLflow raises becomes `Unavailable`."""
        with self._lock:
            from_here = _import()
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                with (self._folder / ".lock").open("wb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    if self._opened is None:
                        uri = f"sqlite:///{self._folder / 'mlflow.sqlite'}"
                        self._opened = from_here(tracking_uri=uri, registry_uri=uri)
                        self._opened.search_experiments(max_results=1)
                    yield self._opened
            except OSError as error:
                raise Unavailable("the model registry", error.strerror or str(error)) from error
            except Exception as error:
                if type(error).__module__.partition(".")[0] not in ("mlflow", "sqlalchemy"):
                    raise
                raise _in_words(error) from error


def _import() -> type[MlflowClient]:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    # Its letters about tables it makes and migrations it runs are nobody's business here.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient  # noqa: PLC0415 (takes seconds)

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient


def _in_words(error: Exception) -> Exception:
    code = getattr(error, "error_code", "")
    if code == "RESOURCE_DOES_NOT_EXIST":
        return Unknown("model registry", str(error))
    if code == "INVALID_PARAMETER_VALUE":
        return Invalid("model registry", str(error))
    return Unavailable("the model registry", str(error).partition("\n")[0])


def _name(pipeline: str) -> str:
    """The pipeline's name, as it may stand in a filter and a path."""
    if not pipeline.replace("-", "").replace("_", "").replace(".", "").isalnum() or pipeline.startswith("."):
        raise Invalid("pipeline", f"{pipeline[:60]!r} is no pipeline name", fix="small letters, digits and hyphens")
    return pipeline


def _quoted(key: str) -> str:
    if "'" in key or "\\" in key:
        raise Invalid("key", f"{key[:60]!r} cannot be looked up", fix="no quotes in a key")
    return key


def _run(client: MlflowClient, experiment: str, key: str) -> Any:
    found = client.search_runs([experiment], f"tags.`{KEY}` = '{_quoted(key)}'", max_results=1)
    return found[0] if found else client.create_run(experiment, tags={KEY: key}, run_name=key)


def _all_runs(client: MlflowClient, experiment: str) -> list[Any]:
    runs: list[Any] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment], max_results=1_000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _all_versions(client: MlflowClient, pipeline: str) -> list[Any]:
    # A search gives versions without their aliases; those stand with the model.
    models = client.search_registered_models(f"name = '{_name(pipeline)}'")
    aliases: dict[str, list[str]] = {}
    for alias, version in (models[0].aliases if models else {}).items():
        aliases.setdefault(str(version), []).append(alias)
    versions: list[Any] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{pipeline}'", max_results=1_000, page_token=token)
        versions += page
        token = page.token
        if not token:
            break
    for one in versions:
        one.aliases = sorted(aliases.get(str(one.version), []))
    return versions


def _version(found: Any) -> Version:
    tags = dict(found.tags)
    file = ModelFile.model_validate({field: tags.pop(label) for field, label in _FILE.items()})
    tags.pop(KEY, None)
    return Version(
        pipeline=found.name,
        version=str(found.version),
        file=file,
        tracking_id=found.run_id or None,
        tags=tags,
        aliases=tuple(found.aliases or ()),
    )


def _keep(client: MlflowClient, tracking_id: str, files: Mapping[str, bytes]) -> None:
    if not files:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise Invalid("artefacts", f"{name!r} lies outside the run", fix="a relative path")
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        client.log_artifacts(tracking_id, folder)


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else str(value)
