"""The pipeline file: what a user declares, checked as far as it can be without seeing the data.

Options of a preparation step, names of algorithms and metrics are part of the file's language, so they are here;
what they do belongs to the services.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, Self, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from turnout.common import expression
from turnout.common.errors import Invalid, Unknown
from turnout.common.ids import content_id
from turnout.common.values import Kind

P = ParamSpec("P")
T = TypeVar("T")

Task = Literal["classification", "regression", "clustering", "features"]
Format = Literal["csv", "parquet", "arrow", "json"]
ColumnName = Annotated[str, Field(min_length=1, max_length=200)]

# How an `Invalid` of ours, or the errors of a step's options, travel through pydantic: it adds the location.
_OURS = "turnout"
_NESTED = "turnout_options"
_MISSING = "is missing"


def _located(check: Callable[P, T]) -> Callable[P, T]:
    """A validator that may raise `Invalid` about a field of its own section (or "" for the section itself)."""

    @wraps(check)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return check(*args, **kwargs)
        except Invalid as error:
            raise PydanticCustomError(_OURS, "it is not valid", {"error": error}) from None

    return checked


@_located
def _choice(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        fix = f"write [{value}] for one column" if isinstance(value, str) else "for example [age, income]"
        raise Invalid("", "it is neither number, nor category, nor a list of names", fix=fix) from None


@_located
def _topic(name: str) -> str:
    """Not ours: what ingestion takes becomes an event of ours, so a topic of ours would feed itself."""
    from turnout.common.events import REGISTRY  # noqa: PLC0415 (events know pipeline files)

    if re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name) is None or name in (".", ".."):
        raise Invalid("", f"{name!r:.60} is no topic's name", fix="letters, digits, '.', '_' and '-'")
    if name.endswith(".dead"):
        raise Invalid("", f"{name} is for dead letters", fix="`turnout replay` sends them back to their topic")
    if name in REGISTRY:
        raise Invalid("", f"{name} carries Turnout's own events", fix="name a topic of your own, such as bracelet-feed")
    return name


@_located
def _pull(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    every = value.get("every") if isinstance(value, Mapping) and set(value) == {"every"} else None
    known = isinstance(value, Every) or value in ("stream", "on_request")
    if every is None and not known:
        raise Invalid("", f"{value!r:.60} is no way to pull", fix="stream, on_request, or for example {every: 60s}")
    if every is not None and (not isinstance(every, str) or _EVERY.fullmatch(every) is None):
        raise Invalid("every", f"{every!r:.60} is no length of time", fix="for example 60s, 5min, 1h or 1d")
    return handler(value)


_EVERY = re.compile(r"([1-9][0-9]{0,5})(s|min|h|d)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
TopicName = Annotated[str, AfterValidator(_topic)]
# Left out of the content while nobody says it, so that files from before keep their ids.
_UNSAID = Field(exclude_if=lambda value: value is None)
_UNSAID_STREAM = Field(exclude_if=lambda value: value == "stream")

# A choice of columns: all of a kind, or by name.
Columns = Annotated[Literal["number", "category"] | tuple[ColumnName, ...], WrapValidator(_choice)]

ALGORITHMS: Mapping[str, tuple[Task, ...]] = {
    "linear_regression": ("regression",),
    "ridge": ("regression",),
    "logistic_regression": ("classification",),
    "decision_tree": ("classification", "regression"),
    "random_forest": ("classification", "regression"),
    "gradient_boosting": ("classification", "regression"),
    "k_means": ("clustering",),
}
# True: larger is better.
METRICS: Mapping[Task, Mapping[str, bool]] = {
    "classification": {
        "roc_auc": True, "pr_auc": True, "f1": True, "accuracy": True, "log_loss": False, "brier": False,
    },
    "regression": {"rmse": False, "mae": False, "r2": True},
    "clustering": {"silhouette": True},
    "features": {},
}  # fmt: skip
DEFAULT_METRIC: Mapping[Task, str] = {"classification": "roc_auc", "regression": "rmse", "clustering": "silhouette"}


class Section(BaseModel):
    """A part of the file; a key that it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Every(Section):
    """A schedule: at each multiple of this length of time since 1970 (UTC), so that every process means the same."""

    every: str

    @property
    def seconds(self) -> int:
        """The length in seconds."""
        match = _EVERY.fullmatch(self.every)
        assert match is not None
        return int(match[1]) * _SECONDS[match[2]]


class Source(Section):
    """Where the rows come from and what some columns mean.

    `topic`: a topic of the bus whose messages are rows too. `pull`: how they are taken: as they come (`stream`), when
    somebody asks (`on_request`), or by a schedule.
    """

    uri: str | None = None
    topic: Annotated[TopicName | None, _UNSAID] = None
    pull: Annotated[Literal["stream", "on_request"] | Every, WrapValidator(_pull), _UNSAID_STREAM] = "stream"
    format: Format | None = None
    columns: tuple[ColumnName, ...] | None = None
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    null_values: tuple[str, ...] = ()
    entity: ColumnName | None = None
    event_time: ColumnName | None = None
    label: ColumnName | None = None
    positive: str | None = None
    partition_by: tuple[ColumnName, ...] = ()

    @model_validator(mode="after")
    @_located
    def _check(self) -> Self:
        if self.columns and len(set(self.columns)) < len(self.columns):
            twice = next(c for i, c in enumerate(self.columns) if c in self.columns[:i])
            raise Invalid("columns", f"'{twice}' stands there twice", fix="give each column a name of its own")
        if self.positive is not None:
            node = expression.parse(self.positive, "positive")
            if self.label is None or expression.columns(node) != frozenset({self.label}):
                raise Invalid("positive", "it must speak of the label alone", fix=f"for example: {self.label} > 0")
        if self.topic is None and self.pull != "stream":
            raise Invalid("pull", "there is no topic to pull from", fix="name it: topic: bracelet-feed")
        if self.topic is not None and self.entity is None:
            raise Invalid(
                "entity", "a topic's rows are kept by entity", fix="name the column that says whose row it is"
            )
        return self


class Rectify(Section):
    """A number outside `range` becomes missing, or the nearest bound (`clip`); texts are replaced by `values`."""

    column: ColumnName
    range: tuple[float, float] | None = None
    otherwise: Literal["missing", "clip"] = "missing"
    values: Mapping[str, str] = Field(default_factory=dict)


class Derive(Section):
    """A new number column from an expression over the others."""

    column: ColumnName
    expression: str = Field(alias="as")

    @model_validator(mode="after")
    @_located
    def _check(self) -> Self:
        expression.parse(self.expression, "as")
        return self


class Drop(Section):
    """Columns that no model shall see."""

    columns: tuple[ColumnName, ...]


class Join(Section):
    """Columns of another pipeline's source, by entity: its value that was newest at the row's event time."""

    pipeline: ColumnName
    columns: tuple[ColumnName, ...]


class Impute(Section):
    """Fill what is missing."""

    columns: Columns
    with_: Literal["median", "mean", "most_frequent", "constant"] = Field(default="median", alias="with")
    value: float | str | None = None


class Scale(Section):
    """Bring numbers to one scale."""

    columns: Columns = "number"
    by: Literal["standard", "minmax", "robust"] = "standard"


class Encode(Section):
    """Turn categories into numbers; a category not seen in training is all zeros, or -1 for `ordinal`."""

    columns: Columns = "category"
    by: Literal["one_hot", "ordinal"] = "one_hot"
    max_categories: Annotated[int, Field(ge=2, le=1000)] = 50


class Bin(Section):
    """Turn numbers into one-hot bins."""

    columns: Columns = "number"
    bins: Annotated[int, Field(ge=2, le=100)] = 5
    by: Literal["quantile", "uniform"] = "quantile"


class Select(Section):
    """Keep the features that tell most of the label."""

    by: Literal["chi2", "mutual_information"] = "mutual_information"
    keep: Annotated[int, Field(ge=1)]


ROWWISE: Mapping[str, type[Section]] = {"rectify": Rectify, "derive": Derive, "drop": Drop, "join": Join}
LEARNED: Mapping[str, type[Section]] = {
    "impute": Impute, "scale": Scale, "encode": Encode, "bin": Bin, "select": Select,
}  # fmt: skip


class PreparationStep(Section):
    """One step: `{impute: {columns: number, with: median}}` in the file."""

    name: str
    options: Rectify | Derive | Drop | Join | Impute | Scale | Encode | Bin | Select

    @model_validator(mode="before")
    @classmethod
    @_located
    def _from_file(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and set(value) == {"name", "options"}:
            name, options = value["name"], value["options"]
        elif isinstance(value, Mapping) and len(value) == 1:
            ((name, options),) = value.items()
        elif isinstance(value, str):
            name, options = value, {}
        else:
            raise Invalid("", "a step is one name with its options", fix="{impute: {columns: number}}")
        kinds = {**ROWWISE, **LEARNED}
        if name not in kinds:
            raise Unknown.name("", "step", name, kinds)
        if isinstance(options, Section):
            return {"name": name, "options": options}
        try:
            return {"name": name, "options": kinds[name].model_validate(options or {})}
        except ValidationError as error:
            context = {"name": name, "errors": error.errors(include_url=False)}
            raise PydanticCustomError(_NESTED, "its options are not valid", context) from None


class Segregation(Section):
    """How rows are told apart. `random` decides each row by its id (a row stays where it is when others come),
    `shuffled` cuts a seeded permutation, `sequential` cuts the file's order, `time` cuts by event time,
    `custom` asks a column that says train/test, or a function by import path.
    """

    strategy: Literal["sequential", "random", "shuffled", "stratified", "time", "custom"] = "random"
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.8
    seed: int = 0
    stratify: bool = False
    column: ColumnName | None = None
    function: str | None = None

    @model_validator(mode="after")
    @_located
    def _check(self) -> Self:
        if self.strategy == "custom" and (self.column is None) == (self.function is None):
            raise Invalid("", "custom needs either a column or a function", fix="column: fold")
        return self


class Candidate(Section):
    """One algorithm by name, or a scikit-learn-compatible estimator by import path; `search` spans a grid."""

    algorithm: str
    parameters: Mapping[str, JsonValue] = Field(default_factory=dict)
    search: Mapping[str, tuple[JsonValue, ...]] = Field(default_factory=dict)
    samples: Annotated[int, Field(ge=1, le=500)] | None = None

    @model_validator(mode="after")
    @_located
    def _check(self) -> Self:
        if "." not in self.algorithm and self.algorithm not in ALGORITHMS:
            raise Unknown.name("algorithm", "algorithm", self.algorithm, ALGORITHMS)
        return self


class Training(Section):
    """What is tried. `samples` of a candidate: that many random draws from its search instead of the whole grid."""

    candidates: tuple[Candidate, ...] = ()
    seed: int = 0


class Evaluation(Section):
    """What makes a version: the metric, a floor, and by how much it must beat the champion."""

    metric: str | None = None
    at_least: float | None = None
    better_by: float = 0.0


class Deployment(Section):
    """How a new version takes over: shares in percent, each after `step_after` requests."""

    rollout: tuple[Annotated[int, Field(ge=1, le=100)], ...] = (100,)
    step_after: Annotated[int, Field(ge=1)] = 200
    approval: Literal["automatic", "manual"] = "automatic"


class Scoring(Section):
    """How a request is answered: within `slo_ms`, and by the prior if no version can (unless forbidden: 503).

    `feed`: a topic that gets the features of every scored row.
    """

    slo_ms: Annotated[float, Field(ge=1, le=60_000)] = 50.0
    baseline: bool = True
    feed: Annotated[TopicName | None, _UNSAID] = None


class Monitoring(Section):
    """When a version counts as degraded: never before `min_samples`; `late_share` of its answers late or failed,
    or a quality `accuracy_drop` below what evaluation promised."""

    min_samples: Annotated[int, Field(ge=5)] = 20
    late_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    accuracy_drop: Annotated[float, Field(gt=0)] = 0.15


class Retraining(Section):
    """What starts a training run beside a person."""

    on: tuple[Literal["new_data"], ...] = ()


def _unquoted_on(value: Any) -> Any:
    """YAML 1.1 reads the bare key `on` as true; nobody means that here."""
    if isinstance(value, Mapping) and True in value:
        return {("on" if k is True else k): v for k, v in value.items()}
    return value


class PipelineFile(Section):
    """The whole file. Only `pipeline`, `task` and, but for clustering and features, `source.label` are required."""

    pipeline: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    task: Task
    source: Source = Source()
    columns: Mapping[ColumnName, Kind] | None = Field(default=None, alias="schema")
    preparation: tuple[PreparationStep, ...] | None = None
    segregation: Segregation = Segregation()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    deployment: Deployment = Deployment()
    scoring: Scoring = Scoring()
    monitoring: Monitoring = Monitoring()
    retraining: Annotated[Retraining, BeforeValidator(_unquoted_on)] = Retraining()

    @model_validator(mode="after")
    @_located
    def _check(self) -> Self:
        if self.task in ("classification", "regression") and self.source.label is None:
            raise Invalid("source.label", f"a {self.task} needs a label", fix="name the column to predict")
        self._check_topics()
        metric = self.evaluation.metric
        if metric is not None and metric not in METRICS[self.task]:
            raise Unknown.name("evaluation.metric", f"metric for {self.task}", metric, METRICS[self.task])
        for index, candidate in enumerate(self.training.candidates):
            tasks = ALGORITHMS.get(candidate.algorithm, (self.task,))
            if self.task not in tasks:
                fitting = [name for name, of in ALGORITHMS.items() if self.task in of]
                raise Invalid(
                    f"training.candidates[{index}].algorithm",
                    f"{candidate.algorithm} is not for {self.task}",
                    fix=f"one of: {', '.join(fitting)}",
                )
        return self

    def _check_topics(self) -> None:
        source = self.source
        if self.scoring.feed is not None and self.scoring.feed == source.topic:
            raise Invalid(
                "scoring.feed",
                f"{source.topic} is this pipeline's own source",
                fix="feed a topic that another one takes",
            )
        if source.topic is None or source.uri is not None:
            return
        if not self.columns:
            raise Invalid(
                "schema", "a topic's columns are not inferred", fix=f"declare them: {source.entity}: category"
            )
        for field in ("entity", "event_time"):
            name = getattr(source, field)
            if name is not None and name not in self.columns:
                raise Unknown.name(f"source.{field}", "column", name, self.columns)

    @property
    def spec_id(self) -> str:
        """Names the file's content."""
        return content_id("spec", self.model_dump(mode="json", by_alias=True))

    @property
    def metric(self) -> str:
        """The metric that decides."""
        return self.evaluation.metric or DEFAULT_METRIC[self.task]

    @property
    def larger_is_better(self) -> bool:
        """Whether more of the metric is better."""
        return METRICS[self.task][self.metric]


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: YAML would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen:
                raise Invalid(f"line {key.start_mark.line + 1}", f"'{key.value}' stands there twice", fix="keep one")
            seen.add(name)
        return super().construct_mapping(node, deep)


def read(path: Path) -> PipelineFile:
    """The file at `path`, its relative source made absolute beside it. Raises `Invalid`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Invalid(str(path), error.strerror or "cannot be read", fix="name a pipeline file") from None
    except UnicodeDecodeError:
        raise Invalid(str(path), "it is not UTF-8 text", fix="name a pipeline file, not the data") from None
    file = parse(text)
    if file.source.uri is None or "://" in file.source.uri:
        return file
    uri = (path.resolve().parent / Path(file.source.uri).expanduser()).as_posix()
    return file.model_copy(update={"source": file.source.model_copy(update={"uri": uri})})


def parse(text: str) -> PipelineFile:
    """The file in `text` (YAML 1.1). Raises `Invalid` naming the field and, where there is one, the nearest name."""
    try:
        content = yaml.load(text, _Loader)  # noqa: S506 (it is a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "the file"
        raise Invalid(where, f"is no YAML ({getattr(error, 'problem', None) or 'cannot be read'})") from None
    if not isinstance(content, dict):
        raise Invalid("the file", "holds no pipeline", fix="begin with `pipeline: NAME` and `task: classification`")
    try:
        return PipelineFile.model_validate(content)
    except ValidationError as error:
        raise in_words(error, PipelineFile) from None


def in_words(error: ValidationError, model: type[BaseModel]) -> Invalid:
    """pydantic's findings as one `Invalid`: the first names the field, the others follow in the text."""
    found = _unmissed([_in_words(detail, model) for detail in _details(error.errors(include_url=False), ())])
    first, *others = found
    if not others:
        return first
    return Invalid(first.field, "; ".join([str(first).removeprefix(f"{first.field}: "), *map(str, others)]))


def _details(errors: Sequence[ErrorDetails], before: tuple[int | str, ...]) -> Iterator[ErrorDetails]:
    """Every finding with its whole location, those inside of a step's options too."""
    for detail in errors:
        location = (*before, *detail["loc"])
        if detail["type"] == _NESTED:
            context = detail.get("ctx", {})
            yield from _details(context["errors"], (*location, context["name"]))
        else:
            yield {**detail, "loc": location}


def _unmissed(found: Sequence[Invalid]) -> list[Invalid]:
    """Misspelt names first, and not followed by the news that the right one is missing."""
    meant = {
        _beside(error.field, error.fix.split("'")[1])
        for error in found
        if isinstance(error, Unknown) and error.fix is not None and error.fix.startswith("did you mean")
    }
    kept = [error for error in found if error.problem != _MISSING or error.field not in meant]
    return sorted(kept, key=lambda error: not isinstance(error, Unknown))


def _beside(field: str, name: str) -> str:
    """The field `name` in the section of `field`."""
    section, dot, _ = field.rpartition(".")
    return f"{section}{dot}{name}"


def _in_words(detail: ErrorDetails, model: type[BaseModel]) -> Invalid:
    location = detail["loc"]
    field = _path(location)
    match detail["type"]:
        case kind if kind == _OURS:
            error: Invalid = detail.get("ctx", {})["error"]
            where = _path((*location, error.field)) if error.field else field
            return type(error)(where, error.problem, fix=error.fix)
        case "extra_forbidden":
            return Unknown.name(field, "key", location[-1], _keys(model, location[:-1]))
        case "literal_error":
            expected = re.findall(r"'([^']+)'", detail.get("ctx", {})["expected"])
            return Unknown.name(field, "value", detail["input"], expected)
        case "missing":
            return Invalid(field, _MISSING, fix="it is required")
        case "string_pattern_mismatch" if location[-1:] == ("pipeline",):
            return Invalid(field, f"{detail['input']!r} is no pipeline name", fix="small letters, digits and hyphens")
        case _:
            message = f"{detail['msg'][0].lower()}{detail['msg'][1:]}"
            return Invalid(field, f"{message}, found {detail['input']!r:.60}")


def _path(location: Sequence[int | str]) -> str:
    """`("training", "candidates", 0)` as `training.candidates[0]`."""
    joined = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return joined.removeprefix(".") or "the file"


def _keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names that may stand where `location` points, as far as the models tell."""
    current = model
    for part in location:
        if isinstance(part, str):
            step = {**LEARNED, **ROWWISE}.get(part)
            fields = {info.alias or name: info for name, info in current.model_fields.items()}
            found = _model_in(fields[part].annotation) if part in fields else step
            current = found or current
    return [info.alias or name for name, info in current.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is, or holds: `tuple[Candidate, ...]`, `Part | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner)) is not None), None)
