"""The packed value: whatever comes in whatever order, each column ends with its newest value."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from turnout.common.events import Values
from turnout.common.online.packing import features, merged, microseconds, moment

STAMPS = st.integers(-(10**6), 4 * 10**15)
CELLS = st.one_of(st.none(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.text('aü\u202e😀"\\'))
PUTS = st.lists(st.tuples(st.dictionaries(st.sampled_from("abcd"), CELLS, max_size=4), STAMPS), max_size=12)


@given(PUTS)
def test_each_column_ends_with_its_newest_value(puts: list[tuple[Values, int]]) -> None:
    packed: bytes | None = None
    model: dict[str, tuple[int, object]] = {}
    for values, stamp in puts:
        new = merged(packed, values, stamp)
        newer = {name: (stamp, value) for name, value in values.items() if name not in model or model[name][0] <= stamp}
        assert (new is not None) == bool(newer)
        packed = new if new is not None else packed
        model |= newer
    found = features(["e"], [packed])
    assert {name: value for name, (_, value) in model.items()} == (dict(found["e"].values) if found else {})
    if model:
        assert found["e"].event_time == moment(max(stamp for stamp, _ in model.values()))


@given(STAMPS)
def test_a_stamp_is_a_moment_to_the_microsecond(stamp: int) -> None:
    assert microseconds(moment(stamp)) == stamp
