"""What holds for every split of any rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.common.pipeline import Segregation
from turnout.segregation.domain.splits import STRATEGIES, Rows

SIZES = st.integers(2, 200)
SEEDS = st.integers(0, 2**31)
RATIOS = st.floats(0.01, 0.99)


def rows(n: int, seed: int) -> Rows:
    draw = np.random.default_rng(seed)
    return Rows(
        batches=["b1", "b2", "b3"],
        batch=draw.integers(0, 3, n),
        row=np.arange(n),
        classes=draw.integers(0, 3, n),
        times=draw.integers(0, 20, n),
    )


@settings(deadline=None)
@given(st.sampled_from(["sequential", "shuffled"]), SIZES, SEEDS, RATIOS)
def test_exact_strategies_count_exactly(strategy: str, n: int, seed: int, ratio: float) -> None:
    found = STRATEGIES[strategy](rows(n, seed), Segregation(ratio=ratio, seed=seed))
    assert found.train.sum() == min(max(round(n * ratio), 1), n - 1)


@settings(deadline=None)
@given(SIZES, SEEDS, RATIOS)
def test_stratified_counts_exactly_in_each_class(n: int, seed: int, ratio: float) -> None:
    of = rows(n, seed)
    train = STRATEGIES["stratified"](of, Segregation(ratio=ratio, seed=seed)).train
    assert of.classes is not None
    for code in np.unique(of.classes):
        there = of.classes == code
        expected = min(max(round(there.sum() * ratio), 1), there.sum() - 1) if there.sum() > 1 else 1
        assert train[there].sum() == expected


@settings(deadline=None)
@given(SIZES, SEEDS, RATIOS)
def test_time_never_trains_on_what_comes_after_a_test_row(n: int, seed: int, ratio: float) -> None:
    of = rows(n, seed)
    train = STRATEGIES["time"](of, Segregation(strategy="time", ratio=ratio)).train
    assert of.times is not None
    if train.any() and not train.all():
        assert of.times[train].max() < of.times[~train].min()
    elif len(np.unique(of.times)) > 1:
        raise AssertionError("an empty part, though there are two moments")


@settings(deadline=None)
@given(SIZES, SEEDS, RATIOS, st.data())
def test_random_decides_each_row_on_its_own(n: int, seed: int, ratio: float, data: st.DataObject) -> None:
    of = rows(n, seed)
    options = Segregation(ratio=ratio, seed=seed)
    whole = STRATEGIES["random"](of, options).train
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=np.bool_)
    some = Rows(of.batches, of.batch[kept], of.row[kept])
    assert (STRATEGIES["random"](some, options).train == whole[kept]).all()


def test_random_is_even() -> None:
    n = 200_000
    of = Rows(["b"], np.zeros(n, np.int64), np.arange(n))
    for ratio in (0.01, 0.5, 0.8):
        for seed in range(5):
            share = STRATEGIES["random"](of, Segregation(ratio=ratio, seed=seed)).train.mean()
            assert abs(share - ratio) < 5 * (ratio * (1 - ratio) / n) ** 0.5
