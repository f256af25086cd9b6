"""What every model registry keeps."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from base64 import b64encode
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic

import httpx
import pytest
from pydantic import SecretStr

from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.events import ModelFile
from turnout.common.models.mlflow import MlflowRegistry
from turnout.common.models.port import Registry
from turnout.common.models.settings import MlflowSettings
from turnout.devstack import web
from turnout.devstack.server import free_port
from turnout.devstack.stack import Stack


@pytest.fixture(scope="module", params=["folder", pytest.param("server", marks=pytest.mark.stack)])
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    match request.param:
        case "folder":
            return MlflowRegistry(tmp_path_factory.mktemp("registry"))
        case "server":
            # A busy machine's server may take long; that is not what is tested here.
            return MlflowRegistry(MlflowSettings(uri=request.getfixturevalue("stack").mlflow, answer_seconds=60))
        case other:
            raise AssertionError(other)


def a_file(content: str = "a") -> ModelFile:
    return ModelFile(uri=f"models/registry-heart/{content * 64}.onnx", sha256=content * 64, size=17)


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
    run = registry.log_candidate("registry-heart", "run-1/0", parameters={}, metrics={}, tags={})
    first = registry.register("registry-heart", "run-1/0", a_file("a"), tracking_id=run, tags={"run_id": "run-1"})
    again = registry.register("registry-heart", "run-1/0", a_file("b"), tracking_id=None, tags={})
    second = registry.register("registry-heart", "run-2/0", a_file("b"), tracking_id=None, tags={"text": "x" * 20_000})
    assert (first.version, again.version, second.version) == ("1", "1", "2")
    assert again.file == a_file("a")
    assert first.tags == {"run_id": "run-1"}
    assert first.tracking_id == run
    assert [v.version for v in registry.versions("registry-heart")] == ["1", "2"]


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
        registry.register("registry-heart", "it's", a_file(), tracking_id=None, tags={})


def test_a_folder_that_cannot_be_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="model registry"):
        MlflowRegistry(tmp_path / "file" / "mlflow").versions("registry-heart")


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
    registry.versions("registry-heart")
    from mlflow.telemetry.utils import is_telemetry_disabled  # after the registry imported it

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert is_telemetry_disabled()


# Ours are put into this process's environment for MLflow's client, where another test must not find them.
MLFLOW_VARIABLES = (
    "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_HTTP_REQUEST_TIMEOUT",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR",
)  # fmt: skip


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MLFLOW_VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def refusal(settings: MlflowSettings) -> str:
    """What it says, as it is written to a log."""
    with pytest.raises(Unavailable) as caught:
        MlflowRegistry(settings).versions("registry-heart")
    return "".join(traceback.format_exception(caught.value))


@pytest.mark.usefixtures("clean")
def test_a_server_that_is_away_is_named_soon() -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    refusal(MlflowSettings(uri=uri))  # MLflow's import is not what is measured
    begun = monotonic()
    said = refusal(MlflowSettings(uri=uri, username="me", password=SecretStr("s3cret")))
    assert monotonic() - begun < 20  # MLflow's own patience is minutes
    assert f"the model registry at {uri} is not available: no answer; is TURNOUT_MLFLOW_URI right?" in said
    assert "s3cret" not in said


@pytest.mark.stack
@pytest.mark.usefixtures("clean")
def test_a_server_that_hangs_is_named_soon_and_used_again_when_it_answers(tmp_path: Path) -> None:
    server = web.mlflow(tmp_path, free_port())
    server.start()
    try:
        server.wait()
        registry = MlflowRegistry(MlflowSettings(uri=f"http://{server.address}", answer_seconds=2))
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"
        registry.register("registry-heart", "k", a_file(), tracking_id=None, tags={})
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "2"
        server.pause()
        begun = monotonic()
        with pytest.raises(Unavailable, match="no answer"):
            registry.versions("registry-heart")
        assert monotonic() - begun < 30  # two times two seconds, on a machine that is busy
        server.resume()
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"
        assert len(registry.versions("registry-heart")) == 1
    finally:
        server.kill()


@contextmanager
def guard(answers: type[BaseHTTPRequestHandler]) -> Generator[str]:
    """Something that answers HTTP; its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def asking_for(expected: str, behind: str) -> type[BaseHTTPRequestHandler]:
    """A proxy that lets through who says what is `expected`, as one in front of MLflow usually does."""

    class Proxy(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != expected:
                self.send_error(401)
                return
            kept = {k: v for k, v in self.headers.items() if k not in ("Host", "Authorization", "Accept-Encoding")}
            found = httpx.request(self.command, behind + self.path, content=body, headers=kept, timeout=60)
            self.send_response(found.status_code)
            self.send_header("Content-Length", str(len(found.content)))
            self.end_headers()
            self.wfile.write(found.content)

        do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = answer  # noqa: N815

        def log_message(self, *args: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            pass

    return Proxy


@pytest.mark.stack
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("expected", "right"),
    [
        (f"Basic {b64encode(b'me:s3cret').decode()}", {"username": "me", "password": "s3cret"}),
        ("Bearer s3cret", {"token": "s3cret"}),
    ],
)
def test_a_server_that_asks_who_is_there(stack: Stack, expected: str, right: dict[str, str]) -> None:
    with guard(asking_for(expected, stack.mlflow)) as uri:
        wrong = dict.fromkeys(right, "wr0ng")
        said = refusal(MlflowSettings.model_validate({"uri": uri, "answer_seconds": 60, **wrong}))
        assert "it refuses us; see TURNOUT_MLFLOW_USERNAME and TURNOUT_MLFLOW_PASSWORD" in said
        assert "wr0ng" not in said
        registry = MlflowRegistry(MlflowSettings.model_validate({"uri": uri, "answer_seconds": 60, **right}))
        registry.log_candidate("registry-asked", "k", parameters={}, metrics={}, tags={}, artefacts={"a": b"a"})
        registry.remove("registry-asked")


def answering(status: int, content: bytes) -> type[BaseHTTPRequestHandler]:
    """Something that gives every request one answer."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            pass

    return Answers


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (200, b"3.10.1", "is MLflow 3.10, which has known holes; update it to 3.11"),
        (200, b"2.22.0", "is MLflow 2.22, which has known holes; update it to 3.11"),
        (200, b"<p>hello", "what answers there is no MLflow server; is TURNOUT_MLFLOW_URI right?"),
        (404, b"<p>nothing", "what answers there is no MLflow server; is TURNOUT_MLFLOW_URI right?"),
        (403, b"Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts 127.0.0.1:"),
        (403, b"no", "the user may not do this; see TURNOUT_MLFLOW_USERNAME"),
        (503, b"later", "no answer"),
    ],
)
def test_what_is_no_usable_server_is_told_from_one_that_is_away(status: int, content: bytes, said: str) -> None:
    with guard(answering(status, content)) as uri:
        assert said in refusal(MlflowSettings(uri=uri, answer_seconds=60))


@pytest.mark.stack
@pytest.mark.usefixtures("clean")
def test_of_two_machines_that_register_at_once_both_get_the_first(stack: Stack) -> None:
    machines = [MlflowRegistry(MlflowSettings(uri=stack.mlflow, answer_seconds=60)) for _ in range(4)]

    def make(registry: MlflowRegistry) -> tuple[str, str]:
        run = registry.log_candidate("registry-race", "k", parameters={}, metrics={}, tags={})
        return run, registry.register("registry-race", "k", a_file(), tracking_id=None, tags={}).version

    with ThreadPoolExecutor(len(machines)) as pool:
        made = list(pool.map(make, machines))

    (kept,) = machines[0].versions("registry-race")
    assert {version for _, version in made} == {kept.version}
    for registry in machines:
        assert registry.log_candidate("registry-race", "k", parameters={}, metrics={}, tags={}) in {r for r, _ in made}


def test_artefacts_of_a_removed_pipeline_are_gone(registry: Registry) -> None:
    assert isinstance(registry, MlflowRegistry)
    run = registry.log_candidate("registry-artefacts", "k", parameters={}, metrics={}, tags={}, artefacts={"d/a": b"a"})
    with registry._home.client() as client:
        assert [one.path for one in client.list_artifacts(run, "d")] == ["d/a"]
        from mlflow.artifacts import list_artifacts

        uri = client.get_run(run).info.artifact_uri
        server = client.tracking_uri
    registry.remove("registry-artefacts")
    assert not list_artifacts(artifact_uri=uri, tracking_uri=server)


@pytest.mark.parametrize("uri", ["", "mlflow:5000", "sqlite:///x", "http://me:s3cret@mlflow:5000", "http://[x"])
def test_a_uri_that_names_no_server_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(Invalid, match="TURNOUT_MLFLOW_URI") as caught:
        MlflowRegistry(MlflowSettings(uri=uri))
    assert "s3cret" not in str(caught.value)
