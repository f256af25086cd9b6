"""Trying an estimator on a few made-up rows: can it be fitted, written as a graph, and does the graph run?"""

from __future__ import annotations

import warnings
from typing import cast

import numpy as np
import pyarrow as pa
from sklearn.base import BaseEstimator, clone

from turnout.common.errors import Invalid
from turnout.common.events import Column, Plan, Target
from turnout.common.pipeline import Task
from turnout.training.domain.algorithms import Algorithm
from turnout.training.domain.model import agreement, fit

ROWS = 48


def try_out(algorithm: Algorithm, estimator: BaseEstimator, task: Task, field: str) -> None:
    """Fit a copy on `ROWS` rows of three columns and run its graph on them. Raises `Invalid` naming `field`.

    This finds what no list tells: an estimator without a converter, one whose converter knows not all its options,
    and parameters that are refused only when it is fitted.
    """
    columns = tuple(Column(name=name, kind="number") for name in ("a", "b", "c"))
    plan = Plan(inputs=columns, features=columns)
    target = Target(task=task, classes=("no", "yes") if task == "classification" else ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            table = _rows(task)
            model = fit(
                plan, target, table, algorithm=algorithm, estimator=cast("BaseEstimator", clone(estimator)), seed=0
            )
            found = agreement(model, model.onnx(), table)
        except Exception as error:  # noqa: BLE001 (an estimator is anybody's code and raises anything)
            reason = error.problem if isinstance(error, Invalid) else f"{type(error).__name__}: {error}"
            raise Invalid(
                field,
                f"{type(estimator).__name__} does not work here: {' '.join(reason.split())[:400]}",
                fix="choose an estimator that skl2onnx has a converter for, with parameters that it takes",
            ) from None
    if not found.holds:
        raise Invalid(
            field,
            f"{type(estimator).__name__}'s graph answers otherwise than itself ({found.where})",
            fix="choose another estimator",
        )


def _rows(task: Task) -> pa.Table:
    generator = np.random.default_rng(0)
    numbers = generator.random((ROWS, 3)) + 0.1
    label = numbers.sum(axis=1)
    if task == "classification":
        texts = np.where(label > np.median(label), "yes", "no")
        return pa.table({"a": numbers[:, 0], "b": numbers[:, 1], "c": numbers[:, 2], "_label": texts})
    return pa.table({"a": numbers[:, 0], "b": numbers[:, 1], "c": numbers[:, 2], "_label": label})
