"""Raw batches become a feature set: what is in it, how often it is made, and what cannot be made."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from environment import published, running, test_data, wait_for
from workbench import Workbench

from turnout.common import expression
from turnout.common.errors import Invalid
from turnout.common.events import DataSetRef, FeaturesGenerated, StageFailed
from turnout.common.runtime.environment import Environment
from turnout.common.values import Kind
from turnout.preparation.service import build

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
KINDS: dict[str, Kind] = {"who": "category", "seen": "timestamp", "age": "number", "colour": "category", "y": "number"}
PLAIN = "pipeline: p\ntask: classification\nsource: {label: y, entity: who, event_time: seen}\n"


def people(count: int, start: int = 0) -> dict[str, list[Any]]:
    draw = random.Random(start)
    return {
        "who": [f"w{start + i}" for i in range(count)],
        "seen": [T0 + timedelta(hours=start + i) for i in range(count)],
        "age": [draw.gauss(40, 10) if i % 10 else None for i in range(count)],
        "colour": [draw.choice(["red", "blue", None]) for _ in range(count)],
        "y": [float(draw.random() < 0.3) for _ in range(count)],
    }


async def test_a_batch_becomes_a_feature_set(bench: Workbench) -> None:
    await bench.declare(
        PLAIN + "preparation: [{rectify: {column: age, range: [0, 60]}}, {derive: {column: h, as: hour(seen)}}]"
    )
    raw = people(50)
    raw["y"][7] = None
    raw["age"][3] = 99.0
    made = await bench.prepare(bench.lay("p", "b1", KINDS, raw), train=True)

    assert (made.rows, made.rows_unlabelled, made.batch_ids, made.train) == (49, 1, ("b1",), True)
    assert [c.name for c in made.plan.inputs] == ["seen", "age", "colour"]
    assert [c.name for c in made.plan.features] == ["age", "colour", "h"]
    assert made.target.classes == ("0", "1")
    assert [p.name for p in made.profile] == ["age", "colour", "h"]
    rows = bench.rows(made)
    assert list(rows[0]) == [
        "_batch",
        "_row",
        "_label",
        "_event_time",
        "_entity",
        "age",
        "colour",
        "h",
        "in:seen",
        "in:age",
    ]
    assert [row["_row"] for row in rows] == [i + 2 for i in range(50) if i != 7]
    for row in rows:
        given = {name: values[row["_row"] - 2] for name, values in raw.items()}
        assert row["_label"] == str(int(given["y"]))
        assert row["_entity"] == given["who"]
        assert row["_event_time"] == row["in:seen"] == given["seen"]
        assert row["in:age"] == given["age"]
        assert row["age"] == (
            None if row["_row"] == 5 or given["age"] is None else given["age"] if given["age"] <= 60 else None
        )
        assert row["h"] == given["seen"].hour


async def test_the_row_wise_steps_are_what_a_graph_computes_from_the_raw_inputs(bench: Workbench) -> None:
    """From `in:NAME` (or the feature itself), row by row, comes what the set holds."""
    await bench.declare(
        PLAIN + "preparation: [{derive: {column: a, as: log(age) / 2}}, {derive: {column: age, as: age - a}},"
        " {derive: {column: w, as: weekday(seen) * (colour == 'red')}}]"
    )
    made = await bench.prepare(bench.lay("p", "b1", KINDS, people(60)))
    for row in bench.rows(made):
        values = {c.name: row.get(f"in:{c.name}", row.get(c.name)) for c in made.plan.inputs}
        for step in made.plan.rowwise:
            if step.name == "derive":
                node = expression.parse(str(step.options["as"]), "")
                values[str(step.options["column"])] = expression.evaluate(node, values)
        for column in made.plan.features:
            assert (
                row[column.name] == pytest.approx(values[column.name])
                if values[column.name] is not None
                else row[column.name] is None
            )


async def test_batches_are_joined_and_none_is_written_again(bench: Workbench) -> None:
    await bench.declare(PLAIN)
    first = await bench.prepare(bench.lay("p", "b1", KINDS, people(30)))
    second = await bench.prepare(bench.lay("p", "b2", KINDS, people(20, 30)))
    assert (first.rows, second.rows, second.batch_ids) == (30, 50, ("b1", "b2"))
    assert first.feature_set_id != second.feature_set_id
    assert [r["_batch"] for r in bench.rows(second)] == ["b1"] * 30 + ["b2"] * 20
    lake = bench.environment.lake
    parts = [lake.manifest(made.data).parts for made in (first, second)]  # pyright: ignore[reportOptionalMemberAccess]
    assert parts[1][0] == parts[0][0]
    assert sum(1 for m in lake.manifests("features", "p") if m.files) == 2


async def test_the_order_in_which_batches_came_does_not_name_the_set(bench: Workbench) -> None:
    ids = []
    for pipeline, order in (("p", ("b1", "b2")), ("q", ("b2", "b1"))):
        await bench.declare(PLAIN.replace("pipeline: p", f"pipeline: {pipeline}"))
        for name in order:
            ref = bench.lay(pipeline, name, KINDS, people(20, 20 if name == "b2" else 0))
            made = await bench.prepare(ref)
        ids.append(made.feature_set_id)
    assert ids[0] == ids[1]


async def test_again_for_the_same_cause_is_the_same_event(bench: Workbench) -> None:
    await bench.declare(PLAIN)
    event = bench.extracted(bench.lay("p", "b1", KINDS, people(30)))
    first = await bench.react(event)
    bench.environment.now = lambda: T0 + timedelta(days=1)
    assert await bench.react(event) == first


async def test_another_cause_with_the_same_content_tells_of_the_same_set(bench: Workbench) -> None:
    await bench.declare(PLAIN)
    ref = bench.lay("p", "b1", KINDS, people(30))
    first = await bench.prepare(ref)
    second = await bench.prepare(ref, train=True, spec_id="spec-2")
    assert second.id != first.id
    assert (second.train, second.spec_id) == (True, "spec-2")
    assert (second.feature_set_id, second.plan, second.profile) == (first.feature_set_id, first.plan, first.profile)
    assert len(list(bench.environment.lake.manifests("features", "p"))) == 2


async def test_after_a_crash_between_parts_and_set_nothing_is_written_twice(bench: Workbench) -> None:
    """A part that is there already is read for its summary; the set comes out the same."""
    await bench.declare(PLAIN)
    refs = [bench.lay("p", "b1", KINDS, people(30)), bench.lay("p", "b2", KINDS, people(30, 30))]
    raw = people(30)
    raw["y"][0] = None
    refs.append(bench.lay("p", "b3", KINDS, raw))
    event = bench.extracted(*refs)
    whole = await bench.react(event)
    folder = next(bench.environment.home.glob(f"lake/**/{whole.feature_set_id}"))
    (folder / "manifest.json").unlink()
    again = await bench.react(event)
    assert again.model_dump(exclude={"time"}) == whole.model_dump(exclude={"time"})
    assert again.rows_unlabelled == 1


async def test_the_same_bytes_read_again_replace_the_first_reading(bench: Workbench) -> None:
    await bench.declare(PLAIN)
    bench.lay("p", "b1", KINDS, people(30), sha256="a" * 64)
    bench.lay("p", "b2", KINDS, people(20, 30), sha256="b" * 64)
    made = await bench.prepare(bench.lay("p", "b1-again", KINDS, people(30), sha256="a" * 64))
    assert made.batch_ids == ("b2", "b1-again")
    assert [w.message for w in made.warnings if w.code == "read_again"] == [
        "batch b1 is left out: b1-again is a later reading of the same file"
    ]


async def test_a_batch_of_another_schema_is_left_out_aloud(bench: Workbench) -> None:
    await bench.declare(PLAIN)
    other = {**KINDS, "age": "category"}
    bench.lay("p", "old", other, {**people(10), "age": ["a"] * 10})  # pyright: ignore[reportArgumentType]
    made = await bench.prepare(bench.lay("p", "new", KINDS, people(30)))
    assert made.batch_ids == ("new",)
    assert "announce its file again" in next(w.message for w in made.warnings if w.code == "other_schema")


async def test_a_column_that_an_older_batch_lacks_is_missing_there(bench: Workbench) -> None:
    await bench.declare(PLAIN + "preparation: []")
    short = {name: kind for name, kind in KINDS.items() if name != "colour"}
    bench.lay("p", "old", short, people(10))
    made = await bench.prepare(bench.lay("p", "new", KINDS, people(30)))
    assert made.rows == 40
    assert all(row["colour"] is None for row in bench.rows(made)[:10])


async def test_the_column_of_a_custom_split_is_carried_and_no_feature(bench: Workbench) -> None:
    await bench.declare(PLAIN + "segregation: {strategy: custom, column: colour}")
    made = await bench.prepare(bench.lay("p", "b1", KINDS, people(30)))
    assert "colour" not in [c.name for c in made.plan.features]
    assert {row["_fold"] for row in bench.rows(made)} <= {"red", "blue", None}


async def test_clustering_needs_no_label(bench: Workbench) -> None:
    await bench.declare("pipeline: p\ntask: clustering\n")
    made = await bench.prepare(bench.lay("p", "b1", {"age": "number", "colour": "category"}, people(30)))
    assert (made.rows, made.target.task, made.target.classes) == (30, "clustering", ())
    assert "_label" not in bench.rows(made)[0]


async def test_a_features_task_is_never_trained(bench: Workbench) -> None:
    await bench.declare("pipeline: p\ntask: features\n")
    ref = bench.lay("p", "b1", {"age": "number", "colour": "category"}, people(30))
    assert (await bench.prepare(ref, train=True)).train is False
    assert (await bench.prepare(ref, train=True)).train is False


async def test_a_regression_label_stays_a_number(bench: Workbench) -> None:
    await bench.declare(
        "pipeline: p\ntask: regression\nsource: {label: age}\npreparation: [{drop: {columns: [who]}}]\n"
    )
    raw = people(30)
    made = await bench.prepare(bench.lay("p", "b1", KINDS, raw))
    assert made.rows_unlabelled == 3
    assert [r["_label"] for r in bench.rows(made)] == [a for a in raw["age"] if a is not None]


async def test_join_takes_what_was_known_at_the_time(bench: Workbench) -> None:
    weather: dict[str, Kind] = {"station": "category", "at": "timestamp", "rain": "number"}
    await bench.declare("pipeline: weather\ntask: features\nsource: {entity: station, event_time: at}\n")
    bench.lay("weather", "w1", weather, {
        "station": ["s", "s", "r"], "at": [T0, T0 + timedelta(hours=5), T0], "rain": [1.0, 2.0, 77.0],
    })  # fmt: skip
    bench.lay("weather", "w2", weather, {"station": ["s"], "at": [T0 + timedelta(hours=8)], "rain": [None]})
    await bench.declare(
        PLAIN
        + "preparation: [{join: {pipeline: weather, columns: [rain]}}, {rectify: {column: rain, range: [0, 1.5]}}]"
    )
    raw = {**people(10), "who": ["s"] * 9 + ["nobody"]}
    raw["seen"] = [T0 + timedelta(hours=i - 1) for i in range(10)]
    raw["y"] = [0.0, 1.0] * 5
    made = await bench.prepare(bench.lay("p", "b1", KINDS, raw))
    rows = bench.rows(made)
    assert [row["in:rain"] for row in rows] == [None, *[1.0] * 5, 2.0, 2.0, 2.0, None]
    assert [row["rain"] for row in rows] == [None, *[1.0] * 5, None, None, None, None]
    assert "rain" in [c.name for c in made.plan.inputs]
    # New values of the other pipeline make another set of the same batch.
    bench.lay("weather", "w3", weather, {"station": ["s"], "at": [T0], "rain": [0.5]})
    assert (await bench.prepare(DataSetRef(kind="raw", pipeline="p", id="b1"))).feature_set_id != made.feature_set_id


IMPOSSIBLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "a label that is not there": (PLAIN.replace("label: y", "label: yy"), {}, "did you mean 'y'"),
    "a constant label": (PLAIN, {"y": [1.0] * 20}, "constant label: one class only"),
    "no label at all": (PLAIN, {"y": [None] * 20}, "'y' is missing in all 20 rows"),
    "an unknown column": (PLAIN + "preparation: [{encode: {columns: [color]}}]", {}, "did you mean 'colour'"),
    "a step of the wrong kind": (PLAIN + "preparation: [{scale: {columns: [colour]}}]", {}, "'colour' is a category"),
    "nothing but constants": ("pipeline: p\ntask: classification\nsource: {label: y}\n",
                              {"age": [1.0] * 20, "colour": ["a"] * 20, "who": ["w"] * 20, "seen": [T0] * 20},
                              "no feature is left"),
    "an unknown pipeline to join": (PLAIN + "preparation: [{join: {pipeline: weather, columns: [rain]}}]", {},
                                    "unknown pipeline 'weather'"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
async def test_what_cannot_be_made_says_why_and_leaves_nothing_half_done(bench: Workbench, case: str) -> None:
    text, columns, says = IMPOSSIBLE[case]
    await bench.declare(text)
    with pytest.raises(Invalid, match=says):
        await bench.prepare(bench.lay("p", "b1", KINDS, {**people(20), **columns}))
    assert not [m for m in bench.environment.lake.manifests("features", "p") if m.event]


async def test_a_batch_without_rows(bench: Workbench) -> None:
    await bench.declare(PLAIN)
    with pytest.raises(Invalid, match="hold no row"):
        await bench.prepare(bench.lay("p", "b1", KINDS, people(0)))
    assert (await bench.prepare(bench.lay("p", "b2", KINDS, people(30)))).rows == 30


async def test_a_pipeline_that_was_removed_meanwhile(bench: Workbench) -> None:
    await bench.declare(PLAIN)
    event = bench.extracted(bench.lay("p", "b1", KINDS, people(20)))
    bench.environment.lake.remove("p")
    with pytest.raises(Invalid, match="announce its files again"):
        await bench.react(event)


async def test_on_the_bus_with_worker_processes(environment: Environment) -> None:
    bench = Workbench(environment)
    await bench.declare(PLAIN)
    good = bench.extracted(bench.lay("p", "b1", KINDS, people(500)))
    await bench.declare(PLAIN.replace("pipeline: p", "pipeline: bad"))
    bad = bench.extracted(bench.lay("bad", "b1", KINDS, {**people(20), "y": [1.0] * 20}))
    async with running(environment, build(environment)):
        await environment.bus.publish(bad, good)
        made = await wait_for(environment.bus, FeaturesGenerated)
        failed = await wait_for(environment.bus, StageFailed)
    assert (made.pipeline, made.rows, made.causation_id) == ("p", 500, good.id)
    assert failed.pipeline == "bad"
    assert failed.field == "source.label"
    assert len(await published(environment.bus, FeaturesGenerated)) == 1


# --- files of strangers -------------------------------------------------------------------------------------------


def read(path: Any, kinds: dict[str, Kind], header: Sequence[str] | None = None) -> dict[str, list[Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = list(csv.reader(file))
    names = list(header) if header is not None else table.pop(0)
    rows = [[None if cell in ("", "?") else cell for cell in row] for row in table if row]
    found = dict(zip(names, zip(*rows, strict=True), strict=True))
    return {
        name: [v if v is None or kind == "category" else float(v) for v in found[name]] for name, kind in kinds.items()
    }


async def test_ai4i2020_names_the_columns_that_know_the_answer(bench: Workbench) -> None:
    path = test_data("ai4i2020", "ai4i2020.csv")
    texts = ("Product ID", "Type")
    names = path.read_text(encoding="utf-8-sig").splitlines()[0].split(",")
    kinds: dict[str, Kind] = {name: "category" if name in texts else "number" for name in names}
    await bench.declare("pipeline: p\ntask: classification\nsource: {label: Machine failure}\n")
    made = await bench.prepare(bench.lay("p", "b1", kinds, read(path, kinds)))
    found = {(w.code, w.column) for w in made.warnings}
    assert {column for code, column in found if code == "leak"} == {"TWF", "HDF", "PWF", "OSF"}
    assert ("identifier", "Product ID") in found
    assert ("identifier", "UDI") in found
    assert "Product ID" not in [c.name for c in made.plan.inputs]
    assert made.rows == 10_000


async def test_two_hospitals_make_one_set(bench: Workbench) -> None:
    names = [
        "age",
        "sex",
        "cp",
        "trestbps",
        "chol",
        "fbs",
        "restecg",
        "thalach",
        "exang",
        "oldpeak",
        "slope",
        "ca",
        "thal",
        "num",
    ]
    categories = {"sex", "cp", "fbs", "restecg", "exang", "slope", "thal"}
    kinds: dict[str, Kind] = {name: "category" if name in categories else "number" for name in names}
    await bench.declare("pipeline: p\ntask: classification\nsource: {label: num, positive: num > 0}\n")
    for hospital in ("cleveland", "hungarian"):
        rows = read(test_data("heart-disease", f"processed.{hospital}.data"), kinds, names)
        made = await bench.prepare(bench.lay("p", hospital, kinds, rows))
    assert (made.rows, made.target.classes) == (597, ("false", "true"))
    assert not [w for w in made.warnings if w.code == "leak"]
