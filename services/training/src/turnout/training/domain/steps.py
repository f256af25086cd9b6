"""The steps that learn from data, by name: fitted by scikit-learn on the training part, applied, written as ONNX.

Applying is scikit-learn's own work; writing is ours, because skl2onnx has no FP64 kernel for half of these and puts
no two types of columns into one tensor. The agreement check holds the two together. All arithmetic is FP64 and in
scikit-learn's order, so that a graph gives the same bits. A step works on the whole tensor of numbers at once, with
a neutral value where a column is not concerned: a thousand columns cost as many nodes as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from sklearn.base import clone
from sklearn.feature_selection import chi2, mutual_info_classif, mutual_info_regression
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)

from turnout.common.errors import Invalid, Unknown
from turnout.common.events import Step
from turnout.training.domain.block import Block, Floats
from turnout.training.domain.graph import ML, Graph

# Mutual information looks at each feature's neighbours (Kraskov et al. 2004): more rows change the order of the
# features little and cost much.
MOST_ROWS_TO_SELECT = 10_000


@dataclass(frozen=True)
class Sketch:
    """A `Block` in a graph: the tensor `[rows, len(names)]` of numbers (None: there is none yet), texts by column."""

    graph: Graph
    numbers: str | None
    names: tuple[str, ...]
    texts: Mapping[str, str] = field(default_factory=dict)

    def at(self, columns: Sequence[str]) -> list[int]:
        """Where `columns` lie among the numbers; one that is no longer there is left out."""
        where = {name: index for index, name in enumerate(self.names)}
        return [where[name] for name in columns if name in where]

    def joined(self, tensors: Sequence[str], names: Sequence[str]) -> Sketch:
        """With more number columns behind those that are there."""
        every = [*([self.numbers] if self.numbers else []), *tensors]
        numbers = every[0] if len(every) == 1 else self.graph.node("Concat", *every, axis=1)
        return replace(self, numbers=numbers, names=(*self.names, *names))

    def over(self, write: Callable[[Graph, str], str]) -> Sketch:
        """With the tensor that `write` makes of the numbers; the same sketch where there are none."""
        return self if self.numbers is None else replace(self, numbers=write(self.graph, self.numbers))


@dataclass(frozen=True)
class Answer:
    """What is predicted, where there is a label: class indices (INT64) or numbers (FP64), `[rows]`."""

    values: NDArray[Any] | None
    classes: bool


class Fitted(Protocol):
    """A step that has learned."""

    def apply(self, block: Block) -> Block:
        """The rows after the step; `block` is left as it is."""
        ...

    def write(self, sketch: Sketch) -> Sketch:
        """The same as nodes of a graph."""
        ...


class Fit(Protocol):
    """Learns a step from the rows of the training part; `options` are those of the plan's step."""

    def __call__(self, options: Mapping[str, Any], block: Block, answer: Answer, seed: int, /) -> Fitted:
        """Raises `Invalid` where the rows and the options do not go together."""
        ...


# --- impute -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Impute:
    """Missing numbers and texts become one value a column."""

    columns: tuple[str, ...]
    numbers: Any
    texts: Mapping[str, Any]

    @classmethod
    def fit(cls, options: Mapping[str, Any], block: Block, _answer: Answer, _seed: int) -> Impute:
        """Options: `columns`, `with` (median, mean, most_frequent, constant), `value` for a constant.

        A column without any value is filled with 0, or "missing".
        """
        columns, how, value = tuple(options["columns"]), options["with"], options.get("value")
        at = block.at(columns)
        numbers: Any = None
        if at:
            filled = float(value or 0) if how == "constant" else None
            numbers = SimpleImputer(strategy=how, fill_value=filled, keep_empty_features=True)
            numbers.fit(block.numbers[:, at])
        texts: dict[str, Any] = {}
        for name in (name for name in columns if name in block.texts):
            if how in ("median", "mean"):
                raise Invalid("impute.with", f"the category '{name}' has no {how}", fix="with: most_frequent")
            fills = str(value) if how == "constant" and value is not None else "missing"
            seen = bool((block.texts[name] != "").any())
            empty: Any = ""
            texts[name] = SimpleImputer(
                missing_values=empty,
                strategy=how if seen else "constant",
                fill_value=fills if how == "constant" or not seen else None,
                keep_empty_features=True,
            ).fit(block.texts[name].reshape(-1, 1))
        return cls(columns, numbers, texts)

    def apply(self, block: Block) -> Block:
        """See `Fitted`."""
        numbers = block.numbers
        if self.numbers is not None:
            at = block.at(self.columns)
            numbers = numbers.copy()
            numbers[:, at] = self.numbers.transform(numbers[:, at])
        texts = {name: one.transform(block.texts[name].reshape(-1, 1)).ravel() for name, one in self.texts.items()}
        return replace(block, numbers=numbers, texts={**block.texts, **texts})

    def write(self, sketch: Sketch) -> Sketch:
        """See `Fitted`."""
        graph = sketch.graph
        if self.numbers is not None:
            fills = _row(sketch, np.nan, self.columns, self.numbers.statistics_)
            sketch = sketch.over(lambda g, x: g.where(g.node("IsNaN", x), g.constant(fills), x))
        texts = dict(sketch.texts)
        for name, one in self.texts.items():
            missing = graph.node("Equal", texts[name], graph.text(""))
            texts[name] = graph.where(missing, graph.text(str(one.statistics_[0])), texts[name])
        return replace(sketch, texts=texts)


# --- scale --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Numbers on one scale."""

    columns: tuple[str, ...]
    scaler: Any

    @classmethod
    def fit(cls, options: Mapping[str, Any], block: Block, _answer: Answer, _seed: int) -> Scale:
        """Options: `columns`, `by` (standard, minmax, robust). A constant column becomes 0; a missing value stays."""
        kinds = {"standard": StandardScaler, "minmax": MinMaxScaler, "robust": RobustScaler}
        by = options["by"]
        if by not in kinds:
            raise Unknown.name("scale.by", "scale", by, kinds)
        columns = tuple(options["columns"])
        at = block.at(columns)
        return cls(columns, kinds[by]().fit(block.numbers[:, at]) if at else None)

    def apply(self, block: Block) -> Block:
        """See `Fitted`."""
        if self.scaler is None:
            return block
        at, numbers = block.at(self.columns), block.numbers.copy()
        numbers[:, at] = self.scaler.transform(numbers[:, at])
        return block.with_numbers(numbers)

    def write(self, sketch: Sketch) -> Sketch:
        """See `Fitted`. Two operations, in the order in which scikit-learn does them."""
        scaler = self.scaler
        if scaler is None:
            return sketch
        if isinstance(scaler, MinMaxScaler):
            times = _row(sketch, 1.0, self.columns, np.asarray(scaler.scale_))
            plus = _row(sketch, 0.0, self.columns, np.asarray(scaler.min_))
            return sketch.over(lambda g, x: g.node("Add", g.node("Mul", x, g.constant(times)), g.constant(plus)))
        center = scaler.mean_ if isinstance(scaler, StandardScaler) else scaler.center_
        minus = _row(sketch, 0.0, self.columns, np.asarray(center))
        by = _row(sketch, 1.0, self.columns, np.asarray(scaler.scale_))
        return sketch.over(lambda g, x: g.node("Div", g.node("Sub", x, g.constant(minus)), g.constant(by)))


# --- encode -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encode:
    """Categories as numbers: a flag for each (unknown: none is set), or one code (unknown: -1)."""

    columns: tuple[str, ...]
    encoders: Mapping[str, Any]

    @classmethod
    def fit(cls, options: Mapping[str, Any], block: Block, _answer: Answer, _seed: int) -> Encode:
        """Options: `columns`, `by` (one_hot, ordinal), `max_categories`: rarer ones share the last flag or code."""
        by, most = options["by"], options.get("max_categories")
        columns = tuple(name for name in options["columns"] if name in block.texts)
        if by not in ("one_hot", "ordinal"):
            raise Unknown.name("encode.by", "encoding", by, ("one_hot", "ordinal"))
        encoder: Any = (
            OneHotEncoder(handle_unknown="ignore", max_categories=most, sparse_output=False)
            if by == "one_hot"
            else OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, max_categories=most)
        )
        fitted = {name: cast("Any", clone(encoder)).fit(block.texts[name].reshape(-1, 1)) for name in columns}
        return cls(columns, fitted)

    def apply(self, block: Block) -> Block:
        """See `Fitted`. The new columns come behind the numbers, in the order of the step."""
        texts, numbers, names = dict(block.texts), [block.numbers], list(block.names)
        flags = set(block.flags)
        for name, encoder in self.encoders.items():
            coded: Floats = encoder.transform(texts.pop(name).reshape(-1, 1))
            new = _encoded_names(name, coded.shape[1], encoder)
            numbers.append(coded.astype(np.float64))
            names += new
            flags |= set(new) if isinstance(encoder, OneHotEncoder) else set()
        return Block(np.hstack(numbers), tuple(names), texts, frozenset(flags))

    def write(self, sketch: Sketch) -> Sketch:
        """See `Fitted`. What each category becomes is asked of the encoder itself."""
        graph, texts = sketch.graph, dict(sketch.texts)
        tensors: list[str] = []
        names: list[str] = []
        for name, encoder in self.encoders.items():
            known = cast("NDArray[np.object_]", encoder.categories_[0])
            coded: Floats = encoder.transform(known.reshape(-1, 1))
            one_hot = isinstance(encoder, OneHotEncoder)
            codes = coded.argmax(axis=1) if one_hot else coded[:, 0]
            index = graph.node(
                "LabelEncoder", texts.pop(name), domain=ML,
                keys_strings=[str(text) for text in known],
                values_int64s=[int(code) for code in codes], default_int64=-1,
            )  # fmt: skip
            if one_hot:
                width = np.arange(coded.shape[1], dtype=np.int64).reshape(1, -1)
                index = graph.node("Equal", index, graph.constant(width))
            tensors.append(graph.cast(index, TensorProto.DOUBLE))
            names += _encoded_names(name, coded.shape[1], encoder)
        return replace(sketch, texts=texts).joined(tensors, names) if tensors else sketch


def _encoded_names(column: str, width: int, encoder: object) -> list[str]:
    # A NUL cannot be in a column's name, so these are nobody else's.
    return [f"{column}\0{index}" for index in range(width)] if isinstance(encoder, OneHotEncoder) else [f"{column}\0"]


# --- bin ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """Numbers as one flag a bin."""

    columns: tuple[str, ...]
    binner: Any

    @classmethod
    def fit(cls, options: Mapping[str, Any], block: Block, _answer: Answer, _seed: int) -> Bin:
        """Options: `columns`, `bins`, `by` (quantile, uniform). A column with few values gets fewer bins."""
        columns = tuple(options["columns"])
        at = block.at(columns)
        if not at:
            return cls(columns, None)
        every: Any = None
        binner: Any = KBinsDiscretizer(
            n_bins=options["bins"], encode="onehot-dense", strategy=options["by"], subsample=every,
            quantile_method="averaged_inverted_cdf",
        )  # fmt: skip
        _all_there(block, at, "bin")
        return cls(columns, binner.fit(block.numbers[:, at]))

    def apply(self, block: Block) -> Block:
        """See `Fitted`. The bins come behind the numbers that are left."""
        if self.binner is None:
            return block
        at = block.at(self.columns)
        left = [index for index in range(len(block.names)) if index not in set(at)]
        binned: Floats = self.binner.transform(block.numbers[:, at])
        names = _binned_names([block.names[index] for index in at], self.binner)
        return Block(
            np.hstack([block.numbers[:, left], binned]),
            (*(block.names[index] for index in left), *names),
            block.texts,
            block.flags | set(names),
        )

    def write(self, sketch: Sketch) -> Sketch:
        """See `Fitted`. All bins of all columns at once: is the value in [low, high)?"""
        if self.binner is None or sketch.numbers is None:
            return sketch
        graph, at = sketch.graph, sketch.at(self.columns)
        left = [index for index in range(len(sketch.names)) if index not in set(at)]
        inner = [np.asarray(edges)[1:-1] for edges in self.binner.bin_edges_]
        low = np.concatenate([[-np.inf, *edges] for edges in inner]).reshape(1, -1)
        high = np.concatenate([[*edges, np.inf] for edges in inner]).reshape(1, -1)
        source = np.repeat(at, [len(edges) + 1 for edges in inner]).astype(np.int64)
        spread = graph.node("Gather", sketch.numbers, graph.constant(source), axis=1)
        inside = graph.node(
            "And",
            graph.node("GreaterOrEqual", spread, graph.constant(low)),
            # The last bin takes all that is large.
            graph.node("Or", graph.node("Less", spread, graph.constant(high)), graph.constant(np.isinf(high))),
        )
        kept = (
            graph.node("Gather", sketch.numbers, graph.constant(np.array(left, dtype=np.int64)), axis=1)
            if left
            else None
        )
        names = _binned_names([sketch.names[index] for index in at], self.binner)
        rest = replace(sketch, numbers=kept, names=tuple(sketch.names[index] for index in left))
        return rest.joined([graph.cast(inside, TensorProto.DOUBLE)], names)


def _binned_names(columns: Sequence[str], binner: Any) -> list[str]:
    return [f"{name}\0{bin_}" for name, bins in zip(columns, binner.n_bins_, strict=True) for bin_ in range(bins)]


# --- select -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Select:
    """The features that tell most of the label; `kept` are their places, in order."""

    kept: tuple[int, ...]

    @classmethod
    def fit(cls, options: Mapping[str, Any], block: Block, answer: Answer, seed: int) -> Select:
        """Options: `by` (chi2, mutual_information), `keep`. Chi² sees each feature shifted and scaled to [0, 1]."""
        by, keep = options["by"], int(options["keep"])
        if answer.values is None:
            raise Invalid("select", "there is no label to select by", fix="leave the step out")
        if block.texts:
            raise Invalid("select", f"the category '{next(iter(block.texts))}' is no number", fix="encode it before")
        _all_there(block, range(len(block.names)), "select")
        if by == "chi2":
            if not answer.classes:
                raise Invalid("select.by", "chi2 needs classes", fix="by: mutual_information")
            told = np.asarray(chi2(MinMaxScaler().fit_transform(block.numbers), answer.values)[0])
        elif by == "mutual_information":
            told = _information(block, answer.values, answer.classes, seed)
        else:
            raise Unknown.name("select.by", "measure", by, ("chi2", "mutual_information"))
        # A constant feature has no chi²; of equals the first one stays.
        best = np.argsort(-np.nan_to_num(told, nan=-1.0), kind="stable")[:keep]
        return cls(tuple(int(index) for index in np.sort(best)))

    def apply(self, block: Block) -> Block:
        """See `Fitted`."""
        kept = list(self.kept)
        return replace(block, numbers=block.numbers[:, kept], names=tuple(block.names[index] for index in kept))

    def write(self, sketch: Sketch) -> Sketch:
        """See `Fitted`."""
        kept = np.array(self.kept, dtype=np.int64)
        names = tuple(sketch.names[index] for index in self.kept)
        return replace(sketch.over(lambda g, x: g.node("Gather", x, g.constant(kept), axis=1)), names=names)


def _information(block: Block, values: NDArray[Any], classes: bool, seed: int) -> Floats:
    numbers, told = block.numbers, values
    if block.rows > MOST_ROWS_TO_SELECT:
        rows = np.random.default_rng(seed).permutation(block.rows)[:MOST_ROWS_TO_SELECT]
        numbers, told = numbers[rows], values[rows]
    discrete = np.array([name in block.flags for name in block.names])
    measure: Any = mutual_info_classif if classes else mutual_info_regression
    neighbours = max(1, min(3, len(told) - 1))
    return np.asarray(measure(numbers, told, discrete_features=discrete, random_state=seed, n_neighbors=neighbours))


# --- the factory --------------------------------------------------------------------------------------------------

STEPS: Mapping[str, Fit] = {
    "impute": Impute.fit,
    "scale": Scale.fit,
    "encode": Encode.fit,
    "bin": Bin.fit,
    "select": Select.fit,
}


def fit_all(steps: Sequence[Step], block: Block, answer: Answer, seed: int) -> tuple[list[Fitted], Block]:
    """The steps fitted one after the other on the training part, and its rows after the last one.

    Raises `Invalid` if what is left is nothing a model can be fitted on.
    """
    fitted: list[Fitted] = []
    for step in steps:
        if step.name not in STEPS:
            raise Unknown.name("plan.learned", "step", step.name, STEPS)
        fitted.append(STEPS[step.name](step.options, block, answer, seed))
        block = fitted[-1].apply(block)
    if block.texts:
        raise Invalid("preparation", f"the category '{next(iter(block.texts))}' is no number", fix="encode it")
    if not block.names:
        raise Invalid("preparation", "no feature is left", fix="drop or select less")
    return fitted, block


def _row(sketch: Sketch, neutral: float, columns: Sequence[str], values: Sequence[float] | Floats) -> Floats:
    """`[1, columns]`: `values` where `columns` lie, `neutral` elsewhere."""
    row = np.full((1, len(sketch.names)), neutral, dtype=np.float64)
    row[0, sketch.at(columns)] = values
    return row


def _all_there(block: Block, at: Sequence[int], step: str) -> None:
    for index in at:
        if np.isnan(block.numbers[:, index]).any():
            raise Invalid(step, f"'{block.names[index]}' has missing values", fix="impute it before")
