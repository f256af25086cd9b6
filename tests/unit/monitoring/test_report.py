from __future__ import annotations

from html.parser import HTMLParser

import pytest
from watched import AGES, Counts, at, late, outcome, ready, score

from turnout.common.events import RoutingChanged, RoutingTable, StageFailed, Target
from turnout.common.history.port import Joined
from turnout.monitoring.domain import page, report
from turnout.monitoring.domain.progress import Progress
from turnout.monitoring.domain.standing import Standing

NASTY = "<script>alert('x')</script>\"&"


def standing(**fields: object) -> Standing:
    made = Standing("p")
    made.know(ready("1", **fields))
    made.know(ready("2", **fields))
    table = RoutingTable(version=2, champion="2", previous="1")
    made.obey(RoutingChanged.first(source="/m", at=at(0), pipeline="p", table=table, why="it is new"))
    return made


def joined(pairs: list[tuple[object, object]]) -> list[Joined]:
    return [
        Joined(score(f"s-{n}", version="2", value=predicted), outcome(f"s-{n}", actual))  # type: ignore[arg-type]
        for n, (predicted, actual) in enumerate(pairs)
    ]


def test_versions_say_how_often_how_fast_and_who_had_to_step_in() -> None:
    made = standing()
    Counts(made).scored(
        [score(f"s-{n}", version="2", milliseconds=1.0 + n, values={"age": 30}) for n in range(100)]
        + [late(f"l-{n}") for n in range(5)]
        + [score("b", version="baseline", served_by="baseline", attempts=())]
    )
    found = report.report(made, None, {})
    assert (found.champion, found.previous, found.served) == ("2", "1", 106)
    assert found.answers == {"champion": 100, "previous": 5, "baseline": 1}
    second, first = found.versions
    assert (second.version, second.role, second.served, second.late) == ("2", "champion", 100, 5)
    assert second.fallbacks == {"late": 5}
    assert second.milliseconds.minimum == 1.0
    assert second.milliseconds.maximum == 100.0
    assert second.milliseconds.mean == pytest.approx(50.5)
    assert second.milliseconds.p50 == pytest.approx(50, rel=0.02)
    assert second.milliseconds.p99 == pytest.approx(99, rel=0.02)
    assert second.predictions == {"yes": 1.0}
    assert (first.role, first.served, first.roles) == ("previous", 5, {"previous": 5})
    assert second.features[0].live == [0, 1, 0, 0]


def test_classes_are_shown_as_a_matrix() -> None:
    pairs = joined([("yes", "yes")] * 6 + [("yes", "no")] * 2 + [("no", "no")] * 3 + [("no", " ")])
    found = report.quality(standing(), "2", pairs)
    assert found.confusion is not None
    assert found.confusion.actual == ["no", "yes"]
    assert found.confusion.counts == [[3, 2], [0, 6]]
    assert (found.outcomes, found.unreadable, found.promised) == (11, 1, 0.9)
    assert found.live == pytest.approx(9 / 11)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 9 / 11 < found.high


def test_many_classes_share_a_row() -> None:
    pairs = joined([(f"c{n}", f"c{n}") for n in range(60)])
    found = report.quality(standing(), "2", pairs)
    assert found.confusion is not None
    assert len(found.confusion.actual) == 21
    assert sum(map(sum, found.confusion.counts)) == 60


def test_numbers_are_shown_as_points() -> None:
    made = standing(target=Target(task="regression", label="y"), metrics={"mae": 1.0})
    found = report.quality(made, "2", joined([(float(n), n + 2.0) for n in range(900)]))
    assert found.scatter is not None
    assert (found.scatter.mae, found.scatter.rmse, found.scatter.bias) == (2.0, 2.0, -2.0)
    assert len(found.scatter.points) == 300
    assert (found.live, found.metric) == (2.0, "mae")


def test_no_outcomes_are_no_quality() -> None:
    found = report.quality(standing(), "2", [])
    assert (found.live, found.promised, found.outcomes) == (None, 0.9, 0)


def test_progress_keeps_the_newest() -> None:
    progress = Progress()
    progress.take(ready("2", seconds=5))
    progress.take(StageFailed.first(source="/t", at=at(3), pipeline="p", stage="training", error="no rows"))
    stage = progress.of("p")
    assert stage is not None
    assert (stage.name, stage.failed) == ("evaluated", False)
    progress.take(StageFailed.first(source="/t", at=at(9), pipeline="p", stage="training", error="no rows"))
    stage = progress.of("p")
    assert stage is not None
    assert (stage.detail, stage.failed) == ("training: no rows", True)
    progress.take(score())
    progress.forget("p", at(8))
    assert progress.of("p") is not None
    progress.forget("p", at(9))
    assert progress.of("p") is None


class Balanced(HTMLParser):
    """Every tag that opens closes, and no script is among them."""

    VOID = ("meta", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_page_is_whole_and_escapes_what_comes_from_outside(task: str) -> None:
    target = Target(task=task, label="y", classes=(NASTY, "no"))  # type: ignore[arg-type]
    profile = (AGES.model_copy(update={"name": "age"}),)
    made = standing(target=target, profile=profile, metrics={"accuracy": 0.9, "mae": 1.0}, why=NASTY)
    Counts(made).scored([score(f"s-{n}", version="2", values={"age": n}) for n in range(80)])
    predicted = [(NASTY, "no"), ("no", NASTY)] * 5 if task == "classification" else [(1.0, 2.0)] * 5
    found = report.report(made, None, {"2": joined(predicted)})
    progress = Progress()
    progress.take(StageFailed.first(source="/t", at=at(9), pipeline="p", stage="s", error=NASTY))
    drawn = page.render([report.line(made, progress.of("p"))], [found.model_copy(update={"why": NASTY, "by": NASTY})])
    assert "<script>" not in drawn
    parser = Balanced()
    parser.feed(drawn)
    assert parser.open == []
    assert "svg" in parser.seen
    assert "script" not in parser.seen


def test_the_page_without_pipelines_says_what_to_do() -> None:
    assert "turnout init" in page.render([], [])


def test_a_scatter_of_one_point_can_be_drawn() -> None:
    made = standing(target=Target(task="regression", label="y"), metrics={"mae": 1.0})
    found = report.report(made, None, {"2": joined([(1.0, 1.0)])})
    assert "circle" in page.render([], [found])
