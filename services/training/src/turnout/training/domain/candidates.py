"""Which candidates a run has: those of the pipeline file, each combination of a search a candidate of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from pydantic import JsonValue, ValidationError

from turnout.common.errors import Invalid, Unknown
from turnout.common.pipeline import Candidate, PipelineFile, Task, Training, in_words

MOST = 200

# A simple one that is easy to explain, and the two that are hard to beat on tables.
DEFAULT: Mapping[Task, tuple[Candidate, ...]] = {
    "classification": tuple(
        Candidate(algorithm=name) for name in ("logistic_regression", "random_forest", "gradient_boosting")
    ),
    "regression": tuple(Candidate(algorithm=name) for name in ("ridge", "random_forest", "gradient_boosting")),
    "clustering": (Candidate(algorithm="k_means", search={"n_clusters": (2, 3, 4, 5, 6, 8)}),),
}


@dataclass(frozen=True)
class Trial:
    """One candidate: an algorithm with its parameters; `field` says where the pipeline file declares it."""

    algorithm: str
    parameters: Mapping[str, JsonValue]
    field: str


def overridden(file: PipelineFile, payload: Mapping[str, JsonValue]) -> PipelineFile:
    """The file with the parts of `training` that a request replaces. Raises `Invalid` or `Unknown`."""
    for key in payload:
        if key != "training":
            raise Unknown.name("payload", "part of the file that a training request can replace", key, ["training"])
    changes = payload.get("training", {})
    if not isinstance(changes, Mapping):
        raise Invalid("payload.training", "is no mapping", fix='{"training": {"candidates": […]}}')
    try:
        training = Training.model_validate({**file.training.model_dump(), **changes})
    except ValidationError as error:
        raise in_words(error, Training) from None
    try:
        return PipelineFile.model_validate({**file.model_dump(by_alias=True), "training": training})
    except ValidationError as error:
        raise in_words(error, PipelineFile) from None


def trials(training: Training, task: Task) -> list[Trial]:
    """Every candidate, in the file's order. Raises `Invalid` for more than `MOST`.

    With `samples` that many combinations are drawn, by the run's seed, without drawing one twice.
    """
    declared = training.candidates or DEFAULT.get(task, ())
    found: list[Trial] = []
    for index, candidate in enumerate(declared):
        field = f"training.candidates[{index}]"
        size = prod(len(values) for values in candidate.search.values())
        wanted = min(candidate.samples or size, size)
        if len(found) + wanted > MOST:
            raise Invalid(
                f"{field}.search", f"makes more than {MOST} candidates", fix="give `samples`, or search fewer values"
            )
        combinations = _combinations(candidate.search, wanted, size, [training.seed, index])
        found += [Trial(candidate.algorithm, {**candidate.parameters, **one}, field) for one in combinations]
    if not found:
        raise Invalid("training.candidates", f"there is nothing to train for {task}", fix="declare a candidate")
    return found


def _combinations(
    search: Mapping[str, tuple[JsonValue, ...]], wanted: int, size: int, seed: list[int]
) -> list[dict[str, JsonValue]]:
    if wanted == size:
        return [dict(zip(search, values, strict=True)) for values in product(*search.values())]
    places = np.sort(np.random.default_rng(seed).choice(size, wanted, replace=False))
    shape = [len(values) for values in search.values()]
    return [
        {name: search[name][at] for name, at in zip(search, np.unravel_index(int(place), shape), strict=True)}
        for place in places
    ]
