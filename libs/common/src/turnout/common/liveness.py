"""Whether a process of this machine still runs: a lease of one that does not is over at once."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path


@cache
def host() -> str:
    """This machine (or container): where a process id means something."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}"


def gone(where: str, pid: int) -> bool:
    """Whether the process is certain to be gone; of another machine's nobody here can say."""
    return where == host() and not _runs(pid)


def _runs(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1")
    except OSError:
        return True
    # A killed process that its parent has not waited for is in state Z; the name before it may hold brackets.
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}
