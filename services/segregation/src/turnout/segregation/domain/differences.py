"""Do the two parts of a split look alike? If not, metrics say little about what comes: a warning for each column.

A number's distributions are compared by the two-sample Kolmogorov-Smirnov statistic D, the largest distance of the two
cumulative shares; a category's by the total variation distance, half the sum of the shares' differences. A difference
counts if it is large (`LARGE`) and not chance: D beyond its 0.1 % point 1.95 √((n+m)/nm) (Smirnov 1948), and for k
categories a total variation beyond √(k/4) + 1.86 times √((n+m)/nm), an upper bound of that point (McDiarmid).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from turnout.common.events import Warn

Floats = NDArray[np.float64]

LARGE = 0.1
SMIRNOV = 1.95
MCDIARMID = 1.86


def numbers(column: str, train: Floats, test: Floats) -> Warn | None:
    """Compare a number column, NaN for missing, in the two parts."""
    missing = _missing(column, int(np.isnan(train).sum()), len(train), int(np.isnan(test).sum()), len(test))
    train, test = np.sort(train[~np.isnan(train)]), np.sort(test[~np.isnan(test)])
    if missing is not None or not len(train) or not len(test):
        return missing
    at = np.concatenate([train, test])
    shares = [np.searchsorted(part, at, side="right") / len(part) for part in (train, test)]
    distance = float(np.abs(shares[0] - shares[1]).max())
    if distance <= max(LARGE, SMIRNOV * _noise(len(train), len(test))):
        return None
    middle = f"median {np.median(train):g} in train, {np.median(test):g} in test"
    return _differs(column, f"{middle} (Kolmogorov-Smirnov {distance:.2f})")


def categories(column: str, train: Sequence[str | None], test: Sequence[str | None]) -> Warn | None:
    """Compare a category column, None for missing, in the two parts."""
    counts, others = Counter(train), Counter(test)
    shares = {name: (counts[name] / len(train), others[name] / len(test)) for name in counts | others}
    distance = sum(abs(a - b) for a, b in shares.values()) / 2
    if distance <= max(LARGE, (math.sqrt(len(shares) / 4) + MCDIARMID) * _noise(len(train), len(test))):
        return None
    worst = max(shares, key=lambda name: (abs(shares[name][0] - shares[name][1]), str(name)))
    said = "missing" if worst is None else f"'{worst}'"
    return _differs(column, f"{said} is {shares[worst][0]:.0%} of train and {shares[worst][1]:.0%} of test")


def _missing(column: str, first: int, rows: int, second: int, others: int) -> Warn | None:
    a, b = first / rows, second / others
    if abs(a - b) <= max(LARGE, SMIRNOV * _noise(rows, others)):
        return None
    return _differs(column, f"missing in {a:.0%} of train and {b:.0%} of test")


def _noise(first: int, second: int) -> float:
    return math.sqrt((first + second) / (first * second))


def _differs(column: str, how: str) -> Warn:
    named = "the label" if column == "_label" else f"'{column}'"
    return Warn(code="parts_differ", column=column, message=f"{named} differs between the parts: {how}")
