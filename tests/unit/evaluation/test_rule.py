from __future__ import annotations

import numpy as np
import orjson
import pytest

from turnout.common.events import Comparison, Target
from turnout.common.pipeline import PipelineFile, parse
from turnout.evaluation.domain.curves import POINTS, curves
from turnout.evaluation.domain.metrics import Answers
from turnout.evaluation.domain.rule import Entry, against, alone, behind, best


def file(task: str = "classification", **evaluation: object) -> PipelineFile:
    rule = ", ".join(f"{key}: {value}" for key, value in evaluation.items())
    return parse(f"pipeline: p\ntask: {task}\nsource: {{label: y}}\nevaluation: {{{rule}}}\n")


def entry(value: float | None = 0.8, base: float | None = 0.5, candidate: int = 0, **fields: object) -> Entry:
    metrics = {} if value is None else {"roc_auc": value, "rmse": value}
    base_rate = {} if base is None else {"roc_auc": base, "rmse": base}
    return Entry(candidate, "ridge", metrics, base_rate, **fields)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("given", "of", "accepted", "why"),
    [
        (entry(), file(), True, "roc_auc 0.8 (base rate 0.5)"),
        (entry(0.5), file(), False, "roc_auc 0.5 is no better than the base rate 0.5"),
        (entry(0.42), file(), False, "roc_auc 0.42 is no better than the base rate 0.5"),
        (entry(0.8), file(at_least=0.8), True, "roc_auc 0.8 (base rate 0.5)"),
        (entry(0.79), file(at_least=0.8), False,
         "roc_auc 0.79 does not reach 0.8, which evaluation.at_least asks for"),
        (entry(None), file(), False,
         "roc_auc cannot be measured on the test rows: too few of them, or only one class"),
        (entry(base=None), file(), True, "roc_auc 0.8"),
        (entry(failure="it would not converge"), file(), False, "it would not converge"),
        # Where less is better, `at_least` is the most there may be.
        (entry(3.0, 5.0), file("regression", at_least=4), True, "rmse 3 (base rate 5)"),
        (entry(4.5, 5.0), file("regression", at_least=4), False,
         "rmse 4.5 does not reach 4, which evaluation.at_least asks for"),
        (entry(5.0, 5.0), file("regression"), False, "rmse 5 is no better than the base rate 5"),
    ],
)  # fmt: skip
def test_a_candidate_by_itself(given: Entry, of: PipelineFile, accepted: bool, why: str) -> None:
    verdict = alone(given, of)
    assert (verdict.accepted, verdict.why) == (accepted, why)


def test_the_best_passes_and_of_equals_it_is_the_first() -> None:
    entries = [entry(0.4, candidate=0), entry(0.8, candidate=1), entry(0.9, candidate=2), entry(0.9, candidate=3)]
    found = best(entries, file())
    assert found is entries[2]
    assert behind(entries[1], entries[2], file()) == "roc_auc 0.8 is behind ridge's 0.9 (candidate 3)"
    assert behind(entries[3], entries[2], file()) == "roc_auc 0.9 equals ridge's 0.9 (candidate 3)"
    assert best(entries, file("regression")) is entries[0]
    assert best([entry(0.4), entry(failure="no")], file()) is None


@pytest.mark.parametrize(
    ("low", "better_by", "accepted"),
    [(0.01, 0.0, True), (0.0, 0.0, False), (-0.01, 0.0, False), (-0.01, -0.02, True), (0.01, 0.02, False)],
)
def test_the_champion_yields_to_who_is_surely_better(low: float, better_by: float, accepted: bool) -> None:
    comparison = Comparison(champion="3", metric="roc_auc", difference=0.05, low=low, high=0.09)
    verdict = against(comparison, file(better_by=better_by))
    assert verdict.accepted is accepted
    interval = f"roc_auc better than version 3 by 0.05 (95 % interval {low:.4g} to 0.09 on the same rows)"
    assert interval in verdict.why
    if not accepted:
        assert verdict.why.startswith("not surely better than the champion")
        assert verdict.why.endswith(f"the low end must be above {better_by:.4g}")


def test_curves_are_few_points_of_json() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, 3_000)
    score = np.clip(truth * 0.3 + draw.random(3_000) * 0.7, 0, 1)
    target = Target(task="classification", label="y", classes=("no", "yes"))
    found = curves(target, Answers(truth, np.column_stack([1 - score, score])), seed=0)
    assert sorted(found) == ["curves/calibration.json", "curves/precision_recall.json", "curves/roc.json"]
    roc = orjson.loads(found["curves/roc.json"])["yes"]
    assert len(roc) <= POINTS
    assert roc[0]["false_positive_rate"] == 0
    assert roc[-1] == {"false_positive_rate": 1.0, "true_positive_rate": 1.0, "threshold": pytest.approx(score.min())}
    numbers = curves(Target(task="regression"), Answers(score, score + 0.1), seed=0)
    assert sorted(numbers) == ["curves/predicted_actual.json", "curves/residuals.json"]
    assert sum(orjson.loads(numbers["curves/residuals.json"])["counts"]) == 3_000
    assert curves(target, Answers(truth[:1], np.array([[0.5, 0.5]])), seed=0) == {}
    assert curves(Target(task="clustering"), Answers(np.empty(0), score), seed=0) == {}
