"""Many scores of one version as one small value that can be merged with another: the seam for scale.

Scoring makes a summary of about a second, monitoring merges them.
`merge` is associative and commutative, so a summary of a day is the merge of its seconds, whoever made them.
A summary's size does not depend on how many scores are in it: about 20 kB at most for latency and for each
numeric prediction, and one counter per bin of the training profile.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from ddsketch.ddsketch import BaseDDSketch
from ddsketch.mapping import LogarithmicMapping
from ddsketch.store import CollapsingLowestDenseStore

from turnout.common.errors import Invalid
from turnout.common.events import (
    Attempt,
    Column,
    ColumnProfile,
    ScoresSummarised,
    Summed,
    Tried,
)
from turnout.common.ids import caused_event_id
from turnout.common.values import Cell, Kind, cell

RELATIVE_ACCURACY = 0.01
# Bins of a sketch before the smallest values share one; 1 % accuracy from 1 µs to 1 hour takes 1,100.
BIN_LIMIT = 2048
# Different predicted values counted one by one; more of them and the rest is `other`.
MAX_CLASSES = 200
OTHER = "(other)"
# Who answers without a version of its own: what it says is no evidence of a version.
VERSIONLESS = ("cache", "baseline")
# The newest attempts that a summary tells one by one: more than a verdict looks at.
TRIES = 200

# What numpy turns into a number as `Bins` does.
_NUMERIC = frozenset((float, int, bool, type(None)))

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Quantiles:
    """Count, least, greatest and any quantile within 1 % of its value (DDSketch; Masson, Rim, Lee, VLDB 2019)."""

    __slots__ = ("_negative", "_positive", "_sketch", "greatest", "least")

    def __init__(self, positive: Mapping[int, int] | None = None, zeros: int = 0) -> None:
        self._positive = _store(positive or {})
        self._negative = _store({})
        self._sketch = _sketch(self._positive, self._negative, zeros)
        self.least: float | None = None
        self.greatest: float | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantiles) and self.to_json() == other.to_json()

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # it changes

    @property
    def count(self) -> int:
        """How many values."""
        return round(self._sketch.count)

    def add(self, value: float) -> None:
        """Take a finite value in."""
        self._sketch.add(value)
        self._stretch(value, value)

    def add_all(self, values: Iterable[float]) -> None:
        """Take many in; the same as one by one, for less where they share a bin."""
        one_of: dict[int, float] = {}
        counts = Counter[int]()
        for value in values:
            if value <= _MAPPING.min_possible:
                self.add(value)
                continue
            self._stretch(value, value)
            at = _MAPPING.key(value)
            one_of[at] = value
            counts[at] += 1
        for at, count in counts.items():
            self._sketch.add(one_of[at], count)

    def quantile(self, share: float) -> float | None:
        """The value below which `share` (0 to 1) of the values lie; None when there are none."""
        found = self._sketch.get_quantile_value(share)
        if found is None or self.least is None or self.greatest is None:
            return None
        return min(max(float(found), self.least), self.greatest)

    def merge(self, other: Quantiles) -> None:
        """Take all of the other's values in."""
        self._sketch.merge(other._sketch)
        if other.least is not None and other.greatest is not None:
            self._stretch(other.least, other.greatest)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `from_json`: bin numbers with their counts."""
        positive, negative = _bins(self._positive), _bins(self._negative)
        zeros = self.count - sum(positive.values()) - sum(negative.values())
        return {
            "positive": {str(key): count for key, count in positive.items()},
            "negative": {str(key): count for key, count in negative.items()},
            "zeros": zeros,
            "least": self.least,
            "greatest": self.greatest,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Quantiles:
        """The sketch that `to_json` described."""
        made = cls()
        made._positive = _store({int(key): count for key, count in data["positive"].items()})
        made._negative = _store({int(key): count for key, count in data["negative"].items()})
        made._sketch = _sketch(made._positive, made._negative, data["zeros"])
        made.least, made.greatest = data["least"], data["greatest"]
        return made

    def _stretch(self, least: float, greatest: float) -> None:
        if self.least is None or least < self.least:
            self.least = least
        if self.greatest is None or greatest > self.greatest:
            self.greatest = greatest


@dataclass(frozen=True, slots=True)
class Bins:
    """How training counted a raw column: between `edges`, or per category."""

    kind: Kind
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()

    def of(self, value: Cell) -> int | None:
        """Which bin holds the value: -1 one that training never saw, None if it is missing."""
        if self.kind == "number" and type(value) is float and math.isfinite(value):
            return self._between(value)
        try:
            found = cell(value, self.kind, "")
        except Invalid:
            return -1
        if found is None:
            return None
        if isinstance(found, str):
            return self.categories.index(found) if found in self.categories else -1
        return self._between(found if isinstance(found, float | int) else found.timestamp())

    def _between(self, at: float) -> int:
        # A value outside goes to the end bins, as in training; the last bin holds its upper edge.
        return bisect_right(self.edges, at, 1, len(self.edges) - 1) - 1


# Raw column -> its bins.
Shape = Mapping[str, Bins]


def shape_of(inputs: Iterable[Column], profile: Iterable[ColumnProfile]) -> Shape:
    """The bins of those raw inputs that have a histogram in the profile (`in:NAME` is the raw one, where it is)."""
    profiles = {p.name: p for p in profile if p.histogram is not None}
    shape: dict[str, Bins] = {}
    for column in inputs:
        found = profiles.get(f"in:{column.name}", profiles.get(column.name))
        if found is None or found.histogram is None or found.kind != column.kind:
            continue
        histogram = found.histogram
        if len(histogram.edges) >= 2 or histogram.categories:
            shape[column.name] = Bins(column.kind, histogram.edges, histogram.categories)
    return shape


class Asked(Protocol):
    """An `Attempt`, or what is left of one on its way."""

    @property
    def version(self) -> str:
        """Which version was asked."""
        ...

    @property
    def outcome(self) -> Literal["ok", "late", "error", "off", "loading"]:
        """What came of it."""
        ...

    @property
    def milliseconds(self) -> float | None:
        """How long it took."""
        ...


class Answered(Protocol):
    """A `ScoreProduced`, or what is left of one on its way; see there."""

    @property
    def pipeline(self) -> str:
        """Whose score."""
        ...

    @property
    def time(self) -> datetime:
        """When."""
        ...

    @property
    def version(self) -> str:
        """Who answered."""
        ...

    @property
    def served_by(self) -> str:
        """In which role."""
        ...

    @property
    def attempts(self) -> Sequence[Asked]:
        """All who were asked."""
        ...

    @property
    def values(self) -> Mapping[str, Cell]:
        """What was asked."""
        ...

    @property
    def value(self) -> float | str:
        """The answer."""
        ...

    @property
    def milliseconds(self) -> float:
        """Until the reply."""
        ...


@dataclass(slots=True)
class Counts:
    """A live histogram on training's bins; `other` never occurred in training."""

    counts: list[int]
    other: int = 0
    missing: int = 0

    @classmethod
    def on(cls, bins: Bins) -> Counts:
        """Nothing counted yet."""
        return cls([0] * (len(bins.categories) or len(bins.edges) - 1))

    @property
    def total(self) -> int:
        """Values seen, missing ones too."""
        return sum(self.counts) + self.other + self.missing

    def add(self, at: int | None, times: int = 1) -> None:
        """Count what `Bins.of` said."""
        match at:
            case None:
                self.missing += times
            case -1:
                self.other += times
            case _:
                self.counts[at] += times

    def add_all(self, cells: Sequence[Cell], bins: Bins) -> None:
        """Count many cells at once; the same as one by one."""
        if bins.kind == "number" and bins.edges and _NUMERIC.issuperset(map(type, cells)):
            try:
                numbers = np.array(cells, dtype=np.float64)
            except OverflowError:
                numbers = None
            if numbers is not None and not np.isinf(numbers).any():
                there = numbers[~np.isnan(numbers)]
                self.missing += len(numbers) - len(there)
                at = np.clip(np.searchsorted(bins.edges, there, side="right"), 1, len(bins.edges) - 1) - 1
                counted = np.bincount(at, minlength=len(self.counts)).tolist()
                self.counts = [a + b for a, b in zip(self.counts, counted, strict=True)]
                return
        # With their type: to a counter 1 and True are the same, to a category they are not.
        for (_, value), times in Counter((type(value), value) for value in cells).items():
            self.add(bins.of(value), times)

    def merge(self, other: Counts) -> None:
        """Add the other's counts. Bins must be the same: they belong to the version."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.other += other.other
        self.missing += other.missing


@dataclass(slots=True)
class Summary:
    """What is known of one version from its scores.

    `served`: answers that were its own, by role. `attempts`: each time it was asked, by outcome. `fallbacks`: times
    somebody else answered after it had been asked, by why. Times are milliseconds; `microseconds` is their sum.
    """

    served: Counter[str] = field(default_factory=Counter[str])
    attempts: Counter[str] = field(default_factory=Counter[str])
    fallbacks: Counter[str] = field(default_factory=Counter[str])
    latency: Quantiles = field(default_factory=Quantiles)
    microseconds: int = 0
    features: dict[str, Counts] = field(default_factory=dict[str, Counts])
    classes: Counter[str] = field(default_factory=Counter[str])
    numbers: Quantiles = field(default_factory=Quantiles)

    @property
    def mean(self) -> float | None:
        """Mean milliseconds of its runs that ended."""
        return self.microseconds / self.latency.count / 1000 if self.latency.count else None

    def answered(self, score: Answered, shape: Shape) -> None:
        """This version gave the answer."""
        self.served[score.served_by] += 1
        if score.served_by in VERSIONLESS:
            return
        if not any(a.version == score.version for a in score.attempts):
            self.tried(Attempt(version=score.version, outcome="ok", milliseconds=score.milliseconds))
        if len(self.features) < len(shape):
            for name, bins in shape.items():
                self.features.setdefault(name, Counts.on(bins))
        given = score.values
        for name, bins in shape.items():
            self.features[name].add(bins.of(given.get(name)))
        if isinstance(score.value, str):
            self._count_class(score.value, 1)
        else:
            self.numbers.add(float(score.value))

    def answered_alike(self, scores: Sequence[Answered], shape: Shape) -> None:
        """This version gave all these answers, in one role, asked first and alone; the same as one by one."""
        self.served[scores[0].served_by] += len(scores)
        self.attempts["ok"] += len(scores)
        for name, bins in shape.items():
            counts = self.features.setdefault(name, Counts.on(bins))
            counts.add_all([score.values.get(name) for score in scores], bins)
        times = [ms for score in scores if (ms := score.attempts[0].milliseconds) is not None]
        self.latency.add_all(times)
        self.microseconds += sum(round(milliseconds * 1000) for milliseconds in times)
        for score in scores:
            if isinstance(score.value, str):
                self._count_class(score.value, 1)
            else:
                self.numbers.add(float(score.value))

    def tried(self, attempt: Asked) -> None:
        """This version was asked."""
        self.attempts[attempt.outcome] += 1
        if attempt.milliseconds is not None:
            self.latency.add(attempt.milliseconds)
            self.microseconds += round(attempt.milliseconds * 1000)

    def asked(self, attempt: Asked, score: Answered) -> None:
        """This version was asked for `score`, whoever gave it."""
        self.tried(attempt)
        if attempt.outcome != "ok" and (attempt.version != score.version or score.served_by in VERSIONLESS):
            self.fallbacks[attempt.outcome] += 1

    def merge(self, other: Summary) -> None:
        """Take all of the other's scores in."""
        self.served.update(other.served)
        self.attempts.update(other.attempts)
        self.fallbacks.update(other.fallbacks)
        self.latency.merge(other.latency)
        self.microseconds += other.microseconds
        for name, counts in other.features.items():
            if name in self.features:
                self.features[name].merge(counts)
            else:
                self.features[name] = Counts(list(counts.counts), counts.other, counts.missing)
        for name, count in other.classes.items():
            self._count_class(name, count)
        self.numbers.merge(other.numbers)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `from_json`, to be sent or kept."""
        return {
            "served": dict(self.served),
            "attempts": dict(self.attempts),
            "fallbacks": dict(self.fallbacks),
            "latency": self.latency.to_json(),
            "microseconds": self.microseconds,
            "features": {
                name: {"counts": list(c.counts), "other": c.other, "missing": c.missing}
                for name, c in self.features.items()
            },
            "classes": dict(self.classes),
            "numbers": self.numbers.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Summary:
        """The summary that `to_json` described."""
        return cls(
            served=Counter(data["served"]),
            attempts=Counter(data["attempts"]),
            fallbacks=Counter(data["fallbacks"]),
            latency=Quantiles.from_json(data["latency"]),
            microseconds=data["microseconds"],
            features={
                name: Counts(list(found["counts"]), found["other"], found["missing"])
                for name, found in data["features"].items()
            },
            classes=Counter(data["classes"]),
            numbers=Quantiles.from_json(data["numbers"]),
        )

    def _count_class(self, name: str, count: int) -> None:
        known = name in self.classes or len(self.classes) < MAX_CLASSES
        self.classes[name if known else OTHER] += count


def summarise(scores: Iterable[Answered], shapes: Mapping[str, Shape]) -> dict[str, Summary]:
    """A summary per version that was asked or answered; `shapes` per version, where training's bins are known."""
    summaries: defaultdict[str, Summary] = defaultdict(Summary)
    for score in scores:
        summaries[score.version].answered(score, shapes.get(score.version, {}))
        for attempt in score.attempts:
            summaries[attempt.version].asked(attempt, score)
    return dict(summaries)


class Try(NamedTuple):
    """A `Tried` in the making: there is one for each score, and only the newest are told."""

    outcome: Literal["ok", "late", "error", "off"]
    at: int
    milliseconds: float | None
    until: int | None = None
    times: int = 1


@dataclass(slots=True)
class Gathered:
    """A summary of one version of one pipeline while scores are added to it."""

    pipeline: str
    version: str
    since: datetime
    until: datetime
    summary: Summary = field(default_factory=Summary)
    tries: deque[Try] = field(default_factory=lambda: deque[Try](maxlen=TRIES))

    def event(self, source: str, outbox: str, sequence: int) -> ScoresSummarised:
        """It as an event; its id comes from who counted and the number."""
        return ScoresSummarised.first(
            source=source,
            at=self.until,
            id=caused_event_id(outbox, ScoresSummarised.__name__, f"{self.pipeline}\0{self.version}\0{sequence}"),
            pipeline=self.pipeline,
            version=self.version,
            outbox=outbox,
            sequence=sequence,
            since=self.since,
            summary=Summed.model_validate(self.summary.to_json()),
            tries=tuple(Tried(**one._asdict()) for one in self.tries),
        )

    def tried(self, outcome: Literal["ok", "late", "error", "off"], at: datetime, milliseconds: float | None) -> None:
        """An attempt, in the order they happened."""
        happened = micros(at)
        last = self.tries[-1] if self.tries else None
        if outcome == "off" and last is not None and last.outcome == "off":
            since, until = min(last.at, happened), max(last.until or last.at, happened)
            self.tries[-1] = Try("off", since, None, until, last.times + 1)
        else:
            self.tries.append(Try(outcome, happened, milliseconds))


class Gathering:
    """Scores of any pipeline on their way to summaries, one per version that was asked or answered."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, str], Gathered] = {}

    def __bool__(self) -> bool:
        return bool(self._parts)

    @property
    def parts(self) -> list[Gathered]:
        """What there is to tell."""
        return list(self._parts.values())

    def add(self, score: Answered, shape: Shape) -> None:
        """Count a score in; `shape` is its version's."""
        self._of(score, score.version).summary.answered(score, shape)
        for attempt in score.attempts:
            part = self._of(score, attempt.version)
            part.summary.asked(attempt, score)
            if attempt.outcome != "loading":
                part.tried(attempt.outcome, score.time, attempt.milliseconds)

    def add_all(self, scores: Iterable[Answered], shape_of: Callable[[Answered], Shape]) -> None:
        """Count many scores in; the same as one by one, for less where they are alike."""
        alike: defaultdict[tuple[str, str, str], list[Answered]] = defaultdict(list)
        for score in scores:
            tried = [(attempt.version, attempt.outcome) for attempt in score.attempts]
            if tried == [(score.version, "ok")] and score.served_by not in VERSIONLESS:
                alike[score.pipeline, score.version, score.served_by].append(score)
            else:
                self.add(score, shape_of(score))
        for (_, version, _), some in alike.items():
            for score in (min(some, key=_time), max(some, key=_time)):
                part = self._of(score, version)
            part.summary.answered_alike(some, shape_of(some[0]))
            for score in some[-TRIES:]:
                part.tried("ok", score.time, score.attempts[0].milliseconds)

    def _of(self, score: Answered, version: str) -> Gathered:
        part = self._parts.get((score.pipeline, version))
        if part is None:
            part = self._parts[score.pipeline, version] = Gathered(score.pipeline, version, score.time, score.time)
        elif score.time > part.until:
            part.until = score.time
        elif score.time < part.since:
            part.since = score.time
        return part


def _time(score: Answered) -> datetime:
    return score.time


def micros(moment: datetime) -> int:
    """Microseconds since 1970, exact."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(micros: int) -> datetime:
    """The time of so many microseconds since 1970."""
    return _EPOCH + micros * _MICROSECOND


def merge(into: dict[str, Summary], more: Mapping[str, Summary]) -> None:
    """Merge summaries per version; `more` is not changed and not kept."""
    for version, summary in more.items():
        into.setdefault(version, Summary()).merge(summary)


_MAPPING = LogarithmicMapping(RELATIVE_ACCURACY)


def _store(bins: Mapping[int, int]) -> Any:
    store = CollapsingLowestDenseStore(BIN_LIMIT)
    for key, count in bins.items():
        store.add(key, float(count))
    return store


def _sketch(positive: Any, negative: Any, zeros: int) -> Any:
    return BaseDDSketch(
        mapping=_MAPPING,
        store=positive,
        negative_store=negative,
        zero_count=float(zeros),
    )


def _bins(store: Any) -> dict[int, int]:
    counted = ((index + store.offset, round(count)) for index, count in enumerate(store.bins) if count)
    return dict(counted)
