"""Runs the trial of a version in a process of its own and gives it an end, whatever the file does."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from typing import Any

from turnout.common.errors import Unavailable
from turnout.common.events import ModelReady
from turnout.scoring.adapters import frames
from turnout.scoring.ports import Admitted, Refused

START_SECONDS = 60.0


class TrialProcess:
    """See `Admission`. One trial at a time, so that trials do not take the machine from who serves.

    `seconds` bounds the trial once it began, `memory` what it may map beyond an empty process, `size` the file.
    """

    def __init__(self, *, seconds: float, memory: int, size: int) -> None:
        self._seconds = seconds
        self._memory = memory
        self._size = size
        self._one = asyncio.Lock()

    async def admit(self, ready: ModelReady, content: bytes) -> Admitted | Refused:
        """See `Admission.admit`."""
        if len(content) > self._size:
            return Refused(f"the file has {len(content)} bytes, at most {self._size} are allowed")
        if await asyncio.to_thread(_sha256, content) != ready.file.sha256:
            return Refused("the file is not what its sha256 says")
        async with self._one:
            return await self._try(ready, content)

    async def _try(self, ready: ModelReady, content: bytes) -> Admitted | Refused:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "turnout.scoring.adapters.trial", stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )  # fmt: skip
        try:
            return await self._verdict(process, ready, content)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _verdict(self, process: Process, ready: ModelReady, content: bytes) -> Admitted | Refused:
        limits = {"seconds": self._seconds, "memory": self._memory}
        frame = frames.pack({"ready": ready.model_dump_json(), **limits}, body=content)
        if process.stdin is None or process.stdout is None:
            raise Unavailable("the trial's process", "it has no pipes")
        with suppress(ConnectionError):  # it died: reading says so
            process.stdin.write(frame)
            await process.stdin.drain()
        try:
            await asyncio.wait_for(_next(process.stdout), START_SECONDS)
        except TimeoutError:
            raise Unavailable("the trial's process", f"it did not begin within {START_SECONDS:.0f} s") from None
        except asyncio.IncompleteReadError:
            raise Unavailable("the trial's process", "it ended before it began") from None
        try:
            verdict = await asyncio.wait_for(_next(process.stdout), self._seconds)
        except TimeoutError:
            return Refused(f"its trial was ended after {self._seconds:g} s")
        except (asyncio.IncompleteReadError, ValueError, KeyError):
            return Refused(
                "it ended the process that tried it: by a crash, or by more than "
                f"{self._memory // 2**20} MiB of memory or {self._seconds:g} s of processor time"
            )
        if "refused" in verdict:
            return Refused(str(verdict["refused"]))
        return Admitted(float(verdict["milliseconds"]))


async def _next(stream: asyncio.StreamReader) -> dict[str, Any]:
    first, second = frames.sizes(await stream.readexactly(frames.HEAD.size))
    meta, _ = frames.unpack(await stream.readexactly(first), await stream.readexactly(second))
    return meta


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
