"""What was offered and what was answered, written down outside the system; and the oracle that compares.

The invariants are numbered I1 to I7 in `docs/reliability.md`.
"""

from __future__ import annotations

import csv
import hashlib
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3

from turnout.common.events import (
    DataSegregated,
    DataSetRef,
    FeaturesGenerated,
    ModelReady,
    PipelineDeclared,
    RawDataExtracted,
    RoutingChanged,
    ScoreProduced,
    SourceDataAvailable,
    StageFailed,
)
from turnout.common.lake.names import place
from turnout.common.lake.s3 import S3Lake
from turnout.common.pipeline import parse
from turnout.common.runtime.environment import Environment

# Every file trains a candidate and every candidate is accepted: each takes the whole way. Nobody is late on a machine
# that is busy with something else.
SPEC = """
pipeline: NAME
task: classification
source: {entity: row, label: y}
schema: {row: category, x: number, colour: category, y: category}
training: {candidates: [{algorithm: logistic_regression}]}
evaluation: {better_by: -1.0}
retraining: {on: [new_data]}
scoring: {slo_ms: 1000}
"""


def declared(name: str) -> PipelineDeclared:
    """The pipeline that the ledger's files are for."""
    file = parse(SPEC.replace("NAME", name))
    return PipelineDeclared.first(
        source="/test", at=datetime.now(UTC), id=f"declared-{name}", pipeline=name, spec=file, spec_id=file.spec_id
    )


@dataclass
class Ledger:
    """Writes source files whose every row has a number of its own, and remembers them."""

    folder: Path
    rows_a_file: int
    dirty_every: int = 500
    offered: dict[str, str] = field(default_factory=dict)
    unsure: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    answered: dict[str, dict[str, Any]] = field(default_factory=dict)

    def offer(self, number: int) -> Path:
        """Write file `number`: `row` names each row; every `dirty_every`-th has a text where a number must be."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draw = random.Random(number)
        path = self.folder / f"{number:03d}.csv"
        with path.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["row", "x", "colour", "y"])
            for index in range(self.rows_a_file):
                name = f"r{number:03d}-{index:05d}"
                x = draw.gauss(0, 1)
                dirty = index % self.dirty_every == self.dirty_every - 1
                cells = [
                    name,
                    "broken" if dirty else f"{x:.6f}",
                    draw.choice(["red", "blue"]),
                    int(x + draw.gauss(0, 1) > 0),
                ]
                out.writerow(cells)
                self.offered[name] = "quarantine" if dirty else f"{x:.6f}"
        self.hashes[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return path

    def observe(self, name: str) -> dict[str, Any]:
        """The body of an observation whose entity is `name`; nobody knows whether it will be taken."""
        self.unsure[name] = f"{0.25:.6f}"
        values = {"x": 0.25, "colour": "blue", "y": "1"}
        return {"pipeline": "ledger", "entity": name, "event_time": "2026-01-01T00:00:00Z", "values": values}

    def observed(self, name: str) -> None:
        """The observation was acknowledged: it must not be lost."""
        self.offered[name] = self.unsure.pop(name)

    def answer(self, reply: dict[str, Any]) -> None:
        """Remember the rows of a reply to a scoring request."""
        for row in reply["rows"]:
            self.answered[row["score_id"]] = row


async def _all(environment: Environment, kind: Any) -> list[Any]:
    return [received.event() async for received in environment.bus.replay(kind)]


async def check(environment: Environment, ledger: Ledger, pipeline: str) -> dict[str, int]:
    """Compare the ledger with the stores of a system that is quiet; counts for the report. Raises AssertionError."""
    rows = _rows(environment, ledger, pipeline)
    files = _files(environment, pipeline)
    scores = await _scores(environment, ledger, pipeline)
    sets = await _events(environment, ledger, pipeline)
    await _lineage(environment, ledger, pipeline)
    return {"rows": rows, "files": files, "scores": scores, "feature sets": sets}


def _rows(environment: Environment, ledger: Ledger, pipeline: str) -> int:
    """I1: every row is in the lake or in quarantine, exactly once."""
    lake = environment.lake
    known = ledger.offered | ledger.unsure
    seen: Counter[str] = Counter()
    for manifest in lake.manifests("raw", pipeline):
        table = lake.read(manifest.ref, columns=["row", "x"]).to_pylist()
        assert len(table) == manifest.rows
        for row in table:
            seen[row["row"]] += 1
            assert known[row["row"]] == f"{row['x']:.6f}"
    for manifest in lake.manifests("quarantine", pipeline):
        for row in lake.read(manifest.ref).to_pylist():
            name = row["_text"].split(",")[0]
            seen[name] += 1
            assert ledger.offered[name] == "quarantine"
    problem = _difference(seen, ledger.offered)
    assert all(seen[name] == 1 for name in ledger.offered), problem
    assert all(seen[name] <= 1 for name in ledger.unsure), problem
    assert seen.keys() <= ledger.offered.keys() | ledger.unsure.keys(), problem
    return seen.total()


def _difference(seen: Counter[str], offered: Iterable[str]) -> str:
    lost = [n for n in offered if n not in seen]
    twice = [n for n, count in seen.items() if count > 1]
    return f"lost {len(lost)}: {lost[:5]}; more than once {len(twice)}: {twice[:5]}"


def _files(environment: Environment, pipeline: str) -> int:
    """I2: what a manifest names opens and is what the manifest says."""
    checked = 0
    for kind in ("raw", "quarantine", "features", "split"):
        for manifest in environment.lake.manifests(kind, pipeline):
            for file in manifest.files:
                content = _content(environment, f"{place(manifest.ref)}/{file.path}")
                assert hashlib.sha256(content).hexdigest() == file.sha256
                checked += 1
    return checked


def _content(environment: Environment, path: str) -> bytes:
    """A file of the lake, read by other means than ours."""
    if not isinstance(environment.lake, S3Lake):
        return (environment.home / "lake" / path).read_bytes()
    settings = environment.lake._settings
    keys = {"aws_access_key_id": "devstack", "aws_secret_access_key": "devstack", "region_name": "us-east-1"}
    bucket, _, prefix = (settings.uri or "").removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=settings.endpoint, **keys)
    return client.get_object(Bucket=bucket, Key=f"{prefix}/{path}")["Body"].read()


async def _scores(environment: Environment, ledger: Ledger, pipeline: str) -> int:
    """I3, I4: every answered score is kept once, as it was answered."""
    on_bus: Counter[str] = Counter()
    for event in await _all(environment, ScoreProduced):
        on_bus[event.score_id] += 1
    assert not [s for s in ledger.answered if s not in on_bus]
    for score_id, row in ledger.answered.items():
        kept = await environment.history.score(score_id)
        assert kept is not None, f"score {score_id} was answered and is not kept"
        assert (kept.value, kept.version, kept.served_by) == (row["value"], row["version"], row["served_by"])
    assert await environment.history.count_scores(pipeline) == len(on_bus)
    return len(ledger.answered)


async def _events(environment: Environment, ledger: Ledger, pipeline: str) -> int:
    """I5, I6: each announcement has its effect; one feature set a content; routing tables only grow; one champion."""
    extracted = {e.causation_id: e for e in await _all(environment, RawDataExtracted)}
    for announced in await _all(environment, SourceDataAvailable):
        assert announced.id in extracted, f"{announced.uri} was announced and never extracted"
    failed = [(e.stage, e.error, e.correlation_id) for e in await _all(environment, StageFailed)]
    assert not failed, failed
    by_content: dict[tuple[Any, ...], set[str]] = {}
    for event in await _all(environment, FeaturesGenerated):
        content = (tuple(sorted(event.batch_ids)), event.plan.model_dump_json())
        by_content.setdefault(content, set()).add(event.feature_set_id)
    assert all(len(ids) == 1 for ids in by_content.values())
    splits = {e.feature_set_id for e in await _all(environment, DataSegregated)}
    assert splits == {i for ids in by_content.values() for i in ids}
    # The compacted topic keeps the newest table alone; whatever it keeps must only grow.
    tables = [e.table for e in await _all(environment, RoutingChanged) if e.pipeline == pipeline]
    versions = [t.version for t in tables]
    assert versions == sorted(versions)
    champion = tables[-1].champion
    registered = environment.registry.versions(pipeline)
    assert [v.version for v in registered if "champion" in v.aliases] == [champion]
    assert len({v.file.sha256 for v in registered}) <= len(registered)
    declared = [e for e in await _all(environment, PipelineDeclared) if e.pipeline == pipeline]
    assert len(declared) == 1
    return len(by_content)


async def _lineage(environment: Environment, ledger: Ledger, pipeline: str) -> None:
    """I7: from a score's version back to the bytes of the files."""
    ready = {e.version: e for e in await _all(environment, ModelReady)}
    sets = {e.feature_set_id: e for e in await _all(environment, FeaturesGenerated)}
    batches = {b.batch_id: b for e in await _all(environment, RawDataExtracted) for b in e.batches}
    scores = [e for e in await _all(environment, ScoreProduced) if e.served_by != "baseline"]
    assert scores
    for version in {e.version for e in scores}:
        model = ready[version]
        assert hashlib.sha256(environment.lake.get_model(model.file)).hexdigest() == model.file.sha256
        for batch_id in sets[model.feature_set_id].batch_ids:
            batch = batches.get(batch_id)
            if batch is None:  # a batch of observations: its lineage are the events
                lineage = environment.lake.manifest(DataSetRef(kind="raw", pipeline=pipeline, id=batch_id))
                assert lineage is not None
                continue
            assert ledger.hashes[batch.uri.removeprefix("file://")] == batch.sha256
