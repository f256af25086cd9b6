"""What is counted of each version, as keyed state: plain Python over a mapping from text to plain data.

The embedded bus drives it over SQLite, Kafka drives it over a Faust table. Nothing in it depends on the order in which
events come, and an event that comes again changes nothing: summaries carry the number that their outbox gave them, and
an outcome replaces the one of the same score that was observed before it. What bounds the state (the newest tries, the
newest outcomes) is chosen by their own times, not by their arrival.

A pipeline has one entry that names its versions, and each version one that stands alone: the marks of what was seen lie
beside what was counted, so that they cannot come apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson

from turnout.common.errors import Invalid
from turnout.common.events import Event, OutcomeJoined, ScoresSummarised, Tried
from turnout.common.summary import Summary, micros

Json = dict[str, Any]
State = MutableMapping[str, Json]

# Numbers ahead of a gap that are remembered; then the gap is given up, for the log that could close it is gone.
AHEAD = 1_000
# An outbox that told nothing for so long is gone with its disk; longer than the log of summaries is kept.
SILENCE = timedelta(days=7)


@dataclass(slots=True)
class Marks:
    """Which numbers of an outbox were seen: all up to `upto`, and those in `ahead`. `newest`: microseconds."""

    upto: int = 0
    ahead: set[int] = field(default_factory=set[int])
    newest: int = 0

    def take(self, number: int) -> bool:
        """Take note of a number; whether it is seen for the first time."""
        if number <= self.upto or number in self.ahead:
            return False
        self.ahead.add(number)
        while self.upto + 1 in self.ahead or len(self.ahead) > AHEAD:
            self.upto = min(self.ahead)
            self.ahead.discard(self.upto)
        return True

    def settle(self) -> None:
        """What is missing below the greatest number that was seen will not come any more."""
        self.upto = max(self.ahead, default=self.upto)
        self.ahead = set()


@dataclass(frozen=True, slots=True)
class Pair:
    """A version's answer beside the outcome that counts; times in microseconds since 1970."""

    scored: int
    observed: int
    predicted: float | str
    outcome: float | int | str | bool


@dataclass(frozen=True, slots=True)
class Limits:
    """How many of the newest tries per router, and of the newest outcomes, are kept."""

    tries: int
    pairs: int


# One attempt in the order of time: at, sequence, index; then the attempt.
_Try = tuple[int, int, int, Tried]


@dataclass(slots=True)
class Tally:
    """One version: its summary, each router's newest tries, the newest outcomes by score id, and what was seen."""

    summary: Summary = field(default_factory=Summary)
    marks: dict[str, Marks] = field(default_factory=dict[str, Marks])
    tries: dict[str, list[_Try]] = field(default_factory=dict[str, list[_Try]])
    pairs: dict[str, Pair] = field(default_factory=dict[str, Pair])
    until: int = 0

    def told(self, event: ScoresSummarised, limits: Limits) -> bool:
        """Take a summary in; whether it is seen for the first time. Raises `Invalid` if it does not fit the others."""
        told = Summary.from_json(event.summary.model_dump())
        for name, counts in told.features.items():
            known = self.summary.features.get(name)
            if known is not None and len(known.counts) != len(counts.counts):
                raise Invalid(f"summary.features.{name}", "its bins are not those of the version's other summaries")
        marks = self.marks.setdefault(event.outbox, Marks())
        if not marks.take(event.sequence):
            return False
        at = micros(event.time)
        marks.newest = max(marks.newest, at)
        self.summary.merge(told)
        found = [(one.at, event.sequence, index, one) for index, one in enumerate(event.tries)]
        self.tries[event.outbox] = _newest([*self.tries.get(event.outbox, []), *found], limits.tries)
        self._reach(at)
        return True

    def joined(self, event: OutcomeJoined, limits: Limits) -> bool:
        """Take an outcome in; whether it changed anything."""
        pair = Pair(micros(event.scored_at), micros(event.observed_at), event.predicted, event.outcome)
        known = self.pairs.get(event.score_id)
        if known is not None and _rank(pair) <= _rank(known):
            return False
        kept = sorted([*self.pairs.items(), (event.score_id, pair)], key=lambda item: (item[1].scored, item[0]))
        if len(self.pairs) >= limits.pairs and known is None and kept[0][0] == event.score_id:
            return False
        # Of a score's two, the later outcome stands in the dictionary.
        self.pairs = dict(sorted(kept, key=lambda item: (item[1].scored, item[0], _rank(item[1]))))
        for oldest in list(self.pairs)[: -limits.pairs]:
            del self.pairs[oldest]
        self._reach(pair.scored)
        return True

    def add(self, summary: Summary, until: datetime) -> None:
        """Take scores in that no event will tell of, up to that time."""
        self.summary.merge(summary)
        self._reach(micros(until))

    def to_json(self) -> Json:
        """Plain data for `from_json`."""
        return {
            "summary": self.summary.to_json(),
            "marks": {name: [m.upto, sorted(m.ahead), m.newest] for name, m in self.marks.items()},
            "tries": {
                name: [
                    [at, number, index, one.outcome, one.milliseconds, one.until, one.times]
                    for at, number, index, one in tries
                ]
                for name, tries in self.tries.items()
            },
            "pairs": {
                name: [pair.scored, pair.observed, pair.predicted, pair.outcome] for name, pair in self.pairs.items()
            },
            "until": self.until,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tally:
        """The tally that `to_json` described."""
        return cls(
            summary=Summary.from_json(data["summary"]),
            marks={name: Marks(upto, set(ahead), newest) for name, (upto, ahead, newest) in data["marks"].items()},
            tries={
                name: [
                    (at, number, index, Tried(outcome=outcome, at=at, milliseconds=spent, until=until, times=times))
                    for at, number, index, outcome, spent, until, times in tries
                ]
                for name, tries in data["tries"].items()
            },
            pairs={name: Pair(*parts) for name, parts in data["pairs"].items()},
            until=data["until"],
        )

    def _reach(self, at: int) -> None:
        self.until = max(self.until, at)
        silent = self.until - SILENCE // timedelta(microseconds=1)
        for name in [name for name, marks in self.marks.items() if marks.newest < silent]:
            del self.marks[name]
            self.tries.pop(name, None)


# --- the operator: tallies in a mapping -------------------------------------------------------------------------------


def missing(state: State, event: Event) -> bool:
    """Whether what came before `event` should be here and is not: the state was lost, or never begun, or is an old one.

    An outbox's summaries come in the order of their numbers, again perhaps, but never with a gap.
    """
    if versions(state, event.pipeline) is None:
        return True
    if not isinstance(event, ScoresSummarised):
        return False
    found = state.get(_key(event.pipeline, event.version))
    upto, ahead, _ = (found or {"marks": {}})["marks"].get(event.outbox, (0, (), 0))
    return event.sequence > max([upto, *ahead]) + 1


def next_missing(state: State, events: Iterable[Event]) -> bool:
    """`missing`, for events that come one after the other."""
    seen: set[tuple[str, str]] = set()
    for event in events:
        of = (event.version, event.outbox) if isinstance(event, ScoresSummarised) else None
        if (of is None or of not in seen) and missing(state, event):
            return True
        if of is not None:
            seen.add(of)
    return False


def begin(state: State, pipeline: str, tallies: Mapping[str, Tally]) -> None:
    """Put in what was rebuilt, in place of what is there."""
    for version in versions(state, pipeline) or []:
        if version not in tallies:
            state.pop(_key(pipeline, version), None)
    for version, tally in tallies.items():
        state[_key(pipeline, version)] = tally.to_json()
    _name(state, pipeline, tallies)


def fold(state: State, event: Event, limits: Limits) -> bool:
    """Take an event in; whether it changed anything. Raises `Invalid` and has then changed nothing."""
    match event:
        case ScoresSummarised() | OutcomeJoined():
            tally = load(state, event.pipeline, event.version) or Tally()
            new = tally.told(event, limits) if isinstance(event, ScoresSummarised) else tally.joined(event, limits)
            if new:
                state[_key(event.pipeline, event.version)] = tally.to_json()
                known = versions(state, event.pipeline) or []
                if event.version not in known:
                    _name(state, event.pipeline, {*known, event.version})
            return new
        case _:
            return False


def load(state: Mapping[str, Json], pipeline: str, version: str) -> Tally | None:
    """One version's tally."""
    found = state.get(_key(pipeline, version))
    return None if found is None else Tally.from_json(found)


def versions(state: Mapping[str, Json], pipeline: str) -> list[str] | None:
    """Versions with a tally; None where nothing was ever begun."""
    found = state.get(_key(pipeline))
    return None if found is None else list(found["versions"])


def tallies(state: Mapping[str, Json], pipeline: str) -> dict[str, Tally] | None:
    """Every version's tally; None where nothing was ever begun."""
    names = versions(state, pipeline)
    if names is None:
        return None
    found = {name: load(state, pipeline, name) for name in names}
    return {name: tally for name, tally in found.items() if tally is not None}


def rebuilt(log: Iterable[ScoresSummarised], limits: Limits) -> tuple[dict[str, Tally], datetime | None]:
    """Tallies from the summaries that the log still holds of one pipeline, and when the oldest of them begins.

    What the log does not hold will not come.
    """
    made: dict[str, Tally] = {}
    since: datetime | None = None
    for event in log:
        made.setdefault(event.version, Tally()).told(event, limits)
        since = event.since if since is None else min(since, event.since)
    for tally in made.values():
        for marks in tally.marks.values():
            marks.settle()
    return made, since


def drop(state: State, pipeline: str, at: datetime) -> None:
    """The pipeline ended then: what was counted until then goes."""
    left: list[str] = []
    for version in versions(state, pipeline) or []:
        tally = load(state, pipeline, version)
        if tally is not None and tally.until > micros(at):
            left.append(version)
        else:
            state.pop(_key(pipeline, version), None)
    if left:
        _name(state, pipeline, left)
    else:
        state.pop(_key(pipeline), None)


def _name(state: State, pipeline: str, names: Collection[str]) -> None:
    state[_key(pipeline)] = {"versions": sorted(names)}


def _key(*parts: str) -> str:
    """Text that no other pipeline or version can make, whatever they are called."""
    return orjson.dumps(parts).decode()


def _newest(tries: list[_Try], most: int) -> list[_Try]:
    """The newest decided tries and the newest stretches of being passed by, each at most `most`, by time."""
    tries.sort(key=lambda t: t[:3])
    off = [one for one in tries if one[3].outcome == "off"][-most:]
    decided = [one for one in tries if one[3].outcome != "off"][-most:]
    return sorted([*off, *decided], key=lambda t: t[:3])


def _rank(pair: Pair) -> tuple[int, int, str]:
    return pair.observed, pair.scored, repr((pair.predicted, pair.outcome))
