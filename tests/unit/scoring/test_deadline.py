"""Time, handed in."""

from __future__ import annotations

from turnout.scoring.domain.deadline import Deadline
from turnout.scoring.domain.latency import Latencies


def test_a_deadline_is_made_once_and_runs_out() -> None:
    now = 10.0
    deadline = Deadline.after(50.0, lambda: now)
    assert abs(deadline.remaining() - 0.05) < 1e-9
    now = 10.04
    assert not deadline.passed
    now = 10.06
    assert deadline.passed


def test_a_version_is_proven_by_many_fast_runs() -> None:
    recent = Latencies()
    for _ in range(199):
        recent.add(0.2)
    assert not recent.proven(200, 1.0)
    recent.add(0.2)
    assert recent.proven(200, 1.0)
    for _ in range(25):
        recent.add(5.0)
    assert not recent.proven(200, 1.0)
    assert recent.p50 == 0.2
    recent.clear()
    assert (recent.count, recent.p99) == (0, None)


def test_one_slow_run_in_a_thousand_does_not_disprove() -> None:
    recent = Latencies()
    for index in range(500):
        recent.add(50.0 if index == 100 else 0.3)
    assert recent.proven(200, 1.0)
