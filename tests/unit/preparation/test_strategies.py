"""Every strategy that preparation has, through one list of promises; then what each one does."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from turnout.common import pipeline
from turnout.common.errors import Invalid
from turnout.common.events import Step
from turnout.common.values import Kind
from turnout.preparation.domain.asof import History
from turnout.preparation.domain.learned import LEARNED
from turnout.preparation.domain.rowwise import ROWWISE, Context

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
KINDS: dict[str, Kind] = {"age": "number", "size": "number", "colour": "category", "seen": "timestamp"}
CONTEXT = Context(
    frozenset([*KINDS, "who", "y"]), "y", "who", "seen", {"weather": {"rain": "number", "sky": "category"}}
)
HISTORIES = {
    "weather": History(
        pa.array(["a", "a", "b", "a"]),
        pa.array([T0, T0 + timedelta(hours=2), T0, T0 + timedelta(hours=1)], pa.timestamp("us", tz="UTC")),
        {"rain": pa.array([1.0, 3.0, 9.0, None]), "sky": pa.array(["x", "z", None, "y"])},
    )
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "rectify": {"column": "age", "range": [0, 120], "otherwise": "clip"},
    "derive": {"column": "ratio", "as": "age / size"},
    "drop": {"columns": ["size"]},
    "join": {"pipeline": "weather", "columns": ["rain", "sky"]},
    "impute": {"columns": "number", "with": "median"},
    "scale": {"columns": "number"},
    "encode": {"columns": "category", "max_categories": 5},
    "bin": {"columns": ["age"], "bins": 4},
    "select": {"by": "chi2", "keep": 2},
}
SECTIONS = {**pipeline.ROWWISE, **pipeline.LEARNED}


def columns() -> dict[str, pa.Array]:
    hours = [0, 1, 3, None]
    seen = pa.array([None if h is None else T0 + timedelta(hours=h) for h in hours], pa.timestamp("us", tz="UTC"))
    return {
        "_entity": pa.array(["a", "a", "a", "b"]),
        "_event_time": seen,
        "age": pa.array([30.0, -1.0, None, 500.0]),
        "size": pa.array([2.0, 0.0, 1.0, 4.0]),
        "colour": pa.array(["red", None, "blu", "blue"]),
        "seen": seen,
    }


def resolved(name: str, **options: Any) -> Step:
    section = SECTIONS[name].model_validate(options or OPTIONS[name])
    found = ROWWISE[name].resolve(section, KINDS, CONTEXT) if name in ROWWISE else LEARNED[name].resolve(section, KINDS)
    assert found is not None
    return found


def applied(name: str, **options: Any) -> dict[str, pa.Array]:
    return ROWWISE[name].apply(resolved(name, **options), columns(), HISTORIES)


def test_the_file_and_the_factory_know_the_same_names() -> None:
    assert set(ROWWISE) == set(pipeline.ROWWISE)
    assert set(LEARNED) == set(pipeline.LEARNED)


@pytest.mark.parametrize("name", [*ROWWISE, *LEARNED])
class TestEvery:
    def test_has_a_docstring_that_names_its_options(self, name: str) -> None:
        said = inspect.getdoc(type({**ROWWISE, **LEARNED}[name])) or ""
        for option, field in SECTIONS[name].model_fields.items():
            assert (field.alias or option) in said

    def test_resolves_to_the_same_step_each_time(self, name: str) -> None:
        assert resolved(name) == resolved(name)

    def test_survives_json_and_names_every_option(self, name: str) -> None:
        step = resolved(name)
        assert Step.model_validate_json(step.model_dump_json()) == step
        expected = {field.alias or option for option, field in SECTIONS[name].model_fields.items()}
        assert set(step.options) == expected

    def test_names_its_columns_one_by_one(self, name: str) -> None:
        assert isinstance(resolved(name).options.get("columns", []), list)


@pytest.mark.parametrize("name", ROWWISE)
class TestEveryRowwise:
    def test_gives_the_same_twice_and_leaves_its_input_alone(self, name: str) -> None:
        given = columns()
        step = resolved(name)
        first = ROWWISE[name].apply(step, given, HISTORIES)
        assert given == columns()
        assert ROWWISE[name].apply(step, given, HISTORIES) == first

    def test_gives_the_columns_that_it_said(self, name: str) -> None:
        outcome = ROWWISE[name].outcome(resolved(name), KINDS, CONTEXT)
        after = applied(name)
        assert set(outcome) == set(after) - {"_entity", "_event_time"}

    def test_one_row_is_a_batch(self, name: str) -> None:
        whole = applied(name)
        for row in range(4):
            one = {key: array.slice(row, 1) for key, array in columns().items()}
            alone = ROWWISE[name].apply(resolved(name), one, HISTORIES)
            assert {k: v.to_pylist() for k, v in alone.items()} == {
                k: v.slice(row, 1).to_pylist() for k, v in whole.items()
            }

    def test_no_row_is_a_batch(self, name: str) -> None:
        none = {key: array.slice(0, 0) for key, array in columns().items()}
        after = ROWWISE[name].apply(resolved(name), none, HISTORIES)
        assert all(len(array) == 0 for array in after.values())
        assert {k: v.type for k, v in after.items()} == {k: v.type for k, v in applied(name).items()}

    def test_changes_only_what_it_says(self, name: str) -> None:
        step, before, after = resolved(name), columns(), applied(name)
        untouched = set(before) - ROWWISE[name].writes(step)
        assert all(after[column] == before[column] for column in untouched)


def test_rectify_clips_or_makes_missing() -> None:
    assert applied("rectify")["age"].to_pylist() == [30.0, 0.0, None, 120.0]
    assert applied("rectify", column="age", range=[0, 120])["age"].to_pylist() == [30.0, None, None, None]


def test_rectify_replaces_texts_once() -> None:
    values = {"blu": "blue", "blue": "navy", "red": " "}
    assert applied("rectify", column="colour", values=values)["colour"].to_pylist() == [None, None, "blue", "navy"]


def test_rectify_reads_its_texts_as_categories_are_written() -> None:
    step = resolved("rectify", column="colour", values={"3.0": "three", " a ": "4.0"})
    assert step.options["values"] == {"3": "three", "a": "4"}


def test_derive_gives_missing_for_what_is_not_finite() -> None:
    assert applied("derive")["ratio"].to_pylist() == [15.0, None, None, 125.0]


def test_join_takes_the_newest_value_that_is_there_and_never_a_later_one() -> None:
    after = applied("join")
    assert after["rain"].to_pylist() == [1.0, 1.0, 3.0, None]
    assert after["sky"].to_pylist() == ["x", "y", "z", None]


def test_a_learned_step_without_columns_is_no_step() -> None:
    kinds: dict[str, Kind] = {"age": "number"}
    assert LEARNED["encode"].resolve(pipeline.Encode(), kinds) is None
    with pytest.raises(Invalid):
        LEARNED["encode"].resolve(pipeline.Encode(columns=("age",)), kinds)
