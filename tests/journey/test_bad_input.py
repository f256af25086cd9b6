"""Everything wrong that a user can hand us, and the answer each must get. One table; one test walks it.

A case says what is offered and what must come back. After all of them the services are still up, and a good pipeline
still answers: nothing was lost or half-written on the way.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from system import System, running

from turnout.common import pipeline
from turnout.common.bus.port import Record
from turnout.common.events import (
    REGISTRY,
    Event,
    ModelReady,
    PipelineDeclared,
    RawDataExtracted,
    RoutingChanged,
    SourceDataAvailable,
    StageFailed,
    VersionEjected,
)
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.settings import RuntimeSettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("bad-input"),
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
]

SPEC = """
pipeline: {name}
task: classification
source: {label: y}
training: {candidates: [{algorithm: logistic_regression}]}
"""
# `a` tells the label nine times out of ten, so that a candidate beats the base rate.
GOOD = "a,b,colour,y\n" + "".join(
    f"{i % 10},{i * 0.5},{'red' if i % 3 else 'blue'},{int((i % 10 >= 5) != (i % 11 == 0))}\n" for i in range(400)
)


# --- files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BadFile:
    """A source file: either it fails with a sentence, or `quarantined` of its rows are set aside."""

    name: str
    content: bytes | Callable[[Path], None]
    says: str | None = None
    quarantined: int | None = None
    file: str = "data.csv"
    spec: str = SPEC


def _parquet_bomb(path: Path) -> None:
    """Half a megabyte that decodes to gigabytes: one long text, named by a dictionary, in every row."""
    text = "x" * 100_000
    column = pa.array([text] * 40_000).dictionary_encode()
    pq.write_table(pa.table({"a": column, "y": pa.array(np.arange(40_000) % 2)}), path)


FILES = [
    BadFile("empty file", b"", says="empty"),
    BadFile("header only", b"a,b,y\n", says="no row"),
    BadFile("duplicate columns", b"a,b,a,y\n1,2,3,0\n", says="'a'"),
    BadFile("ragged rows", GOOD.encode() + b"1,2\n3,4,red,1,5,6\n", quarantined=2),
    BadFile("text where a number was declared", GOOD.encode() + b"oops,1,red,0\n", quarantined=1,
            spec=SPEC + "schema: {a: number}\n"),
    BadFile("not a finite number", GOOD.encode() + b"inf,1,red,0\n1e999,1,red,0\n", quarantined=2,
            spec=SPEC + "schema: {a: number}\n"),
    BadFile("wrong encoding", GOOD.encode() + "1,2,caf\u00e9,0\n".encode("latin-1"), quarantined=1),
    BadFile("quoted newlines are no error", GOOD.encode() + b'1,2,"dark\nred",0\n', quarantined=0),
    BadFile("a gzip cut off", gzip.compress(GOOD.encode() * 50)[:400], says="data.csv.gz", file="data.csv.gz"),
    BadFile("a Parquet that is not one", b"PAR1 but not really", says="Parquet", file="data.parquet"),
    BadFile("a Parquet that decodes to far more than it says", _parquet_bomb, says="decode", file="data.parquet"),
    BadFile("label that is not there", b"a,b\n1,2\n3,4\n", says="'y'"),
    BadFile("label that is constant", ("a,y\n" + "".join(f"{i},1\n" for i in range(50))).encode(), says="one class"),
    BadFile("label always missing", ("a,y\n" + "".join(f"{i},\n" for i in range(50))).encode(), says="label"),
    BadFile("column of a step that is not there", GOOD.encode(), says="did you mean 'colour'",
            spec=SPEC + "preparation: [{encode: {columns: [color]}}]\n"),
]  # fmt: skip


# --- requests -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BadRequest:
    """A call over HTTP, the status it must get, and what the answer must say."""

    name: str
    path: str
    body: Any
    status: int
    says: str
    method: str = "POST"
    raw: bytes | None = None
    v2: bool = False


SCORE = "/pipelines/good/score"
INFER = "/v2/models/good/infer"
OBSERVE = "/services/ingestion/observations"
MONITORING = "/services/monitoring/pipelines/good"


def _observation(name: str, values: dict[str, Any]) -> Any:
    return {"pipeline": name, "entity": "e", "event_time": "2026-01-01T00:00:00Z", "values": values}


def _tensor(data: object, *, name: str = "a", datatype: str = "FP64", shape: tuple[int, ...] = (1, 1)) -> Any:
    return {"inputs": [{"name": name, "shape": list(shape), "datatype": datatype, "data": data}]}


REQUESTS = [
    BadRequest("malformed JSON", SCORE, None, 400, "JSON", raw=b'{"rows": [{"a": 1'),
    BadRequest("not an object", SCORE, [1, 2], 422, "rows"),
    BadRequest("no rows", SCORE, {"rows": []}, 422, "rows"),
    BadRequest("text for a number", SCORE, {"rows": [{"a": "much"}]}, 422, "a"),
    BadRequest("NaN", SCORE, None, 422, "not a finite number", raw=b'{"rows": [{"a": NaN}]}'),
    BadRequest("Infinity", SCORE, None, 422, "not a finite number", raw=b'{"rows": [{"a": Infinity}]}'),
    BadRequest("a number too large", SCORE, None, 422, "a", raw=b'{"rows": [{"a": 1' + b"0" * 400 + b"}]}"),
    BadRequest("an extra field", SCORE, {"rows": [{"a": 1, "bb": 2}]}, 422, "did you mean 'b'"),
    BadRequest("no known field", SCORE, {"rows": [{}]}, 422, "row"),
    BadRequest("nested value", SCORE, {"rows": [{"a": [1]}]}, 422, "a"),
    BadRequest("too many rows", SCORE, {"rows": [{"a": 1}] * 1001}, 422, "1000"),
    BadRequest("a body too large", SCORE, None, 413, "large", raw=b'{"rows": [' + b" " * 2_000_000 + b"]}"),
    BadRequest("JSON too deep", SCORE, None, 400, "depth", raw=b"[" * 5000 + b"]" * 5000),
    BadRequest("unknown pipeline", "/pipelines/goood/score", {"rows": [{"a": 1}]}, 404, "did you mean 'good'"),
    BadRequest("unknown version", SCORE, {"rows": [{"a": 1}], "version": "99"}, 404, "99"),
    BadRequest("unknown score", "/scores/nobody", None, 404, "nobody", method="GET"),
    BadRequest("outcome for an unknown score", "/outcomes", {"score_id": "nobody", "outcome": 1}, 404, "nobody"),
    BadRequest("outcome without a score", "/outcomes", {"outcome": 1}, 422, "score_id"),
    BadRequest("unknown model", "/v2/models/goood/infer", _tensor([1.0]), 404, "good", v2=True),
    BadRequest("unknown model version", "/v2/models/good/versions/99/infer", _tensor([1.0]), 404, "99", v2=True),
    BadRequest("unknown tensor", INFER, _tensor([1.0], name="aa"), 422, "aa", v2=True),
    BadRequest("shape that does not fit the data", INFER, _tensor([1.0], shape=(2, 1)), 422, "shape", v2=True),
    BadRequest("unknown datatype", INFER, _tensor([1.0], datatype="FP128"), 422, "FP128", v2=True),
    BadRequest("malformed JSON, v2", INFER, None, 400, "JSON", raw=b"{", v2=True),
    BadRequest("observation that does not fit", OBSERVE, _observation("good", {"a": "x"}), 422, "a"),
    BadRequest("observation of an unknown pipeline", OBSERVE, _observation("goood", {"a": 1}), 404, "good"),
    BadRequest("promote an unknown version", MONITORING + "/promote", {"version": "99"}, 404, "99"),
]  # fmt: skip


# --- the pipeline file and the command line -----------------------------------------------------------------------


@dataclass(frozen=True)
class BadCommand:
    """A command line that must end with exit code 2 and say what to do."""

    name: str
    words: tuple[str, ...]
    says: str
    files: dict[str, str] = field(default_factory=dict)


def _apply(name: str, text: str, says: str) -> BadCommand:
    return BadCommand(name, ("apply", "bad.yaml"), says, {"bad.yaml": text})


TAKING = """
pipeline: taking
task: features
source: {topic: their.feed, entity: e}
schema: {e: category, a: number}
"""
HEAD = "pipeline: bad\ntask: classification\nsource: {label: y, uri: good.csv}\n"
COMMANDS = [
    _apply(
        "unknown algorithm",
        HEAD + "training: {candidates: [{algorithm: random_forst}]}",
        "did you mean 'random_forest'",
    ),
    _apply("unknown metric", HEAD + "evaluation: {metric: roc_acu}", "did you mean 'roc_auc'"),
    _apply("unknown key", HEAD + "evaluatoin: {}", "did you mean 'evaluation'"),
    _apply(
        "unknown option of a step",
        HEAD + "preparation: [{impute: {colums: number}}]",
        "did you mean 'columns'",
    ),
    _apply("no label", "pipeline: bad\ntask: regression\n", "source.label"),
    _apply("no YAML", "pipeline: [", "YAML"),
    _apply("expression that is none", HEAD.replace("label: y", "label: y, positive: 'y >'"), "positive"),
    _apply("a topic of ours as a source", TAKING.replace("their.feed", "ScoreProduced"), "source.topic: ScoreProduced"),
    _apply("a topic without an entity", TAKING.replace(", entity: e", ""), "source.entity"),
    _apply("a topic without columns", TAKING.partition("schema")[0], "declare them: e: category"),
    _apply("an unknown way to pull", TAKING.replace("entity: e", "entity: e, pull: strem"), "stream, on_request, or"),
    _apply("a schedule that is none", TAKING.replace("entity: e", "entity: e, pull: {every: 1}"), "for example 60s"),
    _apply("a pull without a topic", HEAD.replace("label: y", "label: y, pull: on_request"), "source.pull"),
    _apply("a feed into its own source", TAKING + "scoring: {feed: their.feed}", "this pipeline's own source"),
    _apply("a feed that is no topic", HEAD + "scoring: {feed: 'a/b'}", "'a/b' is no topic's name"),
    BadCommand("pull of a pipeline without a topic", ("pull", "good"), "source.topic"),
    BadCommand("pull of an unknown pipeline", ("pull", "goood"), "did you mean 'good'"),
    BadCommand("replay of an unknown topic", ("replay", "their.fed"), "did you mean 'their.feed'"),
    BadCommand("no such file", ("apply", "nowhere.yaml"), "nowhere.yaml"),
    BadCommand("init with a label that is not there", ("init", "good.csv", "--label", "yy"), "did you mean 'y'"),
    BadCommand("init of a file that is not there", ("init", "nowhere.csv", "--label", "y"), "nowhere.csv"),
    BadCommand("unknown topic", ("publish", "SourceDataAvailabel", "{}"), "did you mean 'SourceDataAvailable'"),
    BadCommand("event with a field missing", ("publish", "SourceDataAvailable", '{"pipeline": "good"}'), "uri"),
    BadCommand("event that is no JSON", ("publish", "SourceDataAvailable", "{"), "JSON"),
    BadCommand("unknown pipeline", ("models", "goood"), "did you mean 'good'"),
    BadCommand("unknown id", ("lineage", "nobody"), "nobody"),
    BadCommand("unknown service", ("run", "scorin"), "did you mean 'scoring'"),
    BadCommand("promote a version that is not there", ("promote", "good", "99"), "99"),
]


# --- messages -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Poison:
    """A record that nobody can handle: it goes to the dead letters as it was."""

    name: str
    topic: str
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


TOPICS = ("SourceDataAvailable", "RawDataExtracted", "FeaturesGenerated", "DataSegregated", "ModelTrained",
          "ModelReady", "ScoreRequested", "ScoreProduced", "OutcomeObserved", "ObservationReceived",
          "TrainingRequested", "BatchScoringRequested", "RoutingChanged", "VersionEjected", "PipelineRemoved",
          "EntityForgotten", "TopicPullRequested")  # fmt: skip
THEIRS = "their.feed"
ROW = b'{"e": "x", "a": 1'
POISON = [
    *(Poison(f"not JSON on {topic}", topic, b"\xff\xfenot json") for topic in TOPICS),
    Poison("empty", "SourceDataAvailable", b""),
    Poison("tombstone on a topic that is not compacted", "SourceDataAvailable", None),
    Poison("ten megabytes", "SourceDataAvailable", b'"' + b"x" * 10_000_000 + b'"'),
    Poison("from the future", "SourceDataAvailable", b'{"pipeline": "good", "uri": "x"}',
           (("ce_type", b"turnout.SourceDataAvailable.v99"), ("ce_id", b"1"), ("ce_source", b"/x"))),
    Poison("a thousand headers", "SourceDataAvailable", b"[]", tuple((f"h{i}", b"v") for i in range(1000))),
    Poison("a field of the wrong type", "ModelReady", b'{"pipeline": "good", "version": {"a": 1}}'),
    Poison("unknown pipeline", "SourceDataAvailable", b'{"pipeline": "goood", "uri": "good.csv"}'),
    Poison("a source outside the roots", "SourceDataAvailable", b'{"pipeline": "good", "uri": "/etc/passwd"}'),
    Poison("a source by a scheme that we do not fetch", "SourceDataAvailable", b'{"pipeline": "good", "uri": "http://169.254.169.254/x"}'),
    Poison("a source that is not there", "SourceDataAvailable", b'{"pipeline": "good", "uri": "nowhere.csv"}'),
    Poison("a pull of a pipeline without a topic", "TopicPullRequested", b'{"pipeline": "good"}'),
    Poison("a pull with ends that are none", "TopicPullRequested", b'{"pipeline": "taking", "ends": {"first": 1}}'),
    Poison("not JSON on somebody's topic", THEIRS, b"\xff\xfenot json"),
    Poison("empty, on somebody's topic", THEIRS, b""),
    Poison("a tombstone on somebody's topic", THEIRS, None),
    Poison("ten megabytes on somebody's topic", THEIRS, b'"' + b"x" * 10_000_000 + b'"'),
    Poison("not an object", THEIRS, b"[1]"),
    Poison("a row of nobody", THEIRS, b'{"a": 1}'),
    Poison("a column that is not declared", THEIRS, ROW + b', "b": 1}'),
    Poison("text for a number, on somebody's topic", THEIRS, b'{"e": "x", "a": "much"}'),
    Poison("an object for a number", THEIRS, b'{"e": "x", "a": {"b": 1}}'),
    Poison("another event of ours", THEIRS, b'{"pipeline": "good"}', (("ce_type", b"turnout.PipelineRemoved.v1"),)),
    Poison("an observation from the future", THEIRS, ROW + b"}", (("ce_type", b"turnout.ObservationReceived.v9"),)),
    Poison("a header that is no text", THEIRS, ROW + b"}", (("ce_id", b"\xff"),)),
    Poison("a thousand headers on somebody's topic", THEIRS, b"{}", tuple((f"h{i}", b"v") for i in range(1000))),
]  # fmt: skip


# --- models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BadModel:
    """An ONNX file that must not be admitted."""

    name: str
    build: Callable[[bytes], bytes]
    says: str
    sha256: str | None = None


def _endless(graph: bytes) -> bytes:
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "breast_cancer"))
    from slow_graph import slowed

    return slowed(graph, "a", 2**62)


def _external(graph: bytes) -> bytes:
    import onnx
    from onnx import TensorProto

    model = onnx.load_from_string(graph)
    tensor = model.graph.initializer.add(name="stolen", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    return model.SerializeToString()


def _greedy(graph: bytes) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(graph)
    out = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["inner" if o == out else o for o in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.array([2_000_000_000]), "huge"))
    model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["huge"], ["eight_gigabytes"],
                             value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.0])),
            helper.make_node("ReduceMax", ["eight_gigabytes"], ["nothing"], keepdims=0),
            helper.make_node("Add", ["inner", "nothing"], [out]),
        ]
    )  # fmt: skip
    return model.SerializeToString()


MODELS = [
    BadModel("not ONNX", lambda _: b"\x80\x04\x95 a pickle, perhaps", "ONNX"),
    BadModel("bytes that are not what the event says", lambda graph: graph, "sha256", sha256="0" * 64),
    BadModel("a loop without end", _endless, "longer than"),
    BadModel("eight gigabytes", _greedy, "memory"),
    BadModel("external data", _external, "outside of its file"),
]


# --- the walk -------------------------------------------------------------------------------------------------------


@dataclass
class Town:
    """The running system, and a way to look at its bus."""

    system: System
    environment: Environment

    async def wait(self, kinds: tuple[type[Event], ...], fits: Callable[[Any], bool], seconds: float = 60) -> Any:
        """The first event of `kinds` that fits, past or to come."""
        found: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

        async def follow(kind: type[Event]) -> None:
            async for received in self.environment.bus.follow(kind):
                try:
                    event = received.event()
                except Exception:  # noqa: BLE001 (the poisoned ones of this very test)
                    continue
                if fits(event) and not found.done():
                    found.set_result(event)

        tasks = [asyncio.create_task(follow(kind)) for kind in kinds]
        try:
            async with asyncio.timeout(seconds):
                return await found
        finally:
            for task in tasks:
                task.cancel()

    async def declare(self, name: str, spec: str, uri: Path, *, train: bool = False) -> SourceDataAvailable:
        file = pipeline.parse(spec.replace("{name}", name))
        now = datetime.now(UTC)
        declared = PipelineDeclared.first(source="/test", at=now, pipeline=name, spec=file, spec_id=file.spec_id)
        announced = SourceDataAvailable.caused_by(
            declared, source="/test", at=now, uri=str(uri), spec_id=file.spec_id, train=train
        )
        await self.environment.bus.publish(declared, announced)
        return announced


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    sources = tmp_path_factory.mktemp("sources")
    (sources / "good.csv").write_text(GOOD)
    with running(tmp_path_factory.mktemp("system") / "home", sources) as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(system: System) -> AsyncIterator[Town]:
    environment = Environment(RuntimeSettings(home=system.home))
    town = Town(system, environment)
    await town.declare("good", SPEC, system.sources / "good.csv", train=True)
    taking = pipeline.parse(TAKING)
    await environment.bus.publish(
        PipelineDeclared.first(
            source="/test", at=datetime.now(UTC), pipeline="taking", spec=taking, spec_id=taking.spec_id
        )
    )
    await town.wait((RoutingChanged,), lambda e: e.pipeline == "good")
    yield town
    assert system.alive(), system.tail()
    async with httpx.AsyncClient(base_url=system.url) as http:
        reply = await http.post(SCORE, json={"rows": [{"a": 1, "b": 2.0, "colour": "red"}]})
    assert reply.status_code == 200, reply.text
    assert reply.json()["rows"][0]["served_by"] == "champion"
    await environment.close()


def _named(case: Any) -> str:
    return case.name


@pytest.mark.parametrize("case", FILES, ids=_named)
async def test_file(town: Town, case: BadFile) -> None:
    name = "file-" + "".join(c if c.isalnum() else "-" for c in case.name.lower())[:40].strip("-")
    folder = town.system.sources / name
    folder.mkdir()
    path = folder / case.file
    if callable(case.content):
        case.content(path)
    else:
        path.write_bytes(case.content)

    announced = await town.declare(name, case.spec, path)

    if case.says is not None:
        failed = await town.wait((StageFailed,), lambda e: e.correlation_id == announced.correlation_id)
        assert case.says in failed.error
        assert failed.pipeline == name
    else:
        extracted = await town.wait((RawDataExtracted,), lambda e: e.pipeline == name)
        assert extracted.rows_quarantined == case.quarantined
        assert extracted.rows_read == extracted.rows_written + extracted.rows_quarantined


@pytest.mark.parametrize("case", REQUESTS, ids=_named)
async def test_request(town: Town, case: BadRequest) -> None:
    async with httpx.AsyncClient(base_url=town.system.url) as http:
        content = case.raw if case.raw is not None else json.dumps(case.body).encode()
        reply = await http.request(
            case.method,
            case.path,
            content=None if case.method == "GET" else content,
            headers={"content-type": "application/json"},
        )
    assert reply.status_code == case.status, reply.text
    if case.v2:
        assert set(reply.json()) == {"error"}
        assert case.says in reply.json()["error"]
    else:
        assert reply.headers["content-type"] == "application/problem+json"
        problem = reply.json()
        assert problem["status"] == case.status
        assert case.says in json.dumps(problem, ensure_ascii=False)


@pytest.mark.parametrize("case", COMMANDS, ids=_named)
async def test_command(town: Town, case: BadCommand) -> None:
    for name, text in case.files.items():
        (town.system.sources / name).write_text(text)
    done = await asyncio.to_thread(town.system.turnout, *case.words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert case.says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("case", POISON, ids=_named)
async def test_poison(town: Town, case: Poison) -> None:
    record = Record(case.topic, b"good", case.value, (("poison", case.name.encode()), *case.headers))
    await town.environment.bus.publish(record)
    async with asyncio.timeout(60):
        async for received in town.environment.bus.follow(f"{case.topic}.dead"):
            headers = dict(received.record.headers)
            if headers.get("poison") == case.name.encode():
                break
    assert received.record.value == case.value
    assert headers["dead_error"]
    assert headers["dead_topic"] == case.topic.encode()


@pytest.mark.parametrize("topic", sorted(REGISTRY.keys() - set(TOPICS)))
async def test_poison_where_no_group_consumes(town: Town, topic: str) -> None:
    """Followed or read by people alone: there is no offset to move and so no dead letter, only a line in the log."""
    await town.environment.bus.publish(Record(topic, b"good", b"\xff\xfenot json"))
    async with httpx.AsyncClient(base_url=town.system.url) as http:
        reply = await http.post(SCORE, json={"rows": [{"a": 1}]})
        ready = await http.get("/readyz")
    assert (reply.status_code, ready.status_code) == (200, 200), (reply.text, ready.text)


@pytest.mark.parametrize("case", MODELS, ids=_named)
async def test_model(town: Town, case: BadModel) -> None:
    champion = await town.wait((ModelReady,), lambda e: e.pipeline == "good")
    graph = await asyncio.to_thread(town.environment.lake.get_model, champion.file)
    content = await asyncio.to_thread(case.build, graph)
    file = await asyncio.to_thread(town.environment.lake.put_model, "good", content)
    if case.sha256:
        file = file.model_copy(update={"sha256": case.sha256})
    version = f"bad-{MODELS.index(case)}"
    await town.environment.bus.publish(
        champion.model_copy(update={"id": f"bad-{case.name}", "version": version, "file": file})
    )

    ejected = await town.wait((VersionEjected,), lambda e: e.version == version)

    assert not ejected.admitted
    assert case.says in ejected.why
    back = await town.wait((RoutingChanged,), lambda e: e.pipeline == "good" and e.table.champion == champion.version)
    assert back
