"""Batch scoring: a file or a data set of the lake, through the same graph as a request, into the lake."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import builders
import graphs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from environment import dead_letters, wait_for
from pyarrow import ipc
from scoring_stand import Stand

from turnout.common.errors import Invalid
from turnout.common.events import BatchScored, BatchScoringRequested, DataSetRef, ModelReady
from turnout.common.lake.port import Lake
from turnout.common.runtime.environment import Environment
from turnout.scoring.adapters.batch import score
from turnout.scoring.ports import BatchTask
from turnout.scoring.reactions.batch import data_set_of, files_at

ROWS = [{"age": float(age), "colour": ("red", "blue", None)[age % 3]} for age in range(500)]


def asked(uri: str, **fields: Any) -> BatchScoringRequested:
    return BatchScoringRequested.first(
        source="/cli", at=builders.AT, id=builders.ident(), pipeline="p", uri=uri, **fields
    )


def task(environment: Environment, ready: ModelReady, *files: Path, **fields: Any) -> BatchTask:
    cause = asked(str(files[0]) if files else "lake://raw/p/b")
    return BatchTask(environment.lake, ready, cause, builders.AT, files=[str(path) for path in files], **fields)


@pytest.fixture
def ready(environment: Environment) -> ModelReady:
    return graphs.put(environment.lake, graphs.good())


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """The rows in the format that the file's name says."""
    table = pa.table({"other": list(range(len(rows))), **{n: [row[n] for row in rows] for n in ("colour", "age")}})
    match path.name.split("."):
        case [_, "csv", *rest]:
            opener = gzip.open if rest else open
            with opener(path, "wt", newline="") as out:
                writer = csv.DictWriter(out, ["other", "colour", "age"])
                writer.writeheader()
                writer.writerows({"other": index, **row} for index, row in enumerate(rows))
        case [_, "jsonl"]:
            path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
        case [_, "parquet"]:
            pq.write_table(table, path)
        case _:
            with (
                ipc.new_stream(path, table.schema) if "stream" in path.name else ipc.new_file(path, table.schema) as out
            ):
                out.write_table(table)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.parquet", "a.arrow", "stream.arrow"])
def test_every_format_gives_what_a_request_gives(
    environment: Environment, ready: ModelReady, tmp_path: Path, name: str
) -> None:
    event = score(task(environment, ready, write(tmp_path / name)))
    assert (event.rows, event.rows_quarantined, event.version) == (500, 0, "1")
    found = environment.lake.read(event.data).to_pydict()
    assert found["_row"] == list(range(1, 501))
    logits = [row["age"] / 100 + (row["colour"] == "red") for row in ROWS]
    assert found["p:yes"] == pytest.approx(list(1 / (1 + np.exp(-np.array(logits)))), abs=1e-6)
    assert found["value"][0] == "yes"


def test_rows_that_do_not_fit_are_kept_apart_with_their_number(
    environment: Environment, ready: ModelReady, tmp_path: Path
) -> None:
    path = tmp_path / "dirty.csv"
    path.write_text("age,colour\n1,red\nold,red\n3,red,too many\n4,red\n,\n1e999,red\n7,blue\n")
    event = score(task(environment, ready, path))
    assert (event.rows, event.rows_quarantined) == (3, 4)
    assert environment.lake.read(event.data).column("_row").to_pylist() == [1, 4, 7]
    refused = environment.lake.read(event.data.model_copy(update={"kind": "quarantine"})).to_pylist()
    reasons = {row["_row"]: row["_reason"] for row in refused}
    assert sorted(reasons) == [2, 3, 5, 6]
    assert "'old' is not a number" in reasons[2]
    assert "3 cells" in reasons[3]
    assert "no value" in reasons[5]
    assert '"old"' in next(row["_text"] for row in refused if row["_row"] == 2)


def test_the_same_content_is_scored_once_and_another_version_again(
    environment: Environment, ready: ModelReady, tmp_path: Path
) -> None:
    first = score(task(environment, ready, write(tmp_path / "a.csv")))
    again = score(task(environment, ready, write(tmp_path / "b.csv")))
    assert again.data == first.data
    assert (again.rows, again.id != first.id) == (first.rows, True)
    other = graphs.put(environment.lake, graphs.good(1.0), "2")
    assert score(task(environment, other, tmp_path / "a.csv")).data != first.data


def test_several_files_are_numbered_one_after_the_other(
    environment: Environment, ready: ModelReady, tmp_path: Path
) -> None:
    event = score(task(environment, ready, write(tmp_path / "a.csv"), write(tmp_path / "b.parquet")))
    assert environment.lake.read(event.data).column("_row").to_pylist() == list(range(1, 1001))


def raw(lake: Lake, rows: int = 1000) -> DataSetRef:
    ref = DataSetRef(kind="raw", pipeline="p", id="batch-1")
    table = pa.table(
        {"age": pa.array([float(n) for n in range(rows)]), "_row": pa.array(range(2, rows + 2), pa.int64())}
    )
    with lake.writer(ref, table.schema) as writer:
        writer.write(table)
        writer.commit(lineage={}, at=builders.AT)
    return ref


def test_a_raw_batch_of_the_lake_keeps_its_row_numbers(environment: Environment, ready: ModelReady) -> None:
    event = score(task(environment, ready, data=raw(environment.lake)))
    assert environment.lake.read(event.data).column("_row").to_pylist() == list(range(2, 1002))


BROKEN = {
    "empty.csv": b"",
    "other.csv": b"x,y\n1,2\n",
    "cut.csv.gz": gzip.compress(b"age,colour\n" + b"1,red\n" * 100_000)[:300],
    "no.parquet": b"PAR1 this is none",
    "no.arrow": b"nothing of the kind",
    "name": b"age\n1\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_refused_and_leaves_nothing(
    environment: Environment, ready: ModelReady, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(Invalid):
        score(task(environment, ready, path))
    assert list(environment.lake.manifests("scores", "p")) == []


def test_only_files_under_an_allowed_folder_are_read(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    secret = write(tmp_path / "secret.csv")
    (allowed / "link.csv").symlink_to(secret)
    inside = write(allowed / "a.csv")
    assert files_at(str(inside), [allowed]) == [str(inside)]
    assert files_at(f"file://{inside}", [allowed]) == [str(inside)]
    assert files_at(str(allowed / "a*.csv"), [allowed]) == [str(inside)]
    for uri in (
        str(secret),
        str(allowed / ".." / "secret.csv"),
        str(allowed / "link.csv"),
        "http://host/a.csv",
        "nowhere",
    ):
        with pytest.raises(Invalid):
            files_at(uri, [allowed])
    assert data_set_of("lake://raw/p/batch-1", "p") == DataSetRef(kind="raw", pipeline="p", id="batch-1")
    assert data_set_of(str(inside), "p") is None
    for uri in ("lake://raw/q/batch-1", "lake://features/p/x", "lake://raw/p"):
        with pytest.raises(Invalid):
            data_set_of(uri, "p")


async def test_a_request_on_the_bus_is_done_by_the_champion(stand: Stand, tmp_path: Path) -> None:
    await stand.environment.bus.publish(asked(str(write(tmp_path / "a.csv"))))
    event = await wait_for(stand.environment.bus, BatchScored)
    assert (event.rows, event.version) == (500, "1")
    await stand.environment.bus.publish(asked("/etc/passwd"), asked(str(tmp_path / "a.csv"), version="9"))
    while len(await dead_letters(stand.environment.bus, BatchScoringRequested)) < 2:
        pass
