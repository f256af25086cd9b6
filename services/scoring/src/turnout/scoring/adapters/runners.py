"""A version inline, in this process, and apart, in one of its own."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from typing import Any, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from turnout.common.events import ModelReady
from turnout.scoring.adapters import frames
from turnout.scoring.adapters.watchdog import Watchdog, open_session
from turnout.scoring.domain.signature import Feeds
from turnout.scoring.ports import BrokenError, Output, TerminatedError

# Importing onnxruntime on a busy machine takes seconds; it is no fault of the version.
START_SECONDS = 60.0


class OnnxRunners:
    """Runs versions with onnxruntime; a process apart may map `memory` bytes more than an empty one."""

    def __init__(self, *, memory: int) -> None:
        self._memory = memory

    async def inline(self, ready: ModelReady, content: bytes) -> OnnxInline:
        """See `Runners.inline`."""
        session = await asyncio.to_thread(open_session, content)
        return OnnxInline(session, ready.target.output(ready.inputs))

    def apart(self, ready: ModelReady, content: bytes) -> OnnxApart:
        """See `Runners.apart`."""
        return OnnxApart(content, ready.target.output(ready.inputs), self._memory)


class OnnxInline:
    """See `Inline`."""

    def __init__(self, session: ort.InferenceSession, output: str) -> None:
        self._session = session
        self._output = output
        self._watchdog = Watchdog()
        self._one_row = _OneRow.of(session, output)

    def run(self, feeds: Feeds, seconds: float) -> Output:
        """See `Inline.run`."""
        one = self._one_row
        if one is not None and one.takes(feeds):
            return self._watchdog.watch(one.run, seconds)
        return self._watchdog.run(self._session, self._output, feeds, seconds)

    def close(self) -> None:
        """See `Inline.close`."""
        self._watchdog.close()


class _OneRow:
    """Runs of a single row of numbers over memory that is bound to the graph's inputs and its output once.

    To hand thirteen arrays over takes onnxruntime longer than a hundred trees take for a row (benchmarks).
    """

    def __init__(self, session: ort.InferenceSession, output: str, width: int) -> None:
        self._session = session
        self._names = [given.name for given in session.get_inputs()]
        self._cells = np.zeros(len(self._names))
        self._output = np.zeros((1, width), dtype=np.float32)
        self._binding = session.io_binding()
        for index, name in enumerate(self._names):
            place = self._cells[index:].ctypes.data
            self._binding.bind_input(name, "cpu", 0, np.float64, (1, 1), place)
        self._binding.bind_output(output, "cpu", 0, np.float32, self._output.shape, self._output.ctypes.data)

    @classmethod
    def of(cls, session: ort.InferenceSession, output: str) -> Self | None:
        """For a graph that takes nothing but numbers and says how wide its output is; None for any other."""
        kind, shape = next((o.type, o.shape) for o in session.get_outputs() if o.name == output)
        numeric = all(given.type == "tensor(double)" for given in session.get_inputs())
        if not numeric or kind != "tensor(float)" or len(shape) != 2 or not isinstance(shape[1], int):
            return None
        return cls(session, output, shape[1])

    def takes(self, feeds: Feeds) -> bool:
        """Whether it is one row; then its cells are where the graph looks for them."""
        if len(feeds) != len(self._names) or len(next(iter(feeds.values()), ())) != 1:
            return False
        for index, name in enumerate(self._names):
            self._cells[index] = feeds[name][0, 0]
        return True

    def run(self, options: ort.RunOptions) -> Output:
        """The output for the row that was taken."""
        # Without it onnxruntime looks for the entry by way of an exception, which takes longer than the run.
        options.add_run_config_entry("gpu_graph_id", "-1")
        self._session.run_with_iobinding(self._binding, options)
        return self._output.copy()


class OnnxApart:
    """See `Apart`. Seconds after its time, `grace`, a run may still come back; then its process is killed."""

    def __init__(self, content: bytes, output: str, memory: int, grace: float = 0.1) -> None:
        self._content = content
        self._output = output
        self._memory = memory
        self._grace = grace
        self._process: Process | None = None

    @property
    def alive(self) -> bool:
        """See `Apart.alive`."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """See `Apart.start`."""
        await self.close()
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "turnout.scoring.adapters.worker", stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )  # fmt: skip
        load = frames.pack({"memory": self._memory, "output": self._output}, body=self._content)
        try:
            meta, _ = await asyncio.wait_for(_exchange(process, load), START_SECONDS)
        except (TimeoutError, asyncio.CancelledError, BrokenError):
            await self.close()
            raise
        if "error" in meta:
            await self.close()
            raise BrokenError(meta["error"])

    async def run(self, feeds: Feeds, seconds: float) -> tuple[Output, float]:
        """See `Apart.run`."""
        process = self._process
        if process is None or process.returncode is not None:
            raise BrokenError("its process is gone")
        asked = frames.pack({"seconds": seconds}, feeds)
        try:
            meta, arrays = await asyncio.wait_for(_exchange(process, asked), seconds + self._grace)
        except TimeoutError:
            await self.close()
            raise TerminatedError(f"its process was ended after {seconds + self._grace:.2f} s") from None
        except BaseException:  # also when we are cancelled: half an exchange leaves the pipe useless
            await self.close()
            raise
        if "terminated" in meta:
            raise TerminatedError(meta["terminated"])
        if "error" in meta:
            raise BrokenError(meta["error"])
        return arrays["output"], meta["ms"]

    async def close(self) -> None:
        """See `Apart.close`."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _exchange(process: Process, frame: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    if process.stdin is None or process.stdout is None:
        raise BrokenError("its process has no pipes")
    try:
        process.stdin.write(frame)
        await process.stdin.drain()
        first, second = frames.sizes(await process.stdout.readexactly(frames.HEAD.size))
        head = await process.stdout.readexactly(first)
        body = await process.stdout.readexactly(second)
        return frames.unpack(head, body)
    except (asyncio.IncompleteReadError, ConnectionError):
        raise BrokenError("its process ended") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenError(f"its process answered nonsense: {error}") from None
