"""How far what is asked lies from what was trained on. A report, no alarm: those come with detectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel

from turnout.common.events import ColumnProfile, Histogram
from turnout.common.summary import Bins, Counts, Shape

# Fewer live values say nothing about a distribution.
ENOUGH = 50


class FeatureReport(BaseModel):
    """One raw column live against training, as shares of the values that were there.

    `psi` is the population stability index, None with fewer than 50 live values; `noise` is what it would be by
    chance alone. `labels` name the bins. Missing and never-seen values are shares of all rows.
    """

    name: str
    kind: str
    labels: list[str]
    training: list[float]
    live: list[float]
    rows: int
    psi: float | None
    noise: float | None
    missing_training: float
    missing_live: float
    unseen: float


def compare(shape: Shape, profile: Sequence[ColumnProfile], live: dict[str, Counts]) -> list[FeatureReport]:
    """Every raw column that training has a histogram of, the most moved first."""
    profiles = {p.name: p for p in profile}
    reports: list[FeatureReport] = []
    for name, bins in shape.items():
        trained = profiles.get(f"in:{name}", profiles.get(name))
        if trained is not None and trained.histogram is not None:
            reports.append(_feature(name, bins, trained, trained.histogram, live.get(name) or Counts.on(bins)))
    return sorted(reports, key=lambda r: -(r.psi or 0.0))


def psi(expected: Sequence[int], actual: Sequence[int]) -> float:
    """Population stability index: Σ (a - e) · ln(a / e) over shares; half a count keeps empty bins finite.

    0 is the same; credit scoring's custom calls 0.1 a change and 0.25 a large one (Siddiqi, 2006).
    """
    smooth_expected, smooth_actual = _smooth(expected), _smooth(actual)
    return sum((a - e) * math.log(a / e) for e, a in zip(smooth_expected, smooth_actual, strict=True))


def noise(bins: int, expected: int, actual: int) -> float:
    """What PSI is on average when nothing changed: (bins - 1) · (1/n + 1/m) (Yurdakul and Naranjo, 2020)."""
    return (bins - 1) * (1 / expected + 1 / actual)


def _feature(name: str, bins: Bins, trained: ColumnProfile, histogram: Histogram, live: Counts) -> FeatureReport:
    expected, actual = [*histogram.counts, 0], [*live.counts, live.other]
    before, now = sum(expected), sum(actual)
    enough = now >= ENOUGH and before > 0
    return FeatureReport(
        name=name,
        kind=bins.kind,
        labels=_labels(bins),
        training=_shares(histogram.counts),
        live=_shares(live.counts, of=now),
        rows=live.total,
        psi=psi(expected, actual) if enough else None,
        noise=noise(len(histogram.counts), before, now) if enough else None,
        missing_training=trained.missing / trained.rows if trained.rows else 0.0,
        missing_live=live.missing / live.total if live.total else 0.0,
        unseen=live.other / live.total if live.total else 0.0,
    )


def _smooth(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + 0.5 * len(counts)
    return [(c + 0.5) / total for c in counts]


def _shares(counts: Sequence[int], of: int | None = None) -> list[float]:
    total = sum(counts) if of is None else of
    return [c / total if total else 0.0 for c in counts]


def _labels(bins: Bins) -> list[str]:
    if bins.categories:
        return list(bins.categories)
    return [f"{low:.4g} to {high:.4g}" for low, high in zip(bins.edges, bins.edges[1:], strict=False)]
