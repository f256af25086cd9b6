"""Files and folders of this machine: made so that they are there after a power cut, looked through, removed."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO


def make_folder(folder: Path) -> None:
    """Make the folder; its name is on disk before anything in it counts."""
    if folder.exists():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file; it is on disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        _sync(file)


def sync_folder(folder: Path) -> None:
    """Put the folder's names on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing where there is none."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name."""
    return [entry for entry in entries(folder) if entry.is_dir()]


def newest(entry: Path) -> float:
    """When something in `entry` was last written; a writer at work keeps its folder young."""
    times = [0.0]
    for path in (entry, *entry.rglob("*")):
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def delete(entry: Path) -> int:
    """Remove a file, or a folder with all that is in it; how many files went."""
    if entry.is_dir():
        files = sum(1 for path in entry.rglob("*") if path.is_file())
        shutil.rmtree(entry, ignore_errors=True)
        return files
    entry.unlink(missing_ok=True)
    return 1


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
