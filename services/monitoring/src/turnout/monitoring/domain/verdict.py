"""Whether a version is too slow, too faulty or too wrong: only with enough samples, by an interval, and once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import NormalDist
from typing import Literal

from turnout.common.events import Attempt, Tried, VersionStats
from turnout.common.summary import moment

Signal = Literal["latency", "errors", "accuracy"]

# One-sided confidence of a verdict about quality.
CONFIDENCE = 0.99
# A router that took a version off tries it again one second later, in the shadow of requests, and takes three good
# trials to bring it back. Still off after as much time and as many requests as that needs: the trials failed too.
OFF_BEFORE_TRIAL = timedelta(seconds=1)
TRIAL = timedelta(seconds=0.5)
TRIAL_REQUESTS = 5
# The window of attempts, in `min_samples`: a sudden change is seen after one `min_samples` at a late_share of one half.
WINDOW = 2
# Joined outcomes that are looked at, in `min_samples`.
OUTCOMES = 10
# A stretch of requests that passed a version by is looked at as so many, spread over its time, or `min_samples`.
PASSED_BY = 2 * TRIAL_REQUESTS


@dataclass(frozen=True, slots=True)
class Rules:
    """What a person allows, from the pipeline file."""

    min_samples: int = 20
    late_share: float = 0.5
    accuracy_drop: float = 0.15


@dataclass(frozen=True, slots=True)
class Evidence:
    """A verdict: why, and the numbers."""

    signal: Signal
    why: str
    stats: VersionStats


@dataclass(slots=True, eq=False)
class _Try:
    """One attempt; one that was passed by is undecided (`outcome` None) until its router's trials are over."""

    router: str
    outcome: Literal["ok", "late", "error"] | None
    milliseconds: float | None = None
    passed_by: bool = False


class Tries:
    """The newest attempts at one version since `since`; older ones, under another table, say nothing.

    An "off" (a router passed the version by) counts only when that router's trials had time to bring it back and did
    not: a router's moment of trouble must not condemn a version, and a version that stays down must not hide behind
    the router that protects everybody from it.
    """

    def __init__(self, rules: Rules, since: datetime | None = None) -> None:
        self._rules = rules
        self._since = since
        self._recent: deque[_Try] = deque(maxlen=WINDOW * rules.min_samples)
        self._off: dict[str, _Off] = {}

    def add(self, attempt: Attempt, router: str, at: datetime) -> None:
        """Take an attempt in, in the order they happened."""
        if self._since is not None and at < self._since:
            return
        match attempt.outcome:
            case "ok" | "late" | "error":
                self.restored(router)
                self._recent.append(_Try(router, attempt.outcome, attempt.milliseconds))
            case "off":
                self._passed_by(router, at)
            case "loading":
                return

    def tried(self, one: Tried, router: str) -> None:
        """Take in what a summary tells of an attempt, or of a stretch of them."""
        first, last = moment(one.at), moment(one.at if one.until is None else one.until)
        if one.outcome != "off":
            self.add(Attempt(version="", outcome=one.outcome, milliseconds=one.milliseconds), router, first)
            return
        if self._since is not None:
            first = max(first, self._since)
        if last < first:
            return
        count = min(one.times, max(PASSED_BY, self._rules.min_samples))
        off = Attempt(version="", outcome="off")
        for index in range(1, count + 1):
            self.add(
                off, router, last if index == count else first + (last - first) * ((index - 1) / max(count - 1, 1))
            )

    def restored(self, router: str | None = None) -> None:
        """A router asks the version again (None: whichever): that it was passed by meanwhile is no evidence."""
        ended = [name for name in self._off if router is None or name == router]
        if not ended:
            return
        for name in ended:
            del self._off[name]
        self._recent = deque(
            (t for t in self._recent if t.outcome is not None or t.router not in ended), maxlen=self._recent.maxlen
        )

    @property
    def stats(self) -> VersionStats:
        """The window's numbers."""
        times = sorted(t.milliseconds for t in self._recent if t.milliseconds is not None)
        return VersionStats(
            requests=sum(t.outcome is not None for t in self._recent),
            late=sum(t.outcome == "late" for t in self._recent),
            errors=sum(t.outcome == "error" for t in self._recent),
            p50=_rank(times, 0.5),
            p99=_rank(times, 0.99),
        )

    def verdict(self) -> Evidence | None:
        """Too many of the newest attempts were late or failed."""
        stats = self.stats
        bad = stats.late + stats.errors
        if stats.requests < self._rules.min_samples or bad < self._rules.late_share * stats.requests:
            return None
        signal: Signal = "errors" if stats.errors > stats.late else "latency"
        passed_by = sum(t.passed_by and t.outcome is not None for t in self._recent)
        what = "failed" if signal == "errors" else "were late or failed"
        why = f"{bad - passed_by} of the last {stats.requests} requests {what}"
        if passed_by:
            why += f", {passed_by} passed it by: its router had taken it off, and its trials failed too"
        return Evidence(signal, why, stats)

    @property
    def well(self) -> bool:
        """Clearly on the good side again: less than half of what a verdict takes, over as many attempts."""
        stats = self.stats
        return (
            stats.requests >= self._rules.min_samples
            and stats.late + stats.errors < self._rules.late_share / 2 * stats.requests
        )

    def _passed_by(self, router: str, at: datetime) -> None:
        off = self._off.get(router)
        if off is None:
            off = self._off[router] = _Off(at, self._named(router))
        # The tries that it was taken off for stay in the window: they are the better evidence.
        passed_by = [t for t in self._recent if t.passed_by and t.router == router]
        if len(passed_by) >= self._rules.min_samples:
            self._recent.remove(passed_by[0])
        self._recent.append(_Try(router, None, passed_by=True))
        if off.trial is None and at - off.since >= OFF_BEFORE_TRIAL:
            off.trial = at
        if off.trial is None:
            return
        off.requests += 1
        if off.requests >= TRIAL_REQUESTS and at - off.trial >= TRIAL:
            for one in self._recent:
                if one.outcome is None and one.router == router:
                    one.outcome = off.failed

    def _named(self, router: str) -> Literal["late", "error"]:
        """What a router's last tries came to before it took the version off."""
        last = next((t.outcome for t in reversed(self._recent) if t.router == router and t.outcome), None)
        return "error" if last == "error" else "late"


@dataclass(slots=True)
class _Off:
    """A router's pause: since when, after what, when trials began and the requests since then."""

    since: datetime
    failed: Literal["late", "error"]
    trial: datetime | None = None
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Reference:
    """What evaluation promised when the version was made; it never moves with what is seen later."""

    metric: Literal["accuracy", "mae", "rmse"]
    value: float

    @classmethod
    def promised(cls, metrics: Mapping[str, float]) -> Reference | None:
        """Accuracy for a class, the mean absolute or else the root mean squared error for a number.

        None where nothing (or a perfect regression, which has no scale) was promised: then there is no verdict.
        """
        accuracy = metrics.get("accuracy")
        if accuracy is not None and math.isfinite(accuracy):
            return cls("accuracy", accuracy)
        mae, rmse = metrics.get("mae"), metrics.get("rmse")
        if mae is not None and math.isfinite(mae) and mae > 0:
            return cls("mae", mae)
        if rmse is not None and math.isfinite(rmse) and rmse > 0:
            return cls("rmse", rmse)
        return None

    def live(self, losses: Sequence[float]) -> float:
        """The same metric over losses as `loss` gives them."""
        mean = math.fsum(losses) / len(losses)
        match self.metric:
            case "accuracy":
                return 1 - mean
            case "mae":
                return mean
            case "rmse":
                return math.sqrt(mean)

    def loss(self, predicted: float | str, actual: float | str) -> float:
        """One pair's part of the metric: 0 or 1, |Δ|, Δ²."""
        if self.metric == "accuracy":
            return float(predicted != actual)
        difference = float(predicted) - float(actual)
        return abs(difference) if self.metric == "mae" else difference * difference


@dataclass(slots=True)
class Quality:
    """The newest scores of a version whose outcome is known, by score id, in the order of the scores."""

    limit: int
    losses: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, score_id: str, loss: float) -> None:
        """Take a pair in; a corrected outcome replaces the one before."""
        self.losses[score_id] = loss
        while len(self.losses) > self.limit:
            del self.losses[next(iter(self.losses))]


def wrong(quality: Quality, reference: Reference, rules: Rules) -> Evidence | None:
    """The version is worse than promised by more than `accuracy_drop`, with 99 % one-sided confidence.

    Accuracy: the upper Wilson score bound lies below promised - drop (Wilson, 1927). An error: the lower bound of its
    mean by Student's t lies above promised · (1 + drop). It is looked at again with each outcome, which the 99 %
    does not account for; the drop between the promise and the bound does: a version that keeps its promise is that
    far from a verdict.
    """
    losses = list(quality.losses.values())
    count = len(losses)
    if count < rules.min_samples:
        return None
    live = reference.live(losses)
    if reference.metric == "accuracy":
        floor = reference.value - rules.accuracy_drop
        if wilson_upper(round(live * count), count) >= floor:
            return None
        said = f"{live:.0%} of {count} outcomes were predicted, {reference.value:.0%} were promised"
    else:
        ceiling = reference.value * (1 + rules.accuracy_drop)
        bound = mean_lower(losses)
        if (bound if reference.metric == "mae" else math.sqrt(max(bound, 0.0))) <= ceiling:
            return None
        said = f"{reference.metric} is {live:.4g} over {count} outcomes, {reference.value:.4g} was promised"
    return Evidence("accuracy", said, VersionStats(requests=count, quality=live, reference=reference.value))


def wilson_upper(successes: int, count: int, confidence: float = CONFIDENCE) -> float:
    """Upper end of the one-sided Wilson score interval of a share (Wilson, 1927, JASA 22)."""
    return _wilson(successes, count, NormalDist().inv_cdf(confidence))


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """The two-sided 95 % Wilson score interval of a share."""
    z = NormalDist().inv_cdf(0.975)
    return _wilson(successes, count, -z), _wilson(successes, count, z)


def mean_lower(values: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Lower end of the one-sided t interval of a mean; -inf for fewer than two values.

    Student's quantile by the expansion in 1/ν of Abramowitz and Stegun, 26.7.5 (within 1 % from 5 values on).
    """
    count = len(values)
    if count < 2:
        return -math.inf
    mean = math.fsum(values) / count
    variance = math.fsum((v - mean) ** 2 for v in values) / (count - 1)
    z, nu = NormalDist().inv_cdf(confidence), count - 1
    t = z + (z**3 + z) / (4 * nu) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * nu**3)
    return mean - t * math.sqrt(variance / count)


def _wilson(successes: int, count: int, z: float) -> float:
    share = successes / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return min(max((centre + spread) / (1 + z * z / count), 0.0), 1.0)


def _rank(times: Sequence[float], share: float) -> float | None:
    """The nearest-rank quantile of sorted times."""
    return times[max(0, math.ceil(share * len(times)) - 1)] if times else None
