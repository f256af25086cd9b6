"""Every event on the bus: the contract, nothing else.

An event's class name is its topic's name. On the wire it is a CloudEvents 1.0 message: the fields named in
`ATTRIBUTES` travel as attributes, all others are the JSON value. Fields may be added with a default; any other
change is a new `major` (cloudevents/spec.md, "dataschema").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, JsonValue

from turnout.common import tracing
from turnout.common.ids import caused_event_id, new_event_id
from turnout.common.pipeline import PipelineFile
from turnout.common.values import Kind

ATTRIBUTES = frozenset({"id", "source", "time", "correlation_id", "causation_id", "traceparent"})
Name = Annotated[str, Field(min_length=1, max_length=200)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Values = Mapping[str, float | int | str | bool | None]

REGISTRY: dict[str, type[Event]] = {}


class Part(BaseModel):
    """A piece of an event that is no event itself; immutable, tolerant of fields from a newer writer."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")


class Event(Part):
    """Something that happened. Build one with `caused_by` (another event is the cause) or `first` (a person is)."""

    major: ClassVar[int] = 1
    compacted: ClassVar[bool] = False
    partitions: ClassVar[int] = 4
    retention: ClassVar[timedelta | None] = timedelta(days=30)
    writers: ClassVar[tuple[str, ...]] = ()

    id: str
    source: str
    time: AwareDatetime
    correlation_id: str
    causation_id: str | None = None
    traceparent: str | None = None

    pipeline: Name

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Make the class findable by its topic."""
        super().__pydantic_init_subclass__(**kwargs)
        REGISTRY[cls.__name__] = cls

    @classmethod
    def topic(cls) -> str:
        """The topic that carries this event."""
        return cls.__name__

    @classmethod
    def type(cls) -> str:
        """The CloudEvents `type`."""
        return f"turnout.{cls.__name__}.v{cls.major}"

    @property
    def key(self) -> str:
        """The record's key: events with one key stay in order."""
        return self.pipeline

    @classmethod
    def first(cls, *, source: str, at: datetime, id: str | None = None, **fields: Any) -> Self:  # noqa: A002
        """An event that no event caused; it starts a correlation of its own."""
        ident = id or new_event_id()
        fields["traceparent"] = tracing.continued(fields.get("traceparent"), ident, correlation=ident)
        return cls(id=ident, source=source, time=at, correlation_id=ident, **fields)

    @classmethod
    def caused_by(cls, cause: Event, *, source: str, at: datetime, of: str = "", **fields: Any) -> Self:
        """The event that `cause` leads to: the same cause and `of` always give the same id.

        `of` tells apart several events of one class with one cause (a candidate's index, a version).
        `pipeline` is the cause's unless given.
        """
        fields.setdefault("pipeline", cause.pipeline)
        ident = caused_event_id(cause.id, cls.__name__, of)
        return cls(
            id=ident,
            source=source,
            time=at,
            correlation_id=cause.correlation_id,
            causation_id=cause.id,
            traceparent=tracing.continued(cause.traceparent, ident, correlation=cause.correlation_id),
            **fields,
        )


# --- what the parts are -----------------------------------------------------------------------------------------


class Column(Part):
    """A raw column: its name as the source writes it, and its kind."""

    name: Name
    kind: Kind


class DataSetRef(Part):
    """Names a data set of the lake; the id says what is in it."""

    kind: Literal["raw", "quarantine", "features", "split", "scores", "models"]
    pipeline: Name
    id: Name


class Batch(Part):
    """One source file's rows (or one flush of observations), as they lie in the lake.

    `rows_read = rows_written + rows_quarantined`, always.
    """

    batch_id: Name
    uri: str
    sha256: Sha256
    rows_read: int = Field(ge=0)
    rows_written: int = Field(ge=0)
    rows_quarantined: int = Field(ge=0)
    data: DataSetRef
    quarantine: DataSetRef | None = None


class Warn(Part):
    """Something a person should know of the data; it stops nothing. `code` is stable, `message` is a sentence."""

    code: str
    column: str | None = None
    message: str


class Histogram(Part):
    """Counts between `edges` (numbers: len(edges) = len(counts) + 1; a value outside goes to the end bins) or
    per `categories` (categories: as many as counts). `missing` is counted apart."""

    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    counts: tuple[int, ...]
    missing: int = 0


class ColumnProfile(Part):
    """What a column looked like: over `rows` rows, `mean`/`std`/`skew` for numbers and times."""

    name: Name
    kind: Kind
    rows: int
    missing: int
    distinct: int
    mean: float | None = None
    std: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    skew: float | None = None
    histogram: Histogram | None = None


class Step(Part):
    """One strategy of preparation by name, with its options: `Step(name="impute", options={"with": "median", …})`.

    In a `Plan` every `columns` option is already a list of column names.
    """

    name: str
    options: Mapping[str, JsonValue] = Field(default_factory=dict)


class Plan(Part):
    """How raw columns become what a model sees; immutable and unfitted.

    `rowwise` steps need no fitting and are already applied to the feature set; `learned` steps are fitted by
    training on the training part alone. `inputs` are the raw columns a request must bring (what the graph
    takes), `features` the columns of the feature set, in order.
    """

    inputs: tuple[Column, ...]
    rowwise: tuple[Step, ...] = ()
    features: tuple[Column, ...]
    learned: tuple[Step, ...] = ()


class SplitPart(Part):
    """One part of a split."""

    name: Literal["train", "test"]
    rows: int
    data: DataSetRef


class Target(Part):
    """What is predicted. Classification: `classes` in the order of the graph's probabilities."""

    task: Literal["classification", "regression", "clustering", "features"]
    label: str | None = None
    classes: tuple[str, ...] = ()

    def output(self, inputs: Iterable[Column]) -> str:
        """The name of a graph's one output: `probabilities`, `score` or `cluster`.

        ONNX gives inputs and outputs one set of names: where a column of `inputs` has this one, a `_` follows it.
        """
        name = {"classification": "probabilities", "clustering": "cluster"}.get(self.task, "score")
        taken = {column.name for column in inputs}
        while name in taken:
            name += "_"
        return name


class Prior(Part):
    """The training part's own answer, for the day no model can give one.

    `value`: the commonest class, the mean, or the largest cluster; `probabilities`: class shares.
    """

    value: float | str
    probabilities: Mapping[str, float] = Field(default_factory=dict)


class ModelFile(Part):
    """One ONNX file in the lake. Inputs: one tensor `[rows, 1]` per raw column (see `turnout.common.values`).

    Outputs: classification `probabilities` FP32 `[rows, classes]`; regression `score` FP32
    `[rows, 1]`; clustering `cluster` INT64 `[rows]`.
    """

    uri: str
    sha256: Sha256
    size: int


class Comparison(Part):
    """A candidate against the champion on the same rows: mean paired difference (positive: better) and its
    95 % interval."""

    champion: str
    metric: str
    difference: float
    low: float
    high: float


class Attempt(Part):
    """One version asked for one answer. `milliseconds` is None while it had not answered."""

    version: str
    outcome: Literal["ok", "late", "error", "off", "loading"]
    milliseconds: float | None = None
    detail: str | None = None


ServedBy = Literal["challenger", "champion", "previous", "pinned", "cache", "baseline"]


class RoutingTable(Part):
    """Which versions answer, in order: challenger (its `share`), champion, previous, then the prior.

    `version` grows by one with each change; `pinned` means a person chose, and automation leaves it alone.
    """

    version: int = Field(ge=1)
    champion: str
    previous: str | None = None
    challenger: str | None = None
    share: float = Field(default=0.0, ge=0, le=1)
    pinned: bool = False


class VersionStats(Part):
    """Evidence for a verdict about a version: `requests` seen, of which `late` and `errors`; times in ms."""

    requests: int
    late: int = 0
    errors: int = 0
    p50: float | None = None
    p99: float | None = None
    quality: float | None = None
    reference: float | None = None


class Sketch(Part):
    """Numbers as counts per bin of a DDSketch with 1 % relative accuracy: bin number to count."""

    positive: Mapping[int, int] = Field(default_factory=dict)
    negative: Mapping[int, int] = Field(default_factory=dict)
    zeros: int = 0
    least: FiniteFloat | None = None
    greatest: FiniteFloat | None = None


class Counted(Part):
    """A raw column's values on the bins of the training profile; `other` never occurred in training."""

    counts: tuple[int, ...]
    other: int = 0
    missing: int = 0


class Summed(Part):
    """What many scores say of one version, as `turnout.common.summary.Summary` reads it."""

    served: Mapping[str, int] = Field(default_factory=dict)
    attempts: Mapping[str, int] = Field(default_factory=dict)
    fallbacks: Mapping[str, int] = Field(default_factory=dict)
    latency: Sketch = Sketch()
    microseconds: int = 0
    features: Mapping[str, Counted] = Field(default_factory=dict)
    classes: Mapping[str, int] = Field(default_factory=dict)
    numbers: Sketch = Sketch()


class Tried(Part):
    """An attempt at a version, or `times` in a row at which a router passed it by (`off`), the last one at `until`.

    `at` and `until` are microseconds since 1970.
    """

    outcome: Literal["ok", "late", "error", "off"]
    at: int
    milliseconds: FiniteFloat | None = None
    until: int | None = None
    times: int = Field(default=1, ge=1)


# --- what a person declares, what arrives -----------------------------------------------------------------------


class PipelineDeclared(Event):
    """A pipeline exists, or changed. `spec` is the file's content, `spec_id` names that content.

    Monitoring ends it with a tombstone.
    """

    compacted = True
    retention = None
    partitions = 1
    writers = ("cli", "monitoring")

    spec: PipelineFile
    spec_id: Name
    by: str = "unknown"


class PipelineRemoved(Event):
    """A pipeline ended; every service removes what it kept of it."""

    partitions = 1
    writers = ("monitoring",)

    by: str = "unknown"


class EntityForgotten(Event):
    """A person asked to be forgotten; every service removes what it kept of the entity."""

    partitions = 1
    writers = ("monitoring",)

    entity: Name
    by: str = "unknown"


class SourceDataAvailable(Event):
    """Data lie at `uri`: a file, a folder or a glob. `format` and `spec_id` are optional: the pipeline file knows.

    Anybody may publish it, also as bare JSON.
    """

    writers = ("anybody",)

    uri: str
    format: Literal["csv", "parquet", "arrow", "json"] | None = None
    spec_id: str | None = None
    train: bool | None = None


class ObservationReceived(Event):
    """One row of a live stream: what was measured of `entity` at `event_time`."""

    writers = ("anybody", "ingestion")

    entity: Name
    event_time: AwareDatetime
    values: Values

    @property
    def key(self) -> str:
        """One entity stays in order."""
        return self.entity


# --- the chain ----------------------------------------------------------------------------------------------------


class RawDataExtracted(Event):
    """An announcement's files lie in the lake as immutable batches.

    Rows carry the source's columns and `_row`, the line (CSV, JSON) or the row's number (Parquet, Arrow) in the
    source, from 1; a quarantined row carries `_row`, `_reason` and `_text`, what stood there.

    `train` goes down the chain as it came: True, a training run was asked for; False, it is forbidden; None, as the
    pipeline's retraining rule says.
    """

    writers = ("ingestion",)

    batches: tuple[Batch, ...]
    columns: tuple[Column, ...]
    rows_read: int
    rows_written: int
    rows_quarantined: int
    warnings: tuple[Warn, ...] = ()
    spec_id: str
    train: bool | None = None


class FeaturesGenerated(Event):
    """A feature set lies in the lake: every batch of the pipeline, row-wise steps applied.

    Its rows carry, beside the plan's features: `_batch` and `_row` (which raw row), `_label` (class name or number;
    rows without a label are left out and counted in `rows_unlabelled`), `_event_time` and `_entity` where the source
    has them, and `in:NAME` for each raw input that a row-wise step changed or took away. `train`: see
    `RawDataExtracted`.
    """

    writers = ("preparation",)

    feature_set_id: Name
    data: DataSetRef
    rows: int
    rows_unlabelled: int = 0
    batch_ids: tuple[Name, ...]
    plan: Plan
    target: Target
    profile: tuple[ColumnProfile, ...]
    warnings: tuple[Warn, ...] = ()
    spec_id: str
    train: bool | None = None


class DataSegregated(Event):
    """A split of a feature set lies in the lake. `train`: see `RawDataExtracted`."""

    writers = ("segregation",)

    split_id: Name
    feature_set_id: Name
    parts: tuple[SplitPart, ...]
    plan: Plan
    target: Target
    warnings: tuple[Warn, ...] = ()
    spec_id: str
    train: bool | None = None


class TrainingRequested(Event):
    """Somebody wants a new training run over the newest split; `payload` overrides parts of the file."""

    writers = ("anybody",)

    reason: str = "asked for"
    payload: Mapping[str, JsonValue] = Field(default_factory=dict)
    by: str = "unknown"


class ModelTrained(Event):
    """Candidate `candidate` of `candidates` of a run is fitted and exported, or failed (`failure` says why)."""

    writers = ("training",)

    run_id: Name
    candidate: int = Field(ge=0)
    candidates: int = Field(ge=1)
    algorithm: str
    parameters: Mapping[str, JsonValue] = Field(default_factory=dict)
    tracking_id: str | None = None
    split_id: Name
    feature_set_id: Name
    parts: tuple[SplitPart, ...]
    plan: Plan
    target: Target
    prior: Prior
    file: ModelFile | None = None
    agreement: float | None = None
    seconds: float = 0.0
    failure: str | None = None
    spec_id: str


class ModelReady(Event):
    """A version may answer requests. `sample` are rows a version is tried on before it is admitted."""

    writers = ("evaluation",)

    version: Name
    file: ModelFile
    inputs: tuple[Column, ...]
    target: Target
    prior: Prior
    sample: tuple[Values, ...] = ()
    algorithm: str = ""
    metrics: Mapping[str, float] = Field(default_factory=dict)
    base_rate: Mapping[str, float] = Field(default_factory=dict)
    comparison: Comparison | None = None
    why: str = ""
    run_id: str = ""
    split_id: str = ""
    feature_set_id: str = ""
    profile: tuple[ColumnProfile, ...] = ()
    slo_ms: float = 50.0
    spec_id: str = ""


class CandidateRefused(Event):
    """A candidate (or a whole run, `candidate` None) became no version; `why` says so."""

    writers = ("evaluation",)

    run_id: Name
    candidate: int | None = None
    algorithm: str = ""
    metrics: Mapping[str, float] = Field(default_factory=dict)
    base_rate: Mapping[str, float] = Field(default_factory=dict)
    why: str


# --- answering and watching ---------------------------------------------------------------------------------------


class RoutingChanged(Event):
    """The whole routing table of a pipeline, after a change; what all routers obey."""

    compacted = True
    retention = None
    partitions = 1
    writers = ("monitoring",)

    table: RoutingTable
    why: str
    by: str = "monitoring"


class VersionEjected(Event):
    """A router does not ask `version` for now, or refused to admit it (`admitted` false)."""

    writers = ("scoring",)

    version: Name
    router: str
    why: str
    admitted: bool = True
    stats: VersionStats | None = None


class VersionRestored(Event):
    """A router asks `version` again."""

    writers = ("scoring",)

    version: Name
    router: str
    why: str = ""


class ScoreRequested(Event):
    """A request by event: the answer is a `ScoreProduced` caused by it. `expiry` (UTC): worthless afterwards."""

    writers = ("anybody", "scoring")

    values: Values | None = None
    entity: str | None = None
    version: str | None = None
    expiry: AwareDatetime | None = None

    @property
    def key(self) -> str:
        """One entity stays in order."""
        return self.entity or self.id


class ScoreProduced(Event):
    """An answer that was given. `attempts` are all versions asked, `milliseconds` the time until the reply."""

    writers = ("scoring",)
    partitions = 8

    score_id: Name
    entity: str | None = None
    version: str
    requested_version: str | None = None
    served_by: ServedBy
    reason: str | None = None
    attempts: tuple[Attempt, ...] = ()
    values: Values
    value: FiniteFloat | str
    probabilities: Mapping[str, FiniteFloat] = Field(default_factory=dict)
    milliseconds: FiniteFloat

    @property
    def key(self) -> str:
        """Scores of one entity stay in order."""
        return self.entity or self.score_id


class ScoresSummarised(Event):
    """What one router's scores of about a second say of one version.

    `time` is the newest score's, `since` the oldest's. `outbox` counted them, and `sequence` numbers its summaries of
    this version without a gap: who has seen a number ignores it. `tries` are the newest attempts, oldest first.
    """

    writers = ("scoring",)
    retention = timedelta(days=1)

    version: Name
    outbox: Name
    sequence: int = Field(ge=1)
    since: AwareDatetime
    summary: Summed
    tries: tuple[Tried, ...] = ()


class BatchScored(Event):
    """A file or data set was scored into the lake."""

    writers = ("scoring",)

    version: Name
    uri: str
    data: DataSetRef
    rows: int
    rows_quarantined: int = 0


class BatchScoringRequested(Event):
    """Somebody wants the file, folder or glob at `uri` scored into the lake; `version` None: the champion."""

    writers = ("anybody",)

    uri: str
    format: Literal["csv", "parquet", "arrow", "json"] | None = None
    version: str | None = None


class OutcomeObserved(Event):
    """What really happened to the subject of a score, in the label's own terms, at `observed_at`."""

    writers = ("anybody", "scoring")

    score_id: Name
    outcome: FiniteFloat | int | str | bool
    observed_at: AwareDatetime

    @property
    def key(self) -> str:
        """A score's outcomes stay in order: the last one corrects those before."""
        return self.score_id


class OutcomeJoined(Event):
    """A version's answer beside what really happened; a later `observed_at` corrects. Its cause is the outcome."""

    writers = ("monitoring",)
    retention = timedelta(days=1)

    version: Name
    score_id: Name
    scored_at: AwareDatetime
    observed_at: AwareDatetime
    predicted: FiniteFloat | str
    outcome: FiniteFloat | int | str | bool


class EvidenceDropped(Event):
    """A pipeline ended: what was counted of it until then goes."""

    writers = ("monitoring",)
    retention = timedelta(days=1)


class ModelDegraded(Event):
    """A version is too slow or too wrong; the evidence is beside it."""

    writers = ("monitoring",)

    version: Name
    signal: Literal["latency", "errors", "accuracy"]
    why: str
    stats: VersionStats


class StageFailed(Event):
    """A stage gave up on what `causation_id` names; `error` is for people, `field` and `fix` if it was the input."""

    writers = ("ingestion", "preparation", "segregation", "training", "evaluation", "scoring")

    stage: str
    error: str
    field: str | None = None
    fix: str | None = None


# --- topics as sources --------------------------------------------------------------------------------------------


class PulledPart(Part):
    """What a pull took of one partition: from offset `first` to offset `last`, both included."""

    partition: int = Field(ge=0)
    first: int = Field(ge=0)
    last: int = Field(ge=0)


class TopicPullRequested(Event):
    """Somebody wants the messages of a pipeline's topic taken, up to `ends` (an offset for each partition; None: as
    far as the topic goes when the work begins)."""

    writers = ("anybody", "ingestion")

    ends: Mapping[int, int] | None = None
    by: str = "unknown"


class TopicPullAdvanced(Event):
    """A pull took some messages of one partition; its cause is the request. Of two with the same `first` the later
    one counts: the earlier one's offset did not move."""

    writers = ("ingestion",)
    retention = timedelta(days=1)

    source_topic: Name
    part: PulledPart
    taken: int = Field(ge=0)
    refused: int = Field(ge=0)


class TopicPulled(Event):
    """A pull has come to its ends; its cause is the request. Messages taken became observations, those refused are
    dead letters. `left`: offsets before the ends that gave no message (it was removed, or is a transaction's mark)."""

    writers = ("ingestion",)

    source_topic: Name
    taken: int = Field(ge=0)
    refused: int = Field(ge=0)
    left: int = Field(default=0, ge=0)
    parts: tuple[PulledPart, ...] = ()
    seconds: float = Field(ge=0)
