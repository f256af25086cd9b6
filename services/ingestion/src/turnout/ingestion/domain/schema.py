"""A source's columns: their names from the header, their kinds from the first rows or from the pipeline file."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from turnout.common.errors import Invalid, Unknown
from turnout.common.events import Column, Warn
from turnout.common.pipeline import PipelineFile, Source
from turnout.common.values import Kind
from turnout.ingestion.domain.convert import convert

MAX_COLUMNS = 20_000
MAX_NAME = 200
# Up to one cell in twenty may be wrong before a column is no number any more: those rows go to quarantine, seen and
# counted, while the column keeps its kind.
FITTING = 0.95
LARGEST_EXACT = 2**53
# Rows that inference looks at.
SAMPLE_ROWS = 50_000

RESERVED = frozenset({"_row", "_reason", "_text", "_batch", "_label", "_event_time", "_entity"})
# 007 and 01234 are codes, 0.5 is not.
_CODE = r"^[+-]?0[0-9]+$"
_INTEGER = r"^[+-]?[0-9]{16,}(\.0*)?$"
# A header cell that is data: a number with a decimal part or a sign, a date, an empty cell.
_DATUM = re.compile(r"[+-]?\d+[.]\d*|[+-]\d+|\d{4}-\d\d-\d\d.*|\?")


@dataclass(frozen=True)
class Schema:
    """What a pipeline's rows look like; `null_values` and the names are what decoding depends on."""

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, kinds: Mapping[str, Kind]) -> Schema:
        """A schema from names and kinds."""
        return cls(tuple(Column(name=name, kind=kind) for name, kind in kinds.items()))

    @property
    def names(self) -> list[str]:
        """Column names in order."""
        return [column.name for column in self.columns]

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """Each column's kind."""
        return {column.name: column.kind for column in self.columns}


def header(cells: Sequence[str], what: str) -> tuple[list[str], list[Warn]]:
    """Column names from the cells of a header line. Raises `Invalid` naming what stands there twice.

    An unnamed column (as pandas writes its index) is called `column 1`, by its place, and warned of.
    """
    stripped = [cell.strip() for cell in cells]
    if looks_like_data(stripped):
        raise no_header(stripped, what)
    names = [cell or f"column {at}" for at, cell in enumerate(stripped, 1)]
    warnings = [
        Warn(code="unnamed_column", column=name, message=f"{what}: column {at} has no name; it is called '{name}'")
        for at, (cell, name) in enumerate(zip(stripped, names, strict=True), 1)
        if not cell
    ]
    check_names(names, what)
    return names, warnings


def no_header(cells: Sequence[str], what: str) -> Invalid:
    """What to say of a file whose first line is a row."""
    return Invalid(
        f"{what}: header", f"the first line looks like data ({', '.join(cells)[:60]})",
        fix="if the file has no header line, give the names: source.columns, or --columns of turnout init",
    )  # fmt: skip


def looks_like_data(cells: Sequence[str]) -> bool:
    """Whether the cells of a first line are a row rather than names: all numbers, or half and one that no name is."""
    filled = [cell for cell in cells if cell]
    data = [cell for cell in filled if _DATUM.fullmatch(cell)]
    numbers = [cell for cell in filled if _is_number(cell) or _DATUM.fullmatch(cell)]
    return bool(filled) and (len(numbers) == len(filled) or (bool(data) and len(numbers) >= len(filled) / 2))


def names_among_cells(sample: Mapping[str, pa.Array]) -> list[str]:
    """Columns whose name stands in one of their own rows, as it does when the first line was a row.

    A header that stands in the file again (files put together) is not meant: there all columns match in one row.
    """
    matches: dict[str, pa.Array] = {}
    for name, cells in sample.items():
        same = pc.fill_null(pc.equal(cells, pa.scalar(name.encode(), cells.type)), False)
        if pc.any(same).as_py():
            matches[name] = same
    if len(matches) < 2:
        return []
    again = pa.array([True] * len(next(iter(matches.values()))))
    if len(matches) == len(sample):
        for same in matches.values():
            again = pc.and_(again, same)
        return [name for name, same in matches.items() if pc.sum(same).as_py() > pc.sum(again).as_py()]
    return list(matches)


def check_names(names: Sequence[str], what: str) -> None:
    """Raise `Invalid` for names that stand there twice, are ours, or cannot be written down."""
    if len(names) > MAX_COLUMNS:
        raise Invalid(f"{what}: columns", f"{len(names):,} columns", fix=f"at most {MAX_COLUMNS:,}")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        shown = ", ".join(f"'{name}'" for name in twice[:10])
        raise Invalid(f"{what}: columns", f"{shown} stands there more than once", fix="give each column its own name")
    for name in names:
        if name in RESERVED or name.startswith("in:"):
            raise Invalid(f"{what}: column '{name}'", "the name is used by Turnout itself", fix="rename the column")
        if not name or len(name) > MAX_NAME:
            raise Invalid(f"{what}: column '{name[:40]}…'", f"a name of {len(name)} characters", fix=f"1 to {MAX_NAME}")
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise Invalid(f"{what}: column {name!r:.60}", "the name holds a control character", fix="rename the column")


def check_source(source: Source, names: Iterable[str], declared: Iterable[str]) -> None:
    """Raise `Unknown` where the pipeline file names a column that the data lack."""
    names = list(names)
    wanted = {
        "source.label": [source.label],
        "source.entity": [source.entity],
        "source.event_time": [source.event_time],
        "source.partition_by": source.partition_by,
        "schema": declared,
    }
    for field, columns in wanted.items():
        for column in columns:
            if column is not None and column not in names:
                raise Unknown.name(field, "column", column, names)


def decide(
    sample: Mapping[str, pa.Array], file: PipelineFile, kept: Schema | None, what: str
) -> tuple[Schema, list[Warn]]:
    """The schema of a file whose first rows are `sample`: what the pipeline file declares, then what the pipeline's
    earlier batches have, then what the cells look like.

    Raises `Unknown` where a declared or kept column is not in the file. A column that nobody knows is left out of a
    later file, with a warning.
    """
    declared: dict[str, Kind] = dict(file.columns or {})
    check_source(file.source, sample, declared)
    known: dict[str, Kind] = {**(kept.kinds if kept else {}), **declared}
    missing = [name for name in known if name not in sample]
    if missing:
        near = Unknown.name("", "", missing[0], sample).fix
        raise Unknown(
            f"{what}: columns", f"the file lacks {', '.join(map(repr, missing[:10]))}, which the pipeline has",
            fix=f"{near} If the source has changed for good, remove the pipeline or give it a new name",
        )  # fmt: skip
    return _decided(sample, file, kept, known, what)


def _decided(
    sample: Mapping[str, pa.Array], file: PipelineFile, kept: Schema | None, known: Mapping[str, Kind], what: str
) -> tuple[Schema, list[Warn]]:
    columns: list[Column] = []
    warnings: list[Warn] = []
    needed = {file.source.label, file.source.entity, file.source.event_time, *file.source.partition_by}
    order = [*(kept.names if kept else ()), *(name for name in sample if kept is None or name not in kept.kinds)]
    for name in order:
        if name in known:
            kind = _roles(name, known[name], file.source)
        elif kept is not None and name not in needed:
            warnings.append(_left_out(name, what))
            continue
        else:
            inferred = infer(sample[name], name, file.source.null_values)
            if inferred is None:
                warnings.append(_taken_for_category(name, what))
            kind = _roles(name, inferred or "category", file.source)
        columns.append(Column(name=name, kind=kind))
    return Schema(tuple(columns)), warnings


def _left_out(name: str, what: str) -> Warn:
    told = f"{what}: column '{name}' is not in the pipeline's earlier files; it is left out"
    return Warn(code="extra_column", column=name, message=told)


def _taken_for_category(name: str, what: str) -> Warn:
    told = f"{what}: column '{name}' is empty in the first rows; it is taken for a category"
    return Warn(code="empty_column", column=name, message=told)


def _roles(name: str, kind: Kind, source: Source) -> Kind:
    """An entity is a name however it is written."""
    return "category" if name == source.entity else kind


def infer(column: pa.Array, name: str, null_values: Sequence[str] = ()) -> Kind | None:
    """What kind a column is, by its first `SAMPLE_ROWS` rows; None where all of them are missing."""
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number" if len(column) > column.null_count else None
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "timestamp"
    if pa.types.is_integer(kind):
        largest = pc.max(pc.abs(pc.cast(column, pa.float64(), safe=False))).as_py()
        return None if largest is None else "category" if largest > LARGEST_EXACT else "number"
    if pa.types.is_null(kind):
        return None
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)):
        return "category"
    return _infer_text(column, name, null_values, numbers=pa.types.is_binary(kind))


def _infer_text(column: pa.Array, name: str, null_values: Sequence[str], *, numbers: bool) -> Kind | None:
    """`numbers`: the text came from a format that writes numbers as text, too (CSV)."""
    texts = convert(column, "category", name, null_values)
    filled = texts.values.drop_null()
    if len(filled) + len(texts.bad) == 0:
        return None
    if len(filled) < FITTING * (len(filled) + len(texts.bad)):
        return "category"
    if numbers and _share(filled, "number", name) >= FITTING:
        codes = pc.any(pc.match_substring_regex(filled, _CODE)).as_py()
        return "category" if codes or _beyond_exact(filled) else "number"
    return "timestamp" if _share(filled, "timestamp", name) >= FITTING else "category"


def _share(filled: pa.Array, kind: Kind, name: str) -> float:
    if not len(filled):
        return 0.0
    # A column of names is told by its first rows; only what looks right is looked at whole.
    head = filled.slice(0, 100)
    if len(convert(head, kind, name).bad) > len(head) / 2:
        return 0.0
    return 1 - len(convert(filled, kind, name).bad) / len(filled)


def _beyond_exact(filled: pa.Array) -> bool:
    long = filled.filter(pc.match_substring_regex(filled, _INTEGER))
    return any(abs(int(text.partition(".")[0])) > LARGEST_EXACT for text in long.to_pylist())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
