"""The strategies by name: each says for every row of a feature set whether it trains.

Rows come in the set's order. The same rows, ratio and seed always give the same split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turnout.common.errors import Invalid
from turnout.common.events import Warn
from turnout.common.pipeline import Segregation

Mask = NDArray[np.bool_]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Hashes = NDArray[np.uint64]

NO_TIME = np.iinfo(np.int64).min
# Numbers are put into so many equally full groups before they are stratified.
STRATA = 10


@dataclass(frozen=True)
class Rows:
    """The rows of a feature set as far as a split looks at them, one array element a row.

    `batches` are the batch names, `batch` is which of them a row is of, `row` its number there. `classes` are codes
    of the label's class, `numbers` a label that is a number, `times` microseconds since 1970 (`NO_TIME`: missing),
    `fold` what the column of `custom` says.
    """

    batches: Sequence[str]
    batch: Integers
    row: Integers
    classes: Integers | None = None
    numbers: Floats | None = None
    times: Integers | None = None
    fold: Sequence[str | None] | None = None

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class Split:
    """`train` says which rows train. `order`, if there is one, is the order in which rows are written."""

    train: Mask
    order: Integers | None = None
    warnings: tuple[Warn, ...] = ()


def sequential(rows: Rows, options: Segregation) -> Split:
    """The first rows train, in the set's order."""
    return Split(np.arange(len(rows)) < _cut(len(rows), options.ratio))


def random(rows: Rows, options: Segregation) -> Split:
    """Each row by a hash of its name and the seed: it stays where it is when other rows come.

    The share is the ratio up to chance. With `stratify` it is exact in each class (see `stratified`).
    """
    if options.stratify:
        return stratified(rows, options)
    # In [0, 1): 53 bits, as many as a float64 tells apart.
    share = (_hashes(rows, options.seed) >> np.uint64(11)).astype(np.float64) / 2.0**53
    return Split(share < options.ratio)


def shuffled(rows: Rows, options: Segregation) -> Split:
    """A seeded permutation, cut at an exact count; both parts are written in its order.

    With `stratify` the count is exact in each class.
    """
    order = np.random.default_rng(options.seed).permutation(len(rows))
    if options.stratify:
        return Split(stratified(rows, options).train, order)
    train = np.zeros(len(rows), dtype=np.bool_)
    train[order[: _cut(len(rows), options.ratio)]] = True
    return Split(train, order)


def stratified(rows: Rows, options: Segregation) -> Split:
    """In each class, the share given by the ratio: those rows whose hash is smallest. A class of two or more rows
    is in both parts; a number's strata are ten equally full groups. Raises `Invalid` without a label."""
    strata = _strata(rows)
    hashes = _hashes(rows, options.seed)
    train = np.zeros(len(rows), dtype=np.bool_)
    for stratum in np.unique(strata):
        there = np.flatnonzero(strata == stratum)
        ordered = there[np.argsort(hashes[there], kind="stable")]
        train[ordered[: _cut(len(there), options.ratio)]] = True
    return Split(train)


def time(rows: Rows, options: Segregation) -> Split:
    """The earlier rows train, the later ones evaluate; rows of one moment stay together, as near the ratio as that
    allows. Rows without a time train. Raises `Invalid` without an event time."""
    if rows.times is None:
        raise Invalid("segregation.strategy", "time needs the rows' event time", fix="declare source.event_time")
    known = rows.times != NO_TIME
    moments = np.sort(rows.times[known])
    if not len(moments):
        raise Invalid("source.event_time", "is missing in every row", fix="choose another strategy")
    wanted = _cut(len(moments), options.ratio)
    first = moments[min(wanted, len(moments) - 1)]
    before, upto = np.searchsorted(moments, first, side="left"), np.searchsorted(moments, first, side="right")
    # Of the two borders of that moment the one nearer to the ratio, but both parts get something if they can.
    near_upto = upto - wanted < wanted - before and upto < len(moments)
    train = ~known | (rows.times <= first if near_upto or before == 0 else rows.times < first)
    missing = int(np.count_nonzero(~known))
    message = f"{missing} rows have no event time and train"
    return Split(train, warnings=(Warn(code="no_event_time", message=message),) if missing else ())


def custom(rows: Rows, options: Segregation) -> Split:
    """A column of the source says train or test. Raises `Invalid` where it says anything else."""
    if rows.fold is None:
        raise Invalid("segregation.column", f"the feature set lacks '{options.column}'", fix="announce the data again")
    said = np.array([fold.casefold() if fold is not None else "" for fold in rows.fold], dtype=object)
    train, test = said == "train", said == "test"
    other = np.flatnonzero(~(train | test))
    if len(other):
        found = rows.fold[int(other[0])]
        what = "is missing" if found is None else f"says {found!r}"
        problem = f"'{options.column}' {what} in row {rows.row[other[0]]} (and {len(other) - 1} more)"
        raise Invalid("segregation.column", problem, fix="it must say train or test in every row")
    return Split(np.asarray(train, dtype=np.bool_))


STRATEGIES: Mapping[str, Callable[[Rows, Segregation], Split]] = {
    "sequential": sequential, "random": random, "shuffled": shuffled, "stratified": stratified, "time": time,
    "custom": custom,
}  # fmt: skip


def of_function(answer: object, rows: int) -> Split:
    """The split that a user's function answered with: true where a row trains. Raises `Invalid`."""
    found = np.asarray(answer)
    if found.shape != (rows,) or found.dtype != np.bool_:
        problem = f"answered {found.dtype} of shape {found.shape}"
        raise Invalid("segregation.function", problem, fix=f"return {rows} booleans, true for train")
    return Split(found.copy())


def check(split: Split, rows: Rows, classes: Sequence[str]) -> tuple[Warn, ...]:
    """What is to be said of the parts' labels.

    Raises `Invalid` where a part is empty, or the training part has one class only.
    """
    for name, there in (("train", split.train), ("test", ~split.train)):
        if not there.any():
            fix = "bring more rows, or change ratio, seed or strategy"
            raise Invalid("segregation", f"the {name} part is empty ({len(rows)} rows in all)", fix=fix)
    if rows.classes is None:
        return ()
    train = np.bincount(rows.classes[split.train], minlength=len(classes))
    test = np.bincount(rows.classes[~split.train], minlength=len(classes))
    if np.count_nonzero(train) == 1:
        only = classes[int(train.argmax())]
        fix = "use strategy: stratified, or bring more rows"
        raise Invalid("segregation", f"the train part has one class only, {only}", fix=fix)
    found: list[Warn] = []
    if np.count_nonzero(test) == 1:
        only = classes[int(test.argmax())]
        message = f"the test part has one class only, {only}: metrics say little; use strategy: stratified"
        found.append(Warn(code="single_class", message=message))
    for code in np.flatnonzero((train == 0) & (test > 0)).tolist():
        message = f"class {classes[code]} is in the test part only; use strategy: stratified"
        found.append(Warn(code="unseen_class", message=message))
    return tuple(found)


def _cut(rows: int, ratio: float) -> int:
    """How many of `rows` train: the ratio, and at least one in each part where there are two."""
    return min(max(round(rows * ratio), 1), rows - 1) if rows > 1 else rows


def _strata(rows: Rows) -> Integers:
    if rows.classes is not None:
        return rows.classes
    if rows.numbers is None:
        raise Invalid("segregation", "nothing to stratify by: the task has no label", fix="use strategy: random")
    edges = np.unique(np.quantile(rows.numbers, np.linspace(0, 1, STRATA + 1)[1:-1]))
    return np.searchsorted(edges, rows.numbers, side="right").astype(np.int64)


def _hashes(rows: Rows, seed: int) -> Hashes:
    """A number for each row from its name and the seed, evenly over 64 bits (splitmix64, Steele et al. 2014)."""
    starts = [hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest() for name in rows.batches]
    found = np.frombuffer(b"".join(starts), np.uint64)[rows.batch] ^ rows.row.astype(np.uint64)
    with np.errstate(over="ignore"):
        found = found + np.uint64(0x9E3779B97F4A7C15)
        found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return found ^ (found >> np.uint64(31))
