"""Whatever order events come in, however often, and whoever owns the state meanwhile: the same state comes of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta

import orjson
from hypothesis import given
from hypothesis import strategies as st
from watched import Router, at, joined, outcome, score

from turnout.common.events import Attempt, Event, ScoresSummarised
from turnout.monitoring.domain import tally
from turnout.monitoring.domain.tally import Limits, Marks, State, Tally

LIMITS = Limits(tries=6, pairs=5)
VERSIONS = ("1", "2")
OUTCOMES = st.sampled_from(["ok", "late", "error", "off", "loading"])
# The asked version's outcome, who answered, seconds since the score before, outcome of the score (None: none yet).
STEPS = st.lists(
    st.tuples(OUTCOMES, st.sampled_from(VERSIONS), st.sampled_from([0.0, 0.01, 0.4]), st.sampled_from([None, 0, 1, 2])),
    max_size=30,
)


def story(steps: Sequence[tuple], seed: int) -> list[Event]:
    """What two routers and some people tell, in the order of the log."""
    draw = random.Random(seed)
    routers = [Router("box-1"), Router("box-2")]
    events: list[Event] = []
    waiting: dict[int, list] = {0: [], 1: []}
    now = 0.0
    for number, (result, version, pause, corrections) in enumerate(steps):
        now += pause
        attempts = (Attempt(version="1", outcome=result, milliseconds=2.0 if result == "ok" else None),)
        one = score(f"s-{number}", version=version, seconds=now, attempts=attempts, values={"age": number * 3.0})
        which = draw.randrange(2)
        waiting[which].append(one)
        if draw.random() < 0.4:
            events += routers[which].tell(*waiting[which])
            waiting[which] = []
        for correction in range(corrections or 0):
            said = outcome(one.score_id, "no" if correction else "yes", observed=now + correction)
            events.append(joined(one, said))
    for which, router in enumerate(routers):
        events += router.tell(*waiting[which])
    return events


def folded(events: Sequence[Event], state: State | None = None) -> State:
    made: State = {} if state is None else state
    for event in events:
        tally.fold(made, event, LIMITS)
    return made


def tallies(state: State) -> dict[str, Tally]:
    return tally.tallies(state, "p") or {}


@given(STEPS, st.integers(0, 1000))
def test_any_order_and_any_repetition_give_the_same_state(steps: list[tuple], seed: int) -> None:
    events = story(steps, seed)
    again = events + random.Random(seed).choices(events, k=len(events)) if events else []
    random.Random(seed + 1).shuffle(again)
    assert tallies(folded(again)) == tallies(folded(events))


@given(STEPS, st.integers(0, 1000), st.data())
def test_a_new_owner_goes_on_where_the_state_was_saved(steps: list[tuple], seed: int, data: st.DataObject) -> None:
    """The one before was further in the log than its last saved state: what it did after that comes again."""
    events = story(steps, seed)
    saved = data.draw(st.integers(0, len(events)))
    first = folded(events[:saved])
    moved: State = orjson.loads(orjson.dumps(first))
    second = folded(events[max(0, saved - 5) :], moved)
    assert tallies(second) == tallies(folded(events))


@given(STEPS, st.integers(0, 1000))
def test_a_state_travels_as_json_and_goes_on_counting(steps: list[tuple], seed: int) -> None:
    events = story(steps, seed)
    half = len(events) // 2
    state = orjson.loads(orjson.dumps(folded(events[:half])))
    assert tallies(folded(events[half:], state)) == tallies(folded(events))


@given(STEPS, st.integers(0, 1000))
def test_the_newest_are_kept_and_no_more(steps: list[tuple], seed: int) -> None:
    for found in tallies(folded(story(steps, seed))).values():
        assert len(found.pairs) <= LIMITS.pairs
        for tries in found.tries.values():
            assert len(tries) <= 2 * LIMITS.tries
            assert tries == sorted(tries, key=lambda t: t[:3])


@given(STEPS, st.integers(0, 1000), st.data())
def test_what_was_rebuilt_from_the_log_ignores_what_the_log_tells_again(
    steps: list[tuple], seed: int, data: st.DataObject
) -> None:
    """The log may have lost its beginning; what comes after the rebuilding is counted once."""
    events = [event for event in story(steps, seed) if isinstance(event, ScoresSummarised)]
    lost = data.draw(st.integers(0, len(events)))
    read = data.draw(st.integers(lost, len(events)))
    made, since = tally.rebuilt(events[lost:read], LIMITS)
    assert since == min((event.since for event in events[lost:read]), default=None)
    state: State = {}
    tally.begin(state, "p", made)
    whole, _ = tally.rebuilt(events[lost:], LIMITS)
    after = tallies(folded(events[lost:], state))
    assert {v: t.summary for v, t in after.items()} == {v: t.summary for v, t in whole.items()}


@given(st.permutations(range(1, 12)), st.lists(st.integers(1, 11), max_size=20))
def test_each_number_is_new_once(order: list[int], repeated: list[int]) -> None:
    marks = Marks()
    assert [number for number in [*order, *repeated] if marks.take(number)] == list(order)
    assert (marks.upto, marks.ahead) == (11, set())


def test_a_gap_that_nobody_closes_is_given_up() -> None:
    marks = Marks()
    for number in range(2, tally.AHEAD + 10):
        assert marks.take(number)
    assert marks.upto == tally.AHEAD + 9
    assert not marks.ahead


def test_an_outbox_that_is_gone_is_forgotten() -> None:
    state: State = {}
    folded(Router("gone").tell(score("s-1")), state)
    later = (tally.SILENCE + timedelta(seconds=1)).total_seconds()
    folded(Router("here").tell(score("s-2", seconds=later)), state)
    found = tallies(state)["1"]
    assert (list(found.marks), list(found.tries), found.summary.served.total()) == (["here"], ["here"], 2)


def test_what_was_counted_until_the_end_goes() -> None:
    state: State = {}
    router = Router("box")
    folded([*router.tell(score("s-1", version="1")), *router.tell(score("s-2", version="2", seconds=10))], state)
    tally.drop(state, "p", at(5))
    assert tally.versions(state, "p") == ["2"]
    tally.drop(state, "p", at(10))
    assert state == {}


def test_what_is_missing_is_noticed() -> None:
    router = Router("box")
    first, second = router.tell(score("s-1"))[0], router.tell(score("s-2", seconds=1))[0]
    state: State = {}
    assert tally.missing(state, first), "nothing was ever begun: there may be scores from before"
    tally.begin(state, "p", {})
    assert not tally.missing(state, first)
    assert tally.missing(state, second)
    folded([first], state)
    assert not tally.missing(state, second)
    assert not tally.missing(state, first), "again, but nothing is missing"
    third, fourth = router.tell(score("s-3"))[0], router.tell(score("s-4"))[0]
    assert tally.missing(state, fourth), "an old state that came back: somebody had counted further"
    assert not tally.next_missing(state, [second, third, fourth])
    assert tally.next_missing(state, [fourth])
