"""Names from content and cause; errors that say what to do."""

from __future__ import annotations

import pickle

import pytest

from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.events import Column, DataSetRef
from turnout.common.ids import caused_event_id, content_id, positional_event_id, stable_share


def test_the_same_cause_makes_the_same_event() -> None:
    assert caused_event_id("e", "ModelTrained", "0") == caused_event_id("e", "ModelTrained", "0")
    others = {
        caused_event_id("e", "ModelTrained", "1"),
        caused_event_id("e", "ModelReady", "0"),
        caused_event_id("f", "x"),
    }
    assert len(others | {caused_event_id("e", "ModelTrained", "0")}) == 4


def test_where_a_message_lies_is_its_name() -> None:
    assert positional_event_id("t", 1, 2) == positional_event_id("t", 1, 2) != positional_event_id("t", 12, 2)


def test_content_has_one_name_whatever_its_order_or_type() -> None:
    assert content_id("x", {"a": 1, "b": 2}) == content_id("x", {"b": 2, "a": 1})
    assert content_id("x", Column(name="a", kind="number")) == content_id("x", {"name": "a", "kind": "number"})
    assert content_id("x", frozenset({"b", "a"})) == content_id("x", {"a", "b"})
    assert content_id("x", ("a", "b")) != content_id("x", ("b", "a"))
    assert content_id("x", DataSetRef(kind="raw", pipeline="p", id="1")).startswith("x-")
    with pytest.raises(TypeError):
        content_id("x", object())


def test_ids_never_change() -> None:
    # A changed id would make every effect of an older home happen again.
    assert caused_event_id("cause", "ModelReady", "1") == "b62df31b-9140-55d1-939e-7a2b8c2a9947"
    assert content_id("split", "fs-1", {"ratio": 0.8}) == "split-7e45effe308c1d690bfa"
    assert positional_event_id("T", 1, 2) == "8819a5eb-ab02-5b27-9c69-66a14a7b5180"


def test_the_canarys_coin_is_even_and_stays() -> None:
    shares = [stable_share(f"entity-{n}", "p") for n in range(10_000)]
    assert all(0 <= share < 1 for share in shares)
    assert 900 < sum(share < 0.1 for share in shares) < 1100
    assert stable_share("a", "p") == stable_share("a", "p") != stable_share("a", "q")


def test_an_error_is_one_sentence() -> None:
    assert str(Invalid("a.b", "is wrong", fix="right it")) == "a.b: is wrong; right it"
    assert str(Invalid("a.b", "is wrong")) == "a.b: is wrong"
    assert str(Unavailable("the bus", "it is closed")) == "the bus is not available: it is closed"


@pytest.mark.parametrize(
    ("valid", "fix"),
    [
        (["random_forest", "ridge"], "did you mean 'random_forest'?"),
        (["x", "y"], "one of: x, y"),
        ([], "there are none yet"),
        (range(100, 130), "one of: " + ", ".join(str(n) for n in range(100, 120)) + " …"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest(valid: list[object], fix: str) -> None:
    error = Unknown.name("algorithm", "algorithm", "randm_forest", valid)
    assert error.problem == "unknown algorithm 'randm_forest'"
    assert error.fix == fix


@pytest.mark.parametrize(
    "error", [Invalid("f", "p", fix="x"), Unknown.name("f", "k", "a", ["b"]), Unavailable("w", "y")]
)
def test_errors_cross_a_process_border_whole(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
