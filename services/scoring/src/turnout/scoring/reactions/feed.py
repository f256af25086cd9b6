"""`ScoreProduced` → the features of every scored row on the topic that the pipeline's file names.

Behind the answer, not in its way: what is fed was relayed to the bus first, so no score that counts is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from turnout.common.bus.cloudevents import encode
from turnout.common.bus.port import Received, Record
from turnout.common.errors import Unknown
from turnout.common.events import Event, ObservationReceived, ScoreProduced
from turnout.common.runtime.views import Pipelines

SOURCE = "/scoring"


class Feed:
    """Observations for somebody else's topic: CloudEvents with an id from the score's, so a repetition is the same."""

    def __init__(self, pipelines: Pipelines) -> None:
        self._pipelines = pipelines

    def read(self, received: Received) -> Event | None:
        """The score; None, without a look at its value, where its header names a pipeline that feeds no topic.

        Raises `Invalid`.
        """
        subject = next((value for name, value in received.record.headers if name == "ce_subject"), None)
        if subject is not None and self._pipelines.ready:
            file = self._pipelines.now(subject.decode(errors="replace").partition("/")[0])
            if file is None or file.scoring.feed is None:
                return None
        return received.event()

    async def __call__(self, events: Sequence[Event]) -> list[Record]:
        """A record for each score whose pipeline feeds a topic."""
        records: list[Record] = []
        for event in events:
            assert isinstance(event, ScoreProduced)
            try:
                topic = (await self._pipelines.file(event.pipeline)).scoring.feed
            except Unknown:  # it ended meanwhile
                continue
            if topic is not None:
                records.append(fed(event, topic))
        return records


def fed(score: ScoreProduced, topic: str) -> Record:
    """The features of a scored row as a record of `topic`. A row without an entity is one of its own: its score's."""
    observation = ObservationReceived.caused_by(
        score,
        source=SOURCE,
        at=score.time,
        of=topic,
        entity=score.entity or score.score_id,
        event_time=score.time,
        values=score.values,
    )
    record = encode(observation)
    return Record(topic, record.key, record.value, record.headers)
