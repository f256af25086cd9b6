"""Whatever happens in whatever order: tables only grow, pins hold, unfit versions are not chosen, one stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from turnout.common.errors import Invalid
from turnout.common.events import RoutingTable
from turnout.monitoring.domain import routing

VERSIONS = st.sampled_from(["1", "2", "3", "4"])
STEPS = st.lists(
    st.tuples(st.sampled_from(["deploy", "manual", "degrade", "promote", "rollback", "unpin"]), VERSIONS), max_size=40
)


def decide(step: str, table: RoutingTable | None, version: str, unfit: set[str]) -> routing.Decision | None:
    try:
        match step:
            case "deploy" | "manual":
                return routing.deploy(table, version, automatic=step == "deploy", unfit=unfit)
            case "degrade" if table is not None:
                return routing.switch_back(table, version, "slow", unfit=unfit)
            case "promote":
                return routing.promote(table, version, known=["1", "2", "3", "4"], unfit=unfit)
            case "rollback":
                return routing.rollback(table, "p")
            case "unpin":
                return routing.unpin(table, "p")
            case _:
                return None
    except Invalid:
        return None


@given(STEPS)
def test_routing_keeps_its_promises(steps: list[tuple[str, str]]) -> None:
    table: RoutingTable | None = None
    unfit: set[str] = set()
    for step, version in steps:
        human = step in ("promote", "rollback", "unpin")
        if step == "degrade":
            unfit.add(version)
        decision = decide(step, table, version, unfit)
        if step == "promote":
            unfit.discard(version)
        if decision is None or decision.table is None:
            continue
        following = decision.table
        assert following.version == (table.version if table else 0) + 1
        assert following.previous != following.champion
        if not human:
            assert table is None or not table.pinned
            assert table is None or following.champion == table.champion or following.champion not in unfit
            assert not following.pinned
        assert step != "manual"
        table = following
