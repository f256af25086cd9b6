"""Builders of valid events: every field has a plain default, a test names only what it is about."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import count
from typing import Any

from turnout.common.events import (
    Batch,
    Column,
    ColumnProfile,
    DataSegregated,
    DataSetRef,
    FeaturesGenerated,
    ModelFile,
    ModelReady,
    ModelTrained,
    ObservationReceived,
    OutcomeObserved,
    PipelineDeclared,
    Plan,
    Prior,
    RawDataExtracted,
    RoutingChanged,
    RoutingTable,
    ScoreProduced,
    ScoreRequested,
    SourceDataAvailable,
    SplitPart,
    StageFailed,
    Target,
)
from turnout.common.pipeline import PipelineFile, parse

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHA = "0" * 64
_numbers = count(1)

FILE = """
pipeline: {pipeline}
task: classification
source: {{uri: data.csv, label: y, entity: id}}
training: {{candidates: [{{algorithm: logistic_regression}}]}}
"""
COLUMNS = (Column(name="age", kind="number"), Column(name="colour", kind="category"))
PLAN = Plan(inputs=COLUMNS, features=COLUMNS)
TARGET = Target(task="classification", label="y", classes=("no", "yes"))
PRIOR = Prior(value="no", probabilities={"no": 0.6, "yes": 0.4})
MODEL = ModelFile(uri="models/p/0.onnx", sha256=SHA, size=1)


def ident() -> str:
    """An id that no other event of the test has, the same in every run of it."""
    return f"event-{next(_numbers)}"


def first(source: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"source": source, "at": AT, "id": ident(), "pipeline": "p", **fields}


def pipeline_file(text: str = FILE, pipeline: str = "p") -> PipelineFile:
    return parse(text.format(pipeline=pipeline))


def declared(file: PipelineFile | None = None, **fields: Any) -> PipelineDeclared:
    spec = file or pipeline_file(pipeline=fields.get("pipeline", "p"))
    given = {"pipeline": spec.pipeline, "spec": spec, "spec_id": spec.spec_id, **fields}
    return PipelineDeclared.first(**first("/cli", given))


def source_available(**fields: Any) -> SourceDataAvailable:
    return SourceDataAvailable.first(**first("/cli", {"uri": "data.csv", **fields}))


def observation(**fields: Any) -> ObservationReceived:
    given = {"entity": "e-1", "event_time": AT, "values": {"age": 40.0, "colour": "red"}, **fields}
    return ObservationReceived.first(**first("/test", given))


def batch(batch_id: str = "batch-1", *, rows: int = 10, quarantined: int = 0, pipeline: str = "p") -> Batch:
    return Batch(
        batch_id=batch_id, uri=f"file:///{batch_id}.csv", sha256=SHA,
        rows_read=rows + quarantined, rows_written=rows, rows_quarantined=quarantined,
        data=DataSetRef(kind="raw", pipeline=pipeline, id=batch_id),
    )  # fmt: skip


def raw_extracted(*batches: Batch, **fields: Any) -> RawDataExtracted:
    of = batches or (batch(),)
    given = {
        "batches": of,
        "columns": COLUMNS,
        "rows_read": sum(b.rows_read for b in of),
        "rows_written": sum(b.rows_written for b in of),
        "rows_quarantined": sum(b.rows_quarantined for b in of),
        "spec_id": "spec-1",
        **fields,
    }
    return RawDataExtracted.first(**first("/ingestion", given))


def profile(name: str = "age", **fields: Any) -> ColumnProfile:
    return ColumnProfile(**{"name": name, "kind": "number", "rows": 10, "missing": 0, "distinct": 10, **fields})


def features_generated(**fields: Any) -> FeaturesGenerated:
    given = {
        "feature_set_id": "fs-1", "data": DataSetRef(kind="features", pipeline="p", id="fs-1"), "rows": 10,
        "batch_ids": ("batch-1",), "plan": PLAN, "target": TARGET, "profile": (profile(),), "spec_id": "spec-1",
        **fields,
    }  # fmt: skip
    return FeaturesGenerated.first(**first("/preparation", given))


def split_parts(split_id: str = "split-1", *, train: int = 8, test: int = 2) -> tuple[SplitPart, ...]:
    return tuple(
        SplitPart(name=name, rows=rows, data=DataSetRef(kind="split", pipeline="p", id=f"{split_id}-{name}"))
        for name, rows in (("train", train), ("test", test))
    )


def segregated(**fields: Any) -> DataSegregated:
    given = {
        "split_id": "split-1", "feature_set_id": "fs-1", "parts": split_parts(), "plan": PLAN, "target": TARGET,
        "spec_id": "spec-1", **fields,
    }  # fmt: skip
    return DataSegregated.first(**first("/segregation", given))


def trained(**fields: Any) -> ModelTrained:
    given = {
        "run_id": "run-1", "candidate": 0, "candidates": 1, "algorithm": "logistic_regression",
        "split_id": "split-1", "feature_set_id": "fs-1", "parts": split_parts(), "plan": PLAN, "target": TARGET,
        "prior": PRIOR, "file": MODEL, "spec_id": "spec-1", **fields,
    }  # fmt: skip
    return ModelTrained.first(**first("/training", given))


def model_ready(version: str = "1", **fields: Any) -> ModelReady:
    given = {"version": version, "file": MODEL, "inputs": COLUMNS, "target": TARGET, "prior": PRIOR, **fields}
    return ModelReady.first(**first("/evaluation", given))


def routing(version: int = 1, champion: str = "1", **table: Any) -> RoutingChanged:
    pipeline = table.pop("pipeline", "p")
    fields = {
        "pipeline": pipeline, "why": "for the test",
        "table": RoutingTable(version=version, champion=champion, **table),
    }  # fmt: skip
    return RoutingChanged.first(**first("/monitoring", fields))


def score_requested(**fields: Any) -> ScoreRequested:
    return ScoreRequested.first(**first("/test", {"values": {"age": 40.0, "colour": "red"}, **fields}))


def score_produced(score_id: str = "s-1", **fields: Any) -> ScoreProduced:
    given = {
        "score_id": score_id, "version": "1", "served_by": "champion", "values": {"age": 40.0}, "value": "no",
        "probabilities": {"no": 0.7, "yes": 0.3}, "milliseconds": 2.0, **fields,
    }  # fmt: skip
    return ScoreProduced.first(**first("/scoring", given))


def outcome(score_id: str = "s-1", value: Any = "yes", **fields: Any) -> OutcomeObserved:
    return OutcomeObserved.first(
        **first("/test", {"score_id": score_id, "outcome": value, "observed_at": AT, **fields})
    )


def stage_failed(**fields: Any) -> StageFailed:
    return StageFailed.first(**first("/ingestion", {"stage": "ingestion.read", "error": "it is empty", **fields}))
