"""The home folder: which format it has, who runs on it, and where that process answers."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from turnout.common import telemetry
from turnout.common.errors import Invalid, Unavailable

FORMAT = 1
# From which format, and what brings the folder to the next one.
UPGRADES: Mapping[int, Callable[[Path], None]] = {}

_FORMAT_FILE = "format.json"
_ADDRESS_FILE = "turnout.json"
_LOCK_FILE = "turnout.lock"


class Marker(BaseModel):
    """Which format a home has, and the release that wrote it."""

    format: int
    release: str


class Address(BaseModel):
    """Where the process that runs on a home answers."""

    pid: int
    url: str


def open_home(home: Path) -> None:
    """Make the folder, or bring an older one to the format of this release.

    Raises `Invalid` if a newer release wrote it, `Unavailable` if it cannot be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        found = _format(home)
        if found is not None and found > FORMAT:
            raise Invalid(
                str(home),
                f"it has format {found}, this release of Turnout knows up to {FORMAT}",
                fix="update Turnout, or name another --home",
            )
        for step in range(found or FORMAT, FORMAT):
            UPGRADES[step](home)
        if found != FORMAT:
            write_aside(home / _FORMAT_FILE, Marker(format=FORMAT, release=telemetry.release()).model_dump_json())
    except OSError as error:
        raise Unavailable(f"the home {home}", error.strerror or str(error)) from error


@contextlib.contextmanager
def only_one(home: Path) -> Generator[None]:
    """Hold the home for this process; it is let go of however the process ends.

    Raises `Invalid` if another process holds it.
    """
    with (home / _LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            there = address(home)
            who = f" (process {there.pid}, {there.url})" if there else ""
            raise Invalid(
                str(home), f"`turnout up` runs on it already{who}", fix="stop that one, or name another --home"
            ) from None
        try:
            yield
        finally:
            (home / _ADDRESS_FILE).unlink(missing_ok=True)


def announce(home: Path, url: str) -> None:
    """Say where this process answers, for the commands of `turnout`."""
    write_aside(home / _ADDRESS_FILE, Address(pid=os.getpid(), url=url).model_dump_json())


def address(home: Path) -> Address | None:
    """Where the process on this home answers; None if none runs."""
    try:
        found = Address.model_validate_json((home / _ADDRESS_FILE).read_bytes())
        os.kill(found.pid, 0)
    except PermissionError:
        return None
    except (OSError, ValidationError):
        return None
    return found


def write_aside(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old one or the new one, never a half."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text(text + "\n", encoding="utf-8")
    aside.replace(path)


def _format(home: Path) -> int | None:
    path = home / _FORMAT_FILE
    try:
        return Marker.model_validate_json(path.read_bytes()).format
    except FileNotFoundError:
        return None
    except ValidationError:
        raise Invalid(
            str(path), "it is not what Turnout wrote", fix="name another --home, or restore the file"
        ) from None
