"""The model registry on MLflow: in a folder of this machine or on a server.

MLflow takes seconds to import, so it is imported when it is first needed; `warm` does so early.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import JsonValue

from turnout.common.errors import Invalid, Unknown
from turnout.common.events import ModelFile
from turnout.common.models.folder import Folder
from turnout.common.models.port import Version
from turnout.common.models.server import Server
from turnout.common.models.settings import MlflowSettings

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What a run or a version was made for: looked up first, so that doing something twice makes one.
KEY = "turnout.key"
# MLflow's limits (mlflow.utils.validation): a longer value would be refused.
LONGEST_PARAMETER = 6_000
LONGEST_TAG = 5_000
_FILE = {"uri": "turnout.file.uri", "sha256": "turnout.file.sha256", "size": "turnout.file.size"}


class Home(Protocol):
    """Where runs, versions and artefacts live."""

    def client(self) -> AbstractContextManager[MlflowClient]:
        """The client; what MLflow raises in the block becomes `Unavailable`, `Invalid` or `Unknown`."""
        ...

    def artefacts(self, pipeline: str) -> str | None:
        """URI of a pipeline's artefacts; None leaves it to MLflow."""
        ...

    def forget(self, client: MlflowClient, pipeline: str, runs: Iterable[Any]) -> None:
        """Remove runs and their artefacts."""
        ...


class MlflowRegistry:
    """A `Registry` in a folder of this machine or on the server of settings. Safe for several threads and processes."""

    def __init__(self, place: Path | MlflowSettings) -> None:
        self._home: Home = Folder(place) if isinstance(place, Path) else Server(place)

    def warm(self) -> None:
        """Import MLflow and open the store, so that the first call does not wait for it."""
        with self._home.client():
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
        with self._home.client() as client:
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
        with self._home.client() as client:
            _keep(client, tracking_id, files)

    def register(
        self, pipeline: str, key: str, file: ModelFile, *, tracking_id: str | None, tags: Mapping[str, str]
    ) -> Version:
        """See `Registry.register`."""
        with self._home.client() as client:
            found = _registered(client, pipeline, key)
            if found is not None:
                return _version(found)
            if not client.search_registered_models(f"name = '{_name(pipeline)}'"):
                _unless_there(lambda: client.create_registered_model(pipeline))
            described = {label: str(getattr(file, field)) for field, label in _FILE.items()}
            made: Any = client.create_model_version(
                pipeline,
                # A URI, because a server refuses what looks like a path of its own.
                source=f"lake:///{file.uri}",
                run_id=tracking_id,
                tags={**{n: v[:LONGEST_TAG] for n, v in tags.items()}, **described, KEY: key},
            )
            first = _registered(client, pipeline, key)
            # Somebody elsewhere was faster, between our look and our making.
            if first is not None and first.version != made.version:
                client.delete_model_version(pipeline, made.version)
                return _version(first)
            return _version(made)

    def version(self, pipeline: str, version: str) -> Version | None:
        """See `Registry.version`."""
        return next((found for found in self.versions(pipeline) if found.version == version), None)

    def versions(self, pipeline: str) -> list[Version]:
        """See `Registry.versions`."""
        with self._home.client() as client:
            found = [_version(one) for one in _all_versions(client, pipeline)]
            return sorted(found, key=lambda one: int(one.version))

    def set_aliases(self, pipeline: str, aliases: Mapping[str, str | None]) -> None:
        """See `Registry.set_aliases`. Raises `Unknown` for a version that is not registered, and changes nothing."""
        with self._home.client() as client:
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
        """See `Registry.remove`."""
        with self._home.client() as client:
            if client.search_registered_models(f"name = '{_name(pipeline)}'"):
                client.delete_registered_model(pipeline)
            experiment = client.get_experiment_by_name(pipeline)
            if experiment is not None:
                self._home.forget(client, pipeline, _all_runs(client, experiment.experiment_id))

    def _experiment(self, client: MlflowClient, pipeline: str) -> str:
        found = client.get_experiment_by_name(_name(pipeline))
        if found is None:
            _unless_there(lambda: client.create_experiment(pipeline, artifact_location=self._home.artefacts(pipeline)))
            found = client.get_experiment_by_name(pipeline)
        assert found is not None
        if found.lifecycle_stage == "deleted":  # by somebody, in MLflow's pages
            client.restore_experiment(found.experiment_id)
        return found.experiment_id


def _unless_there(make: Callable[[], object]) -> None:
    """Make what another process may be making too."""
    try:
        make()
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
            raise


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
    found = _first_run(client, experiment, key)
    if found is not None:
        return found
    made = client.create_run(experiment, tags={KEY: key}, run_name=key)
    first = _first_run(client, experiment, key)
    # Somebody elsewhere was faster, between our look and our making.
    if first is not None and first.info.run_id != made.info.run_id:
        client.delete_run(made.info.run_id)
        return first
    return made


def _first_run(client: MlflowClient, experiment: str, key: str) -> Any:
    """The run of a key, or None; always the same one of several."""
    asked = f"tags.`{KEY}` = '{_quoted(key)}'"
    return next(iter(client.search_runs([experiment], asked, max_results=1, order_by=["start_time ASC"])), None)


def _registered(client: MlflowClient, pipeline: str, key: str) -> Any:
    """The version of a key, or None; the oldest of several."""
    found = client.search_model_versions(f"name = '{_name(pipeline)}' and tags.`{KEY}` = '{_quoted(key)}'")
    return min(found, key=lambda one: int(one.version), default=None)


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
