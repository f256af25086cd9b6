"""What a person should know of the data before trusting a model: warnings with stable codes.

`constant`, `mostly_missing`, `skewed`, `identifier`, `high_cardinality`, `leak`. They stop nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from turnout.common.events import Plan, Target, Warn
from turnout.preparation.domain.columns import LABEL, Floats, Kinds, floats
from turnout.preparation.domain.summary import DISTINCT, ColumnSummary, Summary

Codes = NDArray[np.int64]

MOSTLY = 0.5
SKEWED = 3.0
# Skewness says little of a flag, or of a handful of rows.
SKEW_DISTINCT, SKEW_ROWS = 10, 30
IDENTIFIER_SHARE, IDENTIFIER_ROWS = 0.9, 20
MANY_CATEGORIES = 50
# A column alone explains this share of the errors (classes) or of the variance (numbers) that guessing leaves.
ALONE = 0.98
# One value of a column says one class: the lower end of the 95 % interval of its share.
CERTAIN = 0.9
# Values that a number may have and still be read as a flag.
FLAG_VALUES = 20
STUMP_DEPTH = 3
STUMP_LEAF = 5
# Classes told apart by the leak tests; the rarer ones count as one.
CLASSES = 20


def unfit(survey: Summary, kinds: Kinds, taken: Mapping[str, str]) -> tuple[Warn, ...]:
    """The raw columns that the default plan drops: constant ones, and texts that name each row."""
    found: list[Warn] = []
    for name in kinds:
        if name in taken or name not in survey.columns:
            continue
        column = survey.columns[name]
        if column.constant:
            found.append(_constant(name, column, "; it is dropped"))
        elif column.kind == "category" and _identifies(column):
            found.append(_identifier(name, column, "; it is dropped"))
    return tuple(found)


def findings(summary: Summary, plan: Plan, target: Target) -> tuple[Warn, ...]:
    """What is to be said of the features of a set; needs a sample."""
    found: list[Warn] = []
    limits = {
        str(name): cast("int", step.options["max_categories"])
        for step in plan.learned
        if step.name == "encode"
        for name in cast("list[str]", step.options["columns"])
    }
    for feature in plan.features:
        column = summary.columns[feature.name]
        found += _of_column(feature.name, column, limits.get(feature.name, MANY_CATEGORIES))
    if summary.sample is not None and target.label is not None:
        found += _leaks(summary, [feature.name for feature in plan.features], target)
    return tuple(found)


def _of_column(name: str, column: ColumnSummary, limit: int) -> list[Warn]:
    if column.constant:
        return [_constant(name, column, "; it tells a model nothing")]
    found: list[Warn] = []
    if column.missing > MOSTLY * column.rows:
        share = f"{column.missing / column.rows:.0%}"
        found.append(Warn(code="mostly_missing", column=name, message=f"'{name}' is missing in {share} of the rows"))
    skew = column.moments.skew
    if skew is not None and abs(skew) > SKEWED and column.distinct > SKEW_DISTINCT and column.present >= SKEW_ROWS:
        message = f"'{name}' is skewed ({skew:.1f}); a few rows lie far from the others"
        found.append(Warn(code="skewed", column=name, message=message))
    if _identifies(column):
        found.append(_identifier(name, column, "; a model may learn the rows by heart"))
    elif column.kind == "category" and column.distinct > limit:
        message = f"'{name}' has {_about(column)} categories, and encoding keeps {limit}"
        found.append(Warn(code="high_cardinality", column=name, message=message))
    return found


def _constant(name: str, column: ColumnSummary, then: str) -> Warn:
    what = "is missing in every row" if column.missing else "has the same value in every row"
    return Warn(code="constant", column=name, message=f"'{name}' {what}{then}")


def _identifier(name: str, column: ColumnSummary, then: str) -> Warn:
    message = f"'{name}' looks like the row's name: {_about(column)} values in {column.present} rows{then}"
    return Warn(code="identifier", column=name, message=message)


def _about(column: ColumnSummary) -> str:
    return f"{'' if column.distinct < DISTINCT else 'about '}{column.distinct}"


def _identifies(column: ColumnSummary) -> bool:
    """A text that is another in nearly every row, or whole numbers that count the rows."""
    if column.present < IDENTIFIER_ROWS:
        return False
    if column.kind == "category":
        return column.distinct >= IDENTIFIER_SHARE * column.present
    # The estimate of `distinct` may be a little off; a counter has no gaps.
    counts = column.integral and column.high - column.low + 1 == column.present
    return column.kind == "number" and counts and column.distinct >= IDENTIFIER_SHARE * column.present


# --- columns that know the answer ---------------------------------------------------------------------------------


def _leaks(summary: Summary, names: Sequence[str], target: Target) -> list[Warn]:
    """Columns that predict the label on their own.

    Classes: the column's values (or the leaves of a tree of depth three over a number) leave almost no error where
    guessing the commonest class leaves many; or one value of a flag almost always means one class, even where
    that value is rare (a failure-mode column covers some of the failures, but always says failure). Numbers: the
    column's values or 50 equally full bins explain almost all of the variance.
    """
    sample = summary.sample
    assert sample is not None
    truth = _truth(sample, target)
    found: list[Warn] = []
    for name in names:
        column = summary.columns[name]
        if column.constant or (column.kind == "category" and _identifies(column)):
            continue
        groups = _groups(sample[name].combine_chunks())
        # A sum that overflows is infinite, and no share that is compared with it is near one.
        with np.errstate(all="ignore"):
            message = _tells_class(name, groups, truth) if truth else _tells_number(name, groups, sample)
        if message is not None:
            fix = "drop it if it is filled in only after the fact"
            found.append(Warn(code="leak", column=name, message=f"{message}; {fix}"))
    return found


@dataclass(frozen=True)
class _Groups:
    """Rows put in groups (`codes`) of one value each; of a column with many, `numbers` to be cut into groups."""

    codes: Codes
    values: Sequence[str]
    numbers: Floats | None


@dataclass(frozen=True)
class _Truth:
    """Each row's class as a number, the classes by it, and their shares."""

    label: str
    codes: Codes
    classes: Sequence[str]
    shares: Floats


def _groups(array: pa.Array) -> _Groups:
    if pa.types.is_string(array.type):
        encoded = array.dictionary_encode()
        texts: list[str] = encoded.dictionary.to_pylist()
        codes = encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False).astype(np.int64)
        return _Groups(codes, [*texts, "missing"], None)
    numbers = floats(array)
    values, codes = np.unique(numbers, return_inverse=True)
    if len(values) <= FLAG_VALUES:
        return _Groups(codes, [f"{value:g}" if not math.isnan(value) else "missing" for value in values], None)
    return _Groups(codes, [], numbers)


def _tells_class(name: str, groups: _Groups, truth: _Truth) -> str | None:
    wrong = 1 - float(truth.shares.max())
    codes = groups.codes if groups.numbers is None else _stump(groups.numbers, truth.codes, len(truth.classes))
    table = np.zeros((int(codes.max()) + 1, len(truth.classes)), dtype=np.int64)
    np.add.at(table, (codes, truth.codes), 1)
    # A group of a few rows is right by chance; all such groups are judged as one.
    small = table.sum(axis=1) < STUMP_LEAF
    judged = np.vstack([table[~small], table[small].sum(axis=0)])
    left = 1 - float(judged.max(axis=1).sum()) / len(truth.codes)
    if wrong > 0 and left <= (1 - ALONE) * wrong:
        return f"'{name}' alone tells {truth.label} in {1 - left:.1%} of the rows"
    return _certain(name, groups.values, table, truth) if groups.numbers is None else None


def _certain(name: str, values: Sequence[str], table: Codes, truth: _Truth) -> str | None:
    for code in np.argsort(-table.sum(axis=1), kind="stable"):
        rows, best = int(table[code].sum()), int(table[code].argmax())
        hits = int(table[code, best])
        if rows and truth.shares[best] <= 0.5 and _lower(hits, rows) >= CERTAIN:
            said = f"'{name}' = {values[code]} means {truth.label} = {truth.classes[best]}"
            return f"{said} in {hits} of {rows} rows"
    return None


def _tells_number(name: str, groups: _Groups, sample: pa.Table) -> str | None:
    label = floats(sample[LABEL].combine_chunks())
    codes = groups.codes
    if groups.numbers is not None:
        edges = np.unique(np.nanquantile(groups.numbers, np.linspace(0, 1, 51)[1:-1]))
        codes = np.where(np.isnan(groups.numbers), len(edges) + 1, np.searchsorted(edges, groups.numbers))
        straight = _straight(groups.numbers, label)
        if straight >= ALONE:
            return f"'{name}' alone gives the label on a straight line (R² {straight:.3f})"
    counts = np.bincount(codes)
    large = counts[codes] >= STUMP_LEAF
    codes = np.where(large, codes, len(counts))
    counts = np.maximum(np.bincount(codes), 1)
    means = np.bincount(codes, weights=label) / counts
    total = float(np.square(label - label.mean()).sum())
    explained = 1 - float(np.square(label - means[codes]).sum()) / total if total > 0 else 0.0
    return f"'{name}' alone explains the label (R² {explained:.3f})" if explained >= ALONE else None


def _truth(sample: pa.Table, target: Target) -> _Truth | None:
    """The classes of the sampled rows, the rarest of very many as one; None for numbers."""
    if target.task != "classification" or target.label is None:
        return None
    encoded = sample[LABEL].combine_chunks().dictionary_encode()
    names: list[str] = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    if len(names) > CLASSES:
        order = np.argsort(-np.bincount(codes), kind="stable")
        codes = np.minimum(np.argsort(order, kind="stable"), CLASSES)[codes]
        names = [*(names[i] for i in order[:CLASSES]), "another"]
    return _Truth(target.label, codes, names, np.bincount(codes, minlength=len(names)) / len(codes))


def _stump(numbers: Floats, labels: Codes, classes: int) -> Codes:
    """The leaf of each row in a tree over one column (CART, Gini), missing values in a leaf of their own."""
    leaves = np.zeros(len(numbers), dtype=np.int64)
    leaves[np.isnan(numbers)] = 1
    found = np.flatnonzero(~np.isnan(numbers))
    order = found[np.argsort(numbers[found], kind="stable")]
    one_hot = np.eye(classes, dtype=np.int64)[labels[order]]
    starts = [0, len(order)]
    for _ in range(STUMP_DEPTH):
        cuts = [_cut(numbers[order[a:b]], one_hot[a:b]) for a, b in pairwise(starts)]
        starts = sorted({*starts, *(a + cut for a, cut in zip(starts, cuts, strict=False) if cut)})
    leaves[order] = np.searchsorted(starts, np.arange(len(order)), side="right") + 1
    return leaves


def _cut(numbers: Floats, one_hot: Codes) -> int:
    """Where to cut sorted rows so that the classes are purest on both sides; 0 where no cut helps."""
    rows = len(numbers)
    if rows < 2 * STUMP_LEAF:
        return 0
    left = np.cumsum(one_hot, axis=0)[:-1].astype(np.float64)
    right = one_hot.sum(axis=0) - left
    sizes = np.arange(1, rows, dtype=np.float64)
    purity = np.square(left).sum(axis=1) / sizes + np.square(right).sum(axis=1) / (rows - sizes)
    allowed = (numbers[1:] > numbers[:-1]) & (sizes >= STUMP_LEAF) & (sizes <= rows - STUMP_LEAF)
    if not allowed.any():
        return 0
    best = int(np.where(allowed, purity, -1.0).argmax())
    before = float(np.square(one_hot.sum(axis=0, dtype=np.float64)).sum()) / rows
    return best + 1 if purity[best] > before * (1 + 1e-9) else 0


def _straight(numbers: Floats, label: Floats) -> float:
    """Squared Pearson correlation of the rows that have both."""
    there = ~np.isnan(numbers)
    with np.errstate(all="ignore"):
        x, y = numbers[there] - numbers[there].mean(), label[there] - label[there].mean()
        both = float(np.dot(x, x) * np.dot(y, y))
        return float(np.dot(x, y)) ** 2 / both if 0 < both < math.inf else 0.0


def _lower(hits: int, rows: int) -> float:
    """The lower end of the 95 % interval of a share (Wilson 1927)."""
    z = 1.96
    share = hits / rows
    spread = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return (share + z * z / (2 * rows) - spread) / (1 + z * z / rows)
