"""Table × what happened → the next table."""

from __future__ import annotations

import pytest

from turnout.common.errors import Invalid, Unknown
from turnout.common.events import RoutingTable
from turnout.monitoring.domain import routing

FIRST = RoutingTable(version=1, champion="1")
SECOND = RoutingTable(version=2, champion="2", previous="1")
PINNED = SECOND.model_copy(update={"pinned": True})
CANARY = SECOND.model_copy(update={"challenger": "3", "share": 0.1})


@pytest.mark.parametrize(
    ("table", "version", "unfit", "expected", "action"),
    [
        (None, "1", (), (6, "1", None), "deployed"),
        (FIRST, "2", (), (2, "2", "1"), "deployed"),
        (SECOND, "3", (), (3, "3", "2"), "deployed"),
        (SECOND, "3", ("2",), (3, "3", None), "deployed"),
        (SECOND, "2", (), None, "kept"),
        (SECOND, "1", (), None, "kept"),
        (CANARY, "3", (), None, "kept"),
        (PINNED, "3", (), None, "waits"),
        (SECOND, "3", ("3",), None, "passed over"),
    ],
)
def test_deploy(table, version, unfit, expected, action) -> None:  # type: ignore[no-untyped-def]
    decision = routing.deploy(table, version, automatic=True, unfit=unfit, last=5)
    assert (decision.action, _short(decision.table)) == (action, expected)


def test_manual_approval_waits_for_the_first_version_too() -> None:
    assert routing.deploy(None, "1", automatic=False).table is None


@pytest.mark.parametrize(
    ("table", "version", "unfit", "expected", "action"),
    [
        (SECOND, "2", (), (3, "1", None), "switched back"),
        (SECOND, "1", (), None, "recorded"),
        (FIRST, "1", (), None, "recorded"),
        (PINNED, "2", (), None, "recorded"),
        (SECOND, "2", ("1",), None, "recorded"),
        (CANARY, "3", (), (3, "2", "1"), "withdrawn"),
    ],
)
def test_switch_back(table, version, unfit, expected, action) -> None:  # type: ignore[no-untyped-def]
    decision = routing.switch_back(table, version, "slow", unfit=unfit)
    assert (decision.action, _short(decision.table)) == (action, expected)
    if decision.table is not None:
        assert decision.table.challenger is None


def test_people() -> None:
    known = ["1", "2", "3"]
    assert _pinned(routing.promote(None, "1", known=known, last=4)) == (5, "1", None, True)
    assert _pinned(routing.promote(SECOND, "3", known=known)) == (3, "3", "2", True)
    assert _pinned(routing.promote(SECOND, "1", known=known)) == (3, "1", "2", True)
    assert _pinned(routing.promote(SECOND, "1", known=known, unfit=["2"])) == (3, "1", None, True)
    assert _pinned(routing.promote(SECOND, "2", known=known)) == (3, "2", "1", True)
    assert routing.promote(PINNED, "2", known=known).table is None
    assert _pinned(routing.rollback(SECOND, "p")) == (3, "1", None, True)
    assert _pinned(routing.unpin(PINNED, "p")) == (3, "2", "1", False)
    assert routing.unpin(SECOND, "p").table is None


def test_people_are_told_what_is_wrong() -> None:
    with pytest.raises(Unknown, match="'3'"):
        routing.promote(SECOND, "33", known=["3"])
    for table in (None, FIRST):
        with pytest.raises(Invalid, match="no previous version"):
            routing.rollback(table, "p")
    with pytest.raises(Invalid, match="no version yet"):
        routing.unpin(None, "p")


def _short(table: RoutingTable | None) -> tuple[int, str, str | None] | None:
    return None if table is None else (table.version, table.champion, table.previous)


def _pinned(decision: routing.Decision) -> tuple[int, str, str | None, bool]:
    assert decision.table is not None
    return (decision.table.version, decision.table.champion, decision.table.previous, decision.table.pinned)
