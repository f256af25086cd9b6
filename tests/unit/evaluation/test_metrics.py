"""Every evaluator against scikit-learn's, with and without weights, and through one list of properties."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from turnout.common import pipeline
from turnout.common.events import Prior, Target
from turnout.evaluation.domain.intervals import difference
from turnout.evaluation.domain.metrics import METRICS, Answers, guessed, measured, silhouettes

EPS = float(np.finfo(np.float32).eps)
# scikit-learn's own, of truth, answers and weights.
WANTED: dict[str, Callable[[Any, Any, Any], float]] = {
    "roc_auc": lambda t, p, w: (
        sk.roc_auc_score(t, p[:, 1], sample_weight=w)
        if p.shape[1] == 2
        else float(np.mean([sk.roc_auc_score(t == k, p[:, k], sample_weight=w) for k in range(p.shape[1])]))
    ),
    "pr_auc": lambda t, p, w: (
        sk.average_precision_score(t, p[:, 1], sample_weight=w)
        if p.shape[1] == 2
        else float(np.mean([sk.average_precision_score(t == k, p[:, k], sample_weight=w) for k in range(p.shape[1])]))
    ),
    "f1": lambda t, p, w: sk.f1_score(
        t, p.argmax(1), sample_weight=w, average="binary" if p.shape[1] == 2 else "macro"
    ),
    "accuracy": lambda t, p, w: sk.accuracy_score(t, p.argmax(1), sample_weight=w),
    "log_loss": lambda t, p, w: sk.log_loss(
        t, np.clip(p, EPS, 1 - EPS), sample_weight=w, labels=list(range(p.shape[1]))
    ),
    "brier": lambda t, p, w: (
        sk.brier_score_loss(t, p[:, 1], sample_weight=w)
        if p.shape[1] == 2
        else float(np.average(((np.eye(p.shape[1])[t] - p) ** 2).sum(1), weights=w))
    ),
    "rmse": lambda t, p, w: sk.root_mean_squared_error(t, p, sample_weight=w),
    "mae": lambda t, p, w: sk.mean_absolute_error(t, p, sample_weight=w),
    "r2": lambda t, p, w: sk.r2_score(t, p, sample_weight=w),
    "silhouette": lambda _, p, w: float(np.average(p, weights=w)),
}
EVERY = [(task, name) for task, names in METRICS.items() for name in names]


def answers(task: str, classes: int = 2, rows: int = 80, seed: int = 0) -> Answers:
    draw = np.random.default_rng(seed)
    if task == "classification":
        truth = draw.integers(0, classes, rows)
        raw = draw.random((rows, classes)) + np.eye(classes)[truth]
        # Rounded, so that scores are equal here and there.
        given = np.round(raw / raw.sum(axis=1, keepdims=True), 2)
        given[:, -1] = 1 - given[:, :-1].sum(axis=1)
        return Answers(truth, given)
    if task == "regression":
        truth = draw.normal(100, 10, rows)
        return Answers(truth, truth + draw.normal(0, 4, rows))
    return Answers(np.empty(0), draw.uniform(-1, 1, rows))


def test_they_are_what_the_pipeline_file_promises() -> None:
    promised = {task: set(names) for task, names in pipeline.METRICS.items() if names}
    assert {task: set(names) for task, names in METRICS.items()} == promised
    assert all(metric.__doc__ for names in METRICS.values() for metric in names.values())


@pytest.mark.filterwarnings("ignore:The y_prob values do not sum to one")
@pytest.mark.parametrize(("task", "name"), EVERY)
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_an_evaluator_gives_what_scikit_learn_gives(task: str, name: str, classes: int, seed: int) -> None:
    given = answers(task, classes, seed=seed)
    weights = np.random.default_rng(seed).integers(0, 4, (3, given.rows)).astype(float)
    weights[0] = 1
    found = METRICS[task][name](given, weights)
    wanted = [WANTED[name](given.truth, given.given, one) for one in weights]
    assert found.tolist() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("task", "name"), EVERY)
def test_a_weight_of_two_is_the_row_twice_and_the_order_does_not_matter(task: str, name: str) -> None:
    given = answers(task, 3)
    before = (given.truth.copy(), given.given.copy())
    weights = np.random.default_rng(1).integers(1, 3, given.rows)
    twice = given.at(np.random.default_rng(2).permutation(np.repeat(np.arange(given.rows), weights)))
    metric = METRICS[task][name]
    weighted = metric(given, weights[None, :].astype(float))
    assert weighted == pytest.approx(metric(twice, np.ones((1, twice.rows))))
    np.testing.assert_array_equal(given.truth, before[0])
    np.testing.assert_array_equal(given.given, before[1])


def test_what_rows_cannot_tell_is_left_out() -> None:
    same = Answers(np.ones(5, dtype=np.int64), np.tile([0.3, 0.7], (5, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measured("classification", same)
        assert measured("regression", Answers(np.ones(4), np.zeros(4))) == {"rmse": 1.0, "mae": 1.0}
    assert "roc_auc" not in found
    assert found["accuracy"] == 1
    assert measured("classification", Answers(np.empty(0, dtype=np.int64), np.empty((0, 2)))) == {}


def test_a_sure_and_wrong_answer_costs_much_and_not_everything() -> None:
    wrong = Answers(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert 5 < measured("classification", wrong)["log_loss"] < 20


def test_the_base_rate_is_what_the_prior_would_have_got() -> None:
    target = Target(task="classification", label="y", classes=("no", "yes"))
    prior = Prior(value="no", probabilities={"no": 0.7, "yes": 0.3})
    given = answers("classification")
    base = measured("classification", guessed(target, prior, given))
    assert base["roc_auc"] == 0.5
    assert base["accuracy"] == pytest.approx((given.truth == 0).mean())
    assert base["pr_auc"] == pytest.approx((given.truth == 1).mean())
    numbers = answers("regression")
    base = measured("regression", guessed(Target(task="regression"), Prior(value=numbers.truth.mean()), numbers))
    assert base["r2"] == pytest.approx(0)
    assert base["rmse"] == pytest.approx(numbers.truth.std())
    assert measured("clustering", guessed(Target(task="clustering"), Prior(value=0.0), answers("clustering"))) == {
        "silhouette": 0.0
    }


def test_a_silhouette_needs_two_clusters() -> None:
    space = np.array([[0.0], [0.1], [5.0], [5.1]])
    assert silhouettes(space, np.array([0, 0, 1, 1])).mean() == pytest.approx(sk.silhouette_score(space, [0, 0, 1, 1]))
    assert silhouettes(space, np.zeros(4, dtype=np.int64)).tolist() == [0] * 4
    assert silhouettes(space, np.arange(4)).tolist() == [0] * 4


def noisy(given: Answers, noise: float, seed: int = 5) -> Answers:
    draw = np.random.default_rng(seed)
    if given.given.ndim == 1:
        return Answers(given.truth, given.given + draw.normal(0, noise, given.rows))
    raw = given.given + noise * draw.random(given.given.shape)
    return Answers(given.truth, raw / raw.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(("task", "name"), EVERY)
def test_an_interval_holds_its_mean_and_comes_out_the_same_again(task: str, name: str) -> None:
    mine, metric = answers(task, 3), METRICS[task][name]
    theirs = Answers(mine.truth, mine.given - 0.3) if task == "clustering" else noisy(mine, 5.0)
    larger = pipeline.METRICS[task][name]  # pyright: ignore[reportArgumentType]
    found = difference(metric, mine, theirs, larger_is_better=larger, seed=3)
    assert found is not None
    assert found.low <= found.mean <= found.high
    assert found.mean > 0
    assert found == difference(metric, mine, theirs, larger_is_better=larger, seed=3)
    back = difference(metric, theirs, mine, larger_is_better=larger, seed=3)
    assert back is not None
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low))


@pytest.mark.parametrize(("task", "name"), EVERY)
def test_a_model_is_no_better_than_itself(task: str, name: str) -> None:
    given = answers(task, 3)
    found = difference(METRICS[task][name], given, given, larger_is_better=True, seed=0)
    assert found is not None
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_pairing_sees_what_two_separate_intervals_would_not() -> None:
    draw = np.random.default_rng(0)
    truth = draw.normal(0, 100, 300)
    theirs = truth + draw.normal(0, 10, 300)
    # A little nearer on each row: far less than what the error varies from row to row.
    mine = truth + (theirs - truth) * 0.97
    found = difference(
        METRICS["regression"]["mae"], Answers(truth, mine), Answers(truth, theirs), larger_is_better=False, seed=0
    )
    assert found is not None
    assert found.low > 0


def test_equally_good_models_are_called_better_about_as_often_as_chance_says() -> None:
    surely = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        truth = draw.normal(0, 1, 200)
        mine, theirs = (Answers(truth, truth + draw.normal(0, 1, 200)) for _ in range(2))
        found = difference(METRICS["regression"]["rmse"], mine, theirs, larger_is_better=False, seed=seed)
        assert found is not None
        surely += found.low > 0
    assert surely <= 6  # 2.5 % expected: 1.5 of 60


def test_rows_that_cannot_tell_give_no_interval() -> None:
    same = Answers(np.ones(5, dtype=np.int64), np.tile([0.3, 0.7], (5, 1)))
    assert difference(METRICS["classification"]["roc_auc"], same, same, larger_is_better=True, seed=0) is None
    empty = Answers(np.empty(0), np.empty(0))
    assert difference(METRICS["regression"]["mae"], empty, empty, larger_is_better=False, seed=0) is None


def test_many_rows_are_compared_in_bounded_time() -> None:
    many = answers("classification", rows=200_000)
    found = difference(METRICS["classification"]["accuracy"], many, noisy(many, 0.5), larger_is_better=True, seed=0)
    assert found is not None
    assert found.high - found.low < 0.02
