"""The steps that learn from data, by name: resolved here, fitted by training on the training part alone.

A resolved step names its columns one by one; nothing about it depends on values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from turnout.common import pipeline
from turnout.common.errors import Invalid, Unknown
from turnout.common.events import Step
from turnout.common.pipeline import Columns
from turnout.common.values import Kind
from turnout.preparation.domain.columns import Kinds

# What a missing category becomes: a category of its own, so that being missing can tell something.
MISSING = "missing"


class LearnedStrategy(Protocol):
    """One kind of learned step."""

    def resolve(self, options: Any, kinds: Kinds, /) -> Step | None:
        """The step over the features `kinds`; None if it has no column to work on. Raises `Unknown` or `Invalid`."""
        ...


class Impute:
    """Fills what is missing.

    Options: `columns`, `with` ("median", "mean", "most_frequent", "constant"), `value` (for "constant": a number, or
    a text for categories; otherwise null).
    """

    def resolve(self, options: pipeline.Impute, kinds: Kinds, /) -> Step | None:
        """See `LearnedStrategy`."""
        names = chosen("impute", options.columns, kinds)
        if not names:
            return None
        if options.with_ in ("median", "mean"):
            _all_are("number", f"impute with {options.with_}", names, kinds)
        value = options.value
        if options.with_ == "constant":
            value = _constant(names, options.value, kinds)
        elif value is not None:
            raise Invalid("impute.value", f"means nothing with {options.with_}", fix="with: constant")
        return _step("impute", columns=names, value=value, **{"with": options.with_})


class Scale:
    """Brings numbers to one scale. Options: `columns`, `by` ("standard", "minmax", "robust")."""

    def resolve(self, options: pipeline.Scale, kinds: Kinds, /) -> Step | None:
        """See `LearnedStrategy`."""
        names = chosen("scale", options.columns, kinds)
        _all_are("number", "scale", names, kinds)
        return _step("scale", columns=names, by=options.by) if names else None


class Encode:
    """Turns categories into numbers. Options: `columns`, `by` ("one_hot", "ordinal"), `max_categories`."""

    def resolve(self, options: pipeline.Encode, kinds: Kinds, /) -> Step | None:
        """See `LearnedStrategy`."""
        names = chosen("encode", options.columns, kinds)
        _all_are("category", "encode", names, kinds)
        if not names:
            return None
        return _step("encode", columns=names, by=options.by, max_categories=options.max_categories)


class Bin:
    """Turns numbers into one-hot bins. Options: `columns`, `bins`, `by` ("quantile", "uniform")."""

    def resolve(self, options: pipeline.Bin, kinds: Kinds, /) -> Step | None:
        """See `LearnedStrategy`."""
        names = chosen("bin", options.columns, kinds)
        _all_are("number", "bin", names, kinds)
        return _step("bin", columns=names, bins=options.bins, by=options.by) if names else None


class Select:
    """Keeps the `keep` features that tell most of the label, `by` "chi2" or "mutual_information"."""

    def resolve(self, options: pipeline.Select, _kinds: Kinds, /) -> Step | None:
        """See `LearnedStrategy`."""
        return _step("select", by=options.by, keep=options.keep)


LEARNED: Mapping[str, LearnedStrategy] = {
    "impute": Impute(), "scale": Scale(), "encode": Encode(), "bin": Bin(), "select": Select(),
}  # fmt: skip


def chosen(step: str, columns: Columns, kinds: Kinds) -> list[str]:
    """The features a `columns` option means, in order. Raises `Unknown` for a name that is no feature."""
    if isinstance(columns, str):
        return [name for name, kind in kinds.items() if kind == columns]
    for name in columns:
        if name not in kinds:
            raise Unknown.name(f"{step}.columns", "feature", name, kinds)
    return list(dict.fromkeys(columns))


def completed(steps: Sequence[Step], kinds: Kinds) -> list[Step]:
    """`steps`, with what every model needs added: no missing value and no category may be left.

    Features that no step imputes are imputed first (numbers by the median, categories as "missing"); categories that
    no step encodes are one-hot encoded last, but before a selection, which needs numbers.
    """
    for name, step in (("encode", "encoded"), ("bin", "binned"), ("impute", "imputed")):
        _once(name, step, steps)
    imputed, encoded = _covered("impute", steps), _covered("encode", steps)
    numbers = {"columns": _left("number", kinds, imputed), "with": "median"}
    categories = {"columns": _left("category", kinds, imputed), "with": "constant"}
    first = [LEARNED["impute"].resolve(pipeline.Impute.model_validate(o), kinds) for o in (numbers, categories)]
    last = LEARNED["encode"].resolve(pipeline.Encode(columns=_left("category", kinds, encoded)), kinds)
    at = next((index for index, step in enumerate(steps) if step.name == "select"), len(steps))
    return [step for step in (*first, *steps[:at], last, *steps[at:]) if step is not None]


def _step(name: str, /, **options: Any) -> Step:
    return Step(name=name, options=options)


def _left(kind: Kind, kinds: Kinds, covered: frozenset[str]) -> tuple[str, ...]:
    return tuple(name for name, found in kinds.items() if found == kind and name not in covered)


def _covered(name: str, steps: Sequence[Step]) -> frozenset[str]:
    return frozenset(column for step in steps if step.name == name for column in _columns(step))


def _columns(step: Step) -> list[str]:
    columns = step.options.get("columns", ())
    return [str(name) for name in columns] if isinstance(columns, list) else []


def _once(name: str, done: str, steps: Sequence[Step]) -> None:
    seen: set[str] = set()
    for column in (column for step in steps if step.name == name for column in _columns(step)):
        if column in seen:
            raise Invalid(f"{name}.columns", f"'{column}' is {done} twice", fix="leave one of the two out")
        seen.add(column)


def _all_are(kind: Kind, step: str, names: Sequence[str], kinds: Kinds) -> None:
    for name in names:
        if kinds[name] != kind:
            raise Invalid(
                f"{step}.columns",
                f"'{name}' is a {kinds[name]}, and {step} is for columns of kind {kind}",
                fix=f"leave it out, or declare it a {kind} in schema",
            )


def _constant(names: Sequence[str], value: float | str | None, kinds: Kinds) -> float | str:
    found = {kinds[name] for name in names}
    if len(found) > 1:
        raise Invalid("impute.columns", "numbers and categories cannot share one constant", fix="make it two steps")
    if found == {"number"}:
        if isinstance(value, str):
            raise Invalid("impute.value", f"{value!r} is a text, and '{names[0]}' is a number", fix="give a number")
        return 0.0 if value is None else float(value)
    return MISSING if value is None else str(value)
