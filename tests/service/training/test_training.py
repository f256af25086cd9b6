"""Training as it runs: events in, candidates out, on the embedded bus, lake, registry and worker processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import builders
import pytest
import splits
import warm
from environment import published, running

from turnout.common.errors import Invalid, Unknown
from turnout.common.events import (
    DataSegregated,
    Event,
    ModelTrained,
    Plan,
    StageFailed,
    TrainingRequested,
)
from turnout.common.pipeline import PipelineFile
from turnout.common.runtime.environment import Environment
from turnout.training import fitting, reactions
from turnout.training.domain.candidates import Trial
from turnout.training.domain.model import session_of
from turnout.training.reactions import Train
from turnout.training.service import build

QUICK = "{candidates: [{algorithm: logistic_regression}, {algorithm: decision_tree}]}"
FILE = (
    "pipeline: {{pipeline}}\ntask: {task}\nsource: {{{{label: y}}}}\ntraining: {training}\nretraining: {retraining}\n"
)


def a_file(training: str = QUICK, task: str = "classification", retraining: str = "{}") -> PipelineFile:
    escaped = (text.replace("{", "{{").replace("}", "}}") for text in (training, retraining))
    training, retraining = escaped
    return builders.pipeline_file(FILE.format(task=task, training=training, retraining=retraining))


class Published:
    """Takes what a reaction publishes."""

    def __init__(self) -> None:
        self.events: list[ModelTrained] = []

    async def __call__(self, event: Event) -> None:
        assert isinstance(event, ModelTrained)
        self.events.append(event)


async def train(env: Environment, said: Published, **options: Any) -> Train:
    return Train(
        lake=env.lake, registry=env.registry, pipelines=env.pipelines, executor=env.executor, publish=said,
        now=lambda: builders.AT, **options,
    )  # fmt: skip


async def test_a_split_becomes_candidates_with_graphs_logged_and_kept(env: Environment) -> None:
    await env.bus.publish(builders.declared(a_file()))
    event = splits.segregated(env.lake, splits.rows(), train=True)
    async with running(env, build(env)):
        await env.bus.publish(event)
        trained = await until(env, ModelTrained, 2)
    assert [one.failure for one in trained] == [None, None]
    assert sorted(one.algorithm for one in trained) == ["decision_tree", "logistic_regression"]
    for one in trained:
        assert (one.causation_id, one.correlation_id) == (event.id, event.correlation_id)
        assert one.file is not None
        session = session_of(env.lake.get_model(one.file))
        assert [i.name for i in session.get_inputs()] == [column.name for column in splits.COLUMNS]
        assert one.agreement is not None
        assert one.agreement < 1e-5
        assert one.prior.probabilities.keys() == {"no", "yes"}
        assert one.tracking_id is not None
    again = await asyncio.to_thread(
        env.registry.log_candidate, "p", f"{trained[0].run_id}/{trained[0].candidate}",
        parameters={}, metrics={}, tags={},
    )  # fmt: skip
    assert again == trained[0].tracking_id


async def test_a_run_that_comes_again_is_the_same_run(env: Environment) -> None:
    await env.bus.publish(builders.declared(a_file()))
    said = Published()
    reaction = await train(env, said)
    event = splits.segregated(env.lake, splits.rows(), train=True)
    await reaction([event])
    first = list(said.events)
    await reaction([event])
    assert sorted(said.events[2:], key=_candidate) == sorted(first, key=_candidate)
    # The same file announced once more: another cause, the same candidates.
    other = DataSegregated.first(source="/segregation", at=builders.AT, **_content(event))
    await reaction([other])
    again = sorted(said.events[4:], key=_candidate)
    first.sort(key=_candidate)
    assert {one.causation_id for one in again} == {other.id}
    assert [one.file for one in again] == [one.file for one in first]
    assert {one.run_id for one in again} == {first[0].run_id}
    assert not {one.id for one in again} & {one.id for one in first}


async def test_one_that_fails_does_not_stop_the_others(env: Environment) -> None:
    impossible = "{algorithm: logistic_regression, parameters: {solver: liblinear, penalty: l1, dual: true}}"
    training = f"{{candidates: [{impossible}, {{algorithm: decision_tree}}]}}"
    await env.bus.publish(builders.declared(a_file(training)))
    said = Published()
    event = splits.segregated(env.lake, splits.rows(), train=True)
    await (await train(env, said))([event])
    by_candidate = {one.candidate: one for one in said.events}
    assert by_candidate[0].file is None
    assert by_candidate[0].failure is not None
    assert "dual" in by_candidate[0].failure
    assert by_candidate[1].failure is None


async def test_a_candidate_whose_process_is_killed_is_a_failure_and_no_end(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reactions.fitting, "fit_candidate", warm.dies_for_trees)
    await env.bus.publish(builders.declared(a_file()))
    said = Published()
    event = splits.segregated(env.lake, splits.rows(), train=True)
    await (await train(env, said, parallel=1))([event])
    failures = {one.algorithm: one.failure for one in said.events}
    assert failures["logistic_regression"] is None
    assert "killed twice" in (failures["decision_tree"] or "")


@pytest.mark.parametrize(
    ("train_", "retraining", "later", "trained"),
    [
        (True, "{}", True, True),
        (False, "{on: [new_data]}", False, False),
        (None, "{}", False, True),
        (None, "{}", True, False),
        (None, "{on: [new_data]}", True, True),
    ],
    ids=["asked for", "forbidden", "the first", "a later one", "a later one, new data"],
)
async def test_when_a_split_is_trained_on(
    env: Environment, train_: bool | None, retraining: str, later: bool, trained: bool
) -> None:
    file = a_file("{candidates: [{algorithm: decision_tree}]}", retraining=retraining)
    await env.bus.publish(builders.declared(file))
    said = Published()
    reaction = await train(env, said)
    if later:
        splits.segregated(env.lake, splits.rows(seed=4), split_id="split-0", refs=("train", "test"))
    event = splits.segregated(env.lake, splits.rows(), split_id="split-1", train=train_)
    await reaction([event])
    assert bool(said.events) is trained


async def test_a_request_trains_on_the_newest_split_with_what_it_replaces(env: Environment) -> None:
    await env.bus.publish(builders.declared(a_file()))
    said = Published()
    reaction = await train(env, said)
    splits.segregated(env.lake, splits.rows(seed=4), split_id="split-0")
    splits.segregated(env.lake, splits.rows(), split_id="split-1")

    def request(**payload: Any) -> TrainingRequested:
        return TrainingRequested.first(source="/cli", at=builders.AT, pipeline="p", payload=payload)

    asked = request(training={"candidates": [{"algorithm": "decision_tree", "search": {"max_depth": [1, 2]}}]})
    await reaction([asked])
    assert [(one.split_id, one.candidates) for one in said.events] == [("split-1", 2)] * 2
    assert {one.parameters["max_depth"] for one in said.events} == {1, 2}
    # Asked for twice is two runs; the same request redelivered is one.
    await reaction([asked])
    await reaction([request(training={"candidates": [{"algorithm": "decision_tree"}]})])
    assert len({one.run_id for one in said.events}) == 2
    with pytest.raises(Unknown, match="part of the file that a training request can replace"):
        await reaction([request(evaluation={})])
    await env.bus.publish(builders.declared(a_file().model_copy(update={"pipeline": "empty"})))
    with pytest.raises(Invalid, match="'empty' has no data yet"):
        await reaction([TrainingRequested.first(source="/cli", at=builders.AT, pipeline="empty")])


async def test_what_cannot_be_trained_is_said_to_the_pipeline_before_anything_is(env: Environment) -> None:
    training = "{candidates: [{algorithm: decision_tree}, {algorithm: sklearn.tree.DecisionTreClassifier}]}"
    await env.bus.publish(builders.declared(a_file(training)))
    event = splits.segregated(env.lake, splits.rows(), train=True)
    async with running(env, build(env)):
        await env.bus.publish(event)
        (failed,) = await until(env, StageFailed, 1)
    assert failed.field == "training.candidates[1].algorithm"
    assert failed.fix == "did you mean 'DecisionTreeClassifier'?"
    assert await published(env.bus, ModelTrained) == []


@pytest.mark.parametrize("task", ["regression", "clustering"])
async def test_other_tasks_with_their_default_candidates(env: Environment, task: str) -> None:
    source = "pipeline: {{pipeline}}\ntask: {task}\nsource: {source}\n"
    label = "{{label: y}}" if task == "regression" else "{{}}"
    await env.bus.publish(builders.declared(builders.pipeline_file(source.format(task=task, source=label))))
    said = Published()
    event = splits.segregated(env.lake, splits.rows(task), task=task, train=True)
    await (await train(env, said))([event])
    assert [one.failure for one in said.events] == [None] * (3 if task == "regression" else 6)


async def test_a_task_that_only_makes_features_trains_nothing(env: Environment) -> None:
    text = "pipeline: {pipeline}\ntask: features\nsource: {{}}\n"
    await env.bus.publish(builders.declared(builders.pipeline_file(text)))
    said = Published()
    await (await train(env, said))([builders.segregated(train=True)])
    assert said.events == []


async def test_a_graph_that_disagrees_with_the_features_is_a_failure_that_names_the_row(env: Environment) -> None:
    """The feature set was made otherwise than the plan says: nobody may be scored by such a graph."""
    table = splits.rows()
    name = splits.NUMBERS[0]
    halved = table.set_column(0, name, [[None if v is None else v / 2 for v in table[name].to_pylist()]])
    halved = halved.append_column(f"in:{name}", table[name])
    lying = Plan(
        inputs=splits.COLUMNS, features=splits.COLUMNS, learned=splits.PLAN.learned,
        rowwise=(splits.step("derive", column=name, as_=f"`{name}` / 3"),),
    )  # fmt: skip
    event = splits.segregated(env.lake, halved, plan=lying, train=True)
    trial = Trial("logistic_regression", {}, "training.candidates[0]")
    found = fitting.fit_candidate(env.lake, event, trial, 0, ("sklearn",))
    assert found.file is None
    assert found.failure is not None
    assert found.failure.startswith("the graph and the model disagree by")
    assert "row " in found.failure


def test_the_services_own_process_imports_neither_scikit_learn_nor_mlflow() -> None:
    program = (
        "import sys, turnout.training.service, turnout.evaluation.service\n"
        "print(sorted({'sklearn', 'skl2onnx', 'mlflow', 'onnx', 'onnxruntime', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _candidate(event: ModelTrained) -> int:
    return event.candidate


def _content(event: DataSegregated) -> dict[str, Any]:
    return {
        name: getattr(event, name) for name in DataSegregated.model_fields
        if name not in ("id", "source", "time", "correlation_id", "causation_id", "traceparent")
    }  # fmt: skip


async def until(env: Environment, kind: type[Any], count: int) -> list[Any]:
    """The topic's events, once there are `count`."""
    async with asyncio.timeout(100):
        while len(found := await published(env.bus, kind)) < count:
            await asyncio.sleep(0.05)
    return found
