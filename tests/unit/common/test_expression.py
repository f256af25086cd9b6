"""The small language of `positive` and `derive`."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from turnout.common import expression
from turnout.common.errors import Invalid


def value(text: str, **row: object) -> float | str | None:
    return expression.evaluate(expression.parse(text, "as"), row)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "row", "found"),
    [
        ("a + b * 2", {"a": 1, "b": 3}, 7.0),
        ("-(a - 1) / 4", {"a": 3}, -0.5),
        ("a > 0", {"a": 2}, 1.0),
        ("a > 0", {"a": -2}, 0.0),
        ("a >= 1 and not b", {"a": 1, "b": 0}, 1.0),
        ("a < 1 or a <= 2", {"a": 2}, 1.0),
        ("colour == 'red'", {"colour": "red"}, 1.0),
        ("colour != 'red'", {"colour": "red"}, 0.0),
        ("colour == 3", {"colour": "3"}, 0.0),
        ("log(exp(a))", {"a": 2.0}, 2.0),
        ("sqrt(abs(a))", {"a": -9}, 3.0),
        ("hour(t) + weekday(t)", {"t": datetime(2026, 3, 2, 13, 30, tzinfo=UTC)}, 13.0),
        ("weekday(t)", {"t": datetime(1969, 12, 31, 1, tzinfo=UTC)}, 2.0),
        ("`a b` + 1", {"a b": 1}, 2.0),
        ("`cp [mm]` * `cp [mm]`", {"cp [mm]": 3}, 9.0),
        ("a", {"a": True}, 1.0),
    ],
)
def test_values(text: str, row: dict[str, object], found: float) -> None:
    assert value(text, **row) == pytest.approx(found)


@pytest.mark.parametrize("text", ["a + 1", "a == 1", "not a", "log(a)", "a / 0", "log(-1)", "exp(10000)", "colour + 1"])
def test_missing_in_missing_out_and_so_is_what_is_not_finite(text: str) -> None:
    assert value(text, a=None, colour="red") is None


def test_columns_are_named() -> None:
    assert expression.columns(expression.parse("log(a) + `b c` > 3 and d == 'x'", "as")) == {"a", "b c", "d"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a +", "cannot read the expression"),
        ("", "cannot read the expression"),
        ("__import__('os')", "unknown function '__import__'"),
        ("a.b", "'a.b' is not understood here"),
        ("[1]", "is not understood here"),
        ("lambda: 1", "is not understood here"),
        ("a ** 9 ** 9 ** 9", "is not understood here"),
        ("a if b else c", "is not understood here"),
        ("1 < a < 3", "is not understood here"),
        ("lg(a)", "unknown function 'lg'; did you mean 'log'?"),
        ("a + " * 400 + "a", "characters"),
        ("(" * 40 + "a" + "+ 1)" * 40, "nested too deeply"),
        ("a\0", "cannot read the expression"),
    ],
)
def test_what_is_not_of_the_language_is_refused(text: str, says: str) -> None:
    with pytest.raises(
        Invalid, match="(?s)" + says.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?")
    ) as caught:
        expression.parse(text, "source.positive")
    assert caught.value.field == "source.positive"
