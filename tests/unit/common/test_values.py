"""A cell means the same in a file, on the bus and in a request."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from turnout.common.errors import Invalid
from turnout.common.values import category, cell, number, timestamp


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"), (3.0, "3"), ("3.0", "3"), (" 3 ", "3"), ("3.5", "3.5"), (3.5, "3.5"), (True, "true"),
        ("", None), ("  ", None), (None, None), (math.nan, None), ("-0.0", "0"), ("1e3", "1e3"), ("007", "007"),
        ("Ünï 漢", "Ünï 漢"),
        (2**60, str(2**60)), ("=1+1", "=1+1"), (1e300, "1e+300"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
    ],
)  # fmt: skip
def test_categories_have_one_text(value: object, text: str | None) -> None:
    assert category(value) == text  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("value", "found"), [(3, 3.0), ("3.5", 3.5), (" 1e3 ", 1000.0), (True, 1.0), ("", None), (None, None), ("-0", -0.0)]
)
def test_numbers(value: object, found: float | None) -> None:
    assert number(value, "age") == found  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("value", [math.nan, math.inf, "inf", "nan", "1e400", 10**400, "abc", "1,5", datetime.now(UTC)])
def test_what_is_no_finite_number_is_refused_by_its_field(value: object) -> None:
    with pytest.raises(Invalid, match=r"^age: "):
        number(value, "age")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("2026-01-31T08:15:00Z", datetime(2026, 1, 31, 8, 15, tzinfo=UTC)),
        ("2026-01-31 08:15:00", datetime(2026, 1, 31, 8, 15, tzinfo=UTC)),
        ("2026/01/31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T10:15:00+02:00", datetime(2026, 1, 31, 8, 15, tzinfo=UTC)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (1.5, datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)),
        (datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)),  # noqa: DTZ001 (no zone means UTC)
        ("", None),
        (None, None),
    ],
)
def test_times_are_in_utc(value: object, found: datetime | None) -> None:
    assert timestamp(value, "at") == found  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("value", ["yesterday", True, 1e30, math.nan, "2026-13-01"])
def test_what_is_no_time_is_refused_by_its_field(value: object) -> None:
    with pytest.raises(Invalid, match=r"^at: "):
        timestamp(value, "at")  # pyright: ignore[reportArgumentType]


def test_cells_by_kind() -> None:
    assert cell("3.0", "number", "a") == 3.0
    assert cell("3.0", "category", "a") == "3"
    assert cell("1970-01-02", "timestamp", "a") == datetime(1970, 1, 2, tzinfo=UTC)
    with pytest.raises(Invalid, match="20000 characters"):
        cell("x" * 20_000, "category", "a")
