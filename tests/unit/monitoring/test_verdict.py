from __future__ import annotations

import math

import pytest
from watched import at

from turnout.common.events import Attempt
from turnout.monitoring.domain.verdict import (
    Evidence,
    Quality,
    Reference,
    Rules,
    Tries,
    mean_lower,
    wilson_interval,
    wilson_upper,
    wrong,
)


def feed(tries: Tries, outcome: str, seconds: list[float], router: str = "r") -> None:
    for second in seconds:
        tries.add(Attempt.model_validate({"version": "2", "outcome": outcome}), router, at(second))


def every(step: float, start: float, end: float) -> list[float]:
    return [start + step * n for n in range(math.ceil((end - start) / step))]


class TestTries:
    def test_the_verdict_comes_with_the_last_sample_it_needs(self) -> None:
        tries = Tries(Rules(min_samples=20, late_share=0.5))
        feed(tries, "late", every(0.05, 0, 0.95))
        assert tries.verdict() is None
        feed(tries, "late", [0.95])
        verdict = tries.verdict()
        assert verdict is not None
        assert (verdict.signal, verdict.stats.requests, verdict.stats.late) == ("latency", 20, 20)

    def test_a_sudden_change_after_long_health_is_seen_in_one_min_samples(self) -> None:
        tries = Tries(Rules(min_samples=20, late_share=0.5))
        feed(tries, "ok", every(0.01, 0, 100))
        feed(tries, "late", every(0.01, 100, 100.19))
        assert tries.verdict() is None
        feed(tries, "late", [100.2])
        assert tries.verdict() is not None

    def test_errors_and_late_ones_count_together_and_the_more_frequent_gives_the_name(self) -> None:
        tries = Tries(Rules(min_samples=20, late_share=0.5))
        feed(tries, "error", every(0.1, 0, 1.2))
        feed(tries, "late", every(0.1, 2, 2.8))
        verdict = tries.verdict()
        assert verdict is not None
        assert (verdict.signal, verdict.why) == ("errors", "20 of the last 20 requests failed")

    def test_attempts_from_before_the_table_say_nothing(self) -> None:
        tries = Tries(Rules(), since=at(10))
        feed(tries, "late", every(0.1, 0, 10))
        assert tries.stats.requests == 0

    def test_a_version_that_its_router_took_off_does_not_hide_there(self) -> None:
        """As scoring does it: five late in a row, then off; trials from 1 s on, which fail and are not seen here."""
        tries = Tries(Rules(min_samples=20))
        feed(tries, "late", every(0.05, 0, 0.25))
        feed(tries, "off", every(0.02, 0.25, 1.7))
        assert tries.verdict() is None
        feed(tries, "off", every(0.02, 1.7, 1.9))
        verdict = tries.verdict()
        assert verdict is not None
        assert verdict.signal == "latency"
        assert "passed it by" in verdict.why

    def test_a_failing_version_that_was_taken_off_is_named_failing(self) -> None:
        tries = Tries(Rules(min_samples=20))
        feed(tries, "error", every(0.05, 0, 0.25))
        feed(tries, "off", every(0.02, 0.25, 3))
        verdict = tries.verdict()
        assert verdict is not None
        assert verdict.signal == "errors"

    def test_a_moment_of_trouble_that_ends_with_the_trials_is_no_evidence(self) -> None:
        tries = Tries(Rules(min_samples=20))
        for start in range(0, 60, 3):
            feed(tries, "late", every(0.01, start, start + 0.05))
            feed(tries, "off", every(0.01, start + 0.05, start + 1.15))
            feed(tries, "ok", every(0.01, start + 1.15, start + 3))
            assert tries.verdict() is None

    def test_a_router_without_requests_had_no_trial(self) -> None:
        tries = Tries(Rules(min_samples=20))
        feed(tries, "late", every(0.01, 0, 0.05))
        feed(tries, "off", every(0.01, 0.05, 0.6))
        feed(tries, "off", [60, 60.1])
        assert tries.verdict() is None

    def test_one_router_of_three_cannot_condemn(self) -> None:
        tries = Tries(Rules(min_samples=20))
        feed(tries, "late", every(0.01, 0, 0.05), "sick")
        for second in every(0.03, 0.05, 10):
            feed(tries, "off", [second], "sick")
            feed(tries, "ok", [second], "well")
            feed(tries, "ok", [second], "fine")
            assert tries.verdict() is None

    def test_what_a_restored_version_was_passed_by_is_forgotten(self) -> None:
        tries = Tries(Rules(min_samples=20))
        feed(tries, "late", every(0.01, 0, 0.05))
        feed(tries, "off", every(0.01, 0.05, 1.4))
        tries.restored()
        feed(tries, "off", every(0.2, 1.4, 3))
        assert tries.verdict() is None

    def test_well_again_is_clearly_below_the_verdict(self) -> None:
        tries = Tries(Rules(min_samples=20, late_share=0.5))
        feed(tries, "late", every(0.1, 0, 4))
        feed(tries, "ok", every(0.1, 5, 7))
        assert tries.verdict() is not None
        feed(tries, "ok", every(0.1, 7, 7.5))
        assert (tries.verdict(), tries.well) == (None, False)
        feed(tries, "ok", every(0.1, 8, 9))
        assert tries.well

    def test_a_loading_version_is_no_evidence(self) -> None:
        tries = Tries(Rules())
        feed(tries, "loading", every(0.01, 0, 10))
        assert tries.stats.requests == 0


class TestQuality:
    def judged(self, losses: list[float], metrics: dict[str, float], rules: Rules | None = None) -> Evidence | None:
        reference = Reference.promised(metrics)
        assert reference is not None
        quality = Quality(1000)
        for index, loss in enumerate(losses):
            quality.add(str(index), loss)
        return wrong(quality, reference, rules or Rules())

    def test_clearly_below_the_promise(self) -> None:
        verdict = self.judged([1.0] * 30 + [0.0] * 20, {"accuracy": 0.95})
        assert verdict is not None
        assert verdict.stats.reference == 0.95
        assert verdict.stats.quality == pytest.approx(0.4)
        assert verdict.why == "40% of 50 outcomes were predicted, 95% were promised"

    def test_below_it_by_chance_is_no_verdict(self) -> None:
        # 70 % of 20 seen, 80 % asked for: the interval reaches to 87 %.
        assert self.judged([1.0] * 6 + [0.0] * 14, {"accuracy": 0.95}) is None

    def test_too_few_outcomes_are_no_verdict(self) -> None:
        assert self.judged([1.0] * 19, {"accuracy": 0.95}) is None

    def test_nothing_promised_is_no_verdict(self) -> None:
        for metrics in ({}, {"r2": 0.9}, {"accuracy": math.nan}, {"rmse": 0.0}, {"mae": math.inf}):
            assert Reference.promised(metrics) is None

    def test_errors_are_judged_by_the_mean_that_was_promised(self) -> None:
        assert Reference.promised({"rmse": 3.0, "mae": 2.0}) == Reference("mae", 2.0)
        assert self.judged([4.0, 5.0] * 20, {"mae": 2.0}) is not None
        assert self.judged([2.0, 2.2] * 20, {"mae": 2.0}) is None
        assert self.judged([16.0, 25.0] * 20, {"rmse": 2.0}) is not None
        assert self.judged([4.0, 4.4] * 20, {"rmse": 2.0}) is None

    def test_one_enormous_error_is_no_verdict(self) -> None:
        assert self.judged([1.0] * 39 + [1e6], {"mae": 2.0}) is None

    def test_losses(self) -> None:
        assert Reference("accuracy", 0.9).loss("yes", "no") == 1.0
        assert Reference("mae", 1.0).loss(2.0, 5.0) == 3.0
        assert Reference("rmse", 1.0).loss(2.0, 5.0) == 9.0


class TestIntervals:
    def test_wilson(self) -> None:
        # Wilson's interval for 8 of 10 at 95 %, as in Newcombe (1998) and statsmodels.proportion_confint.
        low, high = wilson_interval(8, 10)
        assert (low, high) == (pytest.approx(0.4901625), pytest.approx(0.9433178))
        assert wilson_upper(0, 20) == pytest.approx(0.2129, abs=1e-3)
        assert wilson_interval(0, 5)[0] == pytest.approx(0, abs=1e-12)
        assert wilson_interval(5, 5)[1] == pytest.approx(1)

    @pytest.mark.parametrize(("count", "t"), [(5, 3.7469), (10, 2.8214), (20, 2.5395), (101, 2.3642)])
    def test_students_quantile(self, count: int, t: float) -> None:
        values = [float(n) for n in range(count)]
        mean = sum(values) / count
        error = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1) / count)
        assert (mean - mean_lower(values)) / error == pytest.approx(t, rel=0.01)

    def test_one_value_has_no_bound(self) -> None:
        assert mean_lower([1.0]) == -math.inf
