"""What runs in a worker process: functions on picklable arguments, reading and writing the lake.

scikit-learn and skl2onnx are imported inside, so that the service's own process stays small and starts fast.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import JsonValue

from turnout.common.errors import Invalid
from turnout.common.events import DataSegregated, ModelFile, Prior, SplitPart
from turnout.common.lake.port import Lake
from turnout.common.pipeline import PipelineFile
from turnout.training.domain.candidates import Trial, trials

T = TypeVar("T")
LABEL = "_label"
RAW = "in:"


@dataclass(frozen=True)
class Fitted:
    """What became of a candidate: a model file, or the `failure` in words. Times in seconds."""

    parameters: Mapping[str, JsonValue]
    file: ModelFile | None = None
    prior: Prior | None = None
    agreement: float | None = None
    failure: str | None = None
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """All of its time."""
        return sum(self.seconds.values())


def warm(lake: Lake) -> None:
    """Import what fitting needs and connect to the lake, so that the first candidate does not wait for it.

    Raises `Unavailable`.
    """
    from turnout.training.domain import model

    _ = model
    lake.warm()


def choose(file: PipelineFile, packages: tuple[str, ...]) -> list[Trial]:
    """The run's candidates, each known to be makeable, its parameters accepted, and to have an ONNX converter.

    Raises `Invalid` or `Unknown` naming the field of the pipeline file, before anything is trained.
    """
    from turnout.training.domain.algorithms import algorithm, build
    from turnout.training.domain.trying import try_out

    found = trials(file.training, file.task)
    for trial in found:
        chosen = algorithm(trial.algorithm, file.task, packages, f"{trial.field}.algorithm")
        estimator = build(chosen, trial.parameters, file.training.seed, trial.field)
        if "." in trial.algorithm:
            try_out(chosen, estimator, file.task, trial.field)
    return found


def fit_candidate(lake: Lake, split: DataSegregated, trial: Trial, seed: int, packages: tuple[str, ...]) -> Fitted:
    """Fit a candidate, write its graph, check the two against each other, and put the graph into the lake.

    What goes wrong with this candidate alone is in the result; `Unavailable` is raised.
    """
    from threadpoolctl import threadpool_limits

    # One thread each: candidates run side by side, and sums over threads would not come out the same twice.
    with threadpool_limits(1):
        try:
            return _fit(lake, split, trial, seed, packages)
        except (Invalid, ValueError, TypeError, ArithmeticError, MemoryError, RuntimeError, AttributeError) as error:
            return Fitted(trial.parameters, failure=_in_words(error))


def _fit(lake: Lake, split: DataSegregated, trial: Trial, seed: int, packages: tuple[str, ...]) -> Fitted:
    from turnout.training.domain.algorithms import algorithm, build
    from turnout.training.domain.model import agreement, fit

    chosen = algorithm(trial.algorithm, split.target.task, packages, f"{trial.field}.algorithm")
    estimator = build(chosen, trial.parameters, seed, trial.field)
    watch = _Watch()
    columns = [column.name for column in split.plan.features]
    label = [LABEL] if split.target.task != "clustering" else []
    train = lake.read(_part(split, "train").data, columns=[*columns, *label])
    watch.lap("read")
    model = fit(split.plan, split.target, train, algorithm=chosen, estimator=estimator, seed=seed)
    watch.lap("fit")
    onnx = model.onnx()
    watch.lap("write")
    prior = model.prior(train)
    checked = _part(split, "test")
    if not checked.rows:
        checked = _part(split, "train")
    there = lake.schema(checked.data).names
    raw = [RAW + c.name if RAW + c.name in there else c.name for c in split.plan.inputs]
    agreed = agreement(model, onnx, lake.read(checked.data, columns=list(dict.fromkeys([*columns, *raw]))))
    watch.lap("check")
    if not agreed.holds:
        reason = f"the graph and the model disagree by {agreed.difference:.2g}, more than 0.0001 ({agreed.where})"
        return Fitted(trial.parameters, agreement=agreed.difference, failure=reason, seconds=watch.laps)
    file = lake.put_model(split.pipeline, onnx)
    return Fitted(
        trial.parameters,
        file=file,
        prior=prior,
        agreement=agreed.difference,
        notes=model.notes,
        seconds=watch.laps,
    )


class _Watch:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def _part(split: DataSegregated, name: str) -> SplitPart:
    for part in split.parts:
        if part.name == name:
            return part
    raise Invalid("parts", f"the split {split.split_id} has no part '{name}'")


def _in_words(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "there was not enough memory for it"
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, Invalid) else f"{type(error).__name__}: {text}"
