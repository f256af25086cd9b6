"""Drawing the plan: from the pipeline file and the raw columns to inputs, row-wise steps, features and learned steps.

Without `preparation:` the file gets this: columns that are constant and texts that name each row (distinct in nearly
every row) are dropped, each with a warning; a timestamp becomes its hour and weekday; numbers are imputed by the
median and scaled; categories are imputed as "missing" and one-hot encoded.

With explicit steps only what is missing for a model to be trained is added: a timestamp that is left becomes its hour
and weekday, and `learned.completed` says the rest. The entity, the event time and the label are never features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from turnout.common import pipeline
from turnout.common.errors import Invalid, Unknown
from turnout.common.events import Column, Plan, Step, Warn
from turnout.common.pipeline import PipelineFile, PreparationStep
from turnout.common.values import Kind
from turnout.preparation.domain import findings
from turnout.preparation.domain.columns import RAW, RESERVED, Kinds, quoted, without
from turnout.preparation.domain.learned import LEARNED, completed
from turnout.preparation.domain.rowwise import ROWWISE, Context, names_of
from turnout.preparation.domain.summary import Summary

# What the default plan does with numbers, once all is imputed; `completed` adds the rest.
_DEFAULT_LEARNED = (PreparationStep(name="scale", options=pipeline.Scale()),)


@dataclass(frozen=True)
class Drawing:
    """A plan and what a person should know about how it was drawn."""

    plan: Plan
    warnings: tuple[Warn, ...] = ()


def roles(file: PipelineFile) -> Mapping[str, str]:
    """Columns that are never features, and the field of the file that says so."""
    named = {
        "source.label": file.source.label,
        "source.entity": file.source.entity,
        "source.event_time": file.source.event_time,
        "segregation.column": file.segregation.column if file.segregation.strategy == "custom" else None,
    }
    return {column: where for where, column in named.items() if column is not None}


def draw(
    file: PipelineFile,
    columns: Sequence[Column],
    *,
    others: Mapping[str, Kinds] | None = None,
    survey: Summary | None = None,
) -> Drawing:
    """The plan for raw `columns`. `survey` is what they look like, needed where the file has no `preparation`.

    Raises `Unknown` (a column, with the nearest name) or `Invalid` (a step on a column of the wrong kind, a label that
    a step reads, no feature left).
    """
    kinds: dict[str, Kind] = {column.name: column.kind for column in columns}
    taken = roles(file)
    for name, where in taken.items():
        if name not in kinds:
            raise Unknown.name(where, "column", name, kinds)
    _check_time(file, kinds)
    warnings = findings.unfit(survey, kinds, taken) if file.preparation is None and survey is not None else ()
    context = Context(frozenset(kinds), file.source.label, file.source.entity, file.source.event_time, others or {})
    rowwise, after = _rowwise(_row_steps(file, warnings), kinds, taken, context)
    features = without(after, list(taken))
    _check_features(features)
    learned_steps = file.preparation if file.preparation is not None else _DEFAULT_LEARNED
    resolved = [LEARNED[s.name].resolve(s.options, features) for s in learned_steps if s.name in LEARNED]
    learned = completed([step for step in resolved if step is not None], features)
    inputs, alive = _pruned(rowwise, features, {**kinds, **_joined(rowwise, context)})
    plan = Plan(
        inputs=tuple(Column(name=name, kind=kind) for name, kind in inputs.items()),
        rowwise=tuple(alive),
        features=tuple(Column(name=name, kind=kind) for name, kind in features.items()),
        learned=tuple(learned),
    )
    return Drawing(plan, tuple(warnings))


def changed(plan: Plan) -> list[Column]:
    """The inputs whose raw values the features no longer hold: a step changed them or took them away."""
    features = {column.name for column in plan.features}
    written = frozenset[str]().union(*(ROWWISE[step.name].writes(step) for step in plan.rowwise))
    return [column for column in plan.inputs if column.name not in features or column.name in written]


def _check_time(file: PipelineFile, kinds: Kinds) -> None:
    name = file.source.event_time
    if name is not None and kinds[name] != "timestamp":
        raise Invalid(
            "source.event_time", f"'{name}' is a {kinds[name]}", fix=f"declare it: schema: {{{name}: timestamp}}"
        )


def _check_features(features: Kinds) -> None:
    if not features:
        fix = "declare `preparation` to keep columns, or bring a source with more of them"
        raise Invalid("preparation", "no feature is left", fix=fix)
    for name in features:
        if name in RESERVED or name.startswith(RAW):
            raise Invalid(f"column '{name}'", "Turnout uses this name itself", fix="rename the column in the source")


def _row_steps(file: PipelineFile, unfit: Sequence[Warn]) -> list[PreparationStep]:
    if file.preparation is None:
        gone = tuple(dict.fromkeys(warn.column for warn in unfit if warn.column is not None))
        return [PreparationStep(name="drop", options=pipeline.Drop(columns=gone))] if gone else []
    names = [step.name for step in file.preparation]
    learned = next((index for index, name in enumerate(names) if name in LEARNED), len(names))
    for index, name in enumerate(names[learned:], learned):
        if name in ROWWISE:
            raise Invalid(
                f"preparation[{index}]",
                f"{name} comes after {names[learned]}, which learns from data",
                fix="put rectify, derive, drop and join first",
            )
    return list(file.preparation[:learned])


def _rowwise(
    steps: Sequence[PreparationStep], kinds: Kinds, taken: Mapping[str, str], context: Context
) -> tuple[list[Step], dict[str, Kind]]:
    done, after = _resolved(steps, kinds, context)
    added, after = _resolved(_times_apart(without(after, list(taken))), after, context)
    return [*done, *added], after


def _resolved(steps: Sequence[PreparationStep], kinds: Kinds, context: Context) -> tuple[list[Step], dict[str, Kind]]:
    done: list[Step] = []
    after = dict(kinds)
    for step in steps:
        strategy = ROWWISE[step.name]
        done.append(strategy.resolve(step.options, after, context))
        after = strategy.outcome(done[-1], after, context)
    return done, after


def _times_apart(features: Kinds) -> list[PreparationStep]:
    """Steps that put hour (0 to 23, UTC) and weekday (Monday 0) in the place of each timestamp."""
    times = [name for name, kind in features.items() if kind == "timestamp"]
    steps: list[PreparationStep] = []
    for name in times:
        for part in ("hour", "weekday"):
            new = f"{name}_{part}"
            while new in features:
                new += "_"
            derive = pipeline.Derive.model_validate({"column": new, "as": f"{part}({quoted(name)})"})
            steps.append(PreparationStep(name="derive", options=derive))
    drop = [PreparationStep(name="drop", options=pipeline.Drop(columns=tuple(times)))] if times else []
    return steps + drop


def _joined(steps: Sequence[Step], context: Context) -> dict[str, Kind]:
    joins = [step for step in steps if step.name == "join"]
    return {name: context.others[str(step.options["pipeline"])][name] for step in joins for name in names_of(step)}


def _pruned(steps: Sequence[Step], features: Kinds, raw: Kinds) -> tuple[dict[str, Kind], list[Step]]:
    """The raw columns that `features` come from, in order, and the steps that lead from them there."""
    needed = set(features)
    backwards: list[Step] = []
    for step in reversed(steps):
        strategy = ROWWISE[step.name]
        match step.name:
            case "drop":
                backwards.append(step)
            case "join":
                names = [name for name in names_of(step) if name in needed]
                if names:
                    backwards.append(_over(step, names))
            case _ if needed & strategy.writes(step):
                backwards.append(step)
                needed = (needed - strategy.writes(step)) | strategy.reads(step)
            case _:
                pass
    inputs: dict[str, Kind] = {name: kind for name, kind in raw.items() if name in needed}
    alive: list[Step] = []
    there = set(inputs)
    for step in reversed(backwards):
        if step.name == "drop":
            names = [name for name in names_of(step) if name in there]
            if names:
                alive.append(_over(step, names))
            there -= set(names)
        else:
            alive.append(step)
            there |= ROWWISE[step.name].writes(step)
    return inputs, alive


def _over(step: Step, names: Sequence[str]) -> Step:
    return Step(name=step.name, options={**step.options, "columns": list(names)})
