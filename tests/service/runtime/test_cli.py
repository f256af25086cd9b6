"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import structlog
from builders import (
    AT,
    batch,
    declared,
    features_generated,
    model_ready,
    pipeline_file,
    raw_extracted,
    routing,
    score_produced,
    segregated,
    source_available,
    stage_failed,
    trained,
)
from fastapi import Depends, FastAPI

from turnout.common.bus.port import Record
from turnout.common.cli import app, declaring
from turnout.common.errors import Invalid, Unknown
from turnout.common.events import (
    Attempt,
    CandidateRefused,
    Event,
    PipelineDeclared,
    SourceDataAvailable,
    TopicPullRequested,
    VersionEjected,
)
from turnout.common.runtime import home
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.keys import ApiKeys
from turnout.common.runtime.run import serve
from turnout.common.runtime.service import Service
from turnout.common.runtime.settings import RuntimeSettings

FILE = """
pipeline: heart
task: classification
source: {uri: data.csv, label: y}
"""


@dataclass
class Said:
    code: int
    out: str
    err: str


Turnout = Callable[..., Said]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNOUT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def turnout(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Turnout]:
    def call(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["turnout", *words])
        capsys.readouterr()
        try:
            app.run()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    yield call
    structlog.reset_defaults()


def with_home(place: Path, work: Callable[[Environment], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        environment = Environment(RuntimeSettings(home=place / "home"))
        try:
            return await work(environment)
        finally:
            await environment.close()

    return asyncio.run(run())


def put(place: Path, *events: Event | Record) -> None:
    with_home(place, lambda environment: environment.bus.publish(*events))


def on(place: Path, kind: type[Event]) -> list[Any]:
    async def read(environment: Environment) -> list[Event]:
        return [received.event() async for received in environment.bus.replay(kind)]

    return with_home(place, read)


# --- publish, events, replay ------------------------------------------------------------------------------------------


def test_publish_prints_the_id_and_says_when_nothing_runs(turnout: Turnout, place: Path) -> None:
    said = turnout("publish", "SourceDataAvailable", '{"pipeline": "heart", "uri": "a.csv"}')
    [event] = on(place, SourceDataAvailable)
    assert (said.code, said.out.strip()) == (0, event.id)
    assert (event.uri, event.source) == ("a.csv", "/cli")
    assert "the event waits there for `turnout up`" in said.err


@pytest.mark.parametrize(
    ("topic", "fields", "says"),
    [
        (
            "SourceDataAvailabel",
            "{}",
            "TOPIC: unknown event 'SourceDataAvailabel'; did you mean 'SourceDataAvailable'?",
        ),
        ("SourceDataAvailable", "{", "value: it is not JSON"),
        ("SourceDataAvailable", "[]", "JSON: it is not an object"),
        ("SourceDataAvailable", '{"pipeline": "p"}', "uri: is missing; it is required"),
        ("SourceDataAvailable", '{"pipeline": "p", "url": "x"}', "did you mean 'uri'?"),
    ],
)
def test_publish_refuses_what_is_no_event(turnout: Turnout, place: Path, topic: str, fields: str, says: str) -> None:
    said = turnout("publish", topic, fields)
    assert said.code == 2
    assert says in said.err
    assert on(place, SourceDataAvailable) == []


def test_events_shows_what_passed(turnout: Turnout, place: Path) -> None:
    dead = Record(
        "SourceDataAvailable.dead", b"heart", b"{}", (("ce_subject", b"heart"), ("dead_error", b"uri: is missing"))
    )
    put(place, source_available(pipeline="heart", uri="a.csv"), dead, routing(1, "7", pipeline="other"))
    said = turnout("events")
    lines = said.out.splitlines()
    assert any("SourceDataAvailable " in line and "heart  a.csv" in line for line in lines)
    assert any("SourceDataAvailable.dead" in line and "uri: is missing" in line for line in lines)
    assert any("champion 7" in line for line in lines)
    assert len(turnout("events", "--topic", "RoutingChanged").out.splitlines()) == 1
    assert len(turnout("events", "--pipeline", "heart").out.splitlines()) == 2
    assert len(turnout("events", "--last", "1").out.splitlines()) == 1
    [content] = [json.loads(line) for line in turnout("events", "--topic", "RoutingChanged", "--json").out.splitlines()]
    assert content["topic"] == "RoutingChanged"
    assert turnout("events", "--topic", "RoutingChangd").code == 2


def test_events_follows(place: Path) -> None:
    put(place, source_available(uri="old.csv"))
    words = [str(Path(sys.executable).with_name("turnout")), "events", "--follow", "--last", "5"]
    following = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert following.stdout is not None
    try:
        assert "old.csv" in following.stdout.readline()
        put(place, source_available(uri="new.csv"))
        assert "new.csv" in following.stdout.readline()
        following.send_signal(signal.SIGINT)
        assert following.wait(30) == 130
    finally:
        following.kill()


def test_replay_sends_dead_letters_back(turnout: Turnout, place: Path) -> None:
    letter = Record("SourceDataAvailable.dead", b"p", b'{"pipeline": "p", "uri": "x"}', (
        ("dead_topic", b"SourceDataAvailable"), ("dead_partition", b"0"), ("dead_offset", b"0"), ("ce_id", b"e-1"),
    ))  # fmt: skip
    put(place, letter)
    assert turnout("replay", "SourceDataAvailable").out == "1 sent back to SourceDataAvailable\n"
    assert [event.id for event in on(place, SourceDataAvailable)] == ["e-1"]
    assert "no dead letters" in turnout("replay", "SourceDataAvailable").out
    assert turnout("replay", "Nothing").code == 2
    [entry] = with_home(place, lambda environment: environment.history.audit("*"))
    assert (entry.action, entry.subject, entry.who) == ("replayed", "SourceDataAvailable", "anonymous")


def test_replay_needs_a_key_once_one_is_set(turnout: Turnout, place: Path) -> None:
    reader = turnout("keys", "add", "ann", "--scope", "read").out.strip()
    boss = turnout("keys", "add", "bob", "--scope", "admin").out.strip()
    assert turnout("keys", "add", "ann", "--scope", "read").code == 2
    assert turnout("keys", "add", "eve", "--scope", "root").code == 2
    for words in (["replay", "SourceDataAvailable"], ["replay", "SourceDataAvailable", "--key", reader]):
        said = turnout(*words)
        assert said.code == 2
        assert said.err.startswith("key: ")
    assert turnout("replay", "SourceDataAvailable", "--key", boss).code == 0
    assert ApiKeys(place / "home" / "keys.json").names() == {"ann": "read", "bob": "admin"}


# --- apply ------------------------------------------------------------------------------------------------------------


def test_apply_declares_and_announces(turnout: Turnout, place: Path) -> None:
    (place / "heart.yaml").write_text(FILE)
    assert turnout("apply", "heart.yaml", "--dry-run").out == "heart is new\n"
    assert on(place, PipelineDeclared) == []
    said = turnout("apply", "heart.yaml")
    assert (said.code, said.out) == (0, "heart is new\n")
    assert "the work waits there for `turnout up`" in said.err
    [declaration], [announced] = on(place, PipelineDeclared), on(place, SourceDataAvailable)
    assert declaration.spec_id == announced.spec_id == declaration.spec.spec_id
    assert announced.uri == f"{place.resolve()}/data.csv"
    assert announced.train is True


def test_apply_shows_the_difference_first(turnout: Turnout, place: Path) -> None:
    (place / "heart.yaml").write_text(FILE)
    turnout("apply", "heart.yaml")
    assert turnout("apply", "heart.yaml").out == "heart is declared as it is in the file\n"
    (place / "heart.yaml").write_text(FILE + "scoring: {slo_ms: 20}\nevaluation: {metric: f1}\n")
    said = turnout("apply", "heart.yaml", "--no-wait")
    assert "heart changes:" in said.out
    assert "+  slo_ms: 20" in said.out
    assert "+  metric: f1" in said.out
    assert len(on(place, PipelineDeclared)) == 1, "compacted: the newest"
    assert len(on(place, SourceDataAvailable)) == 3


def test_apply_refuses_a_bad_file_and_publishes_nothing(turnout: Turnout, place: Path) -> None:
    (place / "heart.yaml").write_text(FILE + "training: {candidates: [{algorithm: randm_forest}]}")
    said = turnout("apply", "heart.yaml")
    assert said.code == 2
    assert said.err == (
        "training.candidates[0].algorithm: unknown algorithm 'randm_forest'; did you mean 'random_forest'?\n"
    )
    assert turnout("apply", "nothing.yaml").code == 2
    assert on(place, PipelineDeclared) == on(place, SourceDataAvailable) == []


@pytest.mark.parametrize(
    ("follows", "code", "says"),
    [
        ([raw_extracted(pipeline="heart"), model_ready(pipeline="heart"), routing(1, "1", pipeline="heart")], 0,
         "version 1 of heart is ready"),
        ([routing(1, "1", pipeline="heart"), model_ready(pipeline="heart")], 0, "version 1 of heart is ready"),
        ([CandidateRefused.first(
            source="/evaluation", at=AT, pipeline="heart", run_id="r", candidate=0, why="f1 is too low"),
          trained(pipeline="heart", candidates=1, run_id="r")], 2, "no candidate became a version"),
        ([stage_failed(pipeline="heart", error="data.csv: it is empty")], 2, "data.csv: it is empty"),
        ([trained(pipeline="heart", candidates=1, run_id="r"), CandidateRefused.first(
            source="/evaluation", at=AT, pipeline="heart", run_id="r", candidate=0, why="f1 is too low")], 2,
         "no candidate became a version"),
        ([CandidateRefused.first(
            source="/evaluation", at=AT, pipeline="heart", run_id="r", why="nothing was trained")], 2,
         "no candidate became a version"),
        ([model_ready(pipeline="heart"), VersionEjected.first(
            source="/scoring", at=AT, pipeline="heart", version="1", router="r", admitted=False,
            why="it asks for 8 GB")], 2, "version 1 was refused: it asks for 8 GB"),
        ([Record("SourceDataAvailable.dead", b"heart", b"{}",
                 (("ce_subject", b"heart"), ("dead_error", b"no such root")))], 2,
         "SourceDataAvailable could not be handled: no such root"),
    ],
    ids=[
        "ready", "route before version", "refusal before training", "failed", "refused", "run refused",
        "not admitted", "dead letter",
    ],
)  # fmt: skip
def test_apply_watches_until_the_end(
    place: Path, capsys: pytest.CaptureFixture[str], follows: list[Event | Record], code: int, says: str
) -> None:
    async def work(environment: Environment) -> int:
        began = environment.now()
        watching = asyncio.create_task(declaring.watch(environment, pipeline_file(pipeline="heart"), began))
        await environment.bus.publish(stage_failed(pipeline="another", error="not ours"))
        for event in follows:
            await environment.bus.publish(event)
        return await asyncio.wait_for(watching, 60)

    assert with_home(place, work) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == says
    assert not any("not ours" in line for line in lines)


# --- models, lineage --------------------------------------------------------------------------------------------------


def made(place: Path) -> Path:
    """A pipeline from file to score, as events."""
    source = place / "data.csv"
    source.write_text("a,y\n1,0\n")
    of_file = batch("batch-1").model_copy(
        update={"uri": source.as_uri(), "sha256": sha256(source.read_bytes()).hexdigest()}
    )
    put(
        place,
        declared(pipeline_file(pipeline="p")),
        raw_extracted(of_file),
        features_generated(),
        segregated(),
        trained(run_id="run-1"),
        model_ready("1", run_id="run-1", split_id="split-1", algorithm="ridge", metrics={"roc_auc": 0.9},
                    base_rate={"roc_auc": 0.5}, why="the first"),
        routing(1, "1"),
    )  # fmt: skip
    with_home(place, lambda environment: environment.history.add_scores([score_produced("s-1")]))
    return source


def test_models_lists_versions(turnout: Turnout, place: Path) -> None:
    made(place)
    said = turnout("models", "p")
    assert said.code == 0
    assert "version 1  ridge" in said.out
    assert "champion" in said.out
    assert "roc_auc    0.900  (base rate 0.500)" in said.out
    said = turnout("models", "pp")
    assert (said.code, said.err) == (2, "pipeline: unknown pipeline 'pp'; did you mean 'p'?\n")


@pytest.mark.parametrize("ident", ["s-1", "p/1", "1", "run-1", "split-1", "fs-1", "batch-1"])
def test_lineage_walks_back_to_the_file_from_any_id(turnout: Turnout, place: Path, ident: str) -> None:
    source = made(place)
    said = turnout("lineage", ident)
    assert said.code == 0, said.err
    assert source.as_uri() in said.out
    assert "(unchanged)" in said.out
    assert "10 rows read = 10 written + 0 quarantined" in said.out


def test_lineage_of_a_score_names_every_station(turnout: Turnout, place: Path) -> None:
    source = made(place)
    lines = [line.strip("│├└─ ") for line in turnout("lineage", "s-1").out.splitlines()]
    assert [line.partition(":")[0] for line in lines] == [
        "score s-1", "version p/1", "file models/p/0.onnx sha256 000000000000…, run run-1", "split split-1",
        "feature set fs-1", "batch batch-1", "file file",
    ]  # fmt: skip
    source.write_text("changed")
    assert "(the file has changed since)" in turnout("lineage", "s-1").out
    source.unlink()
    assert "(the file is gone)" in turnout("lineage", "s-1").out


def test_lineage_of_a_prior_leads_to_the_version_that_was_late(turnout: Turnout, place: Path) -> None:
    source = made(place)
    late = Attempt(version="1", outcome="late")
    score = score_produced("s-2", version="baseline", served_by="baseline", attempts=(late,))
    with_home(place, lambda environment: environment.history.add_scores([score]))
    lines = [line.strip("│├└─ ") for line in turnout("lineage", "s-2").out.splitlines()]
    assert lines[1] == "baseline: no version answered in time, so the training data's prior did"
    assert lines[2].startswith("version p/1: ")
    assert source.as_uri() in lines[-1]


def test_lineage_cuts_no_id_off(turnout: Turnout, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    source = made(place)
    assert source.as_uri() in turnout("lineage", "p/1").out


def test_lineage_of_nothing(turnout: Turnout) -> None:
    said = turnout("lineage", "nothing")
    assert said.code == 2
    assert "nothing here is called 'nothing'" in said.err


# --- changing calls ---------------------------------------------------------------------------------------------------


@pytest.fixture
def monitoring(place: Path) -> Iterator[list[tuple[str, object]]]:
    """A process on this home whose monitoring writes down what it is asked."""
    asked: list[tuple[str, object]] = []
    ended = threading.Event()
    ready = threading.Event()

    async def run() -> None:
        environment = Environment(RuntimeSettings(home=place / "home"))
        made = FastAPI()
        who = environment.keys.require("admin")

        @made.post("/pipelines/{pipeline}/{what}")
        async def change(pipeline: str, what: str, body: dict[str, str], name: str = Depends(who)) -> object:
            if pipeline == "nobody":
                raise Unknown.name("pipeline", "pipeline", pipeline, ["heart"])
            if body.get("version") == "99":
                raise Invalid("version", "it was never ready", fix="one of: 1")
            asked.append((f"{pipeline} {what} by {name}", body))
            return {"version": 2, "champion": "2", "previous": "1", "pinned": True} if what == "promote" else {}

        async def started(url: str) -> None:
            home.announce(place / "home", url)
            ready.set()

        stop = asyncio.Event()
        asyncio.get_running_loop().run_in_executor(None, lambda: (ended.wait(), loop.call_soon_threadsafe(stop.set)))
        loop = asyncio.get_running_loop()
        services = [Service("monitoring", app=made)]
        await serve(environment, services, port=0, watchdog=False, stop=stop, started=started)
        await environment.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(60)
    yield asked
    ended.set()
    thread.join()


def test_changing_calls_go_to_monitoring(turnout: Turnout, monitoring: list[tuple[str, object]]) -> None:
    assert turnout("promote", "heart", "2", "--why", "it is better").out == "champion 2, previous 1, pinned\n"
    assert turnout("rollback", "heart").out == "heart rolled back\n"
    assert turnout("rollback", "heart", "1").code == 0
    assert turnout("unpin", "heart").code == 0
    assert turnout("remove", "heart", "--yes").code == 0
    assert turnout("forget", "heart", "p 17/ü").code == 0
    assert monitoring == [
        ("heart promote by anonymous", {"version": "2", "why": "it is better"}),
        ("heart rollback by anonymous", {}),
        ("heart promote by anonymous", {"version": "1", "why": "rolled back"}),
        ("heart unpin by anonymous", {}),
        ("heart remove by anonymous", {}),
        ("heart forget by anonymous", {"entity": "p 17/ü"}),
    ]


def test_a_refusal_is_said_in_the_services_own_words(turnout: Turnout, monitoring: list[tuple[str, object]]) -> None:
    said = turnout("promote", "heart", "99")
    assert (said.code, said.err) == (2, "version: it was never ready; one of: 1\n")
    said = turnout("promote", "nobody", "1")
    assert (said.code, said.err) == (2, "pipeline: unknown pipeline 'nobody'; one of: heart\n")
    assert monitoring == []


def test_changing_calls_need_a_key_once_one_is_set(
    turnout: Turnout, place: Path, monitoring: list[tuple[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = turnout("keys", "add", "ann", "--scope", "admin").out.strip()
    monkeypatch.setattr("turnout.common.runtime.keys.FRESH_SECONDS", 0.0)
    said = turnout("promote", "heart", "1")
    assert said.code == 2
    assert "give it with --key or TURNOUT_KEY" in said.err
    assert turnout("promote", "heart", "1", "--key", key).code == 0
    assert [who for who, _ in monitoring] == ["heart promote by ann"]


def test_changing_calls_say_when_nothing_runs(turnout: Turnout) -> None:
    said = turnout("promote", "heart", "1")
    assert said.code == 3
    assert "nothing runs on" in said.err
    assert turnout("promote", "heart", "1", "--url", "http://127.0.0.1:9").code == 3


# --- doctor, up, run --------------------------------------------------------------------------------------------------


def test_doctor_says_what_is_missing(turnout: Turnout, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = turnout("doctor")
    assert said.code == 0, said.out
    assert "no home at" in said.out
    put(place, Record("SourceDataAvailable.dead", b"p", b"{}"))
    said = turnout("doctor")
    assert "1 dead letter of SourceDataAvailable" in said.out
    assert "nothing runs on this home" in said.out
    monkeypatch.setenv("TURNOUT_SOURCE_ROOTS", json.dumps([str(place / "nowhere")]))
    said = turnout("doctor")
    assert said.code == 3
    assert "which is not there" in said.out


def test_up_and_run_refuse_what_cannot_be(turnout: Turnout, place: Path) -> None:
    said = turnout("run", "scorng")
    assert (said.code, said.err) == (2, "SERVICE: unknown service 'scorng'; did you mean 'scoring'?\n")
    home.open_home(place / "home")
    with home.only_one(place / "home"):
        said = turnout("up", "--port", "0")
        assert said.code == 2
        assert "runs on it already" in said.err
    (place / "home" / "format.json").write_text('{"format": 99, "release": "9"}')
    said = turnout("up", "--port", "0")
    assert said.code == 2
    assert "update Turnout" in said.err


def test_version_and_help(turnout: Turnout) -> None:
    assert turnout("--version").out.strip()
    assert "apply" in turnout("--help").out
    assert turnout("aply").code == 2


# --- pull ---------------------------------------------------------------------------------------------------------

TAKING = """
pipeline: beats
task: features
source: {{topic: their.feed, entity: patient, pull: on_request}}
schema: {{patient: category, pulse: number}}
"""


def test_pull_asks_as_far_as_the_topic_goes_now(turnout: Turnout, place: Path) -> None:
    put(place, declared(pipeline_file(TAKING)), *(Record("their.feed", b"a", b"{}") for _ in range(3)))
    said = turnout("pull", "beats")
    assert said.code == 0
    assert "the work waits there for `turnout up`" in said.err
    waited = turnout("pull", "beats", "--no-wait")
    first, second = on(place, TopicPullRequested)
    assert waited.out.strip() == second.id
    assert sorted(first.ends.values()) == [0, 0, 0, 3]


def test_pull_of_what_takes_no_topic_names_the_fix(turnout: Turnout, place: Path) -> None:
    put(place, declared(pipeline_file()), declared(pipeline_file(TAKING)))
    said = turnout("pull", "p")
    assert said.code == 2
    assert " ".join(said.err.split()) == "PIPELINE: 'p' takes no topic; name one as source.topic in its file"
    said = turnout("pull", "beat")
    assert said.code == 2
    assert "did you mean 'beats'?" in said.err


def test_dead_letters_of_a_topic_that_a_pipeline_takes_go_back(turnout: Turnout, place: Path) -> None:
    put(place, declared(pipeline_file(TAKING)))
    said = turnout("replay", "their.feed")
    assert (said.code, said.out.strip()) == (0, "no dead letters of their.feed are left to send")
    said = turnout("replay", "their.fed")
    assert said.code == 2
    assert "did you mean 'their.feed'?" in said.err
