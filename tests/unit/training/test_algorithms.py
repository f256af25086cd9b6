from __future__ import annotations

import pytest

from turnout.common.errors import Invalid, Unknown
from turnout.common.pipeline import ALGORITHMS, Candidate, Task, Training, parse
from turnout.training import fitting
from turnout.training.domain.algorithms import LIBRARY, algorithm, build
from turnout.training.domain.candidates import DEFAULT, MOST, overridden, trials
from turnout.training.domain.trying import try_out

FIELD = "training.candidates[0]"
FILE = "pipeline: p\ntask: {task}\nsource: {{label: y}}\ntraining: {training}\n"


def choose(path: str, task: Task = "classification", **parameters: object) -> None:
    found = algorithm(path, task, ("sklearn", "nowhere"), f"{FIELD}.algorithm")
    estimator = build(found, parameters, 0, FIELD)  # pyright: ignore[reportArgumentType]
    if "." in path:
        try_out(found, estimator, task, FIELD)


def test_the_library_is_what_the_pipeline_file_promises() -> None:
    assert {(name, task) for name, tasks in ALGORITHMS.items() for task in tasks} == set(LIBRARY)
    for (name, task), known in LIBRARY.items():
        assert known.estimator.__doc__
        choose(name, task)


@pytest.mark.parametrize(
    ("path", "task"),
    [
        ("sklearn.ensemble.ExtraTreesClassifier", "classification"),
        ("sklearn.ensemble.GradientBoostingClassifier", "classification"),
        ("sklearn.ensemble.HistGradientBoostingRegressor", "regression"),
        ("sklearn.ensemble.AdaBoostClassifier", "classification"),
        ("sklearn.naive_bayes.GaussianNB", "classification"),
        ("sklearn.neural_network.MLPClassifier", "classification"),
        ("sklearn.neighbors.KNeighborsClassifier", "classification"),
        ("sklearn.linear_model.ElasticNet", "regression"),
        ("sklearn.svm.SVR", "regression"),
        ("sklearn.cluster.MiniBatchKMeans", "clustering"),
    ],
)
def test_an_estimator_by_import_path_works_where_a_converter_exists(path: str, task: Task) -> None:
    choose(path, task)


@pytest.mark.parametrize(
    ("path", "task", "parameters", "message"),
    [
        ("os.system", "classification", {}, "not from a package that this installation allows .nowhere, sklearn."),
        ("nowhere.at.All", "classification", {}, "'nowhere.at' cannot be imported"),
        ("sklearn.linear_model.LogisticRegresion", "classification", {}, "did you mean 'LogisticRegression'"),
        ("sklearn.metrics.roc_auc_score", "classification", {}, "is no estimator"),
        ("sklearn.preprocessing.StandardScaler", "classification", {}, "is not for classification"),
        ("sklearn.linear_model.Ridge", "classification", {}, "is not for classification"),
        ("sklearn.ensemble.VotingClassifier", "classification", {}, "cannot be made without parameters"),
        ("sklearn.svm.LinearSVC", "classification", {}, "has no predict_proba"),
        ("sklearn.cluster.DBSCAN", "clustering", {}, "has no predict"),
        ("sklearn.cluster.BisectingKMeans", "clustering", {}, "does not work here.*converter"),
        ("sklearn.linear_model.ElasticNet", "regression", {"alhpa": 1}, "'alhpa'; did you mean 'alpha'"),
        ("sklearn.linear_model.ElasticNet", "regression", {"alpha": "much"}, "'alpha' parameter of ElasticNet"),
        ("random_forest", "classification", {"n_estimatrs": 3}, "'n_estimatrs'; did you mean 'n_estimators'"),
        ("random_forest", "classification", {"n_estimators": -3}, "training.candidates.0..parameters: .*n_estimators"),
        ("ridge", "classification", {}, "unknown algorithm for classification 'ridge'"),
        ("sklearn.neighbors.KNeighborsClassifier", "classification", {"n_neighbors": 400}, "does not work here"),
    ],
)
def test_what_cannot_be_trained_is_refused_before(
    path: str, task: Task, parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(Invalid, match=message):
        choose(path, task, **parameters)


def test_a_random_algorithm_gets_the_seed_unless_the_file_gives_one() -> None:
    known = LIBRARY["random_forest", "classification"]
    assert build(known, {}, 5, FIELD).get_params()["random_state"] == 5
    assert build(known, {"random_state": 9}, 5, FIELD).get_params()["random_state"] == 9


def test_the_trees_of_a_forest_draw_few_of_very_many_rows() -> None:
    known = LIBRARY["random_forest", "regression"]

    def drawn(rows: int, **parameters: int) -> object:
        return known.sized(build(known, parameters, 0, FIELD), rows).get_params()["max_samples"]

    assert drawn(20_000) is None
    assert drawn(160_000) == 20_000
    assert drawn(160_000, max_samples=500) == 500
    assert drawn(160_000, bootstrap=False) is None


def test_without_candidates_there_are_sensible_ones() -> None:
    for task in ("classification", "regression", "clustering"):
        found = fitting.choose(parse(FILE.format(task=task, training="{}")), ("sklearn",))
        assert {trial.algorithm for trial in found} == {one.algorithm for one in DEFAULT[task]}


def test_each_combination_of_a_search_is_a_candidate() -> None:
    searched = Candidate(
        algorithm="ridge", parameters={"tol": 0.1}, search={"alpha": (1, 2, 3), "solver": ("svd", "lsqr")}
    )
    found = trials(Training(candidates=(searched, Candidate(algorithm="linear_regression"))), "regression")
    assert [dict(trial.parameters) for trial in found[:3]] == [
        {"tol": 0.1, "alpha": 1, "solver": "svd"},
        {"tol": 0.1, "alpha": 1, "solver": "lsqr"},
        {"tol": 0.1, "alpha": 2, "solver": "svd"},
    ]
    assert [trial.algorithm for trial in found] == ["ridge"] * 6 + ["linear_regression"]
    assert found[-1].field == "training.candidates[1]"


def test_samples_are_drawn_by_the_seed_and_none_twice() -> None:
    search = {"alpha": tuple(range(100)), "tol": tuple(range(100))}
    candidate = Candidate(algorithm="ridge", search=search, samples=20)

    def drawn(seed: int) -> list[tuple[object, ...]]:
        return [
            tuple(t.parameters.values()) for t in trials(Training(candidates=(candidate,), seed=seed), "regression")
        ]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len(set(drawn(1))) == 20
    few = Candidate(algorithm="ridge", search={"alpha": (1, 2)}, samples=20)
    assert len(trials(Training(candidates=(few,)), "regression")) == 2


def test_too_many_candidates_are_refused() -> None:
    candidate = Candidate(algorithm="ridge", search={"alpha": tuple(range(MOST + 1))})
    with pytest.raises(Invalid, match=r"candidates\[0\].search: makes more than 200 candidates; give `samples`"):
        trials(Training(candidates=(candidate,)), "regression")


def test_a_request_replaces_parts_of_training_and_nothing_else() -> None:
    file = parse(FILE.format(task="regression", training="{seed: 3, candidates: [{algorithm: ridge}]}"))
    changed = overridden(file, {"training": {"candidates": [{"algorithm": "decision_tree"}]}})
    assert (changed.training.seed, changed.training.candidates[0].algorithm) == (3, "decision_tree")
    assert overridden(file, {}) == file
    with pytest.raises(Unknown, match=r"replace 'evaluation'; one of: training"):
        overridden(file, {"evaluation": {"at_least": 0}})
    with pytest.raises(Invalid, match="did you mean 'candidates'"):
        overridden(file, {"training": {"candidate": []}})
    with pytest.raises(Invalid, match="k_means is not for regression"):
        overridden(file, {"training": {"candidates": [{"algorithm": "k_means"}]}})
    with pytest.raises(Invalid, match="is no mapping"):
        overridden(file, {"training": 3})
