"""A verdict needs enough samples, and a version that keeps its promise gets none."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from watched import at

from turnout.common.events import Attempt
from turnout.monitoring.domain.verdict import Quality, Reference, Rules, Tries, mean_lower, wilson_upper, wrong

OUTCOMES = st.sampled_from(["ok", "late", "error", "off", "loading"])


@given(st.lists(OUTCOMES, max_size=100), st.integers(5, 50), st.floats(0.05, 1))
def test_a_verdict_has_its_evidence(outcomes: list[str], least: int, share: float) -> None:
    tries = Tries(Rules(min_samples=least, late_share=share))
    for index, outcome in enumerate(outcomes):
        tries.add(Attempt.model_validate({"version": "1", "outcome": outcome}), "r", at(index * 0.1))
    stats, verdict = tries.stats, tries.verdict()
    assert stats.late + stats.errors <= stats.requests <= 2 * least
    if verdict is not None:
        assert stats.requests >= least
        assert stats.late + stats.errors >= share * stats.requests
        assert not tries.well


@given(st.lists(st.sampled_from(["off", "loading"]), max_size=300), st.floats(0.001, 10))
def test_without_a_single_try_by_itself_loading_is_no_evidence(outcomes: list[str], pace: float) -> None:
    tries = Tries(Rules())
    for index, _ in enumerate(outcomes):
        tries.add(Attempt(version="1", outcome="loading"), "r", at(index * pace))
    assert tries.verdict() is None


@given(st.integers(1, 5000), st.data())
def test_wilsons_bound_lies_above_the_share(count: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, count))
    bound = wilson_upper(successes, count)
    assert successes / count <= bound + 1e-12
    assert bound <= 1
    assert wilson_upper(successes * 4, count * 4) <= bound + 1e-12


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50))
def test_the_lower_bound_of_a_mean_lies_below_it(values: list[float]) -> None:
    assert mean_lower(values) <= math.fsum(values) / len(values) + 1e-6


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0.5, 1), st.floats(0.01, 0.5))
def test_a_version_as_good_as_promised_is_never_wrong(right: int, bad: int, promised: float, drop: float) -> None:
    quality = Quality(1000)
    for index in range(right + bad):
        quality.add(str(index), float(index < bad))
    verdict = wrong(quality, Reference("accuracy", promised), Rules(accuracy_drop=drop))
    if right + bad < 20 or right / (right + bad) >= promised - drop:
        assert verdict is None


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=100), st.integers(1, 20))
def test_quality_holds_each_score_once_and_only_the_newest(pairs: list[tuple[int, bool]], limit: int) -> None:
    quality = Quality(limit)
    for ident, right in pairs:
        quality.add(str(ident), float(not right))
    assert len(quality.losses) <= limit
    if pairs:
        ident, right = pairs[-1]
        assert quality.losses[str(ident)] == float(not right)
