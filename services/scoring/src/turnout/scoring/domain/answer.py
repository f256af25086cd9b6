"""From a graph's outputs to answers; whatever is no sound answer is a fault of the version, never passed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turnout.common.events import Prior, Target

# Probabilities are float32 sums over many trees: a little beyond the bounds is arithmetic, more is a fault.
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said of one row: a class, a number or a cluster; `probabilities` per class."""

    value: float | str
    probabilities: dict[str, float]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no answer from this version for a row; `late`: its time was over, nothing else is wrong."""

    why: str
    late: bool = False


def read(output: NDArray[Any], target: Target, rows: int) -> Sequence[Answer | Fault]:
    """One answer or fault per row.

    A wrong shape or type is a fault of every row; NaN, infinity, a probability outside [0, 1] or probabilities that
    do not add up to one are a fault of their row alone.
    """
    if misshapen := _misshapen(output, target, rows):
        return [Fault(misshapen)] * rows
    match target.task:
        case "classification":
            return [_class(row, target.classes) for row in output.tolist()]
        case "clustering":
            return [Answer(float(value), {}) for value in output.reshape(rows).tolist()]
        case _:
            return [_number(value) for value in output.reshape(rows).tolist()]


@dataclass(frozen=True)
class Answers:
    """Answers of many rows as columns; `sound` says which rows have one."""

    values: NDArray[Any]
    probabilities: NDArray[Any] | None
    sound: NDArray[np.bool_]


def read_columns(output: NDArray[Any], target: Target, rows: int) -> Answers:
    """`read` for many rows at once: the same answers, as columns. Raises `ValueError` for a wrong shape or type."""
    if misshapen := _misshapen(output, target, rows):
        raise ValueError(misshapen)
    if target.task != "classification":
        values = output.reshape(rows).astype(np.float64)
        return Answers(values, None, np.isfinite(values))
    within = ((output >= -TOLERANCE) & (output <= 1 + TOLERANCE)).all(axis=1)
    sound = within & (np.abs(output.sum(axis=1) - 1) <= 10 * TOLERANCE)
    values = np.array(target.classes, dtype=object)[np.nan_to_num(output).argmax(axis=1)]
    return Answers(values, output, sound)


def of_prior(prior: Prior) -> Answer:
    """The training part's own answer."""
    return Answer(prior.value, dict(prior.probabilities))


def _class(row: list[float], classes: Sequence[str]) -> Answer | Fault:
    total, best, at = 0.0, -1.0, 0
    for index, share in enumerate(row):
        if not -TOLERANCE <= share <= 1 + TOLERANCE:  # false for NaN too
            return Fault(f"the probability of '{classes[index]}' is {share}")
        total += share
        if share > best:
            best, at = share, index
    if abs(total - 1) > 10 * TOLERANCE:
        return Fault(f"probabilities add up to {total:.4g}")
    return Answer(classes[at], dict(zip(classes, row, strict=True)))


def _number(value: float) -> Answer | Fault:
    return Answer(value, {}) if value - value == 0.0 else Fault(f"the score is {value}")


def _misshapen(output: NDArray[Any], target: Target, rows: int) -> str | None:
    """What is wrong with the output as a whole."""
    match target.task:
        case "classification":
            shapes, kinds, expected = ((rows, len(target.classes)),), "f", f"[{rows}, {len(target.classes)}] numbers"
        case "clustering":
            shapes, kinds, expected = ((rows,), (rows, 1)), "iu", f"[{rows}] whole numbers"
        case _:
            shapes, kinds, expected = ((rows, 1), (rows,)), "f", f"[{rows}, 1] numbers"
    if np.shape(output) in shapes and output.dtype.kind in kinds:
        return None
    return f"the output is {list(np.shape(output))} {getattr(output, 'dtype', type(output))}, expected {expected}"
