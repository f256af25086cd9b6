"""Whatever a request holds, it becomes a row or an answer in words; a file and a request mean the same."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from turnout.common.errors import Invalid
from turnout.common.events import Column
from turnout.scoring.domain.columns import decode
from turnout.scoring.domain.signature import Signature
from turnout.scoring.domain.tensors import rows_of

SIGNATURE = Signature(
    [Column(name="n", kind="number"), Column(name="c", kind="category"), Column(name="t", kind="timestamp")]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
TEXTS = st.none() | st.text(max_size=12) | st.floats().map(str) | st.integers().map(str) | st.datetimes().map(str)


@given(st.dictionaries(st.sampled_from(["n", "c", "t", "N"]), JSON))
@settings(max_examples=300, deadline=None)
def test_a_row_is_clean_or_refused_by_name(values: dict[str, object]) -> None:
    try:
        row = SIGNATURE.row(values, "rows[0].")
    except Invalid as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert refusal.field.startswith("rows[0]")
        return
    number, text, moment = row
    assert isinstance(text, str)
    assert all(isinstance(cell, float) and not math.isinf(cell) for cell in (number, moment))


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=8))
@example([("NAN", "0", None)])
@settings(max_examples=200, deadline=None)
def test_a_files_columns_mean_what_a_requests_fields_mean(
    rows: list[tuple[str | None, str | None, str | None]],
) -> None:
    columns = {
        name: pa.array([_storable(row[at]) for row in rows], pa.string()) for at, name in enumerate(SIGNATURE.names)
    }
    decoded = decode(columns, SIGNATURE.columns, len(rows))
    for place in range(len(rows)):
        values = {name: columns[name][place].as_py() for name in SIGNATURE.names}
        try:
            expected = SIGNATURE.row(values)
        except Invalid:
            assert place in decoded.refused
            continue
        assert place not in decoded.refused
        at = int(np.flatnonzero(decoded.good == place)[0])
        for name, cell in zip(SIGNATURE.names, expected, strict=True):
            found = decoded.feeds[name][at, 0]
            assert found == cell or (math.isnan(found) and math.isnan(cell))  # type: ignore[arg-type]


@given(JSON)
@settings(max_examples=300, deadline=None)
def test_tensors_are_rows_or_refused(inputs: object) -> None:
    try:
        rows = rows_of(inputs, SIGNATURE, 100)
    except Invalid:
        return
    assert rows


def _storable(text: str | None) -> str | None:
    """Arrow holds UTF-8, which knows no lone surrogates."""
    return None if text is None else text.encode(errors="replace").decode()
