"""A version's own process: `python -m turnout.scoring.adapters.worker`, frames in on stdin, frames out on stdout."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

from turnout.scoring.adapters import frames
from turnout.scoring.adapters.watchdog import Watchdog, first_line, open_session
from turnout.scoring.ports import BrokenError, TerminatedError


def limit_memory(extra: int) -> None:
    """Let this process map `extra` bytes more than it has mapped now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Load the first frame's model, then answer one run after the other until stdin ends."""
    # Whatever a library prints must not mix with the frames.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    first = frames.read(sys.stdin.buffer)
    if first is None:
        return
    meta, _, content = first
    limit_memory(meta["memory"])
    try:
        session = open_session(content)
    except BrokenError as error:
        replies.write(frames.pack({"error": str(error)}))
        return
    del first, content
    replies.write(frames.pack({"ok": True}))
    watchdog = Watchdog()
    while (frame := frames.read(sys.stdin.buffer)) is not None:
        asked, feeds, _ = frame
        # Processor time: how long it would hold the event loop, however busy the machine is. A graph cannot wait.
        started = time.thread_time()
        try:
            output = watchdog.run(session, meta["output"], feeds, asked["seconds"])
            ms = (time.thread_time() - started) * 1000
            reply = frames.pack({"ms": ms}, {"output": output})
        except TerminatedError as error:
            reply = frames.pack({"terminated": str(error)})
        except (BrokenError, MemoryError, AttributeError, ValueError) as error:
            reply = frames.pack({"error": first_line(error)})
        replies.write(reply)


if __name__ == "__main__":
    main()
