"""Evaluators by name. Each takes weights for its rows, so that a resample of the rows is one more row of weights.

What a metric is follows scikit-learn (the tests hold each against it): one positive class, `classes[1]`, for two
classes; the unweighted mean over the classes, one against the rest, for more. Shapes: truth `[rows]`, answers
`[rows, classes]` probabilities or `[rows]` numbers, weights `[resamples, rows]`; results `[resamples]`, NaN where a
resample cannot tell (a class without a row).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import silhouette_samples

from turnout.common.events import Prior, Target

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# FP32 probabilities have no smaller distance from 0 and 1; scikit-learn clips them there too.
SMALLEST = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Answers:
    """What was true and what was answered, row by row; for clustering `truth` is unused."""

    truth: NDArray[Any]
    given: Floats

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.given)

    def at(self, rows: Ints) -> Answers:
        """Some of the rows."""
        return Answers(self.truth[rows] if len(self.truth) else self.truth, self.given[rows])


Metric = Callable[[Answers, Floats], Floats]


def roc_auc(answers: Answers, weights: Floats) -> Floats:
    """Area under the ROC curve: how often a row of the class scores above a row that is not (ties count half).

    Fawcett 2006, "An introduction to ROC analysis".
    """
    return _over_classes(answers, weights, _area)


def pr_auc(answers: Answers, weights: Floats) -> Floats:
    """Average precision: precision at each threshold, weighted by the recall that it adds."""
    return _over_classes(answers, weights, _average_precision)


def f1(answers: Answers, weights: Floats) -> Floats:
    """Harmonic mean of precision and recall of the likeliest class; 0 where nothing is found."""
    chosen = answers.given.argmax(axis=1)
    classes = answers.given.shape[1]
    if classes == 2:
        return _f1(answers.truth == 1, chosen == 1, weights)
    there = sorted(set(answers.truth.tolist()) | set(chosen.tolist()))
    return np.mean([_f1(answers.truth == one, chosen == one, weights) for one in there], axis=0)


def accuracy(answers: Answers, weights: Floats) -> Floats:
    """Share of rows whose likeliest class is right."""
    return _mean((answers.given.argmax(axis=1) == answers.truth).astype(np.float64), weights)


def log_loss(answers: Answers, weights: Floats) -> Floats:
    """Mean of -ln(probability of what was true), in nats."""
    probability = answers.given[np.arange(answers.rows), answers.truth]
    return _mean(-np.log(np.clip(probability, SMALLEST, 1 - SMALLEST)), weights)


def brier(answers: Answers, weights: Floats) -> Floats:
    """Mean squared distance of probability and truth: of the positive class, or summed over more than two."""
    if answers.given.shape[1] == 2:
        return _mean((answers.given[:, 1] - (answers.truth == 1)) ** 2, weights)
    true = np.eye(answers.given.shape[1])[answers.truth]
    return _mean(((answers.given - true) ** 2).sum(axis=1), weights)


def rmse(answers: Answers, weights: Floats) -> Floats:
    """Root of the mean squared error, in the label's unit."""
    return np.sqrt(_mean((answers.given - answers.truth) ** 2, weights))


def mae(answers: Answers, weights: Floats) -> Floats:
    """Mean absolute error, in the label's unit."""
    return _mean(np.abs(answers.given - answers.truth), weights)


def r2(answers: Answers, weights: Floats) -> Floats:
    """Share of the label's variance that is explained; NaN where it has none."""
    left = _mean((answers.given - answers.truth) ** 2, weights)
    # Around the overall mean first: squares of large numbers have no digits left for their difference.
    centred = answers.truth - answers.truth.mean() if answers.rows else answers.truth
    spread = _mean(centred**2, weights) - _mean(centred, weights) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, 1 - left / spread, np.nan)


def silhouette(answers: Answers, weights: Floats) -> Floats:
    """Mean silhouette, from each row's own in `given` (Rousseeuw 1987): 1 well apart, 0 no clusters, -1 misplaced."""
    return _mean(answers.given, weights)


METRICS: Mapping[str, Mapping[str, Metric]] = {
    "classification": {
        "roc_auc": roc_auc, "pr_auc": pr_auc, "f1": f1, "accuracy": accuracy, "log_loss": log_loss, "brier": brier,
    },
    "regression": {"rmse": rmse, "mae": mae, "r2": r2},
    "clustering": {"silhouette": silhouette},
}  # fmt: skip


def measured(task: str, answers: Answers) -> dict[str, float]:
    """Every metric of the task, of all rows; one that these rows cannot tell is left out."""
    if not answers.rows:
        return {}
    every = np.ones((1, answers.rows))
    found = {name: float(metric(answers, every)[0]) for name, metric in METRICS[task].items()}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def guessed(target: Target, prior: Prior, answers: Answers) -> Answers:
    """What the training part's own answer would have given to the same rows: the base rate."""
    match target.task:
        case "classification":
            shares = [prior.probabilities.get(name, 0.0) for name in target.classes]
            given = np.tile(np.array(shares, dtype=np.float64), (answers.rows, 1))
        case "regression":
            given = np.full(answers.rows, float(prior.value))
        case _:
            # One cluster has no silhouette; scikit-learn's for a row alone is 0.
            given = np.zeros(answers.rows)
    return Answers(answers.truth, given)


def silhouettes(space: Floats, clusters: Ints) -> Floats:
    """Each row's silhouette in `space` `[rows, dimensions]`; 0 where there is one cluster, or one a row."""
    found = len(np.unique(clusters))
    if not 2 <= found < len(clusters):
        return np.zeros(len(clusters))
    return np.asarray(silhouette_samples(space, clusters), dtype=np.float64)


def _mean(values: Floats, weights: Floats) -> Floats:
    return weights @ values / weights.sum(axis=1)


def _over_classes(
    answers: Answers, weights: Floats, metric: Callable[[NDArray[np.bool_], Floats, Floats], Floats]
) -> Floats:
    classes = answers.given.shape[1]
    if classes == 2:
        return metric(answers.truth == 1, answers.given[:, 1], weights)
    # A class that no row has says nothing; so do rows that all have it.
    there = [one for one in range(classes) if 0 < (answers.truth == one).sum() < answers.rows]
    if not there:
        return np.full(len(weights), np.nan)
    return np.mean([metric(answers.truth == one, answers.given[:, one], weights) for one in there], axis=0)


def _steps(positive: NDArray[np.bool_], score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weight of positive and negative rows at each distinct score, the largest first: `[resamples, scores]`."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    sorted_weights = weights[:, order]
    hit = positive[order]
    return (
        np.add.reduceat(sorted_weights * hit, starts, axis=1),
        np.add.reduceat(sorted_weights * ~hit, starts, axis=1),
    )


def _area(positive: NDArray[np.bool_], score: Floats, weights: Floats) -> Floats:
    hits, misses = _steps(positive, score, weights)
    below = misses.sum(axis=1, keepdims=True) - np.cumsum(misses, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (hits * (below + misses / 2)).sum(axis=1) / (hits.sum(axis=1) * misses.sum(axis=1))


def _average_precision(positive: NDArray[np.bool_], score: Floats, weights: Floats) -> Floats:
    hits, misses = _steps(positive, score, weights)
    found = np.cumsum(hits, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(found / (found + np.cumsum(misses, axis=1)))
        return (hits * precision).sum(axis=1) / hits.sum(axis=1)


def _f1(truth: NDArray[np.bool_], chosen: NDArray[np.bool_], weights: Floats) -> Floats:
    both = weights @ (truth & chosen)
    either = weights @ truth.astype(np.float64) + weights @ chosen.astype(np.float64)
    return np.divide(2 * both, either, out=np.zeros(len(weights)), where=either > 0)
