"""What is known of one pipeline: its versions, its table, what they answered and what really happened.

All of it is memory: it is told again from the bus and the history store after a restart, in the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from turnout.common import expression, values
from turnout.common.errors import Invalid
from turnout.common.events import ModelReady, RoutingChanged, RoutingTable, ScoreProduced
from turnout.common.history.port import Audit, Joined
from turnout.common.pipeline import PipelineFile
from turnout.monitoring.domain.summary import VERSIONLESS, Shape, Summary, merge, shape_of, summarise
from turnout.monitoring.domain.verdict import (
    OUTCOMES,
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
    summaries: dict[str, Summary] = field(default_factory=dict[str, Summary])
    qualities: dict[str, Quality] = field(default_factory=dict[str, Quality])
    unfit: set[str] = field(default_factory=set[str])
    deployed: dict[str, datetime] = field(default_factory=dict[str, datetime])
    troubles: dict[tuple[int, str, Signal], Trouble] = field(default_factory=dict[tuple[int, str, Signal], Trouble])
    last_table: int = 0
    _shapes: dict[str, Shape] = field(default_factory=dict[str, Shape])
    _tries: Tries | None = None

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

    # --- what is told -------------------------------------------------------------------------------------------

    def declare(self, file: PipelineFile) -> None:
        """The pipeline file, or a newer one; new rules begin with new samples."""
        if file is self.file:
            return
        before, self.file = self.rules, file
        if self.rules != before:
            self._watch_from(None if self.routing is None else self.routing.time)

    def know(self, ready: ModelReady) -> None:
        """A version may answer."""
        self.versions[ready.version] = ready
        self._shapes[ready.version] = shape_of(ready.inputs, ready.profile)

    def obey(self, routing: RoutingChanged) -> None:
        """The table in force; attempts from before say nothing of it."""
        self.routing = routing
        self.last_table = max(self.last_table, routing.table.version)
        self.deployed.setdefault(routing.table.champion, routing.time)
        self._watch_from(routing.time)

    def remember(self, trail: Iterable[Audit]) -> None:
        """The audit trail, newest first: what was decided before this process lived.

        What lies before the pipeline's removal belongs to another pipeline of that name, but for the table's number,
        which only grows.
        """
        living: list[Audit] = []
        removed = False
        for entry in trail:
            removed = removed or entry.action == REMOVED
            if not removed:
                living.append(entry)
            table = _table(entry)
            if table is not None:
                self.last_table = max(self.last_table, table.version)
        for entry in reversed(living):
            self.recall(entry)

    def recall(self, entry: Audit) -> None:
        """One decision, oldest first."""
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

    def scored(self, scores: Sequence[ScoreProduced]) -> None:
        """Scores, each of them for the first time, in about the order they were given."""
        merge(self.summaries, summarise(scores, self._shapes))
        table = self.table
        if table is None or self._tries is None:
            return
        for score in sorted(scores, key=lambda s: s.time):
            for attempt in score.attempts:
                if attempt.version == table.champion:
                    self._tries.add(attempt, score.source, score.time)

    def restored(self, version: str) -> None:
        """A router asks the version again."""
        if self._tries is not None and self.table is not None and version == self.table.champion:
            self._tries.restored()

    def observed(self, joined: Iterable[Joined]) -> int:
        """Scores with what really happened; how many outcomes could not be read in the label's terms."""
        unreadable = 0
        for pair in sorted(joined, key=lambda j: j.score.time):
            version = pair.score.version
            reference = self.reference(version)
            actual = self.actual(pair)
            unreadable += actual is None
            if reference is None or actual is None or pair.score.served_by in VERSIONLESS:
                continue
            quality = self.qualities.setdefault(version, Quality(OUTCOMES * self.rules.min_samples))
            try:
                quality.add(pair.score.score_id, reference.loss(pair.score.value, actual))
            except ValueError:
                unreadable += 1
        return unreadable

    # --- what is asked ------------------------------------------------------------------------------------------

    def reference(self, version: str) -> Reference | None:
        """What evaluation promised of a version."""
        ready = self.versions.get(version)
        return Reference.promised(ready.metrics) if ready is not None else None

    def shape(self, version: str) -> Shape:
        """Training's bins of a version's raw inputs."""
        return self._shapes.get(version, {})

    def actual(self, pair: Joined) -> float | str | None:
        """The outcome in the model's terms: a number, or a class; None where it is neither.

        With `source.positive` the model's classes are true and false; the outcome may be one of them or the label's
        own value, for which the expression decides.
        """
        ready = self.versions.get(pair.score.version)
        task = ready.target.task if ready is not None else None
        outcome = pair.outcome.outcome
        if task == "regression" or (task is None and not isinstance(pair.score.value, str)):
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
        found = (self._tries.verdict() if self._tries else None, self._wrong())
        return [e for e in found if e is not None and not self.trouble(e.signal).open]

    def recovered(self) -> list[Signal]:
        """Troubles of the champion that were told and are clearly over."""
        if self._tries is None or not self._tries.well:
            return []
        return [s for s in ("latency", "errors") if self.trouble(s).open]

    def trouble(self, signal: Signal) -> Trouble:
        """What was told of the champion under this table."""
        if self.table is None:
            return Trouble()
        return self.troubles.get((self.table.version, self.table.champion, signal), Trouble())

    def _wrong(self) -> Evidence | None:
        if self.table is None:
            return None
        quality, reference = self.qualities.get(self.table.champion), self.reference(self.table.champion)
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

    def _watch_from(self, since: datetime | None) -> None:
        self._tries = Tries(self.rules, since)


def _table(entry: Audit) -> RoutingTable | None:
    found = entry.detail.get("table")
    return RoutingTable.model_validate(found) if isinstance(found, dict) else None
