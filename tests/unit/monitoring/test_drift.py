from __future__ import annotations

import pytest
from watched import AGES, score

from turnout.common.events import Column, ColumnProfile, Histogram
from turnout.common.summary import Bins, shape_of, summarise
from turnout.monitoring.domain.drift import compare, noise, psi

COLOURS = ColumnProfile(
    name="in:colour",
    kind="category",
    rows=100,
    missing=10,
    distinct=2,
    histogram=Histogram(categories=("red", "blue"), counts=(60, 30), missing=10),
)
INPUTS = [Column(name="age", kind="number"), Column(name="colour", kind="category")]
SHAPE = shape_of(INPUTS, [AGES, COLOURS])


def test_the_raw_columns_profile_is_preferred() -> None:
    changed = COLOURS.model_copy(update={"name": "colour", "histogram": Histogram(categories=("x",), counts=(1,))})
    assert shape_of(INPUTS, [changed, COLOURS, AGES])["colour"].categories == ("red", "blue")
    assert list(shape_of(INPUTS, [])) == []
    # A feature of the same name that is no longer of the raw column's kind says nothing of it.
    assert list(shape_of([Column(name="age", kind="category")], [AGES])) == []


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (0, 0), (19.9, 0), (20, 1), (80, 3), (-5, 0), (1e9, 3), ("33", 1),
        (None, None), ("", None), ("old", -1), (True, 0), (float("inf"), -1),
    ],
)  # fmt: skip
def test_bins_of_numbers(value: object, at: int | None) -> None:
    assert SHAPE["age"].of(value) == at  # type: ignore[arg-type]


def test_bins_of_categories_and_times() -> None:
    assert [SHAPE["colour"].of(v) for v in ("red", " blue", "green", None, "")] == [0, 1, -1, None, None]
    times = Bins("timestamp", (0.0, 86400.0, 172800.0))
    assert [times.of(v) for v in ("1970-01-01T12:00:00Z", "1970-01-02", "never", None)] == [0, 1, -1, None]


def test_psi() -> None:
    assert psi([10, 20, 30], [10, 20, 30]) == 0
    assert psi([100, 100], [150, 50]) == pytest.approx(psi([150, 50], [100, 100]))
    # By hand, without smoothing: 0.25 · ln(1.5) + (-0.25) · ln(0.5) = 0.2747.
    assert psi([50_000, 50_000], [75_000, 25_000]) == pytest.approx(0.2747, abs=1e-3)
    assert psi([1000, 0], [0, 1000]) < 20
    assert noise(10, 1000, 1000) == pytest.approx(0.018)


def test_the_report_puts_the_most_moved_first() -> None:
    scores = [score(f"s-{n}", values={"age": 70.0, "colour": "red" if n % 3 else "blue"}) for n in range(60)]
    live = summarise(scores, {"1": SHAPE})["1"].features
    first, second = compare(SHAPE, [AGES, COLOURS], live)
    assert (first.name, second.name) == ("age", "colour")
    assert first.psi is not None
    assert second.psi is not None
    assert first.psi > 1 > 0.1 > second.psi
    assert first.labels == ["0 to 20", "20 to 40", "40 to 60", "60 to 80"]
    assert first.live == [0, 0, 0, 1]
    assert second.missing_training == 0.1


def test_few_values_are_not_compared_and_missing_ones_are_told() -> None:
    scores = [score(f"s-{n}", values={"colour": "green" if n else None}) for n in range(4)]
    live = summarise(scores, {"1": SHAPE})["1"].features
    reports = {r.name: r for r in compare(SHAPE, [AGES, COLOURS], live)}
    assert reports["age"].psi is None
    assert reports["age"].missing_live == 1
    assert (reports["colour"].unseen, reports["colour"].missing_live, reports["colour"].rows) == (0.75, 0.25, 4)
    assert [r.rows for r in compare(SHAPE, [AGES, COLOURS], {})] == [0, 0]
