"""Ingestion on the embedded bus: announcements and observations in, batches and events out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from builders import AT
from environment import dead_letters, declare, published, running, until, wait_for

from turnout.common.events import (
    DataSetRef,
    EntityForgotten,
    ObservationReceived,
    PipelineRemoved,
    RawDataExtracted,
    SourceDataAvailable,
    StageFailed,
)
from turnout.common.pipeline import PipelineFile
from turnout.common.runtime.environment import Environment
from turnout.ingestion.adapters.extraction import kept_schema
from turnout.ingestion.reactions import Observing
from turnout.ingestion.service import build

FILE = PipelineFile.model_validate(
    {"pipeline": "p", "task": "classification", "source": {"label": "y", "entity": "id", "event_time": "at"}}
)
KEYS = {"id": "category", "at": "timestamp"}
CSV = "id,at,age,y\na1,2026-01-01,40,no\na2,2026-01-02,old,yes\na3,2026-01-03,50,yes\n" + "".join(
    f"b{i},2026-01-04,{i},no\n" for i in range(40)
)


@pytest.fixture
async def client(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setenv("TURNOUT_INGESTION_FLUSH_SECONDS", "0")
    await declare(environment, FILE)
    async with running(environment, build(environment)) as (_, client):
        yield client


def announced(path: Path, **fields: object) -> SourceDataAvailable:
    return SourceDataAvailable.first(source="/test", at=AT, pipeline="p", uri=str(path), **fields)


def observed(number: int, **values: object) -> ObservationReceived:
    return ObservationReceived.first(
        source="/test", at=AT, id=f"o{number}", pipeline="p", entity=f"e{number % 3}",
        event_time=AT + timedelta(seconds=number), values={"age": float(number), **values},
    )  # fmt: skip


async def extract(environment: Environment, path: Path, text: str = CSV) -> RawDataExtracted:
    path.write_text(text)
    event = announced(path, train=True)
    await environment.bus.publish(event)
    return await wait_for(environment.bus, RawDataExtracted, where=lambda e: e.causation_id == event.id)


async def test_announced_file_becomes_a_batch_and_a_quarantine(
    environment: Environment, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    event = await extract(environment, tmp_path / "data.csv")

    assert (event.rows_read, event.rows_written, event.rows_quarantined) == (43, 42, 1)
    assert event.train is True
    assert {c.name: c.kind for c in event.columns} == {
        "id": "category", "at": "timestamp", "age": "number", "y": "category",
    }  # fmt: skip
    (batch,) = event.batches
    rows = environment.lake.read(batch.data).to_pylist()
    assert rows[0] == {"id": "a1", "at": datetime(2026, 1, 1, tzinfo=UTC), "age": 40.0, "y": "no", "_row": 2}
    assert batch.quarantine is not None
    assert environment.lake.read(batch.quarantine).to_pylist() == [
        {"_row": 3, "_reason": "age: 'old' is not a number", "_text": "a2,2026-01-02,old,yes"}
    ]
    assert [w.code for w in event.warnings] == ["quarantined"]
    manifest = environment.lake.manifest(batch.data)
    assert manifest is not None
    assert RawDataExtracted.model_validate_json(manifest.event or "") == event


async def test_same_content_again_is_the_same_batch(
    environment: Environment, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    first = await extract(environment, tmp_path / "data.csv")
    again = await extract(environment, tmp_path / "other name.csv")

    assert again.id != first.id
    assert again.batches == first.batches
    assert len(list(environment.lake.manifests("raw", "p"))) == 1


async def test_bad_file_fails_the_announcement_and_leaves_nothing(
    environment: Environment, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "a.csv").write_text(CSV)
    (folder / "b.csv").write_text("")
    (folder / "c.csv").write_text("id,at,age,age,y\n1,2,3,4,5\n")
    await environment.bus.publish(announced(folder))

    failed = await wait_for(environment.bus, StageFailed)

    assert failed.stage == "ingestion.extract"
    assert "b.csv: the file is empty" in failed.error
    assert "c.csv" in failed.error
    assert "'age' stands there more than once" in failed.error
    assert list(environment.lake.manifests("raw", "p")) == []
    assert len(await dead_letters(environment.bus, SourceDataAvailable)) == 1


async def test_source_outside_the_roots_is_refused(
    environment: Environment, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    (tmp_path / "link.csv").symlink_to("/etc/passwd")
    for uri in ("/etc/passwd", str(tmp_path / "link.csv"), "s3://bucket/x", str(tmp_path / "missing.csv")):
        await environment.bus.publish(announced(Path(uri)).model_copy(update={"uri": uri}))

    await until_dead(environment, SourceDataAvailable, 4)
    errors = [e.error for e in await published(environment.bus, StageFailed)]

    assert sum("outside the folders" in error for error in errors) == 2
    assert any("s3:// cannot be read yet" in error for error in errors)
    assert any("there is no file" in error for error in errors)


async def test_observations_from_the_bus_are_kept_once(
    environment: Environment, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    await extract(environment, tmp_path / "data.csv")
    events = [observed(n) for n in range(20)]
    await environment.bus.publish(*events, observed(20, age="old"), observed(21, wrong=1.0), *events[:5])

    await until_dead(environment, ObservationReceived, 2)
    await until(lambda: len(observations(environment)) == 20)

    rows = observations(environment)
    assert sorted(row["age"] for row in rows) == [float(n) for n in range(20)]
    assert {row["id"] for row in rows} == {"e0", "e1", "e2"}
    assert rows[0]["at"].tzinfo is not None
    assert all(row["y"] is None for row in rows)
    assert len(await published(environment.bus, RawDataExtracted)) == 1


async def test_redelivered_observations_are_known_after_a_restart(environment: Environment, tmp_path: Path) -> None:
    await declare(environment, FILE.model_copy(update={"columns": {"age": "number"} | KEYS}))
    events = [observed(n) for n in range(6)]
    before, after = build(environment).reactions[1], build(environment).reactions[1]
    await before.handle(events[:2])
    await before.handle(events[2:4])

    await after.handle(events)

    assert sorted(row["age"] for row in observations(environment)) == [float(n) for n in range(6)]


async def test_observations_that_another_process_wrote_and_did_not_finish_are_known(environment: Environment) -> None:
    await declare(environment, FILE.model_copy(update={"columns": {"age": "number"} | KEYS}))
    one, other = build(environment).reactions[1], build(environment).reactions[1]
    events = [observed(n) for n in range(8)]
    await one.handle(events[:2])
    await other.handle(events[2:4])  # it has looked into the lake, and goes on working
    await one.handle(events[4:6])  # and dies before its offset moves

    await other.handle(events[5:])
    await other.handle(events)

    assert sorted(row["age"] for row in observations(environment)) == [float(n) for n in range(8)]


async def test_a_trickle_of_observations_is_gathered(environment: Environment) -> None:
    await declare(environment, FILE.model_copy(update={"columns": {"age": "number"} | KEYS}))
    gathering = Observing(
        environment.lake, environment.pipelines, kept_schema, environment.now, pace=timedelta(minutes=5), enough=10
    )
    await gathering([observed(0)])
    assert len(observations(environment)) == 1
    waiting = asyncio.create_task(gathering([observed(1)]))
    await gathering([observed(n) for n in range(2, 12)])
    assert len(observations(environment)) == 11
    assert not waiting.done()
    waiting.cancel()


async def test_posted_observations_are_checked_before_any_is_published(
    environment: Environment, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    await extract(environment, tmp_path / "data.csv")
    good = {"pipeline": "p", "entity": "e", "event_time": "2026-03-01T12:00:00Z", "values": {"age": 5}}

    accepted = await client.post("/observations", json=good)
    assert accepted.status_code == 202, accepted.text
    refused = await client.post("/observations", json=[good, {**good, "values": {"agee": 5}}])
    assert refused.status_code == 404
    assert "age" in refused.text
    assert (await client.post("/observations", json={**good, "pipeline": "q"})).status_code == 404
    assert (await client.post("/observations", json={**good, "values": {"age": "x"}})).status_code == 422
    assert (await client.post("/observations", json=[])).status_code == 422
    assert (await client.post("/observations", json={**good, "extra": 1})).status_code == 422

    (event,) = await published(environment.bus, ObservationReceived)
    assert accepted.json() == {"ids": [event.id]}
    await until(lambda: len(observations(environment)) == 1)


async def test_forgotten_entity_leaves_the_lake(
    environment: Environment, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    event = await extract(environment, tmp_path / "data.csv")
    (batch,) = event.batches
    for entity in ("a1", "a2"):
        await environment.bus.publish(EntityForgotten.first(source="/test", at=AT, pipeline="p", entity=entity))

    await until(lambda: (m := environment.lake.manifest(batch.data)) is not None and m.rows == 41)
    assert batch.quarantine is not None
    await until(lambda: environment.lake.read(batch.quarantine).num_rows == 0)  # pyright: ignore[reportArgumentType]

    assert "a1" not in environment.lake.read(batch.data)["id"].to_pylist()


async def test_removed_pipeline_leaves_the_lake(
    environment: Environment, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    event = await extract(environment, tmp_path / "data.csv")
    await environment.bus.publish(
        PipelineRemoved.first(source="/test", at=datetime.now(UTC) + timedelta(minutes=1), pipeline="p")
    )

    await until(lambda: environment.lake.manifest(event.batches[0].data) is None)


async def until_dead(environment: Environment, kind: type, count: int) -> None:
    letters = 0
    while letters < count:
        letters = len(await dead_letters(environment.bus, kind))


def observations(environment: Environment) -> list[dict[str, object]]:
    manifests = [m for m in environment.lake.manifests("raw", "p") if "observations" in m.lineage]
    return [row for m in manifests for row in environment.lake.read(DataSetRef(**dict(m.ref))).to_pylist()]
