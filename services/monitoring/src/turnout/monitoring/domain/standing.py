"""What is known of one pipeline: its versions, its table, what was decided; and what follows from what was counted.

Decisions are told again from the bus and the audit trail, in the same words, by whichever process asks. What was
counted is keyed state (`tally`) and is handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from turnout.common import expression, values
from turnout.common.errors import Invalid
from turnout.common.events import ModelReady, RoutingChanged, RoutingTable
from turnout.common.history.port import Audit, Joined
from turnout.common.pipeline import PipelineFile
from turnout.common.summary import Shape, Summary, shape_of
from turnout.monitoring.domain.tally import Limits, Pair, Tally
from turnout.monitoring.domain.verdict import (
    OUTCOMES,
    WINDOW,
    Evidence,
    Quality,
    Reference,
    Rules,
    Signal,
    Tries,
    wrong,
)

# Audit actions after which automation does not choose the version again.
UNFIT_ACTIONS = ("degraded", "refused")
REMOVED = "removed"


@dataclass(slots=True)
class Trouble:
    """A version's verdicts under one table: how many there were, and whether the last one still holds."""

    told: int = 0
    open: bool = False


@dataclass(slots=True)
class Standing:
    """One pipeline. `troubles` by table version, model version and signal; `deployed` when each version first led."""

    pipeline: str
    file: PipelineFile | None = None
    routing: RoutingChanged | None = None
    versions: dict[str, ModelReady] = field(default_factory=dict[str, ModelReady])
    tallies: Mapping[str, Tally] = field(default_factory=dict[str, Tally])
    unfit: set[str] = field(default_factory=set[str])
    deployed: dict[str, datetime] = field(default_factory=dict[str, datetime])
    troubles: dict[tuple[int, str, Signal], Trouble] = field(default_factory=dict[tuple[int, str, Signal], Trouble])
    last_table: int = 0
    recalled: set[str] = field(default_factory=set[str])
    _declared: datetime | None = None
    _shapes: dict[str, Shape] = field(default_factory=dict[str, Shape])

    @property
    def table(self) -> RoutingTable | None:
        """Who answers."""
        return self.routing.table if self.routing else None

    @property
    def rules(self) -> Rules:
        """What the pipeline file allows."""
        if self.file is None:
            return Rules()
        monitoring = self.file.monitoring
        return Rules(monitoring.min_samples, monitoring.late_share, monitoring.accuracy_drop)

    @property
    def limits(self) -> Limits:
        """How much of what is newest is kept to judge by."""
        least = self.rules.min_samples
        return Limits(tries=WINDOW * least, pairs=OUTCOMES * least)

    @property
    def summaries(self) -> Mapping[str, Summary]:
        """What each version answered."""
        return {version: tally.summary for version, tally in self.tallies.items()}

    # --- what is told -------------------------------------------------------------------------------------------

    def declare(self, file: PipelineFile, at: datetime) -> None:
        """The pipeline file, or a newer one; its rules begin with new samples."""
        self.file, self._declared = file, at

    def know(self, ready: ModelReady) -> None:
        """A version may answer."""
        self.versions[ready.version] = ready
        self._shapes[ready.version] = shape_of(ready.inputs, ready.profile)

    def obey(self, routing: RoutingChanged) -> None:
        """The table in force; attempts from before say nothing of it."""
        self.routing = routing
        self.last_table = max(self.last_table, routing.table.version)
        self.deployed.setdefault(routing.table.champion, routing.time)

    def remember(self, trail: Iterable[Audit]) -> None:
        """The whole audit trail, newest first: what was decided before this process lived, or by another one.

        What lies before the pipeline's removal belongs to another pipeline of that name, but for the table's number,
        which only grows.
        """
        living: list[Audit] = []
        removed = False
        self.unfit, self.deployed, self.troubles, self.recalled = set(), {}, {}, set()
        for entry in trail:
            self.recalled.add(entry.id)
            removed = removed or entry.action == REMOVED
            if not removed:
                living.append(entry)
            table = _table(entry)
            if table is not None:
                self.last_table = max(self.last_table, table.version)
        for entry in reversed(living):
            self.recall(entry)
        if self.routing is not None:
            self.deployed.setdefault(self.routing.table.champion, self.routing.time)

    def recall(self, entry: Audit) -> None:
        """One decision, oldest first."""
        self.recalled.add(entry.id)
        table = _table(entry)
        if table is not None:
            self.deployed.setdefault(table.champion, entry.at)
            if entry.action == "promoted":
                self.unfit.discard(table.champion)
        if entry.action in UNFIT_ACTIONS:
            self.unfit.add(entry.subject)
        number, signal = entry.detail.get("table_version"), entry.detail.get("signal")
        if isinstance(number, int) and signal in ("latency", "errors", "accuracy"):
            trouble = self.troubles.setdefault((number, entry.subject, signal), Trouble())
            trouble.told += entry.action == "degraded"
            trouble.open = entry.action == "degraded"

    # --- what is asked ------------------------------------------------------------------------------------------

    def reference(self, version: str) -> Reference | None:
        """What evaluation promised of a version."""
        ready = self.versions.get(version)
        return Reference.promised(ready.metrics) if ready is not None else None

    def shape(self, version: str) -> Shape:
        """Training's bins of a version's raw inputs."""
        return self._shapes.get(version, {})

    def quality(self, version: str) -> Quality | None:
        """A version's newest outcomes against what it predicted; None where nothing was promised."""
        reference, tally = self.reference(version), self.tallies.get(version)
        if reference is None or tally is None:
            return None
        found = Quality(self.limits.pairs)
        for score_id, pair in tally.pairs.items():
            loss = self._loss(reference, version, pair)
            if loss is not None:
                found.add(score_id, loss)
        return found

    def readable(self, version: str, predicted: float | str, outcome: float | str | bool) -> bool:
        """Whether an outcome says something of the version's answer."""
        reference = self.reference(version)
        if reference is None:
            return self._actual(version, predicted, outcome) is not None
        return self._loss(reference, version, Pair(0, 0, predicted, outcome)) is not None

    def actual(self, pair: Joined) -> float | str | None:
        """What `Joined` says came true, in the model's terms."""
        return self._actual(pair.score.version, pair.score.value, pair.outcome.outcome)

    def _actual(self, version: str, predicted: float | str, outcome: float | str | bool) -> float | str | None:
        """The outcome in the model's terms: a number, or a class; None where it is neither.

        With `source.positive` the model's classes are true and false; the outcome may be one of them or the label's
        own value, for which the expression decides.
        """
        ready = self.versions.get(version)
        task = ready.target.task if ready is not None else None
        if task == "regression" or (task is None and not isinstance(predicted, str)):
            try:
                return values.number(outcome, "outcome")
            except Invalid:
                return None
        found = values.category(outcome)
        classes = ready.target.classes if ready is not None else ()
        if found is None or found in classes:
            return found
        return self._positive(found) or found

    def verdicts(self) -> list[Evidence]:
        """What is wrong with the champion and was not yet told of this table."""
        found = (self.tries.verdict(), self._wrong())
        return [e for e in found if e is not None and not self.trouble(e.signal).open]

    def recovered(self) -> list[Signal]:
        """Troubles of the champion that were told and are clearly over."""
        told: list[Signal] = [s for s in ("latency", "errors") if self.trouble(s).open]
        return told if told and self.tries.well else []

    @property
    def tries(self) -> Tries:
        """The newest attempts at the champion under the table and the rules in force."""
        begins = [at for at in (self._declared, self.routing.time if self.routing else None) if at is not None]
        found = Tries(self.rules, max(begins, default=None))
        tally = self.tallies.get(self.table.champion) if self.table is not None else None
        if tally is not None:
            every = [(*one[:3], router, one[3]) for router, tries in tally.tries.items() for one in tries]
            for *_, router, tried in sorted(every, key=lambda t: (t[0], t[3], *t[1:3])):
                found.tried(tried, router)
        return found

    def trouble(self, signal: Signal) -> Trouble:
        """What was told of the champion under this table."""
        if self.table is None:
            return Trouble()
        return self.troubles.get((self.table.version, self.table.champion, signal), Trouble())

    def _wrong(self) -> Evidence | None:
        if self.table is None:
            return None
        quality, reference = self.quality(self.table.champion), self.reference(self.table.champion)
        return wrong(quality, reference, self.rules) if quality and reference else None

    def _positive(self, outcome: str) -> str | None:
        if self.file is None or self.file.source.positive is None or self.file.source.label is None:
            return None
        try:
            cell = values.number(outcome, "outcome")
        except Invalid:
            cell = outcome
        node = expression.parse(self.file.source.positive, "source.positive")
        answer = expression.evaluate(node, {self.file.source.label: cell})
        return None if answer is None else ("true" if answer else "false")

    def _loss(self, reference: Reference, version: str, pair: Pair) -> float | None:
        actual = self._actual(version, pair.predicted, pair.outcome)
        if actual is None:
            return None
        try:
            return reference.loss(pair.predicted, actual)
        except ValueError:
            return None


def _table(entry: Audit) -> RoutingTable | None:
    found = entry.detail.get("table")
    return RoutingTable.model_validate(found) if isinstance(found, dict) else None
