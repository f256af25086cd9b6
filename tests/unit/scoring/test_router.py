"""The router over plain data: who is asked, who goes, who comes back."""

from __future__ import annotations

import pytest

from turnout.common.events import Attempt, RoutingTable
from turnout.scoring.domain.router import Limits, Outcome, Router, Step, Verdict, reason


def router(*loaded: str, **table: object) -> Router:
    made = Router()
    made.obey(RoutingTable(**{"version": 1, "champion": "2", "previous": "1", **table}))  # type: ignore[arg-type]
    for version in loaded:
        made.loaded(version, True)
    return made


def feed(made: Router, version: str, *outcomes: Outcome, now: float = 0.0) -> list[Verdict]:
    return [verdict for outcome in outcomes for verdict in made.observe(version, outcome, now)]


def asked(made: Router, now: float = 0.0, key: str = "k") -> list[str]:
    return [step.version for step in made.choose(key, now).steps]


def test_champion_then_previous() -> None:
    plan = router("1", "2").choose("k", 0.0)
    assert plan.steps == (Step("2", "champion"), Step("1", "previous"))
    assert plan.skipped == ()


def test_nobody_without_a_table() -> None:
    assert Router().choose("k", 0.0).steps == ()


def test_what_is_not_loaded_is_left_out_and_said() -> None:
    plan = router("1").choose("k", 0.0)
    assert plan.steps == (Step("1", "previous"),)
    assert plan.skipped == (Attempt(version="2", outcome="loading"),)
    assert router().choose("k", 0.0).steps == ()


def test_a_challenger_gets_its_share_by_key_and_the_same_key_the_same_version() -> None:
    made = router("1", "2", "3", challenger="3", share=0.25)
    first = {key: asked(made, key=key)[0] for key in map(str, range(2000))}
    assert 0.2 < sum(version == "3" for version in first.values()) / 2000 < 0.3
    assert all(asked(made, key=key)[0] == version for key, version in first.items())
    assert asked(made, key=next(k for k, v in first.items() if v == "3")) == ["3", "2", "1"]


def test_a_table_is_swapped_whole_and_an_older_one_passed_over() -> None:
    made = router("1", "2", "3")
    made.obey(RoutingTable(version=3, champion="3", previous="2"))
    assert asked(made) == ["3", "2"]
    made.obey(RoutingTable(version=2, champion="1"))
    assert asked(made) == ["3", "2"]


def test_five_failures_in_a_row_take_a_version_off() -> None:
    made = router("1", "2")
    assert feed(made, "2", *["error"] * 4) == []
    (verdict,) = feed(made, "2", "late")
    assert (verdict.version, verdict.on, verdict.requests, verdict.late, verdict.errors) == ("2", False, 5, 1, 4)
    plan = made.choose("k", 0.5)
    assert plan.steps == (Step("1", "previous"),)
    assert plan.skipped == (Attempt(version="2", outcome="off"),)
    assert made.state("2", 0.5) == "off"


def test_half_of_the_last_twenty_take_a_version_off_and_never_fewer_than_five() -> None:
    made = router("1", "2")
    verdicts = feed(made, "2", *["late", "ok"] * 10)
    assert [verdict.on for verdict in verdicts] == [False]
    assert verdicts[0].requests >= 5
    assert feed(router("1", "2"), "2", "error", "error", "error", "error") == []


def test_the_last_healthy_version_stays() -> None:
    made = router("2")
    assert feed(made, "2", *["error"] * 50) == []
    assert asked(made) == ["2"]
    made.loaded("1", True)
    assert [verdict.version for verdict in feed(made, "2", "error")] == ["2"]
    assert feed(made, "1", *["error"] * 50) == []
    assert asked(made) == ["1"]


def test_when_all_that_is_left_is_off_it_is_asked_all_the_same() -> None:
    made = router("1", "2")
    feed(made, "2", *["error"] * 5)
    made.loaded("1", False)
    plan = made.choose("k", 0.0)
    assert plan.steps == (Step("2", "champion"),)
    assert plan.skipped == (Attempt(version="1", outcome="loading"),)


def test_trial_calls_bring_it_back() -> None:
    made = router("1", "2")
    feed(made, "2", *["error"] * 5)
    assert made.choose("k", 0.9).probe is None
    for now in (1.0, 1.1, 1.2):
        assert made.choose("k", now).probe == "2"
        made.probing("2", now)
        assert made.choose("k", now).probe is None
        verdicts = made.observe("2", "ok", now, probe=True)
    assert [(verdict.version, verdict.on) for verdict in verdicts] == [("2", True)]
    assert asked(made, 1.3) == ["2", "1"]


def test_a_failed_trial_doubles_the_time_up_to_a_minute() -> None:
    made = router("1", "2")
    feed(made, "2", *["error"] * 5)
    now, lengths = 0.0, []
    for _ in range(8):
        lengths.append(made.off_for("2", now))
        now += lengths[-1]
        assert made.choose("k", now).probe == "2"
        made.probing("2", now)
        assert made.observe("2", "late", now, probe=True) == ()
    assert lengths == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_version_that_flaps_stays_off_longer_and_a_long_health_is_forgiven() -> None:
    made = router("1", "2")

    def flap(now: float) -> float:
        feed(made, "2", *["error"] * 5, now=now)
        off = made.off_for("2", now)
        for _ in range(3):
            made.probing("2", now + off)
            made.observe("2", "ok", now + off, probe=True)
        return off

    assert [flap(0.0), flap(10.0), flap(30.0)] == [1, 2, 4]
    assert flap(1000.0) == 1


def test_a_trial_that_never_comes_back_is_tried_again() -> None:
    made = router("1", "2")
    feed(made, "2", *["error"] * 5)
    made.probing("2", 1.0)
    assert made.choose("k", 5.0).probe is None
    assert made.choose("k", 11.5).probe == "2"


def test_late_runs_of_a_version_that_is_off_change_nothing() -> None:
    made = router("1", "2")
    feed(made, "2", *["error"] * 5)
    assert feed(made, "2", *["error"] * 5, now=0.5) == []
    assert made.off_for("2", 0.5) == 0.5
    assert made.observe("9", "error", 0.0) == ()


@pytest.mark.parametrize(
    ("outcome", "word"), [("late", "deadline"), ("error", "error"), ("off", "circuit"), ("loading", "loading")]
)
def test_the_reason_is_what_happened_to_the_first(outcome: Outcome, word: str) -> None:
    assert reason((Attempt(version="2", outcome=outcome), Attempt(version="1", outcome="ok"))) == word
    assert reason((Attempt(version="1", outcome="ok"),)) is None


def test_limits_are_given() -> None:
    made = Router(Limits(consecutive=2))
    made.obey(RoutingTable(version=1, champion="2", previous="1"))
    made.loaded("1", True)
    made.loaded("2", True)
    assert [verdict.on for verdict in feed(made, "2", "error", "error")] == [False]
