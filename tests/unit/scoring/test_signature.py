"""From a request's values to rows and arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from turnout.common.errors import Invalid
from turnout.common.events import Column
from turnout.scoring.domain.signature import Signature, known_names

COLUMNS = (
    Column(name="age", kind="number"),
    Column(name="colour", kind="category"),
    Column(name="seen at", kind="timestamp"),
)
SIGNATURE = Signature(COLUMNS)


def test_cells_are_what_they_are_in_a_file() -> None:
    row = SIGNATURE.row({"colour": 3.0, "age": "63", "seen at": "1970-01-01T00:00:10Z"})
    assert row == (63.0, "3", 10.0)
    assert SIGNATURE.row({"colour": True}, "")[1] == "true"


def test_missing_is_what_the_graph_takes_for_it() -> None:
    age, colour, seen = SIGNATURE.row({"age": 1, "colour": None})
    assert (age, colour) == (1.0, "")
    assert isinstance(seen, float)
    assert math.isnan(seen)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"age": math.nan}, "rows[2].age: nan is not a finite number"),
        ({"age": math.inf}, "rows[2].age: inf is not a finite number"),
        ({"age": 10**400}, "rows[2].age: the number is too large"),
        ({"age": "old"}, "rows[2].age: 'old' is not a number"),
        ({"age": [1]}, "rows[2].age: a number is expected, found a list"),
        ({"age": {"x": 1}}, "found an object"),
        ({"seen at": "soon"}, "rows[2].seen at: 'soon' is not a time"),
        ({"age": 1, "Age": 2}, "rows[2].Age: unknown field 'Age'; did you mean 'age'?"),
        ({}, "rows[2]: has no value for any input"),
        ({"colour": "  "}, "has no value for any input"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(Invalid) as error:
        SIGNATURE.row(values, "rows[2].")
    assert words in str(error.value)
    assert type(error.value) is Invalid


def test_what_another_version_knows_is_passed_over() -> None:
    other = Signature([*COLUMNS, Column(name="height", kind="number")])
    names = known_names([SIGNATURE, other])
    assert SIGNATURE.row({"age": 1, "height": 2}, "", names)[0] == 1.0
    assert other.row({"age": 1, "height": 2}, "", names)[3] == 2.0


def test_rows_become_one_array_per_column() -> None:
    feeds = SIGNATURE.feeds([SIGNATURE.row({"age": 1}), SIGNATURE.row({"colour": "red"})])
    assert list(feeds) == ["age", "colour", "seen at"]
    assert feeds["age"].dtype == np.float64
    assert feeds["age"].shape == (2, 1)
    assert feeds["colour"].tolist() == [[""], ["red"]]
