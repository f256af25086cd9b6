"""Records of a CSV text: where one ends, which line it stands in, how it is delimited.

A quote is special only at the start of a field; in it a doubled quote is one quote (RFC 4180). A line ends with LF,
CR LF or a lone CR; a line without a character is no record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turnout.common.errors import Invalid

Positions = NDArray[np.int64]
_QUOTE, _LF, _CR = ord('"'), ord("\n"), ord("\r")
_STRETCH = 2**16
DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Records:
    """Records of a piece of text in order: where each starts and ends (without its line end), and its line from 0."""

    starts: Positions
    ends: Positions
    lines: Positions

    def text(self, data: bytes, record: int) -> str:
        """What stands in a record; bytes that are no UTF-8 are shown as escapes, never as other letters."""
        return data[int(self.starts[record]) : int(self.ends[record])].decode("utf-8", errors="backslashreplace")


def cut(data: bytes, delimiter: str) -> int:
    """Where the last whole record of `data` ends; 0 where none does. `data` starts with a record."""
    end = _line_end(data, len(data))
    if end == 0 or b'"' not in data:
        return end
    quotes = _structural(data, delimiter)
    if quotes is None:
        for opened, closed in reversed(_quoted(data, delimiter)):
            if closed < end:
                break
            if opened < end:
                end = _line_end(data, opened)
        return end
    while end and (before := int(np.searchsorted(quotes, end))) % 2:
        # An odd number of quotes: the last of them opened a field that holds this line end.
        end = _line_end(data, int(quotes[before - 1]))
    return end


def lines_in(data: bytes) -> int:
    """How many lines end in `data`."""
    array = np.frombuffer(data, np.uint8)
    lines = int(np.count_nonzero(array == _LF))
    if b"\r" in data:
        lines += int(np.count_nonzero(array == _CR)) - data.count(b"\r\n")
    return lines


def records(data: bytes, delimiter: str) -> Records:
    """The records of `data`, which starts with one and ends with one."""
    if not data:
        nothing = np.array([], np.int64)
        return Records(nothing, nothing, nothing)
    array = np.frombuffer(data, np.uint8)
    breaks = np.flatnonzero(array == _LF)
    if b"\r" in data:
        returns = np.flatnonzero(array == _CR)
        followed = np.zeros(len(returns), np.bool_)
        inside = returns + 1 < len(array)
        followed[inside] = array[returns[inside] + 1] == _LF
        breaks = np.sort(np.concatenate([breaks, returns[~followed]]))
    ends = breaks
    if b'"' in data:
        quotes = _structural(data, delimiter)
        if quotes is not None:
            ends = breaks[np.searchsorted(quotes, breaks) % 2 == 0]
        else:
            spans = _quoted(data, delimiter)
            ends = breaks[~_inside(breaks, spans)]
    starts = np.concatenate([[0], ends + 1])
    stops = np.concatenate([ends, [len(data)]])
    # The line end of CR LF is two characters.
    crlf = (stops > starts) & (stops < len(data)) & (array[np.maximum(stops - 1, 0)] == _CR)
    stops = stops - crlf
    filled = stops > starts
    # Where no field holds a line end, the records are the lines.
    lines = np.arange(len(starts)) if ends is breaks else np.searchsorted(breaks, starts)
    if not filled.all():
        starts, stops, lines = starts[filled], stops[filled], lines[filled]
    return Records(starts, stops, lines)


def texts_of_lines(data: bytes, lines: Sequence[int]) -> dict[int, str]:
    """What stands in some lines (from 0, ascending) of a text whose lines end with LF or CR LF."""
    array = np.frombuffer(data, np.uint8)
    counts = [int(np.count_nonzero(array[at : at + _STRETCH] == _LF)) for at in range(0, len(array), _STRETCH)]
    before = np.concatenate([[0], np.cumsum(counts)])
    found: dict[int, str] = {}
    for line in lines:
        # The line starts after line end number `line`, counted from 1.
        start = 0
        if line:
            stretch = int(np.searchsorted(before, line)) - 1
            ends = np.flatnonzero(array[stretch * _STRETCH : (stretch + 1) * _STRETCH] == _LF)
            start = stretch * _STRETCH + int(ends[line - 1 - before[stretch]]) + 1
        end = data.find(b"\n", start)
        text = data[start : end if end != -1 else len(data)].removesuffix(b"\r")
        found[line] = text.decode("utf-8", errors="backslashreplace")
    return found


def unclosed(data: bytes, delimiter: str) -> int | None:
    """The line (from 0) where a quote is opened that `data` never closes, or None."""
    if b'"' not in data:
        return None
    quotes = _structural(data, delimiter)
    if quotes is not None:
        return None if len(quotes) % 2 == 0 else lines_in(data[: int(quotes[-1])])
    spans = _quoted(data, delimiter)
    if not spans or spans[-1][1] < len(data):
        return None
    return lines_in(data[: spans[-1][0]])


def sniff_delimiter(lines: Sequence[str]) -> str:
    """The delimiter that stands equally often in every line, else most often in the first; else the comma."""
    counts = {d: [_outside_quotes(line, d) for line in lines] for d in DELIMITERS}
    even = {d: c[0] for d, c in counts.items() if c and c[0] and len(set(c)) == 1}
    some = even or {d: c[0] for d, c in counts.items() if c and c[0]}
    return max(some, key=lambda d: some[d]) if some else ","


def fields(record: str, delimiter: str) -> list[str]:
    """The fields of one record."""
    found: list[str] = []
    at = 0
    while True:
        value, at = _field(record, at, delimiter)
        found.append(value)
        if at >= len(record):
            return found
        at += 1
        if at == len(record):
            return [*found, ""]


def _field(record: str, at: int, delimiter: str) -> tuple[str, int]:
    value = ""
    if record[at : at + 1] == '"':
        at += 1
        while True:
            close = record.find('"', at)
            if close == -1:
                raise Invalid("header", "a quote is opened and never closed", fix="close it, or double a literal quote")
            value += record[at:close]
            at = close + 1
            if record[at : at + 1] != '"':
                break
            value += '"'
            at += 1
    end = record.find(delimiter, at)
    end = len(record) if end == -1 else end
    return value + record[at:end], end


def _line_end(data: bytes, before: int) -> int:
    """Where the last line ends that does so at or before `before`; a file of lone CRs has no LF."""
    end = data.rfind(b"\n", 0, before) + 1
    # A CR at the very end may be half of a CR LF.
    return end or data.rfind(b"\r", 0, min(before, len(data) - 1)) + 1


def _outside_quotes(line: str, delimiter: str) -> int:
    return sum(part.count(delimiter) for part in line.split('"')[::2])


def _structural(data: bytes, delimiter: str) -> Positions | None:
    """All quotes, if each stands where RFC 4180 has one, so that every second one closes; else None.

    A doubled quote counts as one that closes and one that opens again.
    """
    array = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(array == _QUOTE)
    opening, closing = quotes[::2], quotes[1::2]
    before = array[opening[opening > 0] - 1]
    edge = ord(delimiter)
    if not np.all((before == edge) | (before == _LF) | (before == _CR) | (before == _QUOTE)):
        return None
    after = array[closing[closing + 1 < len(array)] + 1]
    if not np.all((after == edge) | (after == _LF) | (after == _CR) | (after == _QUOTE)):
        return None
    return quotes


def _quoted(data: bytes, delimiter: str) -> list[tuple[int, int]]:
    """Where quoted fields open and close, one after the other; the last may close at the end of `data`."""
    edges = {ord(delimiter), _LF, _CR}
    spans: list[tuple[int, int]] = []
    at = data.find(b'"')
    while at != -1:
        if at and data[at - 1] not in edges:
            at = data.find(b'"', at + 1)
            continue
        close = data.find(b'"', at + 1)
        while close != -1 and data[close + 1 : close + 2] == b'"':
            close = data.find(b'"', close + 2)
        spans.append((at, len(data) if close == -1 else close))
        at = data.find(b'"', close + 1) if close != -1 else -1
    return spans


def _inside(positions: Positions, spans: list[tuple[int, int]]) -> NDArray[np.bool_]:
    if not spans:
        return np.zeros(len(positions), np.bool_)
    opens, closes = np.array(spans).T
    nearest = np.searchsorted(opens, positions) - 1
    return (nearest >= 0) & (positions < closes[np.maximum(nearest, 0)])
