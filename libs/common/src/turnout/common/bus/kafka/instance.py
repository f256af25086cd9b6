"""Who this process is among its like: the same name after a restart, so that the group keeps its place for it."""

from __future__ import annotations

import fcntl
import hashlib
import re
import socket
import threading
from pathlib import Path
from typing import IO

from turnout.common.errors import Unavailable

# More processes than this on one home are a mistake.
MAX_SLOTS = 1_000


class Instance:
    """The process's name: as the operator says, or the host's, the home's and the lowest number that is free there.

    A number is held by a lock on a file in `home`; the system lets go of it however the process ends.
    """

    def __init__(self, given: str | None, home: Path) -> None:
        self._given = given
        self._home = home
        self._lock: IO[bytes] | None = None
        self._name = given
        self._naming = threading.Lock()

    def name(self) -> str:
        """The name; blocks. Raises `Unavailable` if the home cannot be written."""
        with self._naming:  # several readers begin at once, each on a thread
            if self._name is None:
                number = self._take()
                host = re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname())[:100]
                # Two homes on one host are two installations, or two parts of one.
                place = hashlib.sha256(str(self._home.resolve()).encode()).hexdigest()[:8]
                self._name = f"{host}-{place}-{number}"
            return self._name

    def close(self) -> None:
        """Let go of the number."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            self._name = self._given

    def _take(self) -> int:
        folder = self._home / "kafka"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(MAX_SLOTS):
                lock = (folder / f"process-{number}.lock").open("ab")
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    lock.close()
                else:
                    self._lock = lock
                    return number
        except OSError as error:
            raise Unavailable(f"the home {self._home}", error.strerror or str(error)) from error
        raise Unavailable(f"the home {self._home}", f"{MAX_SLOTS} processes run on it")
