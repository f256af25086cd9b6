"""Ends a run whose time is over, through `RunOptions.terminate`.

onnxruntime looks at the flag between nodes: a single long kernel runs to its end. Options once terminated stay so,
which is why every run gets new ones.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import onnxruntime as ort

from turnout.scoring.ports import BrokenError, Output, StarvedError, TerminatedError

# How late the watchdog may be, in seconds. It only ticks while runs go on: waking it for each would cost more than
# most runs do.
TICK = 0.002
_IDLE_TICKS = 50
_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_NODE = re.compile(r"Non-zero status code returned while running (?P<operator>\S+) node\. .*?Status Message: ")
# What the C++ library, onnxruntime's allocator and numpy say.
_NO_MEMORY = re.compile(r"bad_alloc|failed to allocate memory|unable to allocate|cannot allocate memory", re.IGNORECASE)


class Watchdog:
    """One thread that watches one run at a time."""

    def __init__(self) -> None:
        self._current: tuple[float, ort.RunOptions] | None = None
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def run(self, session: ort.InferenceSession, name: str, feeds: dict[str, Any], seconds: float) -> Output:
        """The output `name` of one run. Raises `TerminatedError` when it took longer, `BrokenError` when it failed."""
        return self.watch(lambda options: cast("Output", session.run([name], feeds, options)[0]), seconds)

    def watch(self, run: Callable[[ort.RunOptions], Output], seconds: float) -> Output:
        """What `run` gives; it has to pass the options on to onnxruntime. Raises as `run` does."""
        options = ort.RunOptions()
        options.log_severity_level = 4
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        self._current = (time.monotonic() + seconds, options)
        if not self._wake.is_set():
            self._wake.set()
        try:
            return run(options)
        except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen kinds, all of them the graph's fault)
            if options.terminate:
                raise TerminatedError(f"ended after {seconds * 1000:.0f} ms") from None
            raise _broken(error) from None
        finally:
            self._current = None

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._wake.set()

    def _watch(self) -> None:
        idle = 0
        while not self._closed:
            current = self._current
            if current is None:
                idle += 1
                if idle > _IDLE_TICKS:
                    self._wake.clear()
                    if self._current is None:
                        self._wake.wait()
                    idle = 0
                    continue
            else:
                idle = 0
                at, options = current
                if time.monotonic() >= at:
                    options.terminate = True
            time.sleep(TICK)


def first_line(error: BaseException) -> str:
    """An error's first line, short enough for an event, without onnxruntime's codes."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _NODE.sub(r"the operator \g<operator> fails: ", _CODE.sub("", lines[0]))[:300]


def _broken(error: Exception) -> BrokenError:
    if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
        return BrokenError(first_line(error))
    node = _NODE.search(str(error))
    return StarvedError("it ran out of memory" + (f" in the operator {node['operator']}" if node else ""))


def open_session(content: bytes) -> ort.InferenceSession:
    """The graph in `content`, on one thread: a default session escapes the core its process is pinned to.

    From bytes onnxruntime refuses everything outside of the file. Raises `BrokenError`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Spinning threads and memory kept for reuse pay for large batches, not for one row of many models.
    options.enable_cpu_mem_arena = False
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 (as in `run`)
        broken = _broken(error)
        raise type(broken)(f"onnxruntime does not load it: {broken}") from None
