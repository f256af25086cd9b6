from __future__ import annotations

import orjson
import pytest
from watched import Counts, at, late, outcome, ready, score

from turnout.common.events import RoutingChanged, RoutingTable, Target
from turnout.common.history.port import Audit, Joined
from turnout.common.pipeline import PipelineFile
from turnout.monitoring.domain import tally
from turnout.monitoring.domain.standing import Standing


def file(**sections: object) -> PipelineFile:
    return PipelineFile.model_validate(
        {"pipeline": "p", "task": "classification", "source": {"label": "num"}, **sections}
    )


def routed(number: int, champion: str, *, seconds: float = 0.0, previous: str | None = None) -> RoutingChanged:
    table = RoutingTable(version=number, champion=champion, previous=previous)
    return RoutingChanged.first(source="/m", at=at(seconds), id=f"r-{number}", pipeline="p", table=table, why="because")


def pair(predicted: float | str, actual: object, ident: str = "s-1", version: str = "1") -> Joined:
    return Joined(score(ident, value=predicted, version=version), outcome(ident, actual))


def entry(action: str, subject: str, *, seconds: float = 0.0, **detail: object) -> Audit:
    return Audit(f"{action}-{subject}-{seconds}", at(seconds), "p", "monitoring", action, subject, "", detail)  # type: ignore[arg-type]


def classifier(*classes: str) -> Standing:
    standing = Standing("p")
    target = Target(task="classification", label="num", classes=classes)
    standing.know(ready("1", target=target))
    return standing


@pytest.mark.parametrize(
    ("classes", "said", "actual"),
    [
        (("no", "yes"), "yes", "yes"),
        (("no", "yes"), " yes ", "yes"),
        (("0", "1"), 1, "1"),
        (("0", "1"), 1.0, "1"),
        (("0", "1"), "1.0", "1"),
        (("false", "true"), True, "true"),
        (("no", "yes"), "perhaps", "perhaps"),
        (("no", "yes"), "  ", None),
    ],
)
def test_an_outcome_is_read_as_a_class(classes: tuple[str, ...], said: object, actual: object) -> None:
    assert classifier(*classes).actual(pair("yes", said)) == actual


@pytest.mark.parametrize(
    ("said", "actual"),
    [(0, "false"), (3, "true"), ("2", "true"), ("0.0", "false"), ("true", "true"), (False, "false"), ("x", "x")],
)
def test_with_a_positive_expression_the_label_may_speak_for_itself(said: object, actual: str) -> None:
    standing = classifier("false", "true")
    standing.declare(file(source={"label": "num", "positive": "num > 0"}), at(0))
    assert standing.actual(pair("true", said)) == actual


def test_an_outcome_is_read_as_a_number() -> None:
    standing = Standing("p")
    standing.know(ready("1", target=Target(task="regression", label="y"), metrics={"mae": 2.0}))
    assert standing.actual(pair(3.5, "4.25")) == 4.25
    assert standing.actual(pair(3.5, "tall")) is None
    Counts(standing).observed(pair(3.5, "tall"), pair(3.5, 4.0, "s-2"))
    assert (standing.readable("1", 3.5, "tall"), standing.readable("1", 3.5, 4.0)) == (False, True)
    quality = standing.quality("1")
    assert quality is not None
    assert quality.losses == {"s-2": 0.5}


def test_a_correction_replaces_the_outcome_before() -> None:
    standing = classifier("no", "yes")
    counts = Counts(standing)
    predicted = score("s-1", value="yes")
    counts.observed(Joined(predicted, outcome("s-1", "yes", observed=1)))
    counts.observed(Joined(predicted, outcome("s-1", "no", observed=2)))
    counts.observed(Joined(predicted, outcome("s-1", "yes", observed=1)))
    quality = standing.quality("1")
    assert quality is not None
    assert quality.losses == {"s-1": 1.0}


def test_memory_told_again_is_the_same_memory() -> None:
    """What lived through it and what reads it back from audit trail and state agree."""
    lived, told = Standing("p"), Standing("p")
    scores = [late(f"s-{n}", seconds=10 + n * 0.01) for n in range(60)]
    for standing in (lived, told):
        standing.know(ready("1"))
        standing.know(ready("2"))
    lived.obey(routed(2, "2", previous="1"))
    counts = Counts(lived)
    for one in scores:
        counts.scored([one])
    degraded = entry("degraded", "2", seconds=11, signal="latency", table_version=2)
    lived.recall(degraded)

    told.remember([degraded])
    told.obey(routed(2, "2", previous="1"))
    told.tallies = tally.tallies(orjson.loads(orjson.dumps(counts.state)), "p") or {}
    for standing in (lived, told):
        assert standing.unfit == {"2"}
        assert standing.trouble("latency").told == 1
        assert standing.verdicts() == [], "it was told already"
        assert standing.tries.verdict() is not None
    assert lived.tallies == told.tallies


def test_a_new_table_forgets_what_was_told_and_seen() -> None:
    standing = Standing("p")
    standing.obey(routed(1, "2"))
    Counts(standing).scored([late(f"s-{n}") for n in range(60)])
    assert [e.signal for e in standing.verdicts()] == ["latency"]
    standing.obey(routed(2, "2", seconds=100))
    assert standing.verdicts() == []


def test_trouble_that_is_over_may_be_told_again() -> None:
    standing = Standing("p")
    standing.obey(routed(1, "2"))
    counts = Counts(standing)
    counts.scored([late(f"s-{n}", seconds=n * 0.1) for n in range(60)])
    standing.recall(entry("degraded", "2", signal="latency", table_version=1))
    assert (standing.verdicts(), standing.recovered()) == ([], [])
    counts.scored([score(f"w-{n}", version="2", seconds=10 + n) for n in range(60)])
    assert standing.recovered() == ["latency"]
    standing.recall(entry("recovered", "2", signal="latency", table_version=1))
    counts.scored([late(f"l-{n}", seconds=100 + n * 0.1) for n in range(60)])
    assert [e.signal for e in standing.verdicts()] == ["latency"]
    assert standing.trouble("latency").told == 1


def test_what_somebody_else_decided_replaces_what_was_remembered() -> None:
    standing = Standing("p")
    degraded = entry("degraded", "2", seconds=1, signal="latency", table_version=2)
    standing.remember([degraded])
    assert standing.unfit == {"2"}
    promoted = entry("promoted", "2", seconds=2, table=RoutingTable(version=3, champion="2").model_dump(mode="json"))
    standing.remember([promoted, degraded])
    assert (standing.unfit, standing.last_table, standing.trouble("latency").told) == (set(), 3, 0)
    assert standing.recalled == {promoted.id, degraded.id}


def test_what_lies_before_a_removal_is_another_pipelines_but_for_the_tables_number() -> None:
    table = RoutingTable(version=7, champion="2").model_dump(mode="json")
    standing = Standing("p")
    standing.remember(
        [
            entry("deployed", "1", seconds=3),
            entry("removed", "p", seconds=2),
            entry("degraded", "2", seconds=1, signal="latency", table_version=7),
            entry("deployed", "2", seconds=0, table=table),
        ]
    )
    assert (standing.unfit, standing.deployed, standing.last_table) == (set(), {}, 7)


def test_new_rules_begin_with_new_samples() -> None:
    standing = Standing("p")
    standing.obey(routed(1, "2"))
    counts = Counts(standing)
    counts.scored([late(f"s-{n}") for n in range(60)])
    standing.declare(file(monitoring={"min_samples": 100}), at(1))
    assert standing.verdicts() == []
    counts.scored([late(f"t-{n}", seconds=2) for n in range(100)])
    assert len(standing.verdicts()) == 1
