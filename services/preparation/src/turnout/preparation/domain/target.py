"""What is predicted: a raw label column as classes or numbers, and whether there is anything to learn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from turnout.common import expression
from turnout.common.errors import Invalid, Unknown
from turnout.common.events import Column, Target
from turnout.common.pipeline import PipelineFile
from turnout.common.values import Kind
from turnout.preparation.domain import vectors
from turnout.preparation.domain.columns import LABEL, TYPES, floats, numbers, texts
from turnout.preparation.domain.summary import Summary

# More classes than this are no classes but numbers or names.
MAX_CLASSES = 1_000
LABELLED = ("classification", "regression")


def label_column(file: PipelineFile, columns: Sequence[Column]) -> str | None:
    """The raw column that is the label, None for a task without one. Raises `Unknown` or `Invalid`."""
    name = file.source.label
    if file.task not in LABELLED or name is None:
        return None
    kinds: dict[str, Kind] = {column.name: column.kind for column in columns}
    if name not in kinds:
        raise Unknown.name("source.label", "column", name, kinds)
    kind = kinds[name]
    if file.source.positive is not None:
        node = expression.parse(file.source.positive, "source.positive")
        if vectors.check(node, {name: kind}, "source.positive") != "number":
            raise Invalid("source.positive", "gives a text", fix=f"for example: {name} > 0")
    elif file.task == "regression" and kind != "number":
        raise Invalid(
            "source.label", f"'{name}' is a {kind}", fix="regression predicts numbers; or task: classification"
        )
    return name


def labels(array: pa.Array, *, task: str, positive: str | None) -> pa.Array:
    """The raw label as `_label`: canonical category text, "true"/"false" by `positive`, or float64; missing null."""
    if positive is not None:
        node = expression.parse(positive, "source.positive")
        (name,) = expression.columns(node)
        found = vectors.evaluate(node, {name: array}, len(array))
        assert isinstance(found, np.ndarray)
        if task == "regression":
            return numbers(found)
        said = np.where(found != 0, "true", "false").astype(object)
        return pa.array(said, TYPES["category"], mask=np.isnan(found))
    return numbers(floats(array)) if task == "regression" else texts(array)


def target(file: PipelineFile, summary: Summary, unlabelled: int) -> Target:
    """The target of a set. Raises `Invalid` if no row is left or the label is always the same."""
    label = file.source.label if file.task in LABELLED else None
    if not summary.rows:
        if unlabelled:
            raise Invalid(
                "source.label", f"'{label}' is missing in all {unlabelled} rows", fix="bring rows with a label"
            )
        raise Invalid(
            "source.uri", "the batches hold no row", fix="look into the quarantine, or bring a file with rows"
        )
    if label is None:
        return Target(task=file.task)
    found = summary.columns[LABEL]
    if found.distinct < 2:
        only = next(iter(found.counts), f"{found.low:g}")
        fix = "bring rows with another one" + (", or look at source.positive" if file.source.positive else "")
        what = "class" if file.task == "classification" else "value"
        problem = f"constant label: one {what} only, '{label}' is {only} in all {summary.rows} rows"
        raise Invalid("source.label", problem, fix=fix)
    if file.task == "regression":
        return Target(task=file.task, label=label)
    if found.distinct > MAX_CLASSES:
        raise Invalid(
            "source.label", f"'{label}' has {found.distinct} classes", fix="task: regression predicts numbers"
        )
    return Target(task=file.task, label=label, classes=sorted_classes(found.counts))


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Classes in order: by number if all are numbers, else by text."""
    classes = sorted(names)
    try:
        return tuple(sorted(classes, key=float))
    except ValueError:
        return tuple(classes)
