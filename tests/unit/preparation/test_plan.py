"""From the pipeline file and the raw columns to a plan."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from turnout.common.errors import Invalid, Unknown
from turnout.common.events import Column, Plan
from turnout.common.pipeline import PipelineFile, parse
from turnout.common.values import Kind
from turnout.preparation.domain.plan import Drawing, changed, draw
from turnout.preparation.domain.summary import ColumnSummary, Summary

RAW: dict[str, Kind] = {
    "id": "category", "seen": "timestamp", "age": "number", "Torque [Nm]": "number", "colour": "category",
    "y": "number",
}  # fmt: skip


def columns(kinds: dict[str, Kind]) -> tuple[Column, ...]:
    return tuple(Column(name=name, kind=kind) for name, kind in kinds.items())


def file(preparation: str | None = None, source: str = "label: y", **more: str) -> PipelineFile:
    lines = ["pipeline: p", "task: classification", f"source: {{{source}}}"]
    lines += [f"preparation: {preparation}"] if preparation is not None else []
    return parse("\n".join([*lines, *(f"{key}: {value}" for key, value in more.items())]))


def drawn(preparation: str | None = None, source: str = "label: y", kinds: dict[str, Kind] = RAW, **more: str) -> Plan:
    return draw(file(preparation, source, **more), columns(kinds)).plan


def names(found: tuple[Column, ...]) -> list[str]:
    return [column.name for column in found]


def steps(plan: Plan) -> list[tuple[str, object]]:
    return [(step.name, step.options.get("columns")) for step in plan.learned]


def test_default_plan_handles_every_kind() -> None:
    plan = drawn(source="label: y, entity: id")
    assert names(plan.inputs) == ["seen", "age", "Torque [Nm]", "colour"]
    assert names(plan.features) == ["age", "Torque [Nm]", "colour", "seen_hour", "seen_weekday"]
    assert [(s.name, dict(s.options)) for s in plan.rowwise] == [
        ("derive", {"column": "seen_hour", "as": "hour(`seen`)"}),
        ("derive", {"column": "seen_weekday", "as": "weekday(`seen`)"}),
        ("drop", {"columns": ["seen"]}),
    ]
    numbers = ["age", "Torque [Nm]", "seen_hour", "seen_weekday"]
    assert [(s.name, dict(s.options)) for s in plan.learned] == [
        ("impute", {"columns": numbers, "with": "median", "value": None}),
        ("impute", {"columns": ["colour"], "with": "constant", "value": "missing"}),
        ("scale", {"columns": numbers, "by": "standard"}),
        ("encode", {"columns": ["colour"], "by": "one_hot", "max_categories": 50}),
    ]
    assert names(tuple(changed(plan))) == ["seen"]


def test_entity_event_time_label_and_fold_are_never_features() -> None:
    plan = drawn(source="label: y, entity: id, event_time: seen", segregation="{strategy: custom, column: colour}")
    assert names(plan.features) == ["age", "Torque [Nm]"]
    assert names(plan.inputs) == ["age", "Torque [Nm]"]


def test_the_event_time_can_be_read_by_a_step() -> None:
    plan = drawn("[{derive: {column: h, as: hour(seen)}}]", "label: y, event_time: seen")
    assert "seen" in names(plan.inputs)
    assert "seen" not in names(plan.features)
    assert [c.name for c in changed(plan)] == ["seen"]


def survey(**distinct: int) -> Summary:
    def column(name: str) -> ColumnSummary:
        hashes = np.arange(distinct.get(name, 7), dtype=np.uint64)
        return ColumnSummary(RAW[name], rows=100, missing=100 if distinct.get(name) == 0 else 0, hashes=hashes)

    return Summary(100, {name: column(name) for name in RAW})


def test_default_plan_drops_constants_and_texts_that_name_rows() -> None:
    drawing: Drawing = draw(file(), columns(RAW), survey=survey(id=99, age=1, colour=0))
    assert names(drawing.plan.features) == ["Torque [Nm]", "seen_hour", "seen_weekday"]
    assert {(w.code, w.column) for w in drawing.warnings} == {
        ("identifier", "id"), ("constant", "age"), ("constant", "colour"),
    }  # fmt: skip
    assert all("dropped" in w.message for w in drawing.warnings)


def test_explicit_steps_are_kept_even_for_constants() -> None:
    drawing = draw(file("[]"), columns(RAW), survey=survey(id=99, age=1))
    assert {"id", "age"} <= set(names(drawing.plan.features))
    assert drawing.warnings == ()


def test_explicit_steps_are_completed_so_that_every_set_trains() -> None:
    plan = drawn("[{impute: {columns: [age], with: mean}}, {scale: {}}, {select: {by: chi2, keep: 3}}]")
    assert steps(plan) == [
        ("impute", ["Torque [Nm]", "seen_hour", "seen_weekday"]),
        ("impute", ["id", "colour"]),
        ("impute", ["age"]),
        ("scale", ["age", "Torque [Nm]", "seen_hour", "seen_weekday"]),
        ("encode", ["id", "colour"]),
        ("select", None),
    ]


def test_steps_that_lead_to_no_feature_are_left_out() -> None:
    plan = drawn(
        "[{rectify: {column: age, range: [0, 120]}}, {derive: {column: dead, as: age * 2}},"
        " {drop: {columns: [age, dead, id, seen, y]}}]"
    )
    assert names(plan.inputs) == names(plan.features) == ["Torque [Nm]", "colour"]
    assert plan.rowwise == ()


def test_a_dropped_column_that_a_step_reads_stays_an_input() -> None:
    plan = drawn("[{derive: {column: load, as: '`Torque [Nm]` / age'}}, {drop: {columns: [age, id, seen]}}]")
    assert names(plan.inputs) == ["age", "Torque [Nm]", "colour"]
    assert [(s.name, s.options.get("columns")) for s in plan.rowwise] == [("derive", None), ("drop", ["age"])]
    assert names(tuple(changed(plan))) == ["age"]


def test_a_step_may_put_another_value_under_an_old_name() -> None:
    plan = drawn("[{derive: {column: age, as: age / 10}}, {drop: {columns: [id, seen]}}]")
    assert names(plan.inputs) == ["age", "Torque [Nm]", "colour"]
    assert names(tuple(changed(plan))) == ["age"]


def test_an_open_range_has_no_infinity_in_it() -> None:
    plan = drawn("[{rectify: {column: age, range: [0, .inf]}}]")
    assert plan.rowwise[0].options["range"] == [0.0, sys.float_info.max]
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_join_brings_inputs() -> None:
    others: dict[str, dict[str, Kind]] = {"weather": {"rain": "number", "wind": "number"}}
    spec = file("[{join: {pipeline: weather, columns: [rain, wind]}}, {drop: {columns: [wind, id]}}]",
                "label: y, entity: id, event_time: seen")  # fmt: skip
    plan = draw(spec, columns(RAW), others=others).plan
    assert names(plan.inputs) == ["age", "Torque [Nm]", "colour", "rain"]
    assert dict(plan.rowwise[0].options) == {"pipeline": "weather", "columns": ["rain"]}


ERRORS = {
    "unknown column of a step": ("[{impute: {columns: [agee]}}]", "did you mean 'age'"),
    "unknown column of drop": ("[{drop: {columns: [color]}}]", "did you mean 'colour'"),
    "unknown column of an expression": ("[{derive: {column: a, as: agee + 1}}]", "did you mean 'age'"),
    "a dropped column": ("[{drop: {columns: [age]}}, {derive: {column: a, as: age}}]", "unknown column 'age'"),
    "median of a category": ("[{impute: {columns: [colour], with: median}}]", "'colour' is a category"),
    "scale of a category": ("[{scale: {columns: [colour]}}]", "'colour' is a category"),
    "encode of a number": ("[{encode: {columns: [age]}}]", "'age' is a number"),
    "bin of a category": ("[{bin: {columns: [colour]}}]", "'colour' is a category"),
    "encoded twice": ("[{encode: {}}, {encode: {columns: [colour]}}]", "'colour' is encoded twice"),
    "imputed twice": ("[{impute: {columns: number}}, {impute: {columns: [age]}}]", "'age' is imputed twice"),
    "constant text for a number": ("[{impute: {columns: [age], with: constant, value: none}}]", "'age' is a number"),
    "constant of both": ("[{impute: {columns: [age, colour], with: constant}}]", "two steps"),
    "value without constant": ("[{impute: {columns: [age], with: mean, value: 3}}]", "with: constant"),
    "range of a category": ("[{rectify: {column: colour, range: [0, 1]}}]", "'colour' is a category"),
    "values of a number": ("[{rectify: {column: age, values: {a: b}}}]", "'age' is a number"),
    "range the wrong way": ("[{rectify: {column: age, range: [2, 1]}}]", "no range"),
    "rectify of a time": ("[{rectify: {column: seen, range: [0, 1]}}]", "timestamp"),
    "rectify without a rule": ("[{rectify: {column: age}}]", "give it a range or values"),
    "derive of the label": ("[{derive: {column: a, as: y + 1}}]", "'y' is the label"),
    "derive into the label": ("[{derive: {column: y, as: age}}]", "taken"),
    "derive into our names": ("[{derive: {column: _row, as: age}}]", "taken"),
    "derive of a text": ("[{derive: {column: a, as: colour}}]", "gives a text"),
    "arithmetic with a text": ("[{derive: {column: a, as: colour + 1}}]", "colour is a category"),
    "a text compared with a number": ("[{derive: {column: a, as: colour == 1}}]", "quote the number"),
    "row-wise after learned": ("[{scale: {}}, {drop: {columns: [age]}}]", "comes after scale"),
    "nothing left": ("[{drop: {columns: [id, seen, age, 'Torque [Nm]', colour]}}]", "no feature is left"),
    "join without entity": ("[{join: {pipeline: w, columns: [x]}}]", "source.entity"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_says_why(case: str) -> None:
    preparation, said = ERRORS[case]
    with pytest.raises(Invalid, match=said.replace("[", r"\[")):
        drawn(preparation)


SOURCES = {
    "label: yy": "did you mean 'y'",
    "label: y, entity: idd": "did you mean 'id'",
    "label: y, event_time: sean": "did you mean 'seen'",
}


@pytest.mark.parametrize("source", SOURCES)
def test_roles_must_be_columns(source: str) -> None:
    with pytest.raises(Unknown, match=SOURCES[source]):
        drawn(source=source)


def test_the_event_time_must_be_a_time() -> None:
    with pytest.raises(Invalid, match=r"schema: \{age: timestamp\}"):
        drawn(source="label: y, event_time: age")


def test_join_names_what_is_nearest() -> None:
    others: dict[str, dict[str, Kind]] = {"weather": {"rain": "number", "age": "number"}}
    source = "label: y, entity: id, event_time: seen"
    for step, said in {
        "{join: {pipeline: wether, columns: [rain]}}": "did you mean 'weather'",
        "{join: {pipeline: weather, columns: [rains]}}": "did you mean 'rain'",
        "{join: {pipeline: weather, columns: [age]}}": "there already",
    }.items():
        with pytest.raises(Invalid, match=said):
            draw(file(f"[{step}]", source), columns(RAW), others=others)


def test_a_feature_with_one_of_our_names_is_refused() -> None:
    with pytest.raises(Invalid, match="rename the column"):
        drawn(kinds={**RAW, "_label": "number"})
    assert drawn("[{drop: {columns: [_label]}}]", kinds={**RAW, "_label": "number"})


def test_the_same_plan_twice() -> None:
    assert drawn() == drawn()
    assert Plan.model_validate_json(drawn().model_dump_json()) == drawn()
