"""The chain of a pipeline's versions: who is asked, who is left out for now, who may come back.

Pure: `choose` and `observe` take `now` (seconds, monotonic) and return values. One router belongs to one pipeline in
one process; what all routers obey is the `RoutingTable` it is given whole.

The breaker follows Envoy's outlier detection (consecutive failures, ejection that grows, never the last host;
envoyproxy.io, "Outlier detection") with a second rule over a sliding window, and comes back by shadow probes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from turnout.common.events import Attempt, RoutingTable, ServedBy
from turnout.common.ids import stable_share

Outcome = Literal["ok", "late", "error"]
State = Literal["loading", "on", "off", "probing"]


@dataclass(frozen=True, slots=True)
class Limits:
    """When a version is taken off, and for how long.

    Off after `consecutive` runs in a row that were late or failed, or `bad` of the last `window`. With 1 % slow calls
    the first happens once in 10^10 runs, the second once in 10^14. Off for `first` seconds, doubled each time up to
    `longest`; forgotten after `forgiven` seconds of health. Back after `probes` good shadow calls in a row.
    """

    consecutive: int = 5
    window: int = 20
    bad: int = 10
    first: float = 1.0
    longest: float = 60.0
    forgiven: float = 300.0
    probes: int = 3
    probe_patience: float = 10.0


@dataclass(frozen=True, slots=True)
class Step:
    """One version to ask, and what it is in the chain."""

    version: str
    role: ServedBy


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom one request asks, in order; who was left out and why; who may be tried in the shadow of it.

    `order` is the whole chain's, whoever is left out of it.
    """

    steps: tuple[Step, ...]
    skipped: tuple[Attempt, ...] = ()
    probe: str | None = None
    order: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """A version was taken off (`on` false) or is asked again."""

    version: str
    on: bool
    why: str
    requests: int = 0
    late: int = 0
    errors: int = 0


@dataclass(slots=True)
class _Breaker:
    """What is known of one version. `until` None: closed."""

    loaded: bool = False
    recent: deque[Outcome] = field(default_factory=deque[Outcome])
    in_a_row: int = 0
    until: float | None = None
    length: float = 0.0
    closed_at: float = 0.0
    probe_at: float | None = None
    passed: int = 0


class Router:
    """One pipeline's chain and the breaker of each version in it."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.table: RoutingTable | None = None
        self._limits = limits or Limits()
        self._breakers: dict[str, _Breaker] = {}
        self._plans: dict[bool, Plan] = {}
        self._any_off = False

    def obey(self, table: RoutingTable | None) -> None:
        """Swap the whole table. One that is not newer than the one obeyed is passed over."""
        if table is not None and self.table is not None and table.version <= self.table.version:
            return
        self.table = table
        self._changed()

    def loaded(self, version: str, is_loaded: bool) -> None:
        """A version can be asked now, or cannot any more; its record stays."""
        self._breaker(version).loaded = is_loaded
        self._changed()

    def forget(self, version: str) -> None:
        """Nothing is known of a version any more."""
        self._breakers.pop(version, None)
        self._changed()

    def choose(self, key: str, now: float) -> Plan:
        """Whom a request with `key` (an entity or a score id) asks: the same key gets the same version.

        No table: nobody. Everybody in the chain off: they are asked all the same, for somebody has to be.
        """
        table = self.table
        if table is None:
            return Plan(())
        canary = table.challenger is not None and table.share > 0 and stable_share(key, table.challenger) < table.share
        if self._any_off:  # a probe may have come due: time matters
            return self._plan(table, canary, now)
        plan = self._plans.get(canary)
        if plan is None:
            plan = self._plans[canary] = self._plan(table, canary, now)
        return plan

    def pinned(self, version: str) -> Plan:
        """A caller chose: this version or nobody."""
        return Plan((Step(version, "pinned"),), order=(version,))

    def probing(self, version: str, now: float) -> None:
        """A shadow call to `version` begins; no second one until it is observed or given up."""
        self._breaker(version).probe_at = now

    def observe(self, version: str, outcome: Outcome, now: float, *, probe: bool = False) -> tuple[Verdict, ...]:
        """Take in one run of a version; what changes because of it."""
        breaker = self._breakers.get(version)
        if breaker is None:
            return ()
        if probe:
            return self._observe_probe(version, breaker, outcome, now)
        if breaker.until is not None:  # the last runs of a version that is off already
            return ()
        if not breaker.recent:
            breaker.recent = deque(maxlen=self._limits.window)
        breaker.recent.append(outcome)
        if outcome == "ok":
            breaker.in_a_row = 0
            return ()
        breaker.in_a_row += 1
        why = self._why_off(breaker)
        if why is None or not self._somebody_else(version):
            return ()
        return (self._eject(version, breaker, why, now),)

    def state(self, version: str, now: float) -> State:
        """What a version is now."""
        breaker = self._breakers.get(version)
        if breaker is None or not breaker.loaded:
            return "loading"
        if breaker.until is None:
            return "on"
        return "off" if now < breaker.until else "probing"

    def off_for(self, version: str, now: float) -> float:
        """Seconds until a version that is off is probed; 0 otherwise."""
        breaker = self._breakers.get(version)
        return max(0.0, breaker.until - now) if breaker and breaker.until is not None else 0.0

    def chain(self) -> tuple[Step, ...]:
        """Every version of the table in the order they are asked, the challenger first."""
        return _chain(self.table, canary=True) if self.table else ()

    # --- how a plan comes about --------------------------------------------------------------------------------

    def _plan(self, table: RoutingTable, canary: bool, now: float) -> Plan:
        steps: list[Step] = []
        off: list[Step] = []
        skipped: list[Attempt] = []
        chain = _chain(table, canary=canary)
        order = tuple(step.version for step in chain)
        for step in chain:
            match self.state(step.version, now):
                case "loading":
                    skipped.append(Attempt(version=step.version, outcome="loading"))
                case "on":
                    steps.append(step)
                case _:
                    off.append(step)
                    skipped.append(Attempt(version=step.version, outcome="off"))
        probe = self._due(now)
        if not steps and off:
            return Plan(tuple(off), tuple(a for a in skipped if a.outcome == "loading"), probe, order)
        return Plan(tuple(steps), tuple(skipped), probe, order)

    def _due(self, now: float) -> str | None:
        for step in self.chain():
            breaker = self._breakers.get(step.version)
            if breaker is None or not breaker.loaded or breaker.until is None or now < breaker.until:
                continue
            if breaker.probe_at is None or now - breaker.probe_at > self._limits.probe_patience:
                return step.version
        return None

    # --- how a version goes and comes --------------------------------------------------------------------------

    def _why_off(self, breaker: _Breaker) -> str | None:
        limits = self._limits
        if breaker.in_a_row >= limits.consecutive:
            return f"{breaker.in_a_row} runs in a row were late or failed"
        bad = sum(outcome != "ok" for outcome in breaker.recent)
        if len(breaker.recent) >= limits.consecutive and bad >= limits.bad:
            return f"{bad} of the last {len(breaker.recent)} runs were late or failed"
        return None

    def _somebody_else(self, version: str) -> bool:
        for step in self.chain():
            breaker = self._breakers.get(step.version)
            if step.version != version and breaker and breaker.loaded and breaker.until is None:
                return True
        return False

    def _eject(self, version: str, breaker: _Breaker, why: str, now: float) -> Verdict:
        limits = self._limits
        if now - breaker.closed_at > limits.forgiven:
            breaker.length = 0.0
        verdict = Verdict(
            version,
            on=False,
            why=why,
            requests=len(breaker.recent),
            late=breaker.recent.count("late"),
            errors=breaker.recent.count("error"),
        )
        self._open(breaker, now)
        return verdict

    def _open(self, breaker: _Breaker, now: float) -> None:
        breaker.length = min(max(self._limits.first, breaker.length * 2), self._limits.longest)
        breaker.until = now + breaker.length
        breaker.passed, breaker.probe_at, breaker.in_a_row = 0, None, 0
        breaker.recent.clear()
        self._changed()

    def _observe_probe(self, version: str, breaker: _Breaker, outcome: Outcome, now: float) -> tuple[Verdict, ...]:
        if breaker.until is None:
            return ()
        breaker.probe_at = None
        if outcome != "ok":
            self._open(breaker, now)
            return ()
        breaker.passed += 1
        if breaker.passed < self._limits.probes:
            return ()
        breaker.until, breaker.closed_at = None, now
        self._changed()
        return (Verdict(version, on=True, why=f"{breaker.passed} trial calls in a row were well"),)

    def _breaker(self, version: str) -> _Breaker:
        return self._breakers.setdefault(version, _Breaker())

    def _changed(self) -> None:
        self._plans = {}
        self._any_off = any(b.until is not None for b in self._breakers.values())


def reason(attempts: tuple[Attempt, ...]) -> str | None:
    """Why the first choice did not answer, in a word: deadline, error, circuit or loading."""
    words: Mapping[str, str] = {"late": "deadline", "error": "error", "off": "circuit", "loading": "loading"}
    for attempt in attempts:
        if attempt.outcome != "ok":
            return words[attempt.outcome]
    return None


def _chain(table: RoutingTable, *, canary: bool) -> tuple[Step, ...]:
    steps: list[Step] = []
    if canary and table.challenger is not None:
        steps.append(Step(table.challenger, "challenger"))
    steps.append(Step(table.champion, "champion"))
    if table.previous is not None:
        steps.append(Step(table.previous, "previous"))
    seen: set[str] = set()
    return tuple(s for s in steps if not (s.version in seen or seen.add(s.version)))
