"""What can be fitted: the named library, and a facade for scikit-learn-compatible estimators by import path.

An estimator by import path is code that the pipeline file's author chooses and this process runs, so its top-level
package must be one that the operator allows (`TURNOUT_ESTIMATOR_PACKAGES`; scikit-learn by default).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic import JsonValue
from sklearn.base import BaseEstimator, is_classifier, is_clusterer, is_regressor
from sklearn.cluster import KMeans
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from turnout.common.errors import Invalid, Unknown
from turnout.common.pipeline import Task


@dataclass(frozen=True)
class Algorithm:
    """A named algorithm for a task: the estimator, the parameters that differ from scikit-learn's, and its numbers.

    `double`: it computes in FP64 (a sum of many products, where a column near 5e8 would drown the others in FP32);
    otherwise in FP32, as trees do. `missing`: it takes missing values. `rows_a_tree`: a forest's tree draws at most
    so many rows, unless `max_samples` says otherwise; all trees together still see nearly all.
    """

    estimator: type[BaseEstimator]
    parameters: Mapping[str, JsonValue]
    double: bool = False
    missing: bool = False
    rows_a_tree: int | None = None

    def sized(self, estimator: BaseEstimator, rows: int) -> BaseEstimator:
        """The estimator made ready for that many rows. Without this a forest on 160,000 of them takes minutes."""
        if self.rows_a_tree is None or rows <= self.rows_a_tree:
            return estimator
        parameters = estimator.get_params(deep=False)
        if parameters["max_samples"] is not None or not parameters["bootstrap"]:
            return estimator
        return estimator.set_params(max_samples=self.rows_a_tree)


# Depth 12 bounds a forest's file (100 trees of at most 4,096 leaves: about 40 MB) whatever the number of rows.
_FOREST: Mapping[str, JsonValue] = {"n_estimators": 100, "max_depth": 12, "min_samples_leaf": 2, "n_jobs": 1}
_TREE: Mapping[str, JsonValue] = {"max_depth": 12, "min_samples_leaf": 5}

LIBRARY: Mapping[tuple[str, Task], Algorithm] = {
    ("linear_regression", "regression"): Algorithm(LinearRegression, {}, double=True),
    ("ridge", "regression"): Algorithm(Ridge, {}, double=True),
    ("logistic_regression", "classification"): Algorithm(LogisticRegression, {"max_iter": 1_000}, double=True),
    ("decision_tree", "classification"): Algorithm(DecisionTreeClassifier, _TREE),
    ("decision_tree", "regression"): Algorithm(DecisionTreeRegressor, _TREE),
    ("random_forest", "classification"): Algorithm(RandomForestClassifier, _FOREST, rows_a_tree=20_000),
    ("random_forest", "regression"): Algorithm(RandomForestRegressor, _FOREST, rows_a_tree=20_000),
    ("gradient_boosting", "classification"): Algorithm(HistGradientBoostingClassifier, {}, missing=True),
    ("gradient_boosting", "regression"): Algorithm(HistGradientBoostingRegressor, {}, missing=True),
    ("k_means", "clustering"): Algorithm(KMeans, {"n_init": 10}, double=True),
}
_IS = {"classification": is_classifier, "regression": is_regressor, "clustering": is_clusterer}


def algorithm(name: str, task: Task, packages: Collection[str], field: str) -> Algorithm:
    """The algorithm that `name` means. Raises `Invalid` (or `Unknown` with the nearest name), naming `field`."""
    found = LIBRARY.get((name, task))
    if found is not None:
        return found
    if "." not in name:
        raise Unknown.name(field, f"algorithm for {task}", name, [known for known, of in LIBRARY if of == task])
    return Algorithm(_imported(name, task, packages, field), {})


def build(chosen: Algorithm, parameters: Mapping[str, JsonValue], seed: int, field: str) -> BaseEstimator:
    """An unfitted estimator with these parameters and, where it draws random numbers, this seed.

    Raises `Unknown` for a parameter that it does not have, `Invalid` for a value that it refuses.
    """
    kind = chosen.estimator
    valid = kind().get_params(deep=False)
    for name in parameters:
        if name not in valid:
            raise Unknown.name(f"{field}.parameters", f"parameter of {kind.__name__}", name, valid)
    seeded = {"random_state": seed} if "random_state" in valid else {}
    estimator = kind(**{**seeded, **chosen.parameters, **parameters})
    check = getattr(estimator, "_validate_params", None)
    if check is not None:
        try:
            check()
        except ValueError as error:
            raise Invalid(f"{field}.parameters", " ".join(str(error).split())) from None
    return estimator


def _imported(path: str, task: Task, packages: Collection[str], field: str) -> type[BaseEstimator]:
    module_name, _, name = path.rpartition(".")
    package = path.partition(".")[0]
    if package not in packages:
        raise Invalid(
            field,
            f"'{path}' is not from a package that this installation allows ({', '.join(sorted(packages))})",
            fix="the operator can allow it: TURNOUT_ESTIMATOR_PACKAGES",
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001 (importing runs any code there is)
        raise Invalid(field, f"'{module_name}' cannot be imported ({error})", fix="package.module.Class") from None
    found = getattr(module, name, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if inspect.isclass(value) and not key.startswith("_")]
        raise Unknown.name(field, f"class of {module_name}", name, classes)
    if not (inspect.isclass(found) and hasattr(found, "fit") and hasattr(found, "get_params")):
        raise Invalid(field, f"'{path}' is no estimator", fix="a class with fit, predict and get_params")
    try:
        example = cast("Any", found)()
        fits = _IS[task](example)
    except Exception as error:  # noqa: BLE001 (its constructor is anybody's code)
        raise Invalid(field, f"'{path}' cannot be made without parameters ({error})") from None
    if not fits:
        raise Invalid(field, f"'{path}' is not for {task}", fix="choose one that is, or change the task")
    answers = "predict_proba" if task == "classification" else "predict"
    if not hasattr(example, answers):
        raise Invalid(field, f"'{path}' has no {answers}", fix="choose one that has")
    return cast("type[BaseEstimator]", found)
