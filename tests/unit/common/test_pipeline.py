"""The pipeline file: what it takes, and what it says to the person who wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from turnout.common import pipeline
from turnout.common.errors import Invalid
from turnout.common.pipeline import Candidate, Impute, PipelineFile, PreparationStep, parse

HEAD = "pipeline: p\ntask: classification\nsource: {label: y}\n"


def test_only_three_things_are_required() -> None:
    file = parse(HEAD)
    assert (file.pipeline, file.task, file.source.label) == ("p", "classification", "y")
    assert (file.metric, file.larger_is_better) == ("roc_auc", True)


def test_clustering_needs_no_label() -> None:
    assert parse("pipeline: p\ntask: clustering").metric == "silhouette"


def test_a_whole_file() -> None:
    file = parse("""
pipeline: heart-disease
source: {uri: a.data, format: csv, columns: [age, num], null_values: ["?"], label: num, positive: num > 0}
schema: {age: number, num: number}
task: classification
preparation:
  - rectify: {column: age, range: [1, 120], otherwise: missing}
  - impute: {columns: number, with: median}
  - scale
  - select: {by: chi2, keep: 10}
segregation: {strategy: stratified, ratio: 0.7, seed: 7}
training: {candidates: [{algorithm: logistic_regression, search: {C: [0.1, 1]}}, {algorithm: sklearn.svm.SVC}]}
evaluation: {metric: log_loss, at_least: 0.3}
retraining: {on: [new_data]}
""")
    assert file.preparation is not None
    assert [step.name for step in file.preparation] == ["rectify", "impute", "scale", "select"]
    assert file.columns == {"age": "number", "num": "number"}
    assert not file.larger_is_better
    assert file.retraining.on == ("new_data",)


def test_a_file_says_the_same_after_a_journey_as_json() -> None:
    file = parse(HEAD + "preparation: [{impute: {columns: [a, b], with: mean}}, scale]\nschema: {a: number}")
    again = PipelineFile.model_validate_json(file.model_dump_json(by_alias=True))
    assert again == file
    assert again.spec_id == file.spec_id


def test_the_spec_id_names_the_content_not_the_writing() -> None:
    assert parse(HEAD).spec_id == parse("# a comment\nsource: {label: y}\ntask: classification\npipeline: p").spec_id
    assert parse(HEAD).spec_id != parse(HEAD + "scoring: {slo_ms: 51}").spec_id


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("preparation: [{impute: {colums: number}}]",
         "preparation[0].impute.colums: unknown key 'colums'; did you mean 'columns'?"),
        ("preparation: [scale, {imput: {columns: number}}]",
         "preparation[1]: unknown step 'imput'; did you mean 'impute'?"),
        ("preparation: [{impute: {columns: age}}]",
         "preparation[0].impute.columns: it is neither number, nor category, nor a list of names; write [age]"),
        ("preparation: [{encode: {max_categories: 1}}]",
         "preparation[0].encode.max_categories: input should be greater than or equal to 2, found 1"),
        ("preparation: [{impute: {}}]", "preparation[0].impute.columns: is missing; it is required"),
        ("preparation: [3]", "preparation[0]: a step is one name with its options; {impute: {columns: number}}"),
        ("preparation: [{derive: {column: d, as: foo(a)}}]",
         "preparation[0].derive.as: unknown function 'foo'; one of: abs, exp, hour, log, negative, not, sqrt, weekday"),
        ("training: {candidates: [{algorithm: ridge}, {algorithm: randm_forest}]}",
         "training.candidates[1].algorithm: unknown algorithm 'randm_forest'; did you mean 'random_forest'?"),
        ("training: {candidates: [{algoritm: ridge}]}",
         "training.candidates[0].algoritm: unknown key 'algoritm'; did you mean 'algorithm'?"),
        ("training: {candidates: [{algorithm: k_means}]}",
         "training.candidates[0].algorithm: k_means is not for classification"),
        ("training: {candidats: []}", "training.candidats: unknown key 'candidats'; did you mean 'candidates'?"),
        ("evaluation: {metric: roc}",
         "evaluation.metric: unknown metric for classification 'roc'; did you mean 'roc_auc'?"),
        ("evaluation: {metric: rmse}", "evaluation.metric: unknown metric for classification 'rmse'"),
        ("segregation: {strategy: custom}", "segregation: custom needs either a column or a function; column: fold"),
        ("segregation: {strategy: randon}", "segregation.strategy: unknown value 'randon'; did you mean 'random'?"),
        ("schema: {a: numbr}", "schema.a: unknown value 'numbr'; did you mean 'number'?"),
        ("deployment: {rollout: [10, 500]}",
         "deployment.rollout[1]: input should be less than or equal to 100, found 500"),
        ("foo: 1", "foo: unknown key 'foo'; one of: deployment,"),
        ("scoring: {slo_ms: 0.1, basline: true}",
         "scoring.basline: unknown key 'basline'; did you mean 'baseline'?; scoring.slo_ms: input should be greater"),
        ("scoring: {feed: ScoreProduced}", "scoring.feed: ScoreProduced carries Turnout's own events; name a topic of"),
        ("scoring: {feed: a b}", "scoring.feed: 'a b' is no topic's name; letters, digits, '.', '_' and '-'"),
        ("task: regression", "line 4: 'task' stands there twice; keep one"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(text: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(HEAD + text)
    assert str(caught.value).startswith(says)


TOPIC = "pipeline: p\ntask: features\nschema: {e: category, at: timestamp}\nsource: "


@pytest.mark.parametrize(
    ("pull", "found"), [("", "stream"), (", pull: on_request", "on_request"), (", pull: {every: 5min}", 300)]
)
def test_a_topic_is_a_source(pull: str, found: object) -> None:
    file = parse(f"{TOPIC}{{topic: feed, entity: e, event_time: at{pull}}}")
    assert file.source.topic == "feed"
    way = file.source.pull
    assert (way if isinstance(way, str) else way.seconds) == found
    assert PipelineFile.model_validate_json(file.model_dump_json(by_alias=True)) == file


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{topic: feed}", "source.entity: a topic's rows are kept by entity; name the column that says whose row it"),
        ("{topic: feed, entity: f}", "source.entity: unknown column 'f'; one of: at, e"),
        ("{topic: feed, entity: e, event_time: when}", "source.event_time: unknown column 'when'; one of: at, e"),
        ("{topic: feed.dead, entity: e}", "source.topic: feed.dead is for dead letters; `turnout replay` sends them"),
        ("{topic: ObservationReceived, entity: e}", "source.topic: ObservationReceived carries Turnout's own events"),
        ("{topic: feed, entity: e, pull: strem}", "source.pull: 'strem' is no way to pull; stream, on_request, or"),
        ("{topic: feed, entity: e, pull: {every: 60}}", "source.pull.every: 60 is no length of time; for example 60s"),
        ("{topic: feed, entity: e, pull: {evry: 1h}}", "source.pull: {'evry': '1h'} is no way to pull; stream, on"),
        ("{pull: on_request}", "source.pull: there is no topic to pull from; name it: topic: bracelet-feed"),
        ("{topic: feed, entity: e}\nscoring: {feed: feed}",
         "scoring.feed: feed is this pipeline's own source; feed a topic that another one takes"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_topic_is_said(text: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(TOPIC + text)
    assert str(caught.value).startswith(says)


def test_a_topic_alone_needs_a_schema() -> None:
    with pytest.raises(Invalid, match="schema: a topic's columns are not inferred; declare them: e: category"):
        parse("pipeline: p\ntask: features\nsource: {topic: feed, entity: e}")
    assert parse("pipeline: p\ntask: features\nsource: {topic: feed, entity: e, uri: a.csv}").columns is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("task: classification\npipeline: p",
         "source.label: a classification needs a label; name the column to predict"),
        ("task: clustering", "pipeline: is missing"),
        ("pipeline: Heart Disease\ntask: clustering", "pipeline: 'Heart Disease' is no pipeline name; small letters"),
        ("pipeline: p\ntask: clasification", "task: unknown value 'clasification'; did you mean 'classification'?"),
        ("pipeline: p\ntask: regression\nsource: {label: y, positive: z > 0}",
         "source.positive: it must speak of the label alone; for example: y > 0"),
        ("pipeline: p\ntask: regression\nsource: {label: y, columns: [a, b, a]}",
         "source.columns: 'a' stands there twice; give each column a name of its own"),
        ("pipeline: [p", "line 1: is no YAML"),
        ("", "the file: holds no pipeline"),
        ("- a", "the file: holds no pipeline"),
        ("pipeline: !!python/object/apply:os.system [ls]", "line 1: is no YAML"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused(text: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(text)
    assert str(caught.value).startswith(says)


def test_an_error_raised_in_a_validator_keeps_its_parts() -> None:
    with pytest.raises(Invalid) as caught:
        parse(HEAD + "training: {candidates: [{algorithm: rige}]}")
    assert caught.value.field == "training.candidates[0].algorithm"
    assert caught.value.problem == "unknown algorithm 'rige'"
    assert caught.value.fix == "did you mean 'ridge'?"


def test_on_is_no_truth_value() -> None:
    assert parse(HEAD + "retraining:\n  on: [new_data]").retraining.on == ("new_data",)


def test_a_step_can_be_built_in_code() -> None:
    step = PreparationStep(name="impute", options=Impute(columns="number"))
    assert PreparationStep.model_validate({"impute": {"columns": "number"}}) == step
    assert Candidate(algorithm="ridge").parameters == {}


def test_reading_makes_the_source_absolute(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("\ufeff" + HEAD.replace("label: y", "label: y, uri: data/*.csv"), encoding="utf-8")
    assert pipeline.read(path).source.uri == f"{tmp_path.resolve()}/data/*.csv"
    path.write_text(HEAD.replace("label: y", "label: y, uri: 's3://bucket/key'"))
    assert pipeline.read(path).source.uri == "s3://bucket/key"


def test_reading_what_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="No such file"):
        pipeline.read(tmp_path / "nothing.yaml")
    (tmp_path / "data").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Invalid, match="not UTF-8 text"):
        pipeline.read(tmp_path / "data")
