"""What is said of the data: each code, and where it must stay silent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from turnout.common.events import Column, Plan, Target, Warn
from turnout.common.values import Kind
from turnout.preparation.domain.columns import LABEL, TYPES
from turnout.preparation.domain.findings import findings
from turnout.preparation.domain.learned import completed
from turnout.preparation.domain.summary import row_keys, summarise

RANDOM = np.random.default_rng(7)
N = 2_000
FLAGS = (RANDOM.random(N) < 0.1).astype(float)
LABELS = np.where(FLAGS + (RANDOM.random(N) < 0.1) > 0, "1", "0")


def said(
    values: Sequence[Any], kind: Kind = "number", label: Sequence[Any] = tuple(LABELS), **target: Any
) -> list[Warn]:
    array = pa.array(values, TYPES[kind])
    task = target.setdefault("task", "classification")
    kinds: dict[str, Kind] = {"x": kind, LABEL: "category" if task == "classification" else "number"}
    labels = pa.array(label[: len(array)], TYPES[kinds[LABEL]])
    summary = summarise({"x": array, LABEL: labels}, kinds, keys=row_keys("b", np.arange(len(array))))
    columns = (Column(name="x", kind=kind),)
    plan = Plan(inputs=columns, features=columns, learned=tuple(completed([], {"x": kind})))
    return list(findings(summary, plan, Target(label="y", **target)))


def codes(*args: Any, **kwargs: Any) -> list[str]:
    return [warn.code for warn in said(*args, **kwargs)]


def test_ordinary_columns_say_nothing() -> None:
    assert codes(RANDOM.normal(size=N)) == []
    assert codes(RANDOM.choice(["a", "b", "c"], N), "category") == []
    assert codes(RANDOM.integers(0, 100, N).astype(float)) == []
    assert codes([1.0, 2.0, 4.0], label=["0", "1", "0"]) == []


def test_constant() -> None:
    assert codes([5.0] * 50) == ["constant"]
    assert codes([None] * 50) == ["constant"]
    assert codes(["a"] * 50, "category") == ["constant"]
    assert codes([1.0]) == []


def test_one_value_or_missing_is_not_constant() -> None:
    assert "constant" not in codes(["a", None] * 50, "category")


def test_mostly_missing() -> None:
    half = [1.0, 2.0, None, None] * 25
    assert codes(half) == []
    assert codes([*half, None]) == ["mostly_missing"]
    assert "50%" in said([*half, None])[0].message


def test_skewed_but_not_for_flags() -> None:
    assert codes(RANDOM.lognormal(sigma=2, size=N)) == ["skewed"]
    assert codes(RANDOM.permutation(FLAGS) * 1e6) == []


def test_identifier() -> None:
    assert codes([f"row {i}" for i in range(100)], "category") == ["identifier"]
    assert codes(RANDOM.permutation(100).astype(float) + 17) == ["identifier"]
    assert codes(RANDOM.permutation(100) * 2.0) == []
    assert codes([f"row {i}" for i in range(10)], "category") == []


def test_high_cardinality() -> None:
    assert codes([f"c{i % 60}" for i in range(N)], "category") == ["high_cardinality"]
    assert codes([f"c{i % 50}" for i in range(N)], "category") == []


@pytest.mark.parametrize("kind", ["number", "category"])
def test_a_flag_that_covers_some_cases_but_always_says_yes_leaks(kind: Kind) -> None:
    values = FLAGS if kind == "number" else np.where(FLAGS == 1, "1", "0")
    (warn,) = said(values, kind)
    hits = int(FLAGS.sum())
    assert (warn.code, warn.column) == ("leak", "x")
    assert f"'x' = 1 means y = 1 in {hits} of {hits} rows" in warn.message


def test_a_flag_with_too_few_rows_is_no_proof() -> None:
    few = np.zeros(N)
    few[np.flatnonzero(LABELS == "1")[:20]] = 1
    assert codes(few) == []


def test_a_flag_that_says_the_common_class_is_no_leak() -> None:
    safe = np.where((LABELS == "0") & (RANDOM.random(N) < 0.5), 1.0, 0.0)
    assert codes(safe) == []


def test_a_number_that_alone_tells_the_class_leaks() -> None:
    values = np.where(LABELS == "1", 10.0, 0.0) + RANDOM.normal(size=N)
    assert codes(values) == ["leak"]
    values[RANDOM.random(N) < 0.3] = np.nan
    assert codes(values) == []


def test_a_good_predictor_is_no_leak() -> None:
    assert codes(np.where(LABELS == "1", 2.5, 0.0) + RANDOM.normal(size=N)) == []


def test_a_number_that_gives_a_number_leaks() -> None:
    label = RANDOM.normal(size=N)
    assert codes(label * 2 + 1, label=label, task="regression") == ["leak"]
    assert codes(np.exp(label / 3), label=label, task="regression") == ["leak"]
    assert codes(label + RANDOM.normal(size=N), label=label, task="regression") == []


def test_a_category_that_gives_a_number_leaks() -> None:
    group = RANDOM.integers(0, 30, N)
    label = group * 3.0 + RANDOM.normal(size=N) * 0.1
    assert codes([f"g{i}" for i in group], "category", label=label, task="regression") == ["leak"]
    assert codes([f"g{i}" for i in RANDOM.permutation(group)], "category", label=label, task="regression") == []


def test_many_classes_are_taken_together() -> None:
    label = [f"c{i}" for i in RANDOM.integers(0, 200, N)]
    assert codes(RANDOM.normal(size=N), label=label) == []


@pytest.mark.parametrize("huge", [1e300, -1e308, 5e-324])
def test_huge_and_tiny_numbers_do_no_harm(huge: float) -> None:
    values = np.full(N, huge)
    values[::2] = 0
    assert "leak" not in codes(values)
    assert "leak" not in codes(values, label=RANDOM.normal(size=N) * 1e200, task="regression")
