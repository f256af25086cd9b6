"""Scores a file or a data set of the lake into the lake, in constant memory, through the same graph as a request.

Runs in a worker process. The order: quarantined rows, then the scores with the manifest that says both; a second run
finds that manifest and writes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from turnout.common.errors import Invalid
from turnout.common.events import BatchScored, DataSetRef, ModelReady
from turnout.common.ids import content_id
from turnout.common.lake.port import Manifest
from turnout.common.runtime.crash import crash_point
from turnout.scoring.adapters import tables
from turnout.scoring.adapters.tables import Slice
from turnout.scoring.adapters.watchdog import Watchdog, open_session
from turnout.scoring.domain.answer import read_columns
from turnout.scoring.domain.columns import decode
from turnout.scoring.ports import BatchTask, BrokenError, TerminatedError

# Trees answer most rows a second at 64 rows a run, linear models do not mind (benchmarks).
RUN_ROWS = 64
SOURCE = "/scoring"


def score(task: BatchTask) -> BatchScored:
    """Score the task's source. Raises `Invalid` (it cannot be read), `Unavailable` (the lake)."""
    files = [] if task.data is not None else task.files
    content = task.data.id if task.data is not None else [_sha256(Path(name)) for name in files]
    ident = content_id("scores", task.ready.pipeline, content, task.ready.file.sha256, task.options())
    ref = DataSetRef(kind="scores", pipeline=task.ready.pipeline, id=ident)
    manifest = task.lake.manifest(ref)
    if manifest is None:
        manifest = _Run(task, ref).write()
    return _event(task, manifest)


def _event(task: BatchTask, manifest: Manifest) -> BatchScored:
    return BatchScored.caused_by(
        task.cause,
        source=SOURCE,
        at=manifest.created,
        version=task.ready.version,
        uri=task.cause.uri,
        data=manifest.ref,
        rows=manifest.rows,
        rows_quarantined=int(str(manifest.lineage.get("rows_quarantined", 0))),
    )


class _Run:
    """One source on its way through the graph."""

    def __init__(self, task: BatchTask, ref: DataSetRef) -> None:
        self._task = task
        self._ref = ref
        self._ready = task.ready
        self._session = open_session(task.lake.get_model(task.ready.file))
        self._watchdog = Watchdog()
        self._quarantined = 0

    def write(self) -> Manifest:
        task, quarantine = self._task, self._ref.model_copy(update={"kind": "quarantine"})
        schema = _schema(self._ready)
        with (
            task.lake.writer(self._ref, schema) as scores,
            task.lake.writer(quarantine, QUARANTINE) as refused,
        ):
            for part in tables.slices(task):
                good, bad = self._score(part)
                scores.write(good)
                if bad:
                    self._quarantined += len(bad)
                    refused.write(_refused_table(bad))
            lineage = {
                "version": self._ready.version,
                "model_sha256": self._ready.file.sha256,
                "source": task.cause.uri,
                "rows_quarantined": self._quarantined,
                "quarantine": quarantine.id if self._quarantined else None,
            }
            if self._quarantined:
                refused.commit(lineage=lineage, at=task.at)
                crash_point("scoring-batch-quarantined")
            manifest = scores.commit(lineage=lineage, at=task.at)
        crash_point("scoring-batch-committed")
        return manifest

    def _score(self, part: Slice) -> tuple[pa.RecordBatch, Sequence[tuple[int, str, str]]]:
        decoded = decode(part.columns, self._ready.inputs, len(part.numbers))
        bad = [*part.refused]
        bad += [(int(part.numbers[at]), why, part.text(at)) for at, why in sorted(decoded.refused.items())]
        values: list[Any] = []
        probabilities: list[Any] = []
        sound: list[Any] = []
        count = len(decoded.good)
        for start in range(0, count, RUN_ROWS):
            stop = min(count, start + RUN_ROWS)
            answers = read_columns(
                self._run({name: cells[start:stop] for name, cells in decoded.feeds.items()}),
                self._ready.target,
                stop - start,
            )
            values.append(answers.values)
            sound.append(answers.sound)
            if answers.probabilities is not None:
                probabilities.append(answers.probabilities)
        good = np.concatenate(sound) if sound else np.zeros(0, dtype=bool)
        bad += [
            (int(part.numbers[at]), "the version gave no sound answer", part.text(int(at)))
            for at in decoded.good[~good]
        ]
        columns: list[pa.Array] = [pa.array(part.numbers[decoded.good[good]], pa.int64())]
        schema = _schema(self._ready)
        answered = np.concatenate(values)[good] if values else np.array([])
        columns.append(pa.array(answered, schema.field("value").type))
        if self._ready.target.classes:
            shares = np.concatenate(probabilities)[good] if probabilities else np.zeros((0, len(schema) - 2))
            columns += [pa.array(shares[:, at].astype(np.float64)) for at in range(shares.shape[1])]
        return pa.record_batch(columns, schema=schema), bad

    def _run(self, feeds: Mapping[str, Any]) -> Any:
        try:
            return self._watchdog.run(
                self._session, self._ready.target.output(self._ready.inputs), dict(feeds), RUN_SECONDS
            )
        except (TerminatedError, BrokenError, ValueError) as error:
            raise Invalid(f"version {self._ready.version}", str(error), fix="score with another version") from None


RUN_SECONDS = 60.0
QUARANTINE = pa.schema([("_row", pa.int64()), ("_reason", pa.string()), ("_text", pa.string())])


def _schema(ready: ModelReady) -> pa.Schema:
    """`_row`, `value`, and for classes `p:CLASS`."""
    classes = ready.target.classes if ready.target.task == "classification" else ()
    value = pa.string() if classes else pa.float64()
    return pa.schema([("_row", pa.int64()), ("value", value), *((f"p:{name}", pa.float64()) for name in classes)])


def _refused_table(bad: Sequence[tuple[int, str, str]]) -> pa.Table:
    rows, reasons, texts = zip(*bad, strict=True)
    return pa.table([pa.array(rows, pa.int64()), pa.array(reasons), pa.array(texts)], schema=QUARANTINE)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Invalid("uri", f"{path}: {error.strerror}") from None
