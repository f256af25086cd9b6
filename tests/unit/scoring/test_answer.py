"""What counts as an answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from turnout.common.events import Prior, Target
from turnout.scoring.domain.answer import Answer, Fault, of_prior, read, read_columns

CLASSES = Target(task="classification", label="y", classes=("no", "yes"))
NUMBER = Target(task="regression", label="y")
CLUSTER = Target(task="clustering")


def floats(*rows: Any) -> Any:
    return np.array(rows, dtype=np.float32)


def test_a_class_is_the_likeliest_one() -> None:
    (answer,) = read(floats([0.25, 0.75]), CLASSES, 1)
    assert answer == Answer("yes", {"no": 0.25, "yes": 0.75})


def test_a_number_and_a_cluster() -> None:
    assert read(floats([1.5], [2.5]), NUMBER, 2) == [Answer(1.5, {}), Answer(2.5, {})]
    assert read(np.array([3]), CLUSTER, 1) == [Answer(3.0, {})]


def test_a_fault_is_its_rows_alone() -> None:
    results = read(floats([0.5, 0.5], [math.nan, 0.5], [1.2, -0.2], [0.2, 0.2]), CLASSES, 4)
    assert [type(result) for result in results] == [Answer, Fault, Fault, Fault]
    assert [type(result) for result in read(floats([1.0], [math.inf]), NUMBER, 2)] == [Answer, Fault]


@pytest.mark.parametrize(
    ("output", "target"),
    [
        (floats([0.2, 0.3, 0.5]), CLASSES),
        (floats(0.2), CLASSES),
        (np.array([["a", "b"]], dtype=object), CLASSES),
        (floats([1.0, 2.0]), NUMBER),
        (np.array([[1]]), NUMBER),
        (floats([1.0]), CLUSTER),
        (floats([0.5, 0.5], [0.5, 0.5]), CLASSES),
    ],
)
def test_another_shape_or_type_is_a_fault_of_every_row(output: Any, target: Target) -> None:
    (result,) = read(output, target, 1)
    assert isinstance(result, Fault)
    assert "expected" in result.why
    with pytest.raises(ValueError, match="expected"):
        read_columns(output, target, 1)


def test_columns_say_the_same_as_rows() -> None:
    output = floats([0.25, 0.75], [math.nan, 1.0], [0.9, 0.1], [0.1, 0.1], [2.0, -1.0])
    rows, columns = read(output, CLASSES, 5), read_columns(output, CLASSES, 5)
    assert columns.sound.tolist() == [isinstance(row, Answer) for row in rows]
    assert [columns.values[at] for at in (0, 2)] == ["yes", "no"]
    numbers = read_columns(floats([1.0], [math.nan]), NUMBER, 2)
    assert numbers.sound.tolist() == [True, False]


def test_the_prior_is_an_answer() -> None:
    assert of_prior(Prior(value="no", probabilities={"no": 0.6, "yes": 0.4})).value == "no"
