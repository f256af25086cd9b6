"""Every learned step goes through one list: it learns from the training part alone, leaves its rows as they are, and
means the same in a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from splits import step

from turnout.common import pipeline
from turnout.common.errors import Invalid
from turnout.common.events import Column, Step
from turnout.training.domain import steps
from turnout.training.domain.block import Block
from turnout.training.domain.graph import Graph
from turnout.training.domain.model import session_of
from turnout.training.domain.steps import STEPS, Answer, Sketch, fit_all

NAMES = ("x", "y [m]", "constant", "large")
ALL = list(NAMES)
BOTH = ["s", 't "t"']


def block(rows: int = 60, seed: int = 0, *, holes: bool = True, unseen: bool = False) -> Block:
    draw = np.random.default_rng(seed)
    numbers = np.column_stack(
        [draw.normal(0, 1, rows), draw.exponential(2, rows), np.full(rows, 7.0), 5e8 + draw.normal(0, 100, rows)]
    )
    texts = {
        "s": draw.choice(["a", "b", "c", "new"] if unseen else ["a", "b", "c"], rows).astype(object),
        't "t"': draw.choice([f"{index}" for index in range(12)], rows).astype(object),
    }
    if holes:
        numbers[draw.random(numbers.shape) < 0.15] = np.nan
        for column in texts.values():
            column[draw.random(rows) < 0.15] = ""
    return Block(numbers, NAMES, texts)


def labels(rows: int = 60, *, classes: bool = True) -> Answer:
    draw = np.random.default_rng(1)
    numbers = block(rows, holes=False).numbers[:, 0] + draw.normal(0, 0.3, rows)
    return Answer((numbers > 0).astype(np.int64) if classes else numbers, classes)


# Every option that the pipeline file knows stands in at least one of these.
CASES: dict[str, tuple[Step, ...]] = {
    **{f"impute {how}": (step("impute", columns=ALL, with_=how, value=None),) for how in ("median", "mean")},
    "impute most_frequent": (step("impute", columns=[*ALL, *BOTH], with_="most_frequent", value=None),),
    "impute constant": (step("impute", columns=["x", "large"], with_="constant", value=-3.5),),
    "impute constant 0": (step("impute", columns=["x"], with_="constant", value=None),),
    "impute constant text": (step("impute", columns=BOTH, with_="constant", value="weiß nicht"),),
    "impute constant missing": (step("impute", columns=BOTH, with_="constant", value=None),),
    **{f"scale {by}": (step("scale", columns=ALL, by=by),) for by in ("standard", "minmax", "robust")},
    "scale one": (step("scale", columns=["large"], by="standard"),),
    **{
        f"encode {by} {most}": (step("encode", columns=BOTH, by=by, max_categories=most),)
        for by in ("one_hot", "ordinal") for most in (2, 5, 50)
    },
    **{
        f"bin {by} {bins}": (
            step("impute", columns=ALL, with_="median", value=None),
            step("bin", columns=["y [m]", "large", "constant"], bins=bins, by=by),
        )
        for by in ("quantile", "uniform") for bins in (2, 7)
    },
    **{
        f"select {by}": (
            step("impute", columns=ALL, with_="mean", value=None),
            step("encode", columns=BOTH, by="one_hot", max_categories=50),
            step("bin", columns=["x"], bins=3, by="quantile"),
            step("scale", columns=ALL, by="minmax"),
            step("select", by=by, keep=5),
        )
        for by in ("chi2", "mutual_information")
    },
    "select more than there are": (
        step("impute", columns=ALL, with_="mean", value=None),
        step("encode", columns=BOTH, by="ordinal", max_categories=50),
        step("select", by="mutual_information", keep=500),
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("given", CASES.values(), ids=CASES)


def fitted(given: tuple[Step, ...], on: Block, answer: Answer) -> list[steps.Fitted]:
    found: list[steps.Fitted] = []
    for one in given:
        found.append(STEPS[one.name](one.options, on, answer, 3))
        on = found[-1].apply(on)
    return found


def applied(done: list[steps.Fitted], to: Block) -> Block:
    for one in done:
        to = one.apply(to)
    return to


def in_graph(done: list[steps.Fitted], rows: Block) -> tuple[Any, tuple[str, ...]]:
    columns = [Column(name=name, kind="number") for name in rows.names]
    columns += [Column(name=name, kind="category") for name in rows.texts]
    graph = Graph(columns)
    sketch = Sketch(graph, None, (), {name: name for name in rows.texts}).joined(rows.names, rows.names)
    for one in done:
        sketch = one.write(sketch)
    assert sketch.numbers is not None
    fed = {name: rows.numbers[:, [index]] for index, name in enumerate(rows.names)}
    fed |= {name: values.reshape(-1, 1) for name, values in rows.texts.items()}
    outputs = [graph.model("out", sketch.numbers, 11, [None, None], {})]
    outputs += [graph.model("out", tensor, 8, [None, 1], {}) for tensor in sketch.texts.values()]
    found = []
    for model in outputs:
        session = session_of(model.SerializeToString())
        found.append(session.run(None, {i.name: fed[i.name] for i in session.get_inputs()})[0])
    return found, sketch.names


def test_the_list_holds_every_option_of_the_pipeline_file() -> None:
    assert set(STEPS) == set(pipeline.LEARNED)
    seen = {(one.name, key, value) for given in CASES.values() for one in given
            for key, value in one.options.items() if isinstance(value, str)}  # fmt: skip
    for name, section in pipeline.LEARNED.items():
        for key in ("by", "with_"):
            if key in section.model_fields:
                for value in section.model_fields[key].annotation.__args__:  # pyright: ignore[reportOptionalMemberAccess]
                    assert (name, key.rstrip("_"), value) in seen


@pytest.mark.filterwarnings("ignore:Feature 2 is constant")
@EVERY
def test_the_graph_gives_the_same_bits(given: tuple[Step, ...]) -> None:
    done = fitted(given, block(), labels())
    other = block(40, seed=9, unseen=True)
    native, (found, names) = applied(done, other), in_graph(done, other)
    assert names == native.names
    np.testing.assert_array_equal(found[0], native.numbers)
    for text, wanted in zip(found[1:], native.texts.values(), strict=True):
        assert text.ravel().tolist() == wanted.tolist()


@pytest.mark.filterwarnings("ignore:Feature 2 is constant")
@EVERY
def test_rows_stay_as_they_were_and_the_same_seed_learns_the_same(given: tuple[Step, ...]) -> None:
    on, same = block(), block()
    first, second = fitted(given, on, labels()), fitted(given, same, labels())
    np.testing.assert_array_equal(on.numbers, block().numbers)
    assert all((on.texts[name] == block().texts[name]).all() for name in on.texts)
    np.testing.assert_array_equal(applied(first, on).numbers, applied(second, on).numbers)


@pytest.mark.filterwarnings("ignore:Feature 2 is constant")
@EVERY
def test_a_row_does_not_know_the_others(given: tuple[Step, ...]) -> None:
    done = fitted(given, block(), labels())
    other = block(8, seed=5)
    alone = [
        applied(done, Block(other.numbers[[i]], NAMES, {n: t[[i]] for n, t in other.texts.items()})).numbers
        for i in range(8)
    ]
    np.testing.assert_array_equal(np.concatenate(alone), applied(done, other).numbers)


@pytest.mark.filterwarnings("ignore:Skipping features")
def test_a_column_without_a_value_is_filled_all_the_same() -> None:
    empty = Block(np.full((5, 1), np.nan), ("x",), {"s": np.array([""] * 5, dtype=object)})
    for how in ("median", "mean", "most_frequent"):
        columns = ["x"] if how != "most_frequent" else ["x", "s"]
        done = fitted((step("impute", columns=columns, with_=how, value=None),), empty, labels(5))
        assert applied(done, empty).numbers.tolist() == [[0.0]] * 5
        if how == "most_frequent":
            assert applied(done, empty).texts["s"].tolist() == ["missing"] * 5


def test_selection_by_regression_targets() -> None:
    given = (step("impute", columns=ALL, with_="mean", value=None), step("select", by="mutual_information", keep=1))
    on = Block(block().numbers, NAMES)
    assert applied(fitted(given, on, labels(classes=False)), on).names == ("x",)
    with pytest.raises(Invalid, match="chi2 needs classes; by: mutual_information"):
        fitted((given[0], step("select", by="chi2", keep=1)), on, labels(classes=False))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((step("impute", columns=["s"], with_="median", value=None),), "the category 's' has no median"),
        ((step("bin", columns=["x"], bins=3, by="quantile"),), "'x' has missing values; impute it before"),
        ((step("select", by="chi2", keep=3),), "the category 's' is no number; encode it before"),
        ((step("scale", columns=["x"], by="standrd"),), "unknown scale 'standrd'; did you mean 'standard'"),
        ((step("encode", columns=["s"], by="onehot"),), "unknown encoding 'onehot'; did you mean 'one_hot'"),
        ((step("scal", columns=["x"]),), "unknown step 'scal'; did you mean 'scale'"),
        ((), "the category 's' is no number; encode it"),
    ],
)
def test_what_does_not_go_together_is_said(given: tuple[Step, ...], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        fit_all(given, block(), labels(), 0)


def test_without_a_label_nothing_can_be_selected() -> None:
    with pytest.raises(Invalid, match="there is no label to select by"):
        fit_all((step("select", by="chi2", keep=3),), Block(block().numbers, NAMES), Answer(None, classes=False), 0)


def test_every_step_says_what_it_does() -> None:
    assert all(one.__doc__ for one in (steps.Impute, steps.Scale, steps.Encode, steps.Bin, steps.Select))
    assert all(fit.__doc__ for fit in STEPS.values())
