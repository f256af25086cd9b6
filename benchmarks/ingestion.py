"""CSV to Parquet: ingestion (schema, quarantine, lines, hashes) beside duckdb's COPY and pyarrow's bare streaming.

    python benchmarks/ingestion.py [--size MB] [--repeat N]

Each runs in a process of its own on the same file (18 columns; one row in a thousand has a cell that does not fit,
`duckdb_rejects` keeps them with `store_rejects`, the bare ones get a clean file). Prints MB/s, ratios and peak memory.
"""

# ruff: noqa: PLC0415 (an engine's process imports no other engine)

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS = 100_000
DIRTY_EVERY = 1_000


def generate(path: Path, size: int) -> int:
    """Write a CSV of `size` bytes: an id, 12 numbers, 3 categories, a time and a label; returns its rows."""
    import pyarrow as pa
    from pyarrow import csv

    random = np.random.default_rng(7)
    rows = 0
    with path.open("wb") as file:
        while file.tell() < size:
            columns: dict[str, object] = {"id": np.arange(rows, rows + ROWS)}
            columns |= {f"x{i}": np.round(random.normal(0, 100, ROWS), 4) for i in range(8)}
            columns |= {f"k{i}": random.integers(0, 10**6, ROWS) for i in range(4)}
            columns |= {f"c{i}": random.choice([f"kind-{j}" for j in range(30)], ROWS) for i in range(3)}
            moments = np.datetime64("2024-01-01T00:00:00") + random.integers(0, 10**8, ROWS).astype("timedelta64[s]")
            columns["t"] = pa.array(moments).cast(pa.string())
            columns["y"] = random.integers(0, 2, ROWS)
            table = pa.table(columns)
            csv.write_csv(table, file, csv.WriteOptions(include_header=rows == 0, quoting_style="none"))
            rows += ROWS
    return rows


def spoil(path: Path, to: Path) -> None:
    """The same file with a word in the first measurement of one row in a thousand."""
    with path.open("rb") as source, to.open("wb") as target:
        for number, line in enumerate(source):
            if number % DIRTY_EVERY == DIRTY_EVERY - 1:
                first, _, rest = line.partition(b",")
                line = first + b",oops," + rest.partition(b",")[2]  # noqa: PLW2901
            target.write(line)


def turnout(path: Path, folder: Path) -> int:
    from datetime import UTC, datetime

    from turnout.common.events import SourceDataAvailable
    from turnout.common.lake.local import LocalLake
    from turnout.common.pipeline import PipelineFile
    from turnout.ingestion.adapters.extraction import extract
    from turnout.ingestion.ports import Task

    file = PipelineFile.model_validate({"pipeline": "bench", "task": "classification", "source": {"label": "y"}})
    now = datetime.now(UTC)
    event = SourceDataAvailable.first(source="/bench", at=now, pipeline="bench", uri=str(path))
    extracted = extract(LocalLake(folder / "lake"), Task(event, file, file.spec_id, (path.parent,), now))
    assert extracted.rows_read == extracted.rows_written + extracted.rows_quarantined
    return extracted.rows_read


def duckdb_copy(path: Path, folder: Path, options: str = "") -> int:
    import duckdb

    database = duckdb.connect(config={"threads": 2, "temp_directory": str(folder)})
    (rows,) = database.execute(
        f"COPY (SELECT * FROM read_csv('{path}'{options})) TO '{folder / 'out.parquet'}' (FORMAT parquet)"
    ).fetchone()
    return rows


def duckdb_rejects(path: Path, folder: Path) -> int:
    return duckdb_copy(path, folder, ", store_rejects = true")


def pyarrow_stream(path: Path, folder: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    pa.set_cpu_count(2)
    rows = 0
    reader = csv.open_csv(path, csv.ReadOptions(block_size=2**22))
    with reader, pq.ParquetWriter(folder / "out.parquet", reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


MODULES = {
    "turnout": ["turnout.ingestion.service", "turnout.common.lake.local"],
    "duckdb_copy": ["duckdb"],
    "duckdb_rejects": ["duckdb"],
    "pyarrow_stream": ["pyarrow.csv", "pyarrow.parquet"],
}
ENGINES = {f.__name__: f for f in (turnout, duckdb_copy, duckdb_rejects, pyarrow_stream)}


def measure(engine: str, path: Path) -> dict[str, float]:
    """One run in a process of its own, on a file that lies in the page cache."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--engine", engine, "--file", str(path), "--folder", folder],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return json.loads(done.stdout)


def run(engine: str, path: Path, folder: Path) -> None:
    # A service has imported what it needs long before a file comes; so has each engine here.
    for module in MODULES[engine]:
        importlib.import_module(module)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.perf_counter(), time.process_time()
    rows = ENGINES[engine](path, folder)
    taken = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "rows": rows}
    taken["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    taken["base_mb"] = before / 1024
    print(json.dumps(taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1_000, help="megabytes of CSV")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.engine:
        run(asked.engine, asked.file, asked.folder)
        return
    base = Path(tempfile.mkdtemp(prefix="turnout-bench-"))
    try:
        clean, dirty = base / "clean.csv", base / "dirty.csv"
        rows = generate(clean, asked.size * 10**6)
        spoil(clean, dirty)
        size = clean.stat().st_size / 1e6
        print(f"{size:,.0f} MB, {rows:,} rows, 18 columns, {os.cpu_count()} cores, median of {asked.repeat}")
        found: dict[str, list[dict[str, float]]] = {}
        cases = [
            ("turnout", clean),
            ("turnout", dirty),
            ("duckdb_copy", clean),
            ("duckdb_rejects", dirty),
            ("pyarrow_stream", clean),
        ]
        for _ in range(asked.repeat):
            for engine, path in cases:
                found.setdefault(f"{engine} ({path.stem})", []).append(measure(engine, path))
        speed = {name: size / statistics.median(r["seconds"] for r in runs) for name, runs in found.items()}
        print(f"{'':24} {'MB/s':>7} {'x duckdb':>9} {'x pyarrow':>10} {'CPU s':>7} {'peak MB':>8}")
        for name, runs in found.items():
            print(
                f"{name:24} {speed[name]:7.0f} {speed[name] / speed['duckdb_copy (clean)']:9.2f}"
                f" {speed[name] / speed['pyarrow_stream (clean)']:10.2f}"
                f" {statistics.median(r['cpu'] for r in runs):7.1f} {max(r['peak_mb'] for r in runs):8.0f}"
            )
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
