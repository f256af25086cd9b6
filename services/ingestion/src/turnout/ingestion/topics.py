"""Topics that pipelines name as their source: each message becomes an observation, or a dead letter with the reason.

A pipeline's consumer group is the same whichever way it takes its messages (as they come, when somebody asks, by a
schedule), so a message is taken once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from turnout.common.bus.port import Received
from turnout.common.errors import Invalid, Unknown
from turnout.common.events import Event, ObservationReceived
from turnout.common.pipeline import PipelineFile
from turnout.common.runtime.service import Reaction, Refused
from turnout.common.runtime.views import Pipelines
from turnout.ingestion.domain import messages, observations
from turnout.ingestion.domain.schema import Schema

# A pipeline's columns change once, with its first batch; to look costs a walk over its manifests.
SCHEMA_SECONDS = 5.0


@dataclass(eq=False)
class Taking:
    """Messages of one pipeline's topic → `ObservationReceived`."""

    pipeline: str
    pipelines: Pipelines
    schema: Callable[[PipelineFile], Schema]
    _known: tuple[float, PipelineFile, Schema] | None = field(default=None, init=False)

    def read(self, received: Received) -> Event:
        """The observation that a message is. Raises `Invalid`."""
        file = self.pipelines.now(self.pipeline)
        if file is None:
            raise Unknown.name("pipeline", "pipeline", self.pipeline, self.pipelines.names())
        return messages.observation(received, file)

    async def __call__(self, events: Sequence[Event]) -> Sequence[Event | Refused]:
        """The observations that fit the pipeline's columns; the others are refused."""
        file = await self.pipelines.file(self.pipeline)
        schema = await self._schema(file)
        answer: list[Event | Refused] = []
        for event in events:
            assert isinstance(event, ObservationReceived)
            try:
                observations.row(event, schema, file.source)
            except Invalid as error:
                answer.append(Refused(event, error))
            else:
                answer.append(event)
        return answer

    async def _schema(self, file: PipelineFile) -> Schema:
        now = time.monotonic()
        if self._known is None or self._known[1] != file or now > self._known[0] + SCHEMA_SECONDS:
            self._known = (now, file, await asyncio.to_thread(self.schema, file))
        return self._known[2]


class Topics:
    """The topics of all pipelines."""

    def __init__(self, pipelines: Pipelines, schema: Callable[[PipelineFile], Schema]) -> None:
        self._pipelines = pipelines
        self._schema = schema
        self._takings: dict[str, Taking] = {}

    def streams(self) -> Sequence[Reaction]:
        """A reaction for each pipeline whose messages are taken as they come."""
        files = [file for name in self._pipelines.names() if (file := self._pipelines.now(name)) is not None]
        return [
            self.reaction(file.pipeline, file.source.topic)
            for file in files
            if file.source.topic is not None and file.source.pull == "stream"
        ]

    def reaction(self, pipeline: str, topic: str) -> Reaction:
        """What takes a pipeline's messages, in every way; its group is `ingestion.topic.PIPELINE`."""
        taking = self._takings.setdefault(pipeline, Taking(pipeline, self._pipelines, self._schema))
        return Reaction(f"topic.{pipeline}", (topic,), taking, read=taking.read)

    def group(self, pipeline: str) -> str:
        """The consumer group of a pipeline's topic."""
        return f"ingestion.topic.{pipeline}"
