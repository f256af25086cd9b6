"""A summary of the whole is the merge of the summaries of its parts, however it is cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from watched import AGES, score

from turnout.common.events import Attempt, Column, ColumnProfile, Histogram, ScoreProduced
from turnout.common.summary import Gathering, Quantiles, Summary, merge, shape_of, summarise

SHAPE = shape_of([Column(name="age", kind="number")], [AGES])
SHAPES = {"1": SHAPE, "2": SHAPE}
VERSIONS = st.sampled_from(["1", "2", "3"])
MILLISECONDS = st.floats(0, 1e6) | st.sampled_from([0.0, 1e-9, 5e-324, 1e12])
ATTEMPTS = st.builds(
    Attempt,
    version=VERSIONS,
    outcome=st.sampled_from(["ok", "late", "error", "off", "loading"]),
    milliseconds=st.none() | MILLISECONDS,
)
VALUES = st.sampled_from(["yes", "no", ""]) | st.floats(allow_nan=False, allow_infinity=False)
CELLS = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3) | st.booleans()


SCORES = st.builds(
    score,
    st.just("s"),
    version=VERSIONS,
    served_by=st.sampled_from(["champion", "previous", "cache", "baseline"]),
    value=VALUES,
    milliseconds=MILLISECONDS,
    attempts=st.lists(ATTEMPTS, max_size=2).map(tuple),
    values=st.just({}) | st.builds(dict, age=CELLS),
)


def of(found: Sequence[ScoreProduced]) -> dict[str, Summary]:
    return summarise(found, SHAPES)


def merged(*parts: dict[str, Summary]) -> dict[str, Summary]:
    whole: dict[str, Summary] = {}
    for part in parts:
        merge(whole, part)
    return whole


COLOURS = ColumnProfile(
    name="in:colour", kind="category", rows=5, missing=0, distinct=2,
    histogram=Histogram(edges=(), counts=(2, 3), categories=("red", "true")),
)  # fmt: skip
MIXED = shape_of([Column(name="age", kind="number"), Column(name="colour", kind="category")], [AGES, COLOURS])
ANY = st.none() | st.booleans() | st.integers(-9, 2**70) | st.floats() | st.text(max_size=3) | st.just("red")


@given(st.lists(st.tuples(ANY, ANY, VERSIONS, st.sampled_from(["champion", "baseline"]), ATTEMPTS), max_size=12))
def test_many_at_once_are_counted_as_one_by_one(rows: list[tuple[Any, Any, str, Any, Attempt]]) -> None:
    scores = [
        score(
            str(number), version=version, served_by=role, values={"age": age, "colour": colour},
            attempts=(attempt,) if number % 2 else (Attempt(version=version, outcome="ok", milliseconds=1.5),),
            seconds=number,
        )
        for number, (age, colour, version, role, attempt) in enumerate(rows)
    ]  # fmt: skip
    alone, together = Gathering(), Gathering()
    for one in scores:
        alone.add(one, MIXED)
    together.add_all(scores, lambda _: MIXED)

    def told(gathering: Gathering) -> dict[str, tuple[Any, ...]]:
        return {
            part.version: (part.since, part.until, part.summary.to_json(), sorted(part.tries, key=lambda t: t.at))
            for part in gathering.parts
        }

    assert told(together) == told(alone)


@given(st.lists(SCORES, max_size=12), st.data())
def test_the_parts_merged_are_the_whole(found: list[ScoreProduced], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(found)), max_size=4)))
    edges = [0, *cuts, len(found)]
    parts = [of(found[a:b]) for a, b in pairwise(edges)]
    assert merged(*parts) == of(found)
    assert merged(*reversed(parts)) == of(found)


@given(st.lists(SCORES, max_size=6), st.lists(SCORES, max_size=6), st.lists(SCORES, max_size=6))
def test_merging_is_associative_and_leaves_its_parts_alone(
    a: list[ScoreProduced], b: list[ScoreProduced], c: list[ScoreProduced]
) -> None:
    x, y, z = of(a), of(b), of(c)
    assert merged(merged(x, y), z) == merged(x, merged(y, z))
    assert (x, y, z) == (of(a), of(b), of(c))


@given(st.lists(SCORES, max_size=12))
def test_a_summary_travels_as_json_and_goes_on_counting(found: list[ScoreProduced]) -> None:
    sent = {version: json.loads(json.dumps(s.to_json())) for version, s in of(found).items()}
    arrived = {version: Summary.from_json(s) for version, s in sent.items()}
    assert arrived == of(found)
    assert merged(arrived, of(found)) == of(found + found)


# Beyond 2,048 bins (15 decades) the smallest share one.
NUMBERS = st.just(0.0) | st.floats(1e-6, 1e9) | st.floats(-1e9, -1e-6)


@given(st.lists(NUMBERS, min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_is_within_one_percent(found: list[float], share: float) -> None:
    sketch = Quantiles()
    for value in found:
        sketch.add(value)
    exact = sorted(found)[int(share * (len(found) - 1))]
    estimate = sketch.quantile(share)
    assert estimate is not None
    assert abs(estimate - exact) <= 0.0101 * abs(exact)
    assert sketch.count == len(found)


@given(st.lists(SCORES, max_size=12))
def test_every_answer_is_counted_once(found: list[ScoreProduced]) -> None:
    summaries = of(found)
    assert sum(s.served.total() for s in summaries.values()) == len(found)
    for summary in summaries.values():
        own = sum(n for role, n in summary.served.items() if role not in ("cache", "baseline"))
        assert summary.classes.total() + summary.numbers.count == own
        assert all(counts.total == own for counts in summary.features.values())
