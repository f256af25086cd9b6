"""A new SQLite file that several processes open at once: SQLite refuses one of them without waiting."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from workers import open_together

FILES = 400


def test_processes_that_open_a_new_file_at_once_all_get_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(3, mp_context=context) as processes:
        barrier = manager.Barrier(3)
        opened = [processes.submit(open_together, tmp_path, FILES, barrier) for _ in range(3)]
        assert [one.result(timeout=100) for one in opened] == [FILES] * 3
