"""What runs in a worker process: a candidate's graph on the raw rows of the test part, and what comes of it.

scikit-learn and onnxruntime are imported inside, so that the service's own process stays small and starts fast.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.events import Comparison, DataSetRef, ModelFile, ModelTrained, Plan, SplitPart, Target, Values
from turnout.common.lake.port import Lake

if TYPE_CHECKING:
    from turnout.evaluation.domain.metrics import Answers

RAW, LABEL, BATCH, ROW = "in:", "_label", "_batch", "_row"
SAMPLE = 8
MICROSECONDS = 1e6
# Rows a run: trees are fastest in small runs, the rest in large ones.
ROWS_A_RUN = 4_096
# A silhouette compares each row with each other one.
MOST_ROWS_TO_CLUSTER = 2_000


@dataclass(frozen=True)
class Measured:
    """A candidate's metrics beside those of the prior, and its curves as files by path."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    base_rate: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, bytes] = field(default_factory=dict)
    failure: str | None = None


def warm(lake: Lake) -> None:
    """Import what measuring needs and connect to the lake, so that the first candidate does not wait for it.

    Raises `Unavailable`.
    """
    import onnxruntime

    from turnout.evaluation.domain import curves, intervals, metrics

    _ = (onnxruntime, curves, intervals, metrics)
    lake.warm()


def measure(lake: Lake, trained: ModelTrained) -> Measured:
    """Every metric of the candidate on the test part. What is wrong with it is in the result."""
    from turnout.evaluation.domain.curves import curves
    from turnout.evaluation.domain.metrics import guessed, measured

    assert trained.file is not None
    try:
        answers = _answers(lake, trained, trained.file)
    except (Unavailable, Unknown):
        raise
    except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen kinds)
        return Measured(failure=f"its graph does not run on the test rows: {_line(error)}")
    if not np.isfinite(answers.given).all():
        return Measured(failure="its graph answers with what is no number on the test rows")
    task = trained.target.task
    return Measured(
        metrics=measured(task, answers),
        base_rate=measured(task, guessed(trained.target, trained.prior, answers)),
        curves=curves(trained.target, answers, seed=0),
    )


def compare(
    lake: Lake, trained: ModelTrained, champion: str, file: ModelFile, metric: str, *, larger_is_better: bool
) -> Comparison | str:
    """The candidate against the champion's `file` on the same rows; the reason in words where that cannot be."""
    from turnout.evaluation.domain.intervals import difference
    from turnout.evaluation.domain.metrics import METRICS

    assert trained.file is not None
    try:
        theirs = _answers(lake, trained, file)
    except (Unavailable, Unknown):
        raise
    except Exception as error:  # noqa: BLE001
        return f"version {champion} could not be asked on the same rows: {_line(error)}"
    mine = _answers(lake, trained, trained.file)
    if not np.isfinite(theirs.given).all():
        return f"version {champion} answers with what is no number on these rows"
    found = difference(METRICS[trained.target.task][metric], mine, theirs, larger_is_better=larger_is_better, seed=0)
    if found is None:
        return f"{metric} cannot be compared on these rows"
    return Comparison(champion=champion, metric=metric, difference=found.mean, low=found.low, high=found.high)


def sample(lake: Lake, trained: ModelTrained) -> tuple[Values, ...]:
    """A few raw rows of the test part as a request brings them: times as ISO 8601 text, missing as None."""
    rows: list[dict[str, Any]] = []
    reference = _part(trained, "test").data
    there = lake.schema(reference).names
    columns = {c.name: RAW + c.name if RAW + c.name in there else c.name for c in trained.plan.inputs}
    for batch in lake.scan(reference, columns=list(dict.fromkeys(columns.values())), batch_rows=SAMPLE):
        found = pa.table({name: batch.column(column) for name, column in columns.items()})
        rows += found.slice(0, SAMPLE - len(rows)).to_pylist()
        if len(rows) >= SAMPLE:
            break
    return tuple({name: _plain(value) for name, value in row.items()} for row in rows)


def _answers(lake: Lake, trained: ModelTrained, file: ModelFile) -> Answers:
    """What a graph answers to the test rows, in the terms of the candidate's target."""
    from turnout.evaluation.domain.metrics import Answers, silhouettes

    target = trained.target
    session = _session(lake.get_model(file))
    rows = _rows(lake, trained, [one.name for one in session.get_inputs()])
    if target.task == "clustering":
        if rows.num_rows > MOST_ROWS_TO_CLUSTER:
            chosen = np.random.default_rng(0).permutation(rows.num_rows)[:MOST_ROWS_TO_CLUSTER]
            rows = rows.take(pa.array(np.sort(chosen)))
        clusters = _run(session, rows).astype(np.int64).ravel()
        return Answers(np.empty(0), silhouettes(_space(rows, trained.plan), clusters))
    given = _run(session, rows)
    if target.task == "regression":
        return Answers(_floats(rows.column(LABEL)), given.astype(np.float64).ravel())
    places = {name: index for index, name in enumerate(target.classes)}
    truth = np.array([places[name] for name in rows.column(LABEL).to_pylist()], dtype=np.int64)
    return Answers(truth, _in_order(given.astype(np.float64), session, target))


def _session(onnx: bytes) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def _rows(lake: Lake, trained: ModelTrained, inputs: Sequence[str]) -> pa.Table:
    """The test part with a column for each of `inputs` (under its own name), the features, the label.

    An input that the feature set does not hold (an older plan had it) comes from the raw batches; one that the source
    no longer has is missing.
    """
    reference = _part(trained, "test").data
    there = lake.schema(reference).names
    label = [LABEL] if LABEL in there and trained.target.task != "clustering" else []
    features = [c.name for c in trained.plan.features] if trained.target.task == "clustering" else []
    source = {name: RAW + name if RAW + name in there else name for name in inputs}
    held = [column for column in source.values() if column in there]
    keys = [name for name in (BATCH, ROW) if name in there and len(held) < len(source)]
    table = lake.read(reference, columns=list(dict.fromkeys([*held, *features, *label, *keys])))
    columns: dict[str, Any] = {_FEATURE + name: table.column(name) for name in features}
    columns |= {name: table.column(name) for name in label}
    columns |= {name: table.column(column) for name, column in source.items() if column in there}
    columns |= _from_raw(lake, reference.pipeline, table, [name for name in inputs if name not in columns])
    return pa.table(columns)


# Features and raw inputs of one name may differ: a row-wise step changed the one.
_FEATURE = "feature:"


def _from_raw(lake: Lake, pipeline: str, table: pa.Table, names: Sequence[str]) -> dict[str, pa.Array]:
    """Columns of the raw batches for the rows of `table`, null where a batch lacks them."""
    if not names or BATCH not in table.column_names:
        return {name: pa.nulls(table.num_rows) for name in names}
    parts: dict[str, list[pa.Array]] = {name: [] for name in names}
    places: list[NDArray[np.int64]] = []
    batches = table.column(BATCH).to_numpy()
    numbers = table.column(ROW).to_numpy()
    for batch in dict.fromkeys(batches.tolist()):
        at = np.flatnonzero(batches == batch)
        places.append(at)
        reference = DataSetRef(kind="raw", pipeline=pipeline, id=batch)
        exists = lake.manifest(reference) is not None
        there = [name for name in names if exists and name in lake.schema(reference).names]
        raw = lake.read(reference, columns=[ROW, *there]) if there else None
        for name in names:
            if raw is None or name not in there:
                parts[name].append(pa.nulls(len(at)))
                continue
            parts[name].append(raw.column(name).take(_found(numbers[at], raw.column(ROW).to_numpy())))
    if not places:
        return {name: pa.nulls(0) for name in names}
    back = pa.array(np.argsort(np.concatenate(places)))
    return {name: _concatenated(found).take(back) for name, found in parts.items()}


def _found(wanted: NDArray[np.int64], rows: NDArray[np.int64]) -> pa.Array:
    """Where each of `wanted` lies in `rows`, null where it does not."""
    order = np.argsort(rows, kind="stable")
    at = np.searchsorted(rows, wanted, sorter=order)
    at = order[np.minimum(at, len(rows) - 1)] if len(rows) else np.zeros(len(wanted), dtype=np.int64)
    missing = rows[at] != wanted if len(rows) else np.ones(len(wanted), dtype=np.bool_)
    return pa.array(at, pa.int64(), mask=missing)


def _concatenated(arrays: Sequence[pa.Array]) -> pa.Array:
    kinds = {array.type for array in arrays if not pa.types.is_null(array.type)}
    kind = next(iter(kinds)) if len(kinds) == 1 else (pa.string() if kinds else pa.null())
    chunks = [array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array for array in arrays]
    return pa.concat_arrays([chunk.cast(kind) for chunk in chunks])


def _run(session: Any, rows: pa.Table) -> NDArray[Any]:
    kinds = {one.name: one.type for one in session.get_inputs()}
    output = session.get_outputs()[0].name
    found: list[NDArray[Any]] = []
    for start in range(0, max(1, rows.num_rows), ROWS_A_RUN):
        part = rows.slice(start, ROWS_A_RUN)
        fed = {
            name: (_strings if kind == "tensor(string)" else _floats)(part.column(name)).reshape(-1, 1)
            for name, kind in kinds.items()
        }
        found.append(np.asarray(session.run([output], fed)[0]))
    return np.concatenate(found)


def _in_order(given: NDArray[np.float64], session: Any, target: Target) -> NDArray[np.float64]:
    """Probabilities in the order of the target's classes; of a graph that knows other classes, those it shares."""
    noted = session.get_modelmeta().custom_metadata_map.get("turnout.classes")
    classes = orjson.loads(noted) if noted else list(target.classes)
    if classes == list(target.classes):
        if given.ndim != 2 or given.shape[1] != len(target.classes):
            raise Invalid("file", f"answers with shape {given.shape}, not one probability a class")
        return given
    at = [classes.index(name) if name in classes else None for name in target.classes]
    found = np.stack([given[:, one] if one is not None else np.zeros(len(given)) for one in at], axis=1)
    total = found.sum(axis=1, keepdims=True)
    return np.where(total > 0, found / np.where(total > 0, total, 1.0), 1 / len(target.classes))


def _space(rows: pa.Table, plan: Plan) -> NDArray[np.float64]:
    """Where rows lie, the same for every candidate: standardised numbers (missing: the mean), one-hot categories
    of half the weight, so that two rows of different categories are one standard deviation apart."""
    columns: list[NDArray[np.float64]] = []
    for feature in plan.features:
        column = rows.column(_FEATURE + feature.name)
        if feature.kind == "category":
            texts = _strings(column)
            columns += [(texts == text).astype(np.float64) / np.sqrt(2) for text in sorted(set(texts))[:50]]
            continue
        values = _floats(column)
        known = values[np.isfinite(values)]
        if len(known) and (spread := float(known.std())) > 0:
            columns.append(np.nan_to_num((values - known.mean()) / spread))
    return np.stack(columns, axis=1) if columns else np.zeros((rows.num_rows, 1))


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A number or a timestamp (seconds since 1970) as FP64 `[rows]`, missing NaN."""
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if pa.types.is_timestamp(column.type):
        micros = pc.fill_null(column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64()), 0)
        return np.where(column.is_null().to_numpy(), np.nan, micros.to_numpy() / MICROSECONDS)
    return pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy().astype(np.float64)


def _strings(column: pa.ChunkedArray) -> NDArray[np.object_]:
    """A category as strings `[rows]`, missing empty."""
    return pc.fill_null(column.cast(pa.string()), "").to_numpy().astype(object)


def _part(trained: ModelTrained, name: str) -> SplitPart:
    for part in trained.parts:
        if part.name == name:
            return part
    raise Invalid("parts", f"the split {trained.split_id} has no part '{name}'")


def _plain(value: Any) -> float | int | str | bool | None:
    isoformat = getattr(value, "isoformat", None)
    return isoformat() if isoformat is not None else value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
