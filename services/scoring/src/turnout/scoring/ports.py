"""What scoring needs from outside that is nobody else's business."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from numpy.typing import NDArray

if TYPE_CHECKING:  # a version's process imports this module at its start: pyarrow and pydantic would double the time
    from turnout.common.bus.port import Record
    from turnout.common.errors import Unavailable
    from turnout.common.events import (
        BatchScoringRequested,
        DataSetRef,
        Event,
        ModelReady,
        RoutingChanged,
        ScoreProduced,
    )
    from turnout.common.lake.port import Lake
    from turnout.common.summary import Gathered
    from turnout.scoring.domain.signature import Feeds

Output = NDArray[Any]

# An event as the outbox keeps it: the name it is found by, pipeline, entity, topic, key, headers (JSON) and value.
Kept = tuple[str, str, str | None, str, bytes, bytes, bytes]


class TerminatedError(Exception):
    """A run was ended because its time was over."""


class BrokenError(Exception):
    """A run failed; the text says how. The version's fault, not ours."""


class StarvedError(BrokenError):
    """A run asked for more memory than there is, or than a version may have."""


class Inline(Protocol):
    """A version in this process, for those proven fast: no hop, but whoever waits, waits for it."""

    def run(self, feeds: Feeds, seconds: float) -> Output:
        """The graph's output. Raises `TerminatedError` after about `seconds`, `BrokenError` if the graph raises."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Apart(Protocol):
    """A version in a process of its own, with a memory limit, that is killed when it does not come to an end."""

    async def start(self) -> None:
        """Bring the process up and load the version. Raises `BrokenError`."""
        ...

    async def run(self, feeds: Feeds, seconds: float) -> tuple[Output, float]:
        """The graph's output, and how many milliseconds of processor time the graph took; one run at a time.

        Raises `TerminatedError` after about `seconds` (the process may be gone then: `alive`), `BrokenError`.
        """
        ...

    @property
    def alive(self) -> bool:
        """Whether it can be asked; if not, `start` again."""
        ...

    async def close(self) -> None:
        """End the process."""
        ...


class Runners(Protocol):
    """Where versions run."""

    async def inline(self, ready: ModelReady, content: bytes) -> Inline:
        """The version in this process. Raises `BrokenError`."""
        ...

    def apart(self, ready: ModelReady, content: bytes) -> Apart:
        """The version in a process of its own, not started yet."""
        ...


@dataclass(frozen=True, slots=True)
class Admitted:
    """A version passed its trial: median milliseconds of one row."""

    milliseconds: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A version did not pass; `why` is for people."""

    why: str


class Admission(Protocol):
    """The trial every version passes before it is loaded."""

    async def admit(self, ready: ModelReady, content: bytes) -> Admitted | Refused:
        """Try the file in a limited process. Raises `Unavailable` if no process could be started."""
        ...


class ModelCache(Protocol):
    """Checksummed copies of versions on this machine, so that a start needs no lake. The methods block."""

    def keep(self, ready: ModelReady, content: bytes) -> None:
        """Keep an admitted version."""
        ...

    def get(self, ready: ModelReady) -> bytes | None:
        """An admitted version's bytes; None if they are not there or not what the sha256 says."""
        ...

    def known(self) -> Sequence[ModelReady]:
        """Every version kept here."""
        ...

    def drop(self, ready: ModelReady) -> None:
        """Let go of a version that no chain names any more."""
        ...

    def keep_route(self, route: RoutingChanged) -> None:
        """Keep a pipeline's newest routing table."""
        ...

    def routes(self) -> Sequence[RoutingChanged]:
        """Every pipeline's routing table as it was last kept."""
        ...

    def remove(self, pipeline: str) -> None:
        """Remove a pipeline's versions and its routing table."""
        ...


class Taken(NamedTuple):
    """Records to be relayed, and the positions before the first and of the last of them (0: nothing waits).

    `whole`: every score between these positions is among the records, and there is no other one of its id.
    """

    records: Sequence[Record]
    start: int
    end: int
    whole: bool


class Outbox(Protocol):
    """A durable local log of events on their way to the bus. Each is found by its id for a while after."""

    async def add(self, events: Sequence[Event]) -> None:
        """Append; durable when it returns. Raises `Unavailable` ("disk full") and then nothing was appended."""
        ...

    def append(self, kept: Sequence[Kept], done: Callable[[Unavailable | None], None]) -> None:
        """Like `add`, without waiting: `done` is called on the event loop, now or later, when they are durable or with
        the reason why nothing was appended."""
        ...

    async def count(self, scores: Sequence[ScoreProduced]) -> None:
        """Keep what is counted of scores that reach the bus another way; durable when it returns."""
        ...

    async def find(self, ident: str) -> Event | None:
        """The event appended lately whose id (a score: whose score id) is `ident`."""
        ...

    async def take(self, most: int) -> Taken:
        """The oldest records not yet relayed."""
        ...

    async def relayed(self, position: int) -> None:
        """Records up to `position` are on the bus."""
        ...

    async def scores(self, after: int | None, most: int) -> tuple[Sequence[Record], int]:
        """Scores that were relayed or counted, at positions behind `after` (None: behind all that were summarised),
        each score id's first one, out of `most` records; and the position after them."""
        ...

    async def summarise(self, parts: Sequence[Gathered], position: int) -> None:
        """Append summaries of all scores up to `position`, numbered, and take note of the position: both or nothing."""
        ...

    async def arrival(self) -> None:
        """Wait until something was appended since the last `take`."""
        ...

    async def waiting(self) -> int:
        """How many are not relayed."""
        ...

    async def erase(self, pipeline: str, entity: str | None = None) -> None:
        """Remove what was relayed of a pipeline, or of one entity of it."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why nothing can be appended now; None if all is well."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


@dataclass(frozen=True)
class BatchTask:
    """A file (or several) or a data set of the lake to be scored with `ready`; can be pickled.

    `data` is set for a data set of the lake, `files` are paths otherwise. `column_names`, `delimiter` and
    `null_values` are what the pipeline file says of its CSV files.
    """

    lake: Lake
    ready: ModelReady
    cause: BatchScoringRequested
    at: datetime
    data: DataSetRef | None = None
    files: Sequence[str] = ()
    format: str | None = None
    column_names: Sequence[str] = ()
    delimiter: str = ","
    null_values: Sequence[str] = ()

    def options(self) -> Sequence[object]:
        """What changes how the same bytes are read."""
        return (self.format, list(self.column_names), self.delimiter, list(self.null_values))
