"""Every strategy through one list of promises; then what each one does."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from turnout.common.errors import Invalid
from turnout.common.pipeline import Segregation
from turnout.segregation.domain.splits import NO_TIME, STRATEGIES, Rows, Split, check, of_function


def rows(n: int = 1_000, seed: int = 3) -> Rows:
    draw = np.random.default_rng(seed)
    return Rows(
        batches=["b1", "b2"],
        batch=(np.arange(n) >= n // 2).astype(np.int64),
        row=np.arange(n) % max(n // 2, 1) + 1,
        classes=(draw.random(n) < 0.1).astype(np.int64),
        times=draw.integers(0, 10**15, n),
        fold=["train" if x < 0.7 else "TEST" for x in draw.random(n)],
    )


def options(strategy: str, **more: Any) -> Segregation:
    more = {"column": "fold", **more} if strategy == "custom" else more
    return Segregation(strategy=strategy, **more)  # pyright: ignore[reportArgumentType]


def split(strategy: str, of: Rows, **more: Any) -> Split:
    return STRATEGIES[strategy](of, options(strategy, **more))


def frozen(of: Rows) -> Rows:
    for array in (of.batch, of.row, of.classes, of.numbers, of.times):
        if array is not None:
            array.setflags(write=False)
    return of


def test_the_file_and_the_factory_know_the_same_names() -> None:
    annotation = Segregation.model_fields["strategy"].annotation
    assert set(STRATEGIES) == set(annotation.__args__)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


@pytest.mark.parametrize("strategy", STRATEGIES)
class TestEvery:
    def test_has_a_docstring(self, strategy: str) -> None:
        assert inspect.getdoc(STRATEGIES[strategy])

    def test_gives_the_same_twice_and_leaves_its_input_alone(self, strategy: str) -> None:
        one, other = split(strategy, frozen(rows())), split(strategy, frozen(rows()))
        assert (one.train == other.train).all()
        assert np.array_equal(one.order, other.order) if one.order is not None else other.order is None

    def test_survives_json(self, strategy: str) -> None:
        given = options(strategy)
        again = Segregation.model_validate_json(given.model_dump_json())
        assert (STRATEGIES[strategy](rows(), again).train == STRATEGIES[strategy](rows(), given).train).all()

    def test_says_something_for_every_row(self, strategy: str) -> None:
        found = split(strategy, rows())
        assert found.train.shape == (1_000,)
        assert found.train.dtype == np.bool_
        if found.order is not None:
            assert sorted(found.order) == list(range(1_000))

    def test_keeps_near_the_ratio(self, strategy: str) -> None:
        if strategy != "custom":
            assert abs(split(strategy, rows(), ratio=0.7).train.mean() - 0.7) < 0.05

    def test_needs_no_label_unless_it_stratifies(self, strategy: str) -> None:
        of = replace(rows(), classes=None)
        if strategy == "stratified":
            with pytest.raises(Invalid, match="nothing to stratify by"):
                split(strategy, of)
        else:
            split(strategy, of)


@pytest.mark.parametrize("strategy", ["random", "shuffled", "stratified"])
def test_the_seed_decides(strategy: str) -> None:
    assert (split(strategy, rows(), seed=1).train != split(strategy, rows(), seed=2).train).any()


def test_sequential_cuts_the_order() -> None:
    found = split("sequential", rows(10), ratio=0.8)
    assert found.train.tolist() == [True] * 8 + [False] * 2


@pytest.mark.parametrize("strategy", ["sequential", "shuffled", "stratified", "time"])
def test_two_rows_make_two_parts(strategy: str) -> None:
    of = replace(rows(2), classes=np.zeros(2, np.int64))
    assert split(strategy, of, ratio=0.99).train.sum() == 1
    assert split(strategy, of, ratio=0.01).train.sum() == 1


def test_random_leaves_a_row_where_it_is_when_others_come() -> None:
    small, large = rows(), rows(4_000)
    where = {
        (of.batches[b], r): t
        for of in (large,)
        for b, r, t in zip(of.batch, of.row, split("random", of).train, strict=True)
    }
    for b, r, t in zip(small.batch, small.row, split("random", small).train, strict=True):
        assert where[small.batches[b], r] == t


def test_random_does_not_depend_on_the_order_of_batches() -> None:
    of = rows()
    turned = replace(of, batches=of.batches[::-1], batch=1 - of.batch)
    assert (split("random", of).train == split("random", turned).train).all()


def test_shuffled_counts_exactly_and_permutes() -> None:
    found = split("shuffled", rows(), ratio=0.8)
    assert found.train.sum() == 800
    assert found.order is not None
    assert list(found.order) != list(range(1_000))


@pytest.mark.parametrize(
    ("strategy", "more"), [("stratified", {}), ("random", {"stratify": True}), ("shuffled", {"stratify": True})]
)
def test_stratified_keeps_the_shares_of_classes(strategy: str, more: dict[str, Any]) -> None:
    of = rows()
    train = split(strategy, of, ratio=0.8, **more).train
    assert of.classes is not None
    for code in (0, 1):
        there = of.classes == code
        assert train[there].sum() == round(0.8 * there.sum())


def test_stratified_puts_a_rare_class_in_both_parts() -> None:
    of = replace(rows(100), classes=np.array([1, 1] + [0] * 98))
    train = split("stratified", of, ratio=0.9).train
    assert train[:2].sum() == 1


def test_stratified_by_number() -> None:
    numbers = np.random.default_rng(1).lognormal(size=1_000)
    of = replace(rows(), classes=None, numbers=numbers)
    train = split("stratified", of, ratio=0.8).train
    assert abs(np.median(numbers[train]) - np.median(numbers[~train])) < 0.1
    assert train.sum() == 800


def test_time_puts_the_earlier_rows_in_train() -> None:
    of = rows()
    train = split("time", of, ratio=0.8).train
    assert of.times is not None
    assert of.times[train].max() < of.times[~train].min()
    assert train.sum() == 800


def test_time_keeps_a_moment_together() -> None:
    of = replace(rows(10), times=np.array([1, 2, 3, 4, 4, 4, 4, 4, 5, 6]))
    assert split("time", of, ratio=0.7).train.tolist() == [True] * 8 + [False] * 2
    assert split("time", of, ratio=0.4).train.tolist() == [True] * 3 + [False] * 7


def test_time_with_one_moment_has_an_empty_part() -> None:
    of = replace(rows(10), times=np.full(10, 7))
    with pytest.raises(Invalid, match="part is empty"):
        check(split("time", of), of, ("0", "1"))


def test_rows_without_a_time_train_and_are_told() -> None:
    of = replace(rows(10), times=np.array([NO_TIME, 9, 8, 7, 6, 5, 4, 3, 2, 1]))
    found = split("time", of, ratio=0.5)
    assert found.train[0]
    assert [warn.code for warn in found.warnings] == ["no_event_time"]
    with pytest.raises(Invalid, match="missing in every row"):
        split("time", replace(of, times=np.full(10, NO_TIME)))
    with pytest.raises(Invalid, match=r"declare source\.event_time"):
        split("time", replace(of, times=None))


def test_custom_reads_train_and_test() -> None:
    of = replace(rows(3), fold=["train", "Test", "TRAIN"])
    assert split("custom", of).train.tolist() == [True, False, True]


@pytest.mark.parametrize(("said", "problem"), [("validate", "says 'validate' in row 2"), (None, "is missing in row 2")])
def test_custom_refuses_anything_else(said: str | None, problem: str) -> None:
    of = replace(rows(3), row=np.array([1, 2, 3]), fold=["train", said, "test"])
    with pytest.raises(Invalid, match=problem):
        split("custom", of)


@pytest.mark.parametrize("answer", [[1, 0, 1], [True, False], "train", np.ones((3, 1), np.bool_), None])
def test_a_function_must_answer_with_booleans(answer: object) -> None:
    with pytest.raises(Invalid, match="3 booleans"):
        of_function(answer, 3)


def test_a_functions_answer_is_taken() -> None:
    assert of_function([True, False, True], 3).train.tolist() == [True, False, True]


def test_an_empty_part_is_refused_with_a_fix() -> None:
    of = rows(4)
    for train in (np.ones(4, np.bool_), np.zeros(4, np.bool_)):
        with pytest.raises(Invalid, match=r"part is empty \(4 rows in all\); bring more rows"):
            check(Split(train), of, ("0", "1"))


def test_one_class_in_train_is_refused_and_in_test_told() -> None:
    of = replace(rows(4), classes=np.array([0, 0, 1, 1]))
    with pytest.raises(Invalid, match="one class only, no; use strategy: stratified"):
        check(Split(np.array([True, True, False, False])), of, ("no", "yes"))
    warnings = check(Split(np.array([True, False, True, True])), of, ("no", "yes"))
    assert [warn.code for warn in warnings] == ["single_class"]


def test_a_class_that_never_trains_is_told() -> None:
    of = replace(rows(6), classes=np.array([0, 0, 1, 1, 2, 0]))
    warnings = check(Split(np.array([True, True, True, True, False, False])), of, ("a", "b", "c"))
    assert [(warn.code, "class c" in warn.message) for warn in warnings] == [("unseen_class", True)]
