"""What reads and writes the lake, in a worker process; it can be done again.

Rows stream through. What is held of each is its name, label and time while it is decided, about 35 bytes (55 for
`shuffled`, which also keeps its place).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from turnout.common.errors import Invalid, Unknown
from turnout.common.events import DataSetRef, FeaturesGenerated, SplitPart, Warn
from turnout.common.lake.port import Lake, Manifest
from turnout.common.pipeline import Segregation
from turnout.segregation.domain import differences, splits
from turnout.segregation.domain.splits import NO_TIME, Rows, Split

# Rows of each part that are compared with the other part's.
COMPARED = 20_000
# Rows gathered in one pass over the set when they are written in another order.
GATHERED = 500_000
NAMES: tuple[Literal["train", "test"], ...] = ("train", "test")


def warm(lake: Lake) -> None:
    """In a worker: import this module, and connect to the lake. Raises `Unavailable`."""
    lake.warm()


@dataclass(frozen=True)
class Done:
    """Both parts lie in the lake."""

    parts: tuple[SplitPart, ...]
    warnings: tuple[Warn, ...]


def write(lake: Lake, features: FeaturesGenerated, options: Segregation, split_id: str, at: datetime) -> Done:
    """Decide for each row of the feature set and write both parts, those that are not there already."""
    rows = read_rows(lake, features)
    if options.strategy == "custom" and options.function is not None:
        split = _of_function(rows, features, lake, options.function)
    else:
        split = splits.STRATEGIES[options.strategy](rows, options)
    warnings = [*split.warnings, *splits.check(split, rows, features.target.classes), *_compare(lake, features, split)]
    refs = {name: DataSetRef(kind="split", pipeline=features.pipeline, id=f"{split_id}-{name}") for name in NAMES}
    manifests = {name: lake.manifest(ref) for name, ref in refs.items()}
    lineage = {"feature_set": features.feature_set_id, "split": split_id}
    with ExitStack() as stack:
        schema = lake.schema(features.data)
        writers = {
            name: stack.enter_context(lake.writer(ref, schema)) for name, ref in refs.items() if manifests[name] is None
        }
        if writers:
            for name, batch in _parted(lake, features.data, split):
                if name in writers:
                    writers[name].write(batch)
        written: dict[str, Manifest] = {name: w.commit(lineage=lineage, at=at) for name, w in writers.items()}
    found = {**manifests, **written}
    parts = [SplitPart(name=name, rows=m.rows, data=m.ref) for name in NAMES if (m := found[name]) is not None]
    return Done(tuple(parts), tuple(warnings))


def read_rows(lake: Lake, features: FeaturesGenerated) -> Rows:
    """What a strategy looks at of each row of the set."""
    names = lake.schema(features.data).names
    wanted = ["_batch", "_row", *(name for name in ("_label", "_event_time", "_fold") if name in names)]
    codes: dict[str, int] = {}
    found: dict[str, list[Any]] = {name: [] for name in wanted}
    for rows in lake.scan(features.data, columns=wanted):
        for name, read in _READ.items():
            if name in found:
                found[name].append(read(rows.column(name), codes, features))
    arrays: Mapping[str, Any] = {name: np.concatenate(some) for name, some in found.items() if some}
    label = arrays.get("_label")
    fold = arrays.get("_fold")
    return Rows(
        batches=list(codes),
        batch=arrays.get("_batch", np.empty(0, np.int64)),
        row=arrays.get("_row", np.empty(0, np.int64)),
        classes=label if features.target.task == "classification" else None,
        numbers=label if features.target.task == "regression" else None,
        times=arrays.get("_event_time"),
        fold=None if fold is None else fold.tolist(),
    )


def _batch_codes(column: pa.Array, codes: dict[str, int], _features: FeaturesGenerated) -> NDArray[np.int64]:
    encoded = column.dictionary_encode()
    known = np.array([codes.setdefault(name, len(codes)) for name in encoded.dictionary.to_pylist()], np.int64)
    return known[encoded.indices.to_numpy(zero_copy_only=False)]


def _labels(column: pa.Array, _codes: dict[str, int], features: FeaturesGenerated) -> NDArray[Any]:
    if features.target.task != "classification":
        return column.to_numpy(zero_copy_only=False)
    classes = pa.array(features.target.classes, pa.string())
    return pc.call_function("index_in", [column], pc.SetLookupOptions(value_set=classes)).to_numpy().astype(np.int64)


_READ: Mapping[str, Callable[[pa.Array, dict[str, int], FeaturesGenerated], NDArray[Any]]] = {
    "_batch": _batch_codes,
    "_row": lambda column, _codes, _features: column.to_numpy(),
    "_label": _labels,
    "_event_time": lambda column, _codes, _features: column.cast(pa.int64()).fill_null(int(NO_TIME)).to_numpy(),
    "_fold": lambda column, _codes, _features: column.to_numpy(zero_copy_only=False),
}


def _of_function(rows: Rows, features: FeaturesGenerated, lake: Lake, path: str) -> Split:
    function = imported(path)
    names = lake.schema(features.data).names
    columns = [name for name in ("_batch", "_row", "_label", "_event_time", "_entity") if name in names]
    table = lake.read(features.data, columns=columns)
    try:
        answer = function(table)
    except Exception as error:
        raise Invalid("segregation.function", f"{path} raised {type(error).__name__}: {error}") from error
    return splits.of_function(answer, len(rows))


def imported(path: str) -> Callable[[pa.Table], object]:
    """The function at `package.module:name` (or with a dot). Raises `Invalid` or `Unknown` saying what is not there."""
    module_name, _, name = path.replace(":", ".").rpartition(".")
    if not module_name or not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise Invalid("segregation.function", f"{path!r} is no import path", fix="write package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise Invalid(
            "segregation.function", f"cannot import {module_name}: {error}", fix="install the package"
        ) from error
    except Exception as error:
        raise Invalid(
            "segregation.function", f"importing {module_name} raised {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if function is None:
        raise Unknown.name("segregation.function", f"function of {module_name}", name, _functions(module))
    if not callable(function):
        raise Invalid("segregation.function", f"{path} is a {type(function).__name__}", fix="name a function")
    return function


def _functions(module: object) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]


def _parted(lake: Lake, ref: DataSetRef, split: Split) -> Iterator[tuple[str, pa.RecordBatch | pa.Table]]:
    if split.order is None:
        for start, rows in _numbered(lake, ref):
            train = pa.array(split.train[start : start + rows.num_rows])
            yield "train", rows.filter(train)
            yield "test", rows.filter(pc.call_function("invert", [train]))
        return
    for start in range(0, len(split.order), GATHERED):
        order = split.order[start : start + GATHERED]
        rows, train = _gathered(lake, ref, order), pa.array(split.train[order])
        yield "train", rows.filter(train)
        yield "test", rows.filter(pc.call_function("invert", [train]))


def _gathered(lake: Lake, ref: DataSetRef, order: NDArray[np.int64]) -> pa.Table:
    """The rows with these numbers in this order, by one pass over the set."""
    wanted = np.sort(order)
    found: list[pa.RecordBatch] = []
    for start, rows in _numbered(lake, ref):
        low, high = np.searchsorted(wanted, [start, start + rows.num_rows])
        found.append(rows.take(pa.array(wanted[low:high] - start)))
    place = np.empty(len(order), np.int64)
    place[np.argsort(order, kind="stable")] = np.arange(len(order))
    return pa.Table.from_batches(found).take(pa.array(place))


def _numbered(lake: Lake, ref: DataSetRef) -> Iterator[tuple[int, pa.RecordBatch]]:
    start = 0
    for rows in lake.scan(ref):
        yield start, rows
        start += rows.num_rows


def _compare(lake: Lake, features: FeaturesGenerated, split: Split) -> list[Warn]:
    """Columns that look different in the two parts, judged by at most `COMPARED` rows of each, evenly spaced."""
    label = ["_label"] if features.target.label is not None else []
    columns = [*label, *(column.name for column in features.plan.features)]
    picked = np.zeros(len(split.train), dtype=np.bool_)
    for there in (np.flatnonzero(split.train), np.flatnonzero(~split.train)):
        picked[there[np.linspace(0, len(there) - 1, min(len(there), COMPARED)).astype(np.int64)]] = True
    parts: Mapping[bool, list[pa.RecordBatch]] = {True: [], False: []}
    start = 0
    for rows in lake.scan(features.data, columns=columns):
        stop = start + rows.num_rows
        for part, some in parts.items():
            some.append(rows.filter(pa.array(picked[start:stop] & (split.train[start:stop] == part))))
        start = stop
    train, test = pa.Table.from_batches(parts[True]), pa.Table.from_batches(parts[False])
    found = [_compared(name, train[name], test[name]) for name in columns]
    return [warn for warn in found if warn is not None]


def _compared(name: str, train: pa.ChunkedArray, test: pa.ChunkedArray) -> Warn | None:
    if pa.types.is_string(train.type):
        return differences.categories(name, train.to_pylist(), test.to_pylist())
    return differences.numbers(name, *(part.fill_null(float("nan")).to_numpy() for part in (train, test)))
