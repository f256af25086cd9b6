"""What every model registry keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.events import ModelFile
from turnout.common.models.mlflow import MlflowRegistry
from turnout.common.models.port import Registry
from turnout.common.models.settings import MlflowSettings


@pytest.fixture(scope="module", params=["folder", pytest.param("server", marks=pytest.mark.stack)])
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    match request.param:
        case "folder":
            return MlflowRegistry(tmp_path_factory.mktemp("registry"))
        case "server":
            return MlflowRegistry(MlflowSettings(uri=request.getfixturevalue("stack").mlflow))
        case other:
            raise AssertionError(other)


def a_file(content: str = "a") -> ModelFile:
    return ModelFile(uri=f"models/heart/{content * 64}.onnx", sha256=content * 64, size=17)


def test_a_candidate_logged_twice_is_one_run(registry: Registry) -> None:
    def log(metrics: dict[str, float]) -> str:
        return registry.log_candidate(
            "once", "run-1/0", parameters={"algorithm": "ridge", "alpha": 0.5, "search": [1, 2]}, metrics=metrics,
            tags={"split_id": "split-1"}, artefacts={"curves/roc.json": b"[]"},
        )  # fmt: skip

    first = log({"seconds": 1.5})
    assert log({"seconds": 1.5, "roc_auc": 0.9, "odd": float("nan")}) == first
    other = registry.log_candidate("once", "run-1/1", parameters={}, metrics={}, tags={})
    assert other != first


def test_artefacts_are_kept_with_the_run_and_stay_inside_it(registry: Registry) -> None:
    run = registry.log_candidate("files", "run-1/0", parameters={}, metrics={}, tags={})
    registry.add_artefacts(run, {"report.json": b"{}"})
    with pytest.raises(Invalid, match="outside the run"):
        registry.add_artefacts(run, {"../report.json": b"{}"})


def test_a_key_registered_twice_is_one_version(registry: Registry) -> None:
    run = registry.log_candidate("heart", "run-1/0", parameters={}, metrics={}, tags={})
    first = registry.register("heart", "run-1/0", a_file("a"), tracking_id=run, tags={"run_id": "run-1"})
    again = registry.register("heart", "run-1/0", a_file("b"), tracking_id=None, tags={})
    second = registry.register("heart", "run-2/0", a_file("b"), tracking_id=None, tags={"text": "x" * 20_000})
    assert (first.version, again.version, second.version) == ("1", "1", "2")
    assert again.file == a_file("a")
    assert first.tags == {"run_id": "run-1"}
    assert first.tracking_id == run
    assert [v.version for v in registry.versions("heart")] == ["1", "2"]


def test_versions_of_one_pipeline_are_not_those_of_another(registry: Registry) -> None:
    registry.register("left", "k", a_file(), tracking_id=None, tags={})
    assert registry.versions("right") == []
    assert registry.version("right", "1") is None
    found = registry.version("left", "1")
    assert found is not None
    assert found.file == a_file()


def test_aliases_point_at_versions_and_can_be_taken_away(registry: Registry) -> None:
    for key in ("k1", "k2"):
        registry.register("alias", key, a_file(), tracking_id=None, tags={})
    registry.set_aliases("alias", {"champion": "1", "previous": None, "challenger": None})
    registry.set_aliases("alias", {"champion": "2", "previous": "1", "challenger": None})
    assert {v.version: v.aliases for v in registry.versions("alias")} == {"1": ("previous",), "2": ("champion",)}
    registry.set_aliases("alias", {"champion": "2", "previous": None})
    assert {v.version: v.aliases for v in registry.versions("alias")} == {"1": (), "2": ("champion",)}


def test_an_alias_for_an_unknown_version_changes_nothing(registry: Registry) -> None:
    registry.register("strict", "k1", a_file(), tracking_id=None, tags={})
    with pytest.raises(Unknown, match="unknown version of strict '7'"):
        registry.set_aliases("strict", {"champion": "1", "previous": "7"})
    assert registry.versions("strict")[0].aliases == ()
    registry.set_aliases("nothing-there", {"previous": None})


def test_removing_a_pipeline_removes_all_of_it_and_its_name_can_come_back(registry: Registry) -> None:
    run = registry.log_candidate("gone", "k", parameters={"a": 1}, metrics={}, tags={}, artefacts={"a": b"a"})
    registry.register("gone", "k", a_file(), tracking_id=run, tags={})
    registry.register("stays", "k", a_file(), tracking_id=None, tags={})
    registry.remove("gone")
    registry.remove("gone")
    assert registry.versions("gone") == []
    assert len(registry.versions("stays")) == 1
    assert registry.log_candidate("gone", "k", parameters={"a": 2}, metrics={}, tags={}) != run
    assert registry.register("gone", "k", a_file(), tracking_id=None, tags={}).version == "1"


def test_a_name_that_is_no_pipeline_name_is_refused(registry: Registry) -> None:
    for name in ("../x", "a' or name = 'b", ""):
        with pytest.raises(Invalid):
            registry.versions(name)
    with pytest.raises(Invalid, match="no quotes"):
        registry.register("heart", "it's", a_file(), tracking_id=None, tags={})


def test_a_folder_that_cannot_be_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="model registry"):
        MlflowRegistry(tmp_path / "file" / "mlflow").versions("heart")


def test_another_process_sees_the_same_versions(tmp_path: Path) -> None:
    registry = MlflowRegistry(tmp_path)
    registry.register("shared", "k", a_file(), tracking_id=None, tags={})
    program = (
        "import sys; from pathlib import Path; from turnout.common.models.mlflow import MlflowRegistry\n"
        "assert 'mlflow' not in sys.modules\n"
        "print([v.version for v in MlflowRegistry(Path(sys.argv[1])).versions('shared')])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['1']"
    assert done.stderr == ""


def test_nothing_is_told_to_anybody(registry: Registry) -> None:
    registry.versions("heart")
    from mlflow.telemetry.utils import is_telemetry_disabled  # after the registry imported it

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert is_telemetry_disabled()
