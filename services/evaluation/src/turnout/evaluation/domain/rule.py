"""The rule that makes a version of a candidate, or says in words why not.

In this order, by the pipeline file's metric:

1. It must be better than the base rate, what the training part's own shares or mean would have answered.
2. It must reach `at_least` (for a metric where less is better: at most that).
3. It must be the best of its run; of equals, the first.
4. Where there is a champion, it must be better than it by more than `better_by`, and surely so: the low end of the
   95 % interval of the paired difference must lie above `better_by`.

Rule 4 asks the interval, not the mean: a champion has served and is known, a challenger's lead on a few hundred rows
may be luck, and a switch for luck costs a rollout each time. Who wants the freshest model, as long as it is not worse
by more than a margin, says so with a negative `better_by` (-0.01 is a test of non-inferiority).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from turnout.common.events import Comparison
from turnout.common.pipeline import PipelineFile


@dataclass(frozen=True)
class Entry:
    """A candidate as it was measured; `failure` if it never became a model."""

    candidate: int
    algorithm: str
    metrics: Mapping[str, float]
    base_rate: Mapping[str, float]
    failure: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether, and why in words."""

    accepted: bool
    why: str


def alone(entry: Entry, file: PipelineFile) -> Verdict:
    """Rules 1 and 2: the candidate by itself."""
    name, larger = file.metric, file.larger_is_better
    if entry.failure is not None:
        return Verdict(False, entry.failure)
    value, base = entry.metrics.get(name), entry.base_rate.get(name)
    if value is None:
        return Verdict(False, f"{name} cannot be measured on the test rows: too few of them, or only one class")
    if base is not None and not _better(value, base, larger):
        return Verdict(False, f"{name} {_n(value)} is no better than the base rate {_n(base)}")
    wanted = file.evaluation.at_least
    if wanted is not None and _better(wanted, value, larger):
        return Verdict(False, f"{name} {_n(value)} does not reach {_n(wanted)}, which evaluation.at_least asks for")
    against = "" if base is None else f" (base rate {_n(base)})"
    return Verdict(True, f"{name} {_n(value)}{against}")


def best(entries: Sequence[Entry], file: PipelineFile) -> Entry | None:
    """Rule 3: the best of those that pass alone; None if there is none."""
    passed = [entry for entry in entries if alone(entry, file).accepted]
    sign = -1.0 if file.larger_is_better else 1.0
    return min(passed, key=lambda entry: (sign * entry.metrics[file.metric], entry.candidate), default=None)


def against(comparison: Comparison, file: PipelineFile) -> Verdict:
    """Rule 4: the best candidate against the champion."""
    margin = file.evaluation.better_by
    interval = f"95 % interval {_n(comparison.low)} to {_n(comparison.high)} on the same rows"
    what = f"{comparison.metric} better than version {comparison.champion} by {_n(comparison.difference)} ({interval})"
    if comparison.low > margin:
        return Verdict(True, what)
    return Verdict(False, f"not surely better than the champion: {what}; the low end must be above {_n(margin)}")


def behind(entry: Entry, winner: Entry, file: PipelineFile) -> str:
    """Why a candidate that passes is not the one."""
    mine, best_ = entry.metrics[file.metric], winner.metrics[file.metric]
    relation = "equals" if mine == best_ else "is behind"
    return f"{file.metric} {_n(mine)} {relation} {winner.algorithm}'s {_n(best_)} (candidate {winner.candidate + 1})"


def _better(value: float, than: float, larger: bool) -> bool:
    return value > than if larger else value < than


def _n(value: float) -> str:
    return f"{value:.4g}"
