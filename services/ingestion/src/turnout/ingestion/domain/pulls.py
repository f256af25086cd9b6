"""What a pull took, added up over every process that worked on it and died."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from turnout.common.events import PulledPart, TopicPullAdvanced


@dataclass(frozen=True)
class Total:
    """Messages taken and refused, and from where to where in each partition."""

    taken: int
    refused: int
    parts: tuple[PulledPart, ...]


def total(advanced: Iterable[TopicPullAdvanced]) -> Total:
    """The sum of what is told in the order of the topic.

    Who died between telling and moving the offset is followed by one who begins at the same offset, so of those that
    begin at one offset the last counts.
    """
    newest: dict[tuple[int, int], TopicPullAdvanced] = {}
    for one in advanced:
        newest[one.part.partition, one.part.first] = one
    counted: list[TopicPullAdvanced] = []
    last: dict[int, PulledPart] = {}
    for (partition, first), one in sorted(newest.items()):
        before = last.get(partition)
        if before is not None and first <= before.last:
            continue
        counted.append(one)
        start = first if before is None else before.first
        last[partition] = PulledPart(partition=partition, first=start, last=one.part.last)
    return Total(sum(one.taken for one in counted), sum(one.refused for one in counted), tuple(last.values()))
