"""Curves of a candidate as points, for people: at most `POINTS` each, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve

from turnout.common.events import Target
from turnout.evaluation.domain.metrics import Answers

POINTS = 200
# Three rows a class are too few to draw a line through.
FEWEST_ROWS = 2


def curves(target: Target, answers: Answers, seed: int) -> Mapping[str, bytes]:
    """Files by path: ROC, precision–recall and calibration of each class, or predicted and residual values."""
    if answers.rows < FEWEST_ROWS:
        return {}
    match target.task:
        case "classification":
            return _of_classes(target, answers)
        case "regression":
            return _of_numbers(answers, seed)
        case _:
            return {}


def _of_classes(target: Target, answers: Answers) -> Mapping[str, bytes]:
    roc: dict[str, Any] = {}
    recall: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    shown = range(1, 2) if len(target.classes) == 2 else range(len(target.classes))
    for index in shown:
        name, true, score = target.classes[index], answers.truth == index, answers.given[:, index]
        if not 0 < true.sum() < answers.rows:
            continue
        fpr, tpr, thresholds = roc_curve(true, score)
        roc[name] = _points(false_positive_rate=fpr, true_positive_rate=tpr, threshold=thresholds)
        precision, found, thresholds = precision_recall_curve(true, score)
        recall[name] = _points(recall=found, precision=precision, threshold=np.append(thresholds, np.nan))
        happened, said = calibration_curve(true, np.clip(score, 0, 1), n_bins=10, strategy="quantile")
        calibration[name] = _points(predicted=said, observed=happened)
    every = {"roc": roc, "precision_recall": recall, "calibration": calibration}
    return {f"curves/{name}.json": _json(points) for name, points in every.items()}


def _of_numbers(answers: Answers, seed: int) -> Mapping[str, bytes]:
    rows = np.sort(np.random.default_rng(seed).permutation(answers.rows)[:POINTS])
    actual, predicted = answers.truth[rows], answers.given[rows]
    residual = answers.given - answers.truth
    counts, edges = np.histogram(residual, bins=20, range=_range(residual))
    return {
        "curves/predicted_actual.json": _json(_points(actual=actual, predicted=predicted)),
        "curves/residuals.json": _json({"edges": edges.tolist(), "counts": counts.tolist()}),
    }


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    """From the least to the largest, wide enough to be cut into bins also where all are the same."""
    low, high = float(values.min()), float(values.max())
    margin = max(abs(low), abs(high), 1e-300) * 1e-9
    return (low - margin, high + margin) if high - low <= margin else (low, high)


def _points(**columns: NDArray[Any]) -> list[dict[str, float]]:
    length = len(next(iter(columns.values())))
    rows = np.unique(np.linspace(0, length - 1, min(length, POINTS)).astype(np.int64))
    return [{name: float(values[row]) for name, values in columns.items()} for row in rows]


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2)
