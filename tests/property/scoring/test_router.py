"""What holds for every router, whatever happens to it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from turnout.common.events import RoutingTable
from turnout.scoring.domain.router import Outcome, Router, Verdict

VERSIONS = ("1", "2", "3")
OUTCOMES: tuple[Outcome, ...] = ("ok", "late", "error")


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_version_with_one_slow_call_in_a_hundred_is_never_taken_off(seed: int) -> None:
    router = _pair()
    draw = random.Random(seed)
    for index in range(100_000):
        outcome: Outcome = "late" if draw.random() < 0.01 else "ok"
        assert router.observe("2", outcome, index / 1000) == ()
        if index % 100 == 0:
            assert router.choose("k", index / 1000).steps[0].version == "2"


@given(seed=st.integers(0, 2**32), share=st.floats(0.9, 1.0))
@settings(max_examples=50, deadline=None)
def test_a_persistently_bad_version_is_off_within_twenty_requests(seed: int, share: float) -> None:
    router = _pair()
    draw = random.Random(seed)
    for index in range(1, 21):
        if router.observe("2", "late" if draw.random() < share else "ok", index / 1000):
            assert index >= 5
            return
    raise AssertionError("it is still asked")


class Life(RuleBasedStateMachine):
    """Loads, unloads, swaps and outcomes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router()
        self.now = 0.0
        self.loaded: set[str] = set()
        self.on: dict[str, bool] = {}
        self.table = 0

    @rule(version=st.sampled_from(VERSIONS), there=st.booleans())
    def load(self, version: str, there: bool) -> None:
        self.router.loaded(version, there)
        (self.loaded.add if there else self.loaded.discard)(version)

    @rule(
        champion=st.sampled_from(VERSIONS),
        previous=st.sampled_from((None, *VERSIONS)),
        challenger=st.sampled_from((None, *VERSIONS)),
    )
    def swap(self, champion: str, previous: str | None, challenger: str | None) -> None:
        self.table += 1
        self.router.obey(
            RoutingTable(version=self.table, champion=champion, previous=previous, challenger=challenger, share=0.5)
        )

    @rule(version=st.sampled_from(VERSIONS), outcome=st.sampled_from(OUTCOMES), times=st.integers(1, 12))
    def run(self, version: str, outcome: Outcome, times: int) -> None:
        for _ in range(times):
            self._take(self.router.observe(version, outcome, self.now))

    @rule(outcome=st.sampled_from(OUTCOMES))
    def probe(self, outcome: Outcome) -> None:
        due = self.router.choose("k", self.now).probe
        if due is not None:
            assert due in self.loaded
            self.router.probing(due, self.now)
            self._take(self.router.observe(due, outcome, self.now, probe=True))

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def _take(self, verdicts: tuple[Verdict, ...]) -> None:
        for verdict in verdicts:
            # Off and on take turns, and somebody else was healthy when one went.
            assert self.on.get(verdict.version, True) is not verdict.on
            self.on[verdict.version] = verdict.on
            if not verdict.on:
                chain = {step.version for step in self.router.chain()}
                assert any(v in self.loaded and self.on.get(v, True) for v in chain - {verdict.version})

    @invariant()
    def whoever_is_loaded_is_asked(self) -> None:
        for key in ("a", "b", "c"):
            plan = self.router.choose(key, self.now)
            asked = [step.version for step in plan.steps]
            assert len(set(asked)) == len(asked)
            assert set(asked) <= self.loaded
            assert set(asked) <= set(plan.order)
            if self.loaded & set(plan.order):
                assert asked


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def _pair() -> Router:
    router = Router()
    router.obey(RoutingTable(version=1, champion="2", previous="1"))
    router.loaded("1", True)
    router.loaded("2", True)
    return router
