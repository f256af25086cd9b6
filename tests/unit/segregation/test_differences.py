"""When two parts look different, and when it is chance."""

from __future__ import annotations

import numpy as np
import pytest

from turnout.segregation.domain import differences

DRAW = np.random.default_rng(5)


def test_two_samples_of_one_distribution_say_nothing() -> None:
    for rows, others in ((40, 10), (800, 200), (20_000, 5_000)):
        for seed in range(50):
            draw = np.random.default_rng(seed)
            assert differences.numbers("x", draw.normal(size=rows), draw.normal(size=others)) is None
            names = [f"c{i}" for i in range(30)]
            one, other = list(draw.choice(names, rows)), list(draw.choice(names, others))
            assert differences.categories("x", one, other) is None


def test_a_shift_is_named() -> None:
    found = differences.numbers("speed", DRAW.normal(size=800), DRAW.normal(1, 1, size=200))
    assert found is not None
    assert (found.code, found.column) == ("parts_differ", "speed")
    assert "'speed' differs between the parts: median" in found.message


def test_the_statistic_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    one, other = DRAW.integers(0, 9, 500).astype(float), DRAW.integers(3, 12, 300).astype(float)
    found = differences.numbers("x", one, other)
    assert found is not None
    assert f"{stats.ks_2samp(one, other).statistic:.2f}" in found.message


def test_a_share_that_differs_is_named() -> None:
    found = differences.categories("_label", ["yes"] * 50 + ["no"] * 450, ["yes"] * 100 + ["no"] * 100)
    assert found is not None
    assert "the label differs between the parts: 'yes' is 10% of train and 50% of test" in found.message or (
        "'no' is 90% of train and 50% of test" in found.message
    )


def test_missing_values_are_compared_too() -> None:
    gone = np.where(DRAW.random(300) < 0.5, np.nan, 1.0)
    found = differences.numbers("x", np.ones(500), gone)
    assert found is not None
    assert "missing in 0% of train" in found.message
    named = differences.categories("x", ["a"] * 500, ["a", None] * 150)
    assert named is not None


def test_nothing_to_compare_says_nothing() -> None:
    empty = np.full(10, np.nan)
    assert differences.numbers("x", empty, empty) is None


def test_a_small_difference_of_large_parts_is_not_worth_a_word() -> None:
    assert differences.numbers("x", DRAW.normal(size=20_000), DRAW.normal(0.1, 1, size=20_000)) is None
