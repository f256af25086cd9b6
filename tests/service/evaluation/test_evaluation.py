"""Evaluation as it runs: candidates in, a version and refusals out; every model is a real graph in the lake."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import builders
import numpy as np
import orjson
import pyarrow as pa
import pytest
import splits
from environment import published, running

from turnout.common.events import (
    CandidateRefused,
    Column,
    DataSegregated,
    DataSetRef,
    Event,
    ModelReady,
    ModelTrained,
    PipelineRemoved,
    Plan,
    RoutingChanged,
)
from turnout.common.pipeline import PipelineFile
from turnout.common.runtime.environment import Environment
from turnout.evaluation import measuring
from turnout.evaluation.reactions import Evaluate, Project
from turnout.evaluation.service import build
from turnout.training import fitting
from turnout.training.domain.candidates import Trial

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def a_file(task: str = "classification", **evaluation: Any) -> PipelineFile:
    rule = ", ".join(f"{key}: {value}" for key, value in evaluation.items())
    label = "label: y" if task != "clustering" else ""
    text = f"pipeline: p\ntask: {task}\nsource: {{{label}}}\nevaluation: {{{rule}}}\nscoring: {{slo_ms: 40}}\n"
    return builders.pipeline_file(text.replace("{", "{{").replace("}", "}}"))


def trained(env: Environment, split: DataSegregated, *trials: Trial | str, run: str = "run-1") -> list[ModelTrained]:
    """Candidates as training publishes them; a text is the reason of one that failed."""
    found: list[ModelTrained] = []
    for index, trial in enumerate(trials):
        if isinstance(trial, str):
            fields: dict[str, Any] = {"failure": trial, "file": None, "algorithm": "ridge"}
        else:
            fitted = fitting.fit_candidate(env.lake, split, trial, 0, ("sklearn",))
            assert fitted.file, fitted.failure
            fields = {"file": fitted.file, "prior": fitted.prior, "algorithm": trial.algorithm}
        found.append(
            ModelTrained.caused_by(
                split, source="/training", at=AT, of=f"{run}/{index}", run_id=run, candidate=index,
                candidates=len(trials), parameters={}, split_id=split.split_id,
                feature_set_id=split.feature_set_id, parts=split.parts, plan=split.plan, target=split.target,
                spec_id="spec-1", **{"prior": builders.PRIOR, **fields},
            )
        )  # fmt: skip
    return found


def trial(algorithm: str, **parameters: Any) -> Trial:
    return Trial(algorithm, parameters, "training.candidates[0]")


def evaluate(env: Environment) -> Evaluate:
    return Evaluate(
        lake=env.lake, registry=env.registry, pipelines=env.pipelines, routes=env.routes, executor=env.executor,
        bus=env.bus, now=lambda: AT,
    )  # fmt: skip


async def decided(env: Environment, events: Sequence[ModelTrained]) -> list[Event]:
    """What a fresh evaluation says, the candidates coming one by one."""
    reaction = evaluate(env)
    produced: list[Event] = []
    for event in events:
        await env.bus.publish(event)
        produced += await reaction([event])
    return produced


GOOD, WEAK = trial("logistic_regression"), trial("decision_tree", max_depth=1)


async def test_the_best_candidate_becomes_a_version_and_the_others_hear_why(env: Environment) -> None:
    await env.bus.publish(builders.declared(a_file()))
    split = splits.segregated(env.lake, splits.rows(count=300))
    run = trained(env, split, WEAK, GOOD, "it would not converge")
    async with running(env, build(env)):
        await env.bus.publish(*run)
        async with asyncio.timeout(60):
            while len(await published(env.bus, CandidateRefused)) < 2:
                await asyncio.sleep(0.05)
    (ready,) = await published(env.bus, ModelReady)
    assert (ready.version, ready.algorithm, ready.file) == ("1", "logistic_regression", run[1].file)
    assert (ready.causation_id, ready.correlation_id) == (run[1].id, split.correlation_id)
    assert ready.metrics["roc_auc"] > 0.85
    assert ready.base_rate["roc_auc"] == 0.5
    assert ready.why.startswith("roc_auc 0.")
    assert ready.why.endswith("there is no champion yet")
    assert (ready.slo_ms, ready.prior, ready.comparison) == (40, run[1].prior, None)
    refused = {one.candidate: one for one in await published(env.bus, CandidateRefused)}
    assert "is behind logistic_regression's" in refused[0].why
    assert refused[0].metrics["roc_auc"] > 0.5
    assert refused[2].why == "it would not converge"
    (version,) = await asyncio.to_thread(env.registry.versions, "p")
    assert version.tags["verdict"] == ready.why


async def test_the_sample_is_raw_rows_as_a_request_brings_them(env: Environment) -> None:
    await env.bus.publish(builders.declared(a_file()))
    columns = (Column(name="age", kind="number"), Column(name="when", kind="timestamp"))
    plan = Plan(
        inputs=columns, features=(Column(name="age", kind="number"), Column(name="hour", kind="number")),
        rowwise=(
            splits.step("rectify", column="age", range=[0.0, 100.0], otherwise="clip", values={}),
            splits.step("derive", column="hour", as_="hour(when)"), splits.step("drop", columns=["when"]),
        ),
    )  # fmt: skip
    count = 120
    ages = np.linspace(-50, 150, count)
    hours = np.arange(count) % 24
    table = pa.table(
        {
            "age": np.clip(ages, 0, 100), "hour": hours.astype(float), "in:age": ages,
            "in:when": pa.array([datetime(2026, 1, 1, int(h), tzinfo=UTC) for h in hours], pa.timestamp("us", "UTC")),
            "_label": np.where((hours > 12) ^ (ages > 120), "yes", "no"),
        }
    )  # fmt: skip
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(count)))
    split = splits.segregated(env.lake, shuffled, plan=plan)
    (ready,) = await decided(env, trained(env, split, trial("decision_tree")))
    assert isinstance(ready, ModelReady)
    assert len(ready.sample) == 8
    first = shuffled.slice(90, 1).to_pylist()[0]
    assert dict(ready.sample[0]) == {"age": first["in:age"], "when": first["in:when"].isoformat()}


async def test_the_profile_is_that_of_raw_inputs(env: Environment) -> None:
    split = splits.segregated(env.lake, splits.rows(count=300))
    names = (splits.NUMBERS[0], f"in:{splits.NUMBERS[1]}", splits.NUMBERS[1], "derived")
    features = builders.features_generated(profile=tuple(builders.profile(name) for name in names))
    ref = DataSetRef(kind="features", pipeline="p", id="fs-1")
    splits.keep(env.lake, pa.table({f"in:{splits.NUMBERS[2]}": [1.0]}), ref, event=features)
    await env.bus.publish(builders.declared(a_file()))
    (ready,) = await decided(env, trained(env, split, GOOD))
    assert isinstance(ready, ModelReady)
    assert [one.name for one in ready.profile] == splits.NUMBERS[:2]


async def test_nothing_is_said_before_all_candidates_are_there_and_a_restart_forgets_none(env: Environment) -> None:
    await env.bus.publish(builders.declared(a_file()))
    run = trained(env, splits.segregated(env.lake, splits.rows()), GOOD, WEAK, "no")
    reaction = evaluate(env)
    for event in run[:2]:
        await env.bus.publish(event)
        assert await reaction([event]) == []
    await env.bus.publish(run[2])
    produced = await evaluate(env)([run[2]])
    assert [type(one) for one in produced] == [ModelReady, CandidateRefused, CandidateRefused]
    # Redelivered to another process: the same events. Its siblings say nothing more.
    assert await evaluate(env)([run[2]]) == produced
    assert await evaluate(env)([run[0]]) in ([], produced)
    assert len(await asyncio.to_thread(env.registry.versions, "p")) == 1


async def test_the_champion_stays_unless_somebody_is_surely_better(env: Environment) -> None:
    await env.bus.publish(builders.declared(a_file()))
    split = splits.segregated(env.lake, splits.rows(count=400))
    (first,) = await decided(env, trained(env, split, WEAK))
    assert isinstance(first, ModelReady)
    await env.bus.publish(builders.routing(champion="1"))
    # The same again: no better, whatever the noise.
    (refused,) = await decided(env, trained(env, split, WEAK, run="run-2"))
    assert isinstance(refused, CandidateRefused)
    assert (
        "not surely better than the champion: roc_auc better than version 1 by 0 (95 % interval 0 to 0" in refused.why
    )
    # Much better.
    (ready,) = await decided(env, trained(env, split, GOOD, run="run-3"))
    assert isinstance(ready, ModelReady)
    assert ready.version == "2"
    assert ready.comparison is not None
    assert ready.comparison.champion == "1"
    assert 0 < ready.comparison.low <= ready.comparison.difference <= ready.comparison.high
    # And back: worse.
    await env.bus.publish(builders.routing(version=2, champion="2", previous="1"))
    (refused,) = await decided(env, trained(env, split, WEAK, run="run-4"))
    assert isinstance(refused, CandidateRefused)
    assert "by -0." in refused.why


async def test_a_margin_accepts_what_is_not_worse(env: Environment) -> None:
    await env.bus.publish(builders.declared(a_file(better_by=-0.02)))
    split = splits.segregated(env.lake, splits.rows(count=400))
    await decided(env, trained(env, split, GOOD))
    await env.bus.publish(builders.routing(champion="1"))
    (ready,) = await decided(env, trained(env, split, GOOD, run="run-2"))
    assert isinstance(ready, ModelReady)
    assert ready.version == "2"


async def test_a_champion_of_an_older_plan_is_asked_from_the_raw_batches(env: Environment) -> None:
    """The new plan dropped a column that the champion needs: it stands in the raw batch, on the same rows."""
    await env.bus.publish(builders.declared(a_file()))
    table = splits.rows(count=400)
    old = splits.segregated(env.lake, table, split_id="split-old")
    (first,) = await decided(env, trained(env, old, GOOD))
    assert isinstance(first, ModelReady)
    await env.bus.publish(builders.routing(champion="1"))
    raw = table.drop_columns(["_batch", "_label"])
    shuffled = raw.take(pa.array(np.random.default_rng(1).permutation(400)))
    splits.keep(env.lake, shuffled, DataSetRef(kind="raw", pipeline="p", id="batch-1"))
    only = (Column(name=splits.NUMBERS[0], kind="number"),)
    name = splits.NUMBERS[0]
    plan = Plan(inputs=only, features=only, learned=(splits.step("impute", columns=[name], with_="mean"),))
    new = splits.segregated(env.lake, table.select([name, "_label", "_batch", "_row"]), split_id="split-new", plan=plan)
    candidates = trained(env, new, GOOD, run="run-2")
    (refused,) = await decided(env, candidates)
    assert isinstance(refused, CandidateRefused)
    assert "better than version 1 by -0." in refused.why
    # Exactly what the champion got with everything at hand.
    found = measuring.compare(env.lake, candidates[0], "1", first.file, "roc_auc", larger_is_better=True)
    assert not isinstance(found, str)
    assert refused.metrics["roc_auc"] - found.difference == pytest.approx(first.metrics["roc_auc"])


async def test_a_champion_that_knows_other_classes_is_compared_on_those_it_shares(env: Environment) -> None:
    await env.bus.publish(builders.declared(a_file(metric="log_loss")))
    table = splits.rows(count=400)
    await decided(env, trained(env, splits.segregated(env.lake, table, split_id="split-old"), GOOD))
    await env.bus.publish(builders.routing(champion="1"))
    labels = np.array(table["_label"].to_pylist(), dtype=object)
    labels[::4] = "perhaps"
    three = table.set_column(table.column_names.index("_label"), "_label", pa.array(labels.tolist()))
    target = splits.TARGETS["classification"].model_copy(update={"classes": ("no", "perhaps", "yes")})
    new = splits.segregated(env.lake, three, split_id="split-new", target=target)
    (ready,) = await decided(env, trained(env, new, GOOD, run="run-2"))
    assert isinstance(ready, ModelReady)
    assert ready.comparison is not None
    assert ready.comparison.low > 1


@pytest.mark.parametrize("known", [True, False])
async def test_a_champion_that_cannot_be_asked_is_said_and_holds_nobody_up(env: Environment, known: bool) -> None:
    await env.bus.publish(builders.declared(a_file()))
    split = splits.segregated(env.lake, splits.rows(count=300))
    if known:
        broken = await asyncio.to_thread(env.lake.put_model, "p", b"no graph at all")
        await env.bus.publish(builders.model_ready("9", file=broken))
    await env.bus.publish(builders.routing(champion="9"))
    (ready,) = await decided(env, trained(env, split, GOOD))
    assert isinstance(ready, ModelReady)
    assert ("could not be asked on the same rows" if known else "is in no registry") in ready.why


async def test_a_run_that_comes_again_after_it_was_replaced_stays_replaced(env: Environment) -> None:
    await env.bus.publish(builders.declared(a_file()))
    split = splits.segregated(env.lake, splits.rows(count=400))
    run = trained(env, split, WEAK)
    (first,) = await decided(env, run)
    again = builders.segregated(**_content(split))
    (other,) = trained(env, again, WEAK)
    assert other.id != run[0].id
    # Not yet in any table: what was decided is said again, for the new cause.
    (ready,) = await decided(env, [other])
    assert isinstance(first, ModelReady)
    assert isinstance(ready, ModelReady)
    assert (ready.version, ready.metrics) == (first.version, first.metrics)
    assert ready.id != first.id
    assert ready.correlation_id == again.correlation_id
    # Replaced by version 2.
    await env.bus.publish(builders.routing(champion="1"))
    await decided(env, trained(env, split, GOOD, run="run-2"))
    await env.bus.publish(builders.routing(version=2, champion="2", previous="1"))
    (third,) = trained(env, builders.segregated(**_content(split)), WEAK)
    (refused,) = await decided(env, [third])
    assert isinstance(refused, CandidateRefused)
    assert refused.why == "it was decided before: version 1, which version 2 has replaced"


@pytest.mark.parametrize(
    ("task", "best", "metric"),
    [("regression", trial("ridge"), "rmse"), ("clustering", trial("k_means", n_clusters=3), "silhouette")],
)
async def test_other_tasks(env: Environment, task: str, best: Trial, metric: str) -> None:
    await env.bus.publish(builders.declared(a_file(task)))
    split = splits.segregated(env.lake, splits.rows(task, 300), task=task)
    (ready,) = await decided(env, trained(env, split, best))
    assert isinstance(ready, ModelReady)
    assert metric in ready.metrics
    await env.bus.publish(builders.routing(champion="1"))
    (refused,) = await decided(env, trained(env, split, best, run="run-2"))
    assert isinstance(refused, CandidateRefused)


async def test_a_test_part_that_cannot_tell_refuses_with_the_reason(env: Environment) -> None:
    await env.bus.publish(builders.declared(a_file()))
    table = splits.rows(count=100)
    split = splits.segregated(env.lake, table, share=1.0)
    (refused,) = await decided(env, trained(env, split, GOOD))
    assert isinstance(refused, CandidateRefused)
    assert refused.why.startswith("roc_auc cannot be measured on the test rows")


async def test_curves_are_kept_with_the_run(env: Environment, warm: Any) -> None:
    await env.bus.publish(builders.declared(a_file()))
    await decided(env, trained(env, splits.segregated(env.lake, splits.rows(count=300)), GOOD))
    folder: Path = warm.registry._home._folder
    (roc,) = folder.glob("artefacts/p/*/artifacts/curves/roc.json")
    assert orjson.loads(roc.read_bytes())["yes"][0]["false_positive_rate"] == 0


async def test_routing_is_projected_to_aliases_and_removal_removes(env: Environment) -> None:
    await env.bus.publish(builders.declared(a_file(better_by=-1)))
    split = splits.segregated(env.lake, splits.rows(count=300))
    for number in ("1", "2"):
        await decided(env, trained(env, split, GOOD, run=f"run-{number}"))
        await env.bus.publish(builders.routing(version=int(number), champion="1"))
    project = Project(env.registry)

    async def aliases() -> dict[str, tuple[str, ...]]:
        return {v.version: v.aliases for v in await asyncio.to_thread(env.registry.versions, "p")}

    newer = builders.routing(version=4, champion="2", previous="1")
    assert await project([newer, builders.routing(version=3, champion="1")]) == ()
    assert await aliases() == {"1": ("previous",), "2": ("champion",)}
    # A version that the registry does not know (deployed by hand) has no alias, and harms nobody.
    await project([builders.routing(version=5, champion="77", previous="2")])
    assert await aliases() == {"1": (), "2": ("previous",)}
    removed = PipelineRemoved.first(source="/monitoring", at=AT, pipeline="p")
    await project([removed])
    assert await aliases() == {}
    await project([RoutingChanged.model_validate(newer.model_dump())])


def _content(event: Event) -> dict[str, Any]:
    gone = ("id", "source", "time", "correlation_id", "causation_id", "traceparent", "pipeline")
    return {name: getattr(event, name) for name in type(event).model_fields if name not in gone}
