"""How sure a difference between two models is: the rows are drawn again, both models keep theirs together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from turnout.evaluation.domain.metrics import Answers, Floats, Metric

RESAMPLES = 1_000
# More rows make the interval narrower than anybody needs and cost much; these many are drawn by the seed.
MOST_ROWS = 20_000
# Numbers held at a time.
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Difference:
    """Mean paired difference, positive where the first is better, and its 95 % interval."""

    mean: float
    low: float
    high: float


def difference(
    metric: Metric, mine: Answers, theirs: Answers, *, larger_is_better: bool, seed: int
) -> Difference | None:
    """The metric of `mine` against `theirs` on the same rows; None where these rows cannot tell.

    Paired percentile bootstrap (Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13): each of
    `RESAMPLES` draws takes rows with replacement and asks both models on them. A model's luck with easy rows is
    then the other's luck too, which a comparison of two separate intervals would not know.
    """
    generator = np.random.default_rng(seed)
    if mine.rows > MOST_ROWS:
        rows = np.sort(generator.permutation(mine.rows)[:MOST_ROWS])
        mine, theirs = mine.at(rows), theirs.at(rows)
    if not mine.rows:
        return None
    sign = 1.0 if larger_is_better else -1.0
    every = np.ones((1, mine.rows))
    mean = sign * float((metric(mine, every) - metric(theirs, every))[0])
    if not np.isfinite(mean):
        return None
    found: list[Floats] = []
    size = max(1, _CHUNK // mine.rows)
    for start in range(0, RESAMPLES, size):
        weights = _drawn(generator, min(size, RESAMPLES - start), mine.rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(sign * (metric(mine, weights) - metric(theirs, weights)))
    drawn = np.concatenate(found)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(mean, float(low), float(high))


def _drawn(generator: np.random.Generator, resamples: int, rows: int) -> Floats:
    """How often each row was drawn, `[resamples, rows]`."""
    drawn = generator.integers(0, rows, (resamples, rows)) + np.arange(resamples)[:, None] * rows
    return np.bincount(drawn.ravel(), minlength=resamples * rows).reshape(resamples, rows).astype(np.float64)
