"""Labels as classes and numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from turnout.common.errors import Invalid
from turnout.common.events import Column
from turnout.common.pipeline import parse
from turnout.common.values import Kind
from turnout.preparation.domain.columns import LABEL, TYPES
from turnout.preparation.domain.summary import Summary, summarise
from turnout.preparation.domain.target import label_column, labels, sorted_classes, target


def file(task: str = "classification", positive: str | None = None) -> Any:
    more = f', positive: "{positive}"' if positive else ""
    return parse(f"pipeline: p\ntask: {task}\nsource: {{label: y{more}}}")


def of(values: list[Any], kind: Kind) -> Summary:
    return summarise({LABEL: pa.array(values, TYPES[kind])}, {LABEL: kind})


def test_classes_are_canonical_text() -> None:
    found = labels(pa.array([3.0, 0.5, None, -0.0, 1e20]), task="classification", positive=None)
    assert found.to_pylist() == ["3", "0.5", None, "0", "1e+20"]
    texts = labels(pa.array(["3.0", " a ", "", None]), task="classification", positive=None)
    assert texts.to_pylist() == ["3", "a", None, None]


def test_times_are_classes_too() -> None:
    moment = pa.array([datetime(2026, 1, 1, tzinfo=UTC)], TYPES["timestamp"])
    assert labels(moment, task="classification", positive=None).to_pylist() == ["2026-01-01T00:00:00+00:00"]


def test_positive_makes_true_and_false() -> None:
    found = labels(pa.array([0.0, 4.0, None]), task="classification", positive="y > 0")
    assert found.to_pylist() == ["false", "true", None]
    assert labels(pa.array(["ill", "well"]), task="classification", positive="y == 'ill'").to_pylist() == [
        "true",
        "false",
    ]


def test_numbers_stay_numbers() -> None:
    found = labels(pa.array([0.5, None, float("inf")]), task="regression", positive=None)
    assert found.to_pylist() == [0.5, None, None]


def test_classes_are_sorted_by_number_where_all_are_numbers() -> None:
    assert sorted_classes(["10", "9", "-1"]) == ("-1", "9", "10")
    assert sorted_classes(["10", "9", "b"]) == ("10", "9", "b")
    assert sorted_classes(["true", "false"]) == ("false", "true")


def test_targets() -> None:
    found = target(file(), of(["10", "9", "9"], "category"), 0)
    assert (found.label, found.classes) == ("y", ("9", "10"))
    assert target(file("regression"), of([1.0, 2.0], "number"), 0).classes == ()


@pytest.mark.parametrize(
    ("task", "summary", "unlabelled", "says"),
    [
        ("classification", of(["1", "1"], "category"), 0, "one class only, 'y' is 1 in all 2 rows"),
        ("regression", of([2.5, 2.5], "number"), 3, "one value only, 'y' is 2.5"),
        ("classification", Summary(0, {}), 7, "missing in all 7 rows"),
        ("classification", Summary(0, {}), 0, "hold no row"),
        ("classification", of([f"c{i}" for i in range(1001)], "category"), 0, "regression"),
    ],
)
def test_nothing_to_learn_says_so(task: str, summary: Summary, unlabelled: int, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        target(file(task), summary, unlabelled)


@pytest.mark.parametrize(
    ("task", "positive", "kind", "says"),
    [
        ("regression", None, "category", "'y' is a category"),
        ("regression", None, "timestamp", "'y' is a timestamp"),
        ("classification", "y > 0", "category", "y is a category"),
        ("classification", "y == 'a'", "number", "compares a text with a number"),
    ],
)
def test_labels_of_the_wrong_kind(task: str, positive: str | None, kind: Kind, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        label_column(file(task, positive), [Column(name="y", kind=kind)])


def test_a_label_that_is_not_there() -> None:
    with pytest.raises(Invalid, match="did you mean 'why'"):
        label_column(file(), [Column(name="why", kind="number")])


def test_tasks_without_a_label_need_none() -> None:
    assert label_column(file("clustering"), [Column(name="y", kind="number")]) is None
    found = target(file("features"), summarise({"x": pa.array([1.0])}, {"x": "number"}), 0)
    assert (found.task, found.label) == ("features", None)
