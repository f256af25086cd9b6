"""The generated documents are those that the code would generate now."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from turnout.common.events import REGISTRY

ROOT = Path(__file__).parents[2]
GENERATED = ("schemas", "asyncapi", "openapi")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    subprocess.run([sys.executable, str(ROOT / "docs" / "generate.py"), str(folder)], check=True, capture_output=True)
    return folder


def test_documents_are_current(fresh: Path) -> None:
    written = {p.relative_to(fresh): p.read_bytes() for p in fresh.rglob("*") if p.is_file()}
    kept = {
        p.relative_to(ROOT / "docs"): p.read_bytes()
        for name in GENERATED
        for p in (ROOT / "docs" / name).rglob("*")
        if p.is_file()
    }
    kept |= {Path(name): (ROOT / "docs" / name).read_bytes() for name in ("topics.md", "settings.md")}
    assert sorted(written) == sorted(kept), "run `make docs`"
    stale = [str(p) for p in written if written[p] != kept[p]]
    assert not stale, "run `make docs`"


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_event_has_a_valid_schema(name: str) -> None:
    schema = json.loads((ROOT / "docs" / "schemas" / f"{name}.v{REGISTRY[name].major}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)


def test_asyncapi_references_resolve() -> None:
    for path in (ROOT / "docs" / "asyncapi").glob("*.json"):
        document = json.loads(path.read_text())
        assert document["asyncapi"].startswith("3.")
        for reference in _references(document):
            target, _, pointer = reference.partition("#")
            found = document if not target else json.loads((path.parent / target).read_text())
            for part in pointer.strip("/").split("/") if pointer else ():
                found = found[part]
            assert found


def test_openapi_names_every_operation_once_and_its_examples_are_valid() -> None:
    for path in (ROOT / "docs" / "openapi").glob("*.json"):
        document = json.loads(path.read_text())
        operations = [operation for methods in document["paths"].values() for operation in methods.values()]
        names = [operation["operationId"] for operation in operations]
        assert len(names) == len(set(names))
        assert {"/livez", "/readyz", "/metrics"} <= document["paths"].keys()
        for operation in operations:
            bodies = [operation["requestBody"], *operation["responses"].values()] if "requestBody" in operation else []
            for content in (body.get("content", {}).get("application/json", {}) for body in bodies):
                schema = {**content.get("schema", {}), "components": document.get("components", {})}
                for example in (*schema.get("examples", ()), *([content["example"]] if "example" in content else ())):
                    jsonschema.validate(example, schema, jsonschema.Draft202012Validator)


def test_who_reads_and_who_follows_is_told_apart() -> None:
    operations = json.loads((ROOT / "docs" / "asyncapi" / "scoring.json").read_text())["operations"]
    assert operations["receiveScoreRequestedByScoringRequests"]["bindings"]["kafka"]["groupId"]["const"] == (
        "scoring.requests"
    )
    assert "bindings" not in operations["followModelReadyByScoring"]
    assert {"sendScoreProduced", "followRoutingChangedByScoring"} <= operations.keys()


def _references(node: object) -> list[str]:
    if isinstance(node, dict):
        return [v for k, v in node.items() if k == "$ref"] + [r for v in node.values() for r in _references(v)]
    if isinstance(node, list):
        return [r for v in node for r in _references(v)]
    return []


def test_generator_can_be_read_without_running_it() -> None:
    assert "write" in runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="read")


def test_settings_of_every_kind_are_told_and_no_secret_has_a_default() -> None:
    read = runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="read")
    classes = read["settings_classes"]()
    names = [name for cls in classes for name in read["variables"](cls)]
    assert {"TURNOUT_HOME", "TURNOUT_LAKE_URI", "TURNOUT_MLFLOW_URI", "TURNOUT_SCORING_WORKER"} <= set(names)
    assert len(names) == len(set(names))
    undescribed = [f"{c.__name__}.{n}" for c in classes for n, field in c.model_fields.items() if not field.description]
    assert not undescribed
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page.count("| secret | unset |") == page.count("| secret |") > 0
