"""The features of scored rows, for the topic that their pipeline's file names.

They go to the bus with the score, behind the answer and not in its way, under an id that comes from the score's: a
score that is sent again feeds the same event again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from turnout.common.bus.cloudevents import encode
from turnout.common.bus.port import Received, Record
from turnout.common.events import Event, ObservationReceived, ScoreProduced
from turnout.common.runtime.views import Pipelines

SOURCE = "/scoring"
_SCORES = ScoreProduced.topic()


class Feed:
    """What scores feed, as the pipelines' files say now."""

    def __init__(self, pipelines: Pipelines) -> None:
        self._pipelines = pipelines

    @property
    def ready(self) -> bool:
        """Whether the files are known."""
        return self._pipelines.ready

    def of(self, records: Sequence[Record]) -> list[Record]:
        """What the scores among `records`, on their way to the bus, feed."""
        feeding = {name.encode() for name in self._pipelines.names() if self._topic(name) is not None}
        if not feeding:
            return []
        events = [_event(record) for record in records if record.topic == _SCORES and _pipeline(record) in feeding]
        return self.fed_by([event for event in events if isinstance(event, ScoreProduced)])

    def fed_by(self, scores: Sequence[ScoreProduced]) -> list[Record]:
        """What scores feed."""
        return [fed(score, topic) for score in scores if (topic := self._topic(score.pipeline)) is not None]

    def _topic(self, pipeline: str) -> str | None:
        file = self._pipelines.now(pipeline)
        return None if file is None else file.scoring.feed


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


def _pipeline(record: Record) -> bytes:
    subject = next((value for name, value in record.headers if name == "ce_subject"), b"")
    return subject.rpartition(b"/")[0]


def _event(record: Record) -> Event:
    return Received(record, partition=0, offset=0, timestamp=datetime.fromtimestamp(0, UTC)).event()
