"""Files of other people, as they are: nothing is lost, and `turnout init` describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import AT
from environment import ROOT, test_data
from typer.testing import CliRunner

from turnout.common import pipeline
from turnout.common.errors import Invalid
from turnout.common.events import RawDataExtracted, SourceDataAvailable
from turnout.common.lake.local import LocalLake
from turnout.common.pipeline import PipelineFile
from turnout.ingestion.adapters.extraction import extract
from turnout.ingestion.cli import init
from turnout.ingestion.ports import Task

HEART = ROOT / "examples" / "heart_disease" / "pipeline.yaml"


@pytest.fixture
def lake(tmp_path: Path) -> LocalLake:
    return LocalLake(tmp_path / "lake")


def run(lake: LocalLake, uri: Path | str, file: PipelineFile) -> RawDataExtracted:
    event = SourceDataAvailable.first(source="/test", at=AT, pipeline=file.pipeline, uri=str(uri))
    return extract(lake, Task(event, file, file.spec_id, (Path("/"),), AT))


def described(name: str, label: str, **source: Any) -> PipelineFile:
    return PipelineFile.model_validate({"pipeline": name, "task": "features", "source": {"label": label, **source}})


def test_both_hospitals_by_the_example(lake: LocalLake) -> None:
    folder = test_data("heart-disease")
    event = run(lake, folder / "processed.*.data", pipeline.read(HEART))

    assert [b.rows_read for b in event.batches] == [303, 294]
    assert event.rows_quarantined == 0
    cleveland, hungary = (lake.read(b.data) for b in event.batches)
    assert set(cleveland["sex"].to_pylist()) == set(hungary["sex"].to_pylist()) == {"0", "1"}
    assert set(cleveland["thal"].to_pylist()) == {"3", "6", "7", None}
    assert cleveland["ca"].null_count == 4
    assert hungary["ca"].null_count == 291
    assert {v > 0 for v in cleveland["num"].to_pylist()} == {True, False}


def test_header_with_a_byte_order_mark_and_brackets(lake: LocalLake) -> None:
    event = run(lake, test_data("ai4i2020", "ai4i2020.csv"), described("p", "Machine failure"))

    assert (event.rows_written, event.rows_quarantined) == (10_000, 0)
    kinds = {c.name: c.kind for c in event.columns}
    assert kinds["UDI"] == kinds["Torque [Nm]"] == kinds["Machine failure"] == "number"
    assert kinds["Product ID"] == kinds["Type"] == "category"


def test_taxi_trips_with_times_and_gaps(lake: LocalLake) -> None:
    event = run(lake, test_data("nyc-taxi-trips", "taxis.csv"), described("p", "tip", event_time="pickup"))

    assert (event.rows_written, event.rows_quarantined) == (6_433, 0)
    table = lake.read(event.batches[0].data)
    assert str(table.schema.field("pickup").type) == "timestamp[us, tz=UTC]"
    assert table["payment"].null_count == 44
    assert table["_row"].to_pylist() == list(range(2, 6_435))


def test_flights_as_a_json_array_and_as_arrow(lake: LocalLake) -> None:
    json = run(lake, test_data("flights", "flights-20k.json"), described("p", "delay"))
    arrow = run(lake, test_data("flights", "flights-200k.arrow"), described("q", "delay"))

    assert (json.rows_written, arrow.rows_written) == (20_000, 200_000)
    assert {c.name: c.kind for c in json.columns} == {
        "date": "timestamp", "delay": "number", "distance": "number", "origin": "category", "destination": "category",
    }  # fmt: skip
    first = lake.read(json.batches[0].data).slice(0, 1).to_pylist()[0]
    assert (first["date"].isoformat(), first["origin"], first["_row"]) == ("2001-01-01T00:47:00+00:00", "DTW", 1)
    assert {c.kind for c in arrow.columns} == {"number"}


@pytest.mark.parametrize(
    ("data", "label", "task", "dropped"),
    [
        (
            "ai4i2020/ai4i2020.csv",
            "Machine failure",
            "classification",
            ["UDI", "Product ID", "TWF", "HDF", "PWF", "OSF"],
        ),
        ("nyc-taxi-trips/taxis.csv", "tip", "regression", []),
        ("nyc-taxi-trips/taxis.csv", "payment", "classification", []),
        ("flights/flights-20k.json", "delay", "regression", []),
        ("electricity/elec.csv", "class", "classification", []),
    ],
)
def test_init_describes_a_stranger(
    lake: LocalLake, tmp_path: Path, data: str, label: str, task: str, dropped: list[str]
) -> None:
    path, target = test_data(*data.split("/")), tmp_path / "out" / "p.yaml"
    target.parent.mkdir()
    init(path, label, output=target)

    file = pipeline.read(target)
    assert (file.task, file.source.label) == (task, label)
    (drops,) = [s.options.columns for s in file.preparation or () if s.name == "drop"] or [()]  # pyright: ignore[reportAttributeAccessIssue]
    assert list(drops) == dropped
    assert file.source.uri is not None
    assert run(lake, file.source.uri, file).rows_quarantined == 0


def test_init_says_what_is_wrong(tmp_path: Path) -> None:
    heart = test_data("heart-disease", "processed.cleveland.data")
    with pytest.raises(Invalid, match=r"no header line.*--columns"):
        init(heart, "num", output=tmp_path / "p.yaml")
    with pytest.raises(Invalid, match="did you mean 'Machine failure'"):
        init(test_data("ai4i2020", "ai4i2020.csv"), "Machine failur", output=tmp_path / "p.yaml")
    with pytest.raises(Invalid, match="there is no file"):
        init(tmp_path / "nothing.csv", "y", output=tmp_path / "p.yaml")
    assert not (tmp_path / "p.yaml").exists()


def test_init_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{i},{'ab'[i % 2]},{i * 1.5},?\n{i},a,NA,3\n" for i in range(30))
    (tmp_path / "my data.csv").write_text("n,kind,size,other\n" + rows)
    app = typer.Typer()
    app.command()(init)
    runner = CliRunner()

    result = runner.invoke(app, ["my data.csv", "--label", "kind"])
    assert result.exit_code == 0, result.output
    assert "turnout apply my-data.yaml" in result.output
    file = pipeline.read(tmp_path / "my-data.yaml")
    assert file.source.null_values == ("?", "NA")
    assert file.columns == {"n": "number", "kind": "category", "size": "number", "other": "number"}
    again = runner.invoke(app, ["my data.csv", "--label", "kind"])
    assert isinstance(again.exception, Invalid)
