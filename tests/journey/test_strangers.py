"""Files of other people, taken from the file to an answered request by the commands that a user types."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from environment import ROOT, test_data
from system import System, running

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("strangers"), pytest.mark.timeout(300)]

HEART = {"processed.cleveland.data": 303, "processed.hungarian.data": 294}


@dataclass(frozen=True)
class Stranger:
    """A file as it came, the label a user names, and what we know of it from elsewhere.

    `row` is a real row of it with one value taken away (None) and one category that nobody has seen. `left_out` are
    columns that `init` must not hand to a model, `told` words that it must say, `better` the metric that the champion
    must have against the base rate.
    """

    file: str
    label: str
    rows: int
    row: dict[str, Any]
    better: str
    left_out: frozenset[str] = frozenset()
    told: tuple[str, ...] = ()
    init: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.file.rpartition("/")[2].split(".")[0]


STRANGERS = [
    Stranger(
        "ai4i2020/ai4i2020.csv", "Machine failure", 10_000,
        {"Type": "never seen", "Air temperature [K]": 298.1, "Process temperature [K]": 308.6,
         "Rotational speed [rpm]": 1551, "Torque [Nm]": None, "Tool wear [min]": 0, "RNF": 0},
        better="pr_auc",
        left_out=frozenset({"UDI", "Product ID", "TWF", "HDF", "PWF", "OSF"}),
        told=("Product ID (every row has its own", "UDI (it counts the rows", "TWF (it may know the answer"),
    ),
    Stranger(
        "nyc-taxi-trips/taxis.csv", "tip", 6_433,
        {"pickup": "2019-03-23 20:21:09", "dropoff": "2019-03-23 20:27:24", "passengers": 1, "distance": None,
         "fare": 7.0, "tolls": 0.0, "total": 12.95, "color": "yellow", "payment": "seashells",
         "pickup_zone": "Lenox Hill West", "dropoff_zone": "UN/Turtle Bay South", "pickup_borough": "Manhattan",
         "dropoff_borough": "Manhattan"},
        better="rmse",
        told=("Together these give 'tip'", "total"),
    ),
    Stranger(
        "nyc-taxi-trips/taxis.csv", "payment", 6_433,
        {"pickup": "2019-03-23 20:21:09", "dropoff": "2019-03-23 20:27:24", "passengers": 1, "distance": None,
         "fare": 7.0, "tip": 2.15, "tolls": 0.0, "total": 12.95, "color": "violet",
         "pickup_zone": "Lenox Hill West", "dropoff_zone": "UN/Turtle Bay South", "pickup_borough": "Manhattan",
         "dropoff_borough": "Manhattan"},
        better="roc_auc", init=("--name", "taxis-payment"),
    ),
    Stranger(
        "flights/flights-200k.arrow", "delay", 200_000, {"distance": None, "time": 9.5}, better="rmse",
    ),
    Stranger(
        "flights/flights-20k.json", "delay", 20_000,
        {"date": "2001-01-14 21:55", "distance": None, "origin": "SAT", "destination": "the moon"}, better="rmse",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strangers")
    (folder / "sources").mkdir()
    return folder


@pytest.fixture(scope="module")
def system(place: Path) -> Iterator[System]:
    with running(place / "home", place / "sources") as started:
        yield started


@pytest.mark.parametrize("stranger", STRANGERS, ids=[f"{s.name}-{s.label}" for s in STRANGERS])
def test_a_file_takes_two_commands(system: System, stranger: Stranger) -> None:
    source = test_data(*stranger.file.split("/"))
    shutil.copy(source, system.sources)
    name = stranger.init[1] if stranger.init else stranger.name

    said = system.turnout("init", source.name, "--label", stranger.label, *stranger.init)
    assert said.returncode == 0, said.stderr
    assert said.stdout.endswith(f"Look it over, then: turnout apply {name}.yaml\n")
    for words in stranger.told:
        assert words in said.stdout
    text = (system.sources / f"{name}.yaml").read_text()
    for column in stranger.left_out:
        assert re.search(rf'^ +- "?{re.escape(column)}"? +# \w', text, re.MULTILINE), "left out, with a reason"

    _serves(system, name, f"{name}.yaml", stranger.rows, stranger.row, stranger.better)
    inputs = {tensor["name"] for tensor in _get(system, f"/v2/models/{name}")["inputs"]}
    assert inputs == set(stranger.row), "what is left out, and the label, nobody needs to send"


def test_the_heart_example_as_it_says_in_its_file(system: System) -> None:
    folder = system.sources / "heart_disease"
    (folder / "data").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "heart_disease" / "pipeline.yaml", folder)
    for file in HEART:
        shutil.copy(test_data("heart-disease", file), folder / "data")
    row = {
        "age": 63, "sex": 1, "cp": "never seen", "trestbps": 145, "chol": 233, "fbs": 1.0, "restecg": 2, "thalach": 150,
        "exang": 0, "oldpeak": 2.3, "slope": 3, "ca": None, "thal": 6,
    }  # fmt: skip
    batches = _serves(system, "heart-disease", "heart_disease/pipeline.yaml", sum(HEART.values()), row, "roc_auc")
    assert {batch["uri"].rpartition("/")[2]: batch["rows_written"] for batch in batches} == HEART


def test_the_same_file_again_is_the_same_version(system: System) -> None:
    source = test_data("flights", "flights-20k.json")
    before = _get(system, "/services/monitoring/pipelines/flights-20k")
    said = system.turnout("apply", f"{source.stem}.yaml")
    assert said.returncode == 0, said.stdout + said.stderr
    assert "flights-20k is declared as it is in the file" in said.stdout
    after = _get(system, "/services/monitoring/pipelines/flights-20k")
    assert [v["version"] for v in after["versions"]] == [v["version"] for v in before["versions"]] == ["1"]


def _serves(system: System, name: str, file: str, rows: int, row: dict[str, Any], metric: str) -> list[dict[str, Any]]:
    """Apply the file, ask with the row, walk the answer back, and add up; the batches."""
    said = system.turnout("apply", file, seconds=180)
    assert said.returncode == 0, said.stdout + said.stderr
    assert f"version 1 of {name} is ready" in said.stdout
    _what_it_says_to_type_works(said.stdout)
    _beats_the_base_rate(system, name, metric)
    score = _asks(system, name, row)
    batches = _adds_up(system, name, rows)
    walked = system.turnout("lineage", score)
    assert walked.returncode == 0, walked.stderr
    stations = re.findall(r"^[│├└─ ]*(score|version|split|feature set|batch) ", walked.stdout, re.MULTILINE)
    assert stations == ["score", "version", "split", "feature set", *["batch"] * len(batches)]
    for batch in batches:
        assert f"{batch['uri']} sha256 {batch['sha256'][:12]}… (unchanged)" in walked.stdout
    return batches


def _what_it_says_to_type_works(said: str) -> None:
    """`apply` ends with a request; take its body as a shell would."""
    found = re.search(r"^Ask it: +curl (\S+) .*\n +-d '(.*)'$", said, re.MULTILINE)
    assert found, said
    reply = httpx.post(found[1], content=found[2].replace("'\"'\"'", "'"), headers={"content-type": "application/json"})
    assert reply.status_code == httpx.codes.OK, reply.text


def _beats_the_base_rate(system: System, name: str, metric: str) -> None:
    (version,) = _get(system, f"/services/monitoring/pipelines/{name}")["versions"]
    ours, knows_nothing = version["metrics"][metric], version["base_rate"][metric]
    assert ours < knows_nothing if metric == "rmse" else ours > knows_nothing, (ours, knows_nothing)


def _asks(system: System, name: str, row: dict[str, Any]) -> str:
    """An answer with one value missing and one unknown; the score's id."""
    for _ in range(100):  # on a busy machine the champion may be late, and the prior answers in its place
        reply = httpx.post(f"{system.url}/pipelines/{name}/score", json={"rows": [row]})
        assert reply.status_code == httpx.codes.OK, reply.text
        (answer,) = reply.json()["rows"]
        if answer["served_by"] == "champion":
            break
    assert (answer["version"], answer["served_by"], answer["reason"]) == ("1", "champion", None)
    if answer["probabilities"]:
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["value"] == max(answer["probabilities"], key=answer["probabilities"].__getitem__)
    else:
        assert isinstance(answer["value"], float)
    return answer["score_id"]


def _adds_up(system: System, name: str, rows: int) -> list[dict[str, Any]]:
    """Counts of every stage; the batches that were read."""
    newest = _newest(system, name, "RawDataExtracted", "FeaturesGenerated", "DataSegregated")
    extracted, features, split = newest["RawDataExtracted"], newest["FeaturesGenerated"], newest["DataSegregated"]
    assert extracted["rows_read"] == rows
    assert extracted["rows_read"] == extracted["rows_written"] + extracted["rows_quarantined"]
    assert features["rows"] + features["rows_unlabelled"] == extracted["rows_written"]
    assert {part["name"] for part in split["parts"]} == {"train", "test"}
    assert sum(part["rows"] for part in split["parts"]) == features["rows"]
    return extracted["batches"]


def _newest(system: System, name: str, *topics: str) -> dict[str, dict[str, Any]]:
    """The value of the newest event about a pipeline, by topic."""
    asked = [word for topic in topics for word in ("--topic", topic)]
    said = system.turnout("events", "--json", *asked, "--pipeline", name)
    assert said.returncode == 0, said.stderr
    records = [json.loads(line) for line in said.stdout.splitlines()]
    return {record["topic"]: json.loads(record["value"]) for record in records}


def _get(system: System, path: str) -> Any:
    return httpx.get(system.url + path).raise_for_status().json()
