"""What reading a source needs to know and gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from turnout.common.events import RawDataExtracted, SourceDataAvailable, Warn
from turnout.common.lake.port import Lake
from turnout.common.pipeline import PipelineFile
from turnout.ingestion.domain.fitting import Fitted
from turnout.ingestion.domain.schema import Schema

# Part of a source, to be done in any thread; the parts' order is the rows' order.
Piece = Callable[[], Fitted]


@dataclass(frozen=True)
class Limits:
    """How much memory and work one source may take: bytes of text in one piece, threads, and by how much a file may
    grow when it is decoded (`expansion` times its size, but never less than `expansion_floor` bytes)."""

    piece_bytes: int = 8 * 2**20
    threads: int = 2
    expansion: int = 200
    expansion_floor: int = 256 * 2**20

    def decoded(self, size: int) -> int:
        """Bytes that a file of `size` bytes may become."""
        return max(self.expansion * size, self.expansion_floor)


@dataclass(frozen=True)
class Task:
    """One announcement to extract: the event, the pipeline's file, and where sources may lie."""

    cause: SourceDataAvailable
    file: PipelineFile
    spec_id: str
    roots: tuple[Path, ...]
    now: datetime
    limits: Limits = Limits()


class RowSource(Protocol):
    """One file that is opened as rows."""

    @property
    def warnings(self) -> list[Warn]:
        """What a person should know of the file as it is."""
        ...

    def sample(self) -> Mapping[str, pa.Array]:
        """Every column of the first rows, as the file has them (CSV: bytes)."""
        ...

    def pieces(self, schema: Schema) -> Iterator[Piece]:
        """All rows, in pieces of bounded size."""
        ...


# Reads an announcement into the lake and gives the event that says so; runs in a worker process.
Extract = Callable[[Lake, Task], RawDataExtracted]
# The columns that a pipeline's batches have, by their manifests; None before the first.
KeptSchema = Callable[[Lake, str], Schema | None]
