"""Trace Context: one trace along a chain of events, a span for each, the same when made twice."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from turnout.common.events import SourceDataAvailable, StageFailed
from turnout.common.tracing import continued

AT = datetime(2026, 3, 1, tzinfo=UTC)
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


def announced(traceparent: str | None = None) -> SourceDataAvailable:
    return SourceDataAvailable.first(
        source="/test", at=AT, id="e-1", pipeline="p", uri="a.csv", traceparent=traceparent
    )


def failed(cause: SourceDataAvailable) -> StageFailed:
    return StageFailed.caused_by(cause, source="/test", at=AT, stage="s", error="e")


def parts(traceparent: str | None) -> list[str]:
    assert traceparent is not None
    return traceparent.split("-")


def test_a_chain_is_one_trace_and_each_event_a_span_of_its_own() -> None:
    first = announced()
    second = failed(first)
    assert parts(first.traceparent)[1] == parts(second.traceparent)[1]
    assert parts(first.traceparent)[2] != parts(second.traceparent)[2]
    assert second.traceparent == failed(first).traceparent


def test_the_callers_trace_goes_on_with_its_flags() -> None:
    second = failed(announced(CALLER))
    version, trace, span, flags = parts(second.traceparent)
    assert (version, trace, flags) == ("00", "4bf92f3577b34da6a3ce929d0e0e4736", "00")
    assert span != "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "odd",
    [
        "", "x", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", CALLER.upper(), CALLER + "\n",
    ],
)  # fmt: skip
def test_what_is_no_traceparent_is_passed_over(odd: str) -> None:
    assert continued(odd, "e-1", correlation="c") == continued(None, "e-1", correlation="c")


def test_a_later_version_of_the_standard_is_read_as_far_as_it_is_known() -> None:
    later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"
    assert parts(continued(later, "e-1", correlation="c"))[1] == "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_chain_begun_by_a_stranger_without_a_trace_has_one_from_its_correlation() -> None:
    bare = announced().model_copy(update={"traceparent": None})
    assert parts(failed(bare).traceparent)[1] == parts(announced().traceparent)[1]
