"""Builders of valid events: every field has a plain default, a test names only what it is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from turnout.common.events import (
    Attempt,
    Batch,
    Column,
    ColumnProfile,
    Comparison,
    Counted,
    DataSegregated,
    DataSetRef,
    Event,
    FeaturesGenerated,
    Histogram,
    ModelFile,
    ModelReady,
    ModelTrained,
    ObservationReceived,
    OutcomeObserved,
    PipelineDeclared,
    Plan,
    Prior,
    PulledPart,
    RawDataExtracted,
    RoutingChanged,
    RoutingTable,
    ScoreProduced,
    ScoreRequested,
    Sketch,
    SourceDataAvailable,
    SplitPart,
    StageFailed,
    Step,
    Summed,
    Target,
    Tried,
    VersionStats,
    Warn,
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


# --- one of each, fully filled --------------------------------------------------------------------------------------

HEART = """
pipeline: heart-disease
task: classification
source:
  uri: /data/heart-disease/*.csv
  format: csv
  columns: [patient, visit, age, sex, chol, thal, centre, num]
  delimiter: ","
  null_values: ["?"]
  entity: patient
  event_time: visit
  label: num
  positive: num > 0
  partition_by: [centre]
schema: {patient: category, visit: timestamp, age: number, sex: category, chol: number, thal: category, num: number}
preparation:
  - rectify: {column: chol, range: [50, 700], otherwise: missing}
  - rectify: {column: sex, values: {M: male, F: female}}
  - derive: {column: chol_by_age, as: chol / age}
  - drop: {columns: [centre]}
  - join: {pipeline: prescriptions, columns: [doses]}
  - impute: {columns: number, with: median}
  - impute: {columns: [thal], with: constant, value: unknown}
  - scale: {columns: [age, chol], by: robust}
  - encode: {columns: category, by: one_hot, max_categories: 20}
  - bin: {columns: [chol_by_age], bins: 4, by: quantile}
  - select: {by: chi2, keep: 8}
segregation: {strategy: stratified, ratio: 0.75, seed: 7, stratify: true}
training:
  seed: 7
  candidates:
    - algorithm: logistic_regression
      parameters: {C: 0.5}
    - algorithm: random_forest
      search: {n_estimators: [50, 100], max_depth: [3, 6]}
      samples: 3
evaluation: {metric: roc_auc, at_least: 0.7, better_by: 0.01}
deployment: {rollout: [10, 50, 100], step_after: 100, approval: manual}
scoring: {slo_ms: 25, baseline: false}
monitoring: {min_samples: 30, late_share: 0.4, accuracy_drop: 0.1}
retraining: {on: [new_data]}
"""


def sample(kind: type[Event]) -> Event:
    """A valid event of this class with every optional part set, the same in every run."""
    fields = _sample_fields()[kind.__name__]
    return kind(
        id="5f0c2a53-57c2-5b0e-8a3e-6b1f1c1d9a10",
        source="/sample",
        time=AT,
        correlation_id="0b9f1c0e-8f5b-4c38-9a2b-9be6f4a3c111",
        causation_id="6c1fb7c8-2f0a-4d3c-8e6f-31b0a9d0c222",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        pipeline="heart-disease",
        **fields,
    )


def _sample_fields() -> dict[str, dict[str, Any]]:
    name = "heart-disease"
    file = parse(HEART)
    spec_id = file.spec_id
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    columns = (
        Column(name="age", kind="number"),
        Column(name="thal", kind="category"),
        Column(name="visit", kind="timestamp"),
    )
    features = (*columns, Column(name="chol_by_age", kind="number"))
    plan = Plan(
        inputs=(*columns, Column(name="chol", kind="number")),
        rowwise=(
            Step(name="rectify", options={"column": "chol", "range": [50.0, 700.0], "otherwise": "missing"}),
            Step(name="derive", options={"column": "chol_by_age", "as": "chol / age"}),
        ),
        features=features,
        learned=(Step(name="impute", options={"columns": ["age", "chol_by_age"], "with": "median"}),),
    )
    target = Target(task="classification", label="num", classes=("false", "true"))
    prior = Prior(value="false", probabilities={"false": 0.54, "true": 0.46})
    warnings = (Warn(code="mostly-missing", column="thal", message="'thal' is missing in 53 % of 303 rows."),)
    profiles = (
        ColumnProfile(
            name="age", kind="number", rows=303, missing=2, distinct=41, mean=54.4, std=9.0, minimum=29.0,
            maximum=77.0, skew=-0.2,
            histogram=Histogram(edges=(29.0, 45.0, 61.0, 77.0), counts=(57, 171, 73), missing=2),
        ),
        ColumnProfile(
            name="thal", kind="category", rows=303, missing=161, distinct=2,
            histogram=Histogram(categories=("3", "7"), counts=(90, 52), missing=161),
        ),
    )  # fmt: skip
    parts = tuple(
        SplitPart(name=part, rows=rows, data=DataSetRef(kind="split", pipeline=name, id=f"split-7a1c-{part}"))
        for part, rows in (("train", 227), ("test", 76))
    )
    model = ModelFile(uri=f"models/{name}/{sha256}.onnx", sha256=sha256, size=48_211)
    metrics, base_rate = {"roc_auc": 0.91, "accuracy": 0.84}, {"roc_auc": 0.5, "accuracy": 0.54}
    values = {"age": 63.0, "thal": "3", "visit": "2026-02-11T09:30:00Z", "chol": None, "smoker": True, "stents": 2}
    stats = VersionStats(requests=40, late=25, errors=1, p50=31.5, p99=80.0, quality=0.71, reference=0.91)
    run = {"run_id": "run-51b8", "spec_id": spec_id, "split_id": "split-7a1c", "feature_set_id": "fs-20d4"}
    return {
        "PipelineDeclared": {"spec": file, "spec_id": spec_id, "by": "ada"},
        "PipelineRemoved": {"by": "ada"},
        "EntityForgotten": {"entity": "patient-17", "by": "ada"},
        "SourceDataAvailable": {
            "uri": "/data/heart-disease/*.csv", "format": "csv", "spec_id": spec_id, "train": True,
        },
        "ObservationReceived": {"entity": "patient-17", "event_time": AT, "values": values},
        "RawDataExtracted": {
            "batches": (
                Batch(
                    batch_id="batch-3f9a", uri="file:///data/heart-disease/cleveland.csv", sha256=sha256, rows_read=305,
                    rows_written=303, rows_quarantined=2, data=DataSetRef(kind="raw", pipeline=name, id="batch-3f9a"),
                    quarantine=DataSetRef(kind="quarantine", pipeline=name, id="batch-3f9a"),
                ),
            ),
            "columns": columns, "rows_read": 305, "rows_written": 303, "rows_quarantined": 2, "warnings": warnings,
            "spec_id": spec_id, "train": True,
        },
        "FeaturesGenerated": {
            "feature_set_id": "fs-20d4", "data": DataSetRef(kind="features", pipeline=name, id="fs-20d4"), "rows": 303,
            "rows_unlabelled": 4, "batch_ids": ("batch-3f9a",), "plan": plan, "target": target, "profile": profiles,
            "warnings": warnings, "spec_id": spec_id, "train": True,
        },
        "DataSegregated": {
            "split_id": "split-7a1c", "feature_set_id": "fs-20d4", "parts": parts, "plan": plan, "target": target,
            "warnings": warnings, "spec_id": spec_id, "train": True,
        },
        "TrainingRequested": {"reason": "the quality fell", "payload": {"training": {"seed": 8}}, "by": "ada"},
        "ModelTrained": {
            **run, "candidate": 1, "candidates": 4, "algorithm": "random_forest",
            "parameters": {"n_estimators": 100, "max_depth": 6}, "tracking_id": "d41d8cd98f00b204", "parts": parts,
            "plan": plan, "target": target, "prior": prior, "file": model, "agreement": 0.2, "seconds": 2.5,
            "failure": "it was exported, but does not agree with the estimator",
        },
        "ModelReady": {
            **run, "version": "3", "file": model, "inputs": plan.inputs, "target": target, "prior": prior,
            "sample": (values,), "algorithm": "random_forest", "metrics": metrics, "base_rate": base_rate,
            "comparison": Comparison(champion="2", metric="roc_auc", difference=0.03, low=0.01, high=0.05),
            "why": "better than version 2 by 0.03 [0.01, 0.05]", "profile": profiles, "slo_ms": 25.0,
        },
        "CandidateRefused": {
            "run_id": "run-51b8", "candidate": 0, "algorithm": "logistic_regression", "metrics": metrics,
            "base_rate": base_rate, "why": "random_forest has the better roc_auc",
        },
        "RoutingChanged": {
            "table": RoutingTable(version=4, champion="2", previous="1", challenger="3", share=0.1, pinned=True),
            "why": "promoted", "by": "ada",
        },
        "VersionEjected": {
            "version": "3", "router": "scoring-0", "why": "25 of 40 answers were late", "admitted": True,
            "stats": stats,
        },
        "VersionRestored": {"version": "3", "router": "scoring-0", "why": "5 trial requests in time"},
        "ScoreRequested": {
            "values": values, "entity": "patient-17", "version": "3", "expiry": AT + timedelta(seconds=1),
        },
        "ScoreProduced": {
            "score_id": "score-81aa", "entity": "patient-17", "version": "2", "requested_version": "3",
            "served_by": "champion", "reason": "deadline",
            "attempts": (
                Attempt(version="3", outcome="late", detail="ended after 12 ms"),
                Attempt(version="2", outcome="ok", milliseconds=1.5),
            ),
            "values": values, "value": "true", "probabilities": {"false": 0.25, "true": 0.75}, "milliseconds": 14.5,
        },
        "ScoresSummarised": {
            "version": "2", "outbox": "2f6b4c0e-6a0f-4d0b-9f2f-0c2a9f1f7d11", "sequence": 7,
            "since": AT - timedelta(seconds=1),
            "summary": Summed(
                served={"champion": 2, "cache": 1}, attempts={"ok": 2, "late": 1}, fallbacks={"late": 1},
                latency=Sketch(positive={20: 1, 84: 1}, zeros=1, least=0.0, greatest=5.4),
                microseconds=6_900,
                features={"age": Counted(counts=(1, 0, 1), other=1, missing=2)}, classes={"true": 2},
                numbers=Sketch(negative={3: 1}, least=-1.06, greatest=-1.06),
            ),
            "tries": (
                Tried(outcome="ok", at=1_772_366_400_000_000, milliseconds=1.5),
                Tried(outcome="off", at=1_772_366_400_100_000, until=1_772_366_400_900_000, times=12),
            ),
        },
        "OutcomeJoined": {
            "version": "2", "score_id": "score-81aa", "scored_at": AT - timedelta(days=1), "observed_at": AT,
            "predicted": "true", "outcome": 1,
        },
        "EvidenceDropped": {},
        "TopicPullRequested": {"ends": {0: 120, 1: 0}, "by": "ada"},
        "TopicPullAdvanced": {
            "source_topic": "bracelet-feed", "part": PulledPart(partition=0, first=20, last=119), "taken": 98,
            "refused": 2,
        },
        "TopicPulled": {
            "source_topic": "bracelet-feed", "taken": 98, "refused": 2, "left": 1,
            "parts": (PulledPart(partition=0, first=20, last=119),), "seconds": 1.5,
        },
        "BatchScored": {
            "version": "3", "uri": "/data/heart-disease/new.csv", "rows": 120, "rows_quarantined": 1,
            "data": DataSetRef(kind="scores", pipeline=name, id="scores-77e0"),
        },
        "BatchScoringRequested": {"uri": "/data/heart-disease/new.csv", "format": "csv", "version": "3"},
        "OutcomeObserved": {"score_id": "score-81aa", "outcome": "true", "observed_at": AT},
        "ModelDegraded": {
            "version": "3", "signal": "latency", "why": "25 of the last 40 answers were late", "stats": stats,
        },
        "StageFailed": {
            "stage": "ingestion.extract", "error": "uri: there is no such file", "field": "uri",
            "fix": "check the path",
        },
    }  # fmt: skip
