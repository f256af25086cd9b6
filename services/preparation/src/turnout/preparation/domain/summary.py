"""What columns look like, in one pass over any amount of data: a summary of each part, merged.

Counts, moments and extremes are exact. The number of distinct values is exact up to `DISTINCT` and an estimate with
a standard error of 1/√DISTINCT (0.8 %) beyond: the k smallest hashes (Bar-Yossef et al. 2002, "Counting distinct
elements in a data stream"). Moments are merged by Pébay 2008, "Formulas for robust, one-pass parallel computation of
covariances and arbitrary-order statistical moments". Histograms come from the `SAMPLED` rows whose row hash is
smallest, a uniform sample that does not depend on order or on how the data were cut into parts; for fewer rows they
are exact.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from turnout.common.events import ColumnProfile, Histogram
from turnout.common.values import Kind
from turnout.preparation.domain.columns import Columns, Floats, Kinds, floats

Hashes = NDArray[np.uint64]

DISTINCT = 16_384
SAMPLED = 20_000
# Categories counted exactly; of more, the rarest counts are let go.
COUNTED = 4_096
BINS = 20
KEY = "_key"


@dataclass(frozen=True)
class Moments:
    """Count, mean and the sums of squared and cubed distances from it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    cubes: float = 0.0

    def __add__(self, other: Moments) -> Moments:
        """The moments of both together."""
        if not self.count or not other.count:
            return self if self.count else other
        n, m = float(self.count), float(other.count)
        total, delta = n + m, other.mean - self.mean
        with np.errstate(all="ignore"):
            cubes = (
                self.cubes
                + other.cubes
                + _times(delta**3 if abs(delta) < 1e100 else math.inf * delta, n * m * (n - m) / total**2)
                + 3 * delta * (n * other.squares - m * self.squares) / total
            )
            squares = self.squares + other.squares + delta * delta * n * m / total
        return Moments(self.count + other.count, self.mean + delta * m / total, squares, cubes)

    @property
    def std(self) -> float | None:
        """The population's standard deviation."""
        return _finite(math.sqrt(self.squares / self.count)) if self.count and self.squares >= 0 else None

    @property
    def skew(self) -> float | None:
        """The population's skewness, 0 for a symmetric column; None where it has no spread."""
        if not self.count or not 1e-200 < self.squares < 1e200:
            return None
        return _finite(math.sqrt(self.count) * self.cubes / self.squares**1.5)


@dataclass(frozen=True)
class ColumnSummary:
    """One column. `hashes` are the smallest of its values' hashes, `counts` its categories."""

    kind: Kind
    rows: int = 0
    missing: int = 0
    hashes: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))
    moments: Moments = Moments()
    low: float = math.inf
    high: float = -math.inf
    integral: bool = True
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def present(self) -> int:
        """Rows with a value."""
        return self.rows - self.missing

    @property
    def distinct(self) -> int:
        """Number of distinct values."""
        if len(self.hashes) < DISTINCT:
            return len(self.hashes)
        estimate = (DISTINCT - 1) / (float(self.hashes[-1]) / 2.0**64)
        return min(max(round(estimate), DISTINCT), self.present)

    @property
    def constant(self) -> bool:
        """Whether every row says the same."""
        return self.rows > 1 and self.distinct <= 1 and self.missing in (0, self.rows)

    def __add__(self, other: ColumnSummary) -> ColumnSummary:
        """The summary of both together."""
        return ColumnSummary(
            kind=self.kind,
            rows=self.rows + other.rows,
            missing=self.missing + other.missing,
            hashes=np.union1d(self.hashes, other.hashes)[:DISTINCT],
            moments=self.moments + other.moments,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            integral=self.integral and other.integral,
            counts=_counted(self.counts, other.counts),
        )


@dataclass(frozen=True)
class Summary:
    """Columns by name, and the sampled rows (the columns and `KEY`, their row hashes), if any were asked for."""

    rows: int
    columns: Mapping[str, ColumnSummary]
    sample: pa.Table | None = None

    def __add__(self, other: Summary) -> Summary:
        """The summary of both together; the order does not matter."""
        if not self.rows or not other.rows:
            return self if self.rows else other
        columns = {name: found + other.columns[name] for name, found in self.columns.items()}
        sample = None
        if self.sample is not None and other.sample is not None:
            sample = _sampled(pa.concat_tables([self.sample, other.sample]))
        return Summary(self.rows + other.rows, columns, sample)


def summarise(columns: Columns, kinds: Kinds, *, keys: Hashes | None = None, so_far: Summary | None = None) -> Summary:
    """The summary of `so_far` and these rows. With `keys` (a hash of each row) rows are sampled too."""
    rows = len(next(iter(columns.values())))
    before = so_far.columns if so_far is not None else {}
    found = {name: _summarise(columns[name], kind, before.get(name)) for name, kind in kinds.items()}
    sample = None
    if keys is not None:
        table = pa.table({**{name: columns[name] for name in kinds}, KEY: pa.array(keys)})
        sample = _sampled(table)
    mine = Summary(rows, found, sample)
    return mine if so_far is None else so_far + mine


def row_keys(batch: str, rows: NDArray[np.int64]) -> Hashes:
    """A hash of each row of a batch, the same for ever."""
    start = np.frombuffer(hashlib.blake2b(batch.encode(), digest_size=8).digest(), np.uint64)[0]
    return mixed(rows.astype(np.uint64) ^ start)


def mixed(numbers: Hashes) -> Hashes:
    """splitmix64's finaliser (Steele, Lea, Flood 2014): equal numbers stay equal, others fall anywhere."""
    with np.errstate(over="ignore"):
        found = numbers + np.uint64(0x9E3779B97F4A7C15)
        found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return found ^ (found >> np.uint64(31))


def profile(summary: Summary, names: Sequence[str]) -> tuple[ColumnProfile, ...]:
    """The profiles of the columns `names`; needs a sample."""
    return tuple(_profile(name, summary) for name in names)


def _summarise(array: pa.Array, kind: Kind, before: ColumnSummary | None) -> ColumnSummary:
    limit = before.hashes[-1] if before is not None and len(before.hashes) == DISTINCT else None
    if kind == "category":
        return _categories(array, limit)
    found = floats(array)
    there = found[~np.isnan(found)]
    # -0.0 is 0.0 to everyone but the bits.
    hashes = mixed((there + 0.0).view(np.uint64))
    if not len(there):
        return ColumnSummary(kind, len(found), len(found))
    with np.errstate(all="ignore"):
        mean = float(there.mean())
        apart = there - mean
        squares, cubes = float(np.dot(apart, apart)), float(np.dot(apart * apart, apart))
        integral = bool(np.all(there == np.floor(there)))
    return ColumnSummary(
        kind=kind,
        rows=len(found),
        missing=len(found) - len(there),
        hashes=_smallest(hashes, limit),
        moments=Moments(len(there), mean, squares, cubes),
        low=float(there.min()),
        high=float(there.max()),
        integral=integral,
    )


def _categories(array: pa.Array, limit: np.uint64 | None) -> ColumnSummary:
    counted = array.drop_null().value_counts()
    texts: list[str] = counted.field("values").to_pylist()
    counts: list[int] = counted.field("counts").to_pylist()
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return ColumnSummary(
        kind="category",
        rows=len(array),
        missing=array.null_count,
        hashes=_smallest(np.frombuffer(digests, np.uint64), limit),
        counts=_counted(dict(zip(texts, counts, strict=True)), {}),
    )


def _smallest(hashes: Hashes, limit: np.uint64 | None) -> Hashes:
    """The smallest distinct hashes; those above `limit` cannot be among the smallest of the whole."""
    return np.unique(hashes if limit is None else hashes[hashes < limit])[:DISTINCT]


def _counted(first: Mapping[str, int], second: Mapping[str, int]) -> Mapping[str, int]:
    counts = dict(first)
    for text, count in second.items():
        counts[text] = counts.get(text, 0) + count
    if len(counts) <= 2 * COUNTED:
        return counts
    return dict(_commonest(counts)[:COUNTED])


def _commonest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _sampled(table: pa.Table) -> pa.Table:
    if table.num_rows <= SAMPLED:
        return table
    keys = table[KEY].to_numpy()
    return table.take(pa.array(np.sort(np.argpartition(keys, SAMPLED)[:SAMPLED]))).combine_chunks()


def _profile(name: str, summary: Summary) -> ColumnProfile:
    column = summary.columns[name]
    assert summary.sample is not None
    moments = column.moments
    return ColumnProfile(
        name=name,
        kind=column.kind,
        rows=column.rows,
        missing=column.missing,
        distinct=column.distinct,
        mean=_finite(moments.mean) if moments.count else None,
        std=moments.std,
        minimum=column.low if moments.count else None,
        maximum=column.high if moments.count else None,
        skew=moments.skew,
        histogram=_histogram(column, summary.sample[name]),
    )


def _histogram(column: ColumnSummary, sample: pa.ChunkedArray) -> Histogram:
    if column.kind == "category":
        top = _commonest(column.counts)[:BINS]
        return Histogram(
            categories=tuple(text for text, _ in top), counts=tuple(count for _, count in top), missing=column.missing
        )
    found = floats(sample.combine_chunks())
    found = found[~np.isnan(found)]
    if not len(found):
        return Histogram(counts=(), missing=column.missing)
    edges = _edges(found, column)
    counts = np.bincount(np.searchsorted(edges[1:-1], found, side="right"), minlength=len(edges) - 1)
    return Histogram(edges=tuple(edges.tolist()), counts=_scaled(counts, column.present), missing=column.missing)


def _edges(found: Floats, column: ColumnSummary) -> Floats:
    """A bin for each value where there are few, else bins of about equally many rows."""
    values = np.unique(found)
    if len(values) <= BINS:
        inner = values[:-1] / 2 + values[1:] / 2
    else:
        with np.errstate(all="ignore"):
            inner = np.unique(np.quantile(found, np.linspace(0, 1, BINS + 1)[1:-1]))
    inner = inner[(inner > column.low) & (inner < column.high)]
    return np.concatenate([[column.low], inner, [column.high]])


def _scaled(counts: NDArray[np.int64], total: int) -> tuple[int, ...]:
    """`counts` of a sample as counts of the whole, by largest remainder, so that they add up."""
    shares = counts * (total / counts.sum())
    whole = np.floor(shares).astype(np.int64)
    rest = np.argsort(whole - shares, kind="stable")[: total - int(whole.sum())]
    whole[rest] += 1
    return tuple(whole.tolist())


def _times(left: float, right: float) -> float:
    return left * right if right else 0.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
