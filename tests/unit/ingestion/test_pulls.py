"""Adding up what a pull took, also where somebody died in between."""

from __future__ import annotations

from builders import AT

from turnout.common.events import PulledPart, TopicPullAdvanced
from turnout.ingestion.domain.pulls import total


def advanced(partition: int, first: int, last: int, taken: int, refused: int = 0) -> TopicPullAdvanced:
    return TopicPullAdvanced.first(
        source="/test", at=AT, pipeline="p", source_topic="feed", taken=taken, refused=refused,
        part=PulledPart(partition=partition, first=first, last=last),
    )  # fmt: skip


def test_nothing_is_nothing() -> None:
    assert total([]).parts == ()
    assert total([]).taken == 0


def test_partitions_are_added_up() -> None:
    found = total([advanced(0, 0, 4, 4, 1), advanced(1, 7, 7, 1), advanced(0, 5, 6, 2)])
    assert (found.taken, found.refused) == (7, 1)
    assert found.parts == (PulledPart(partition=0, first=0, last=6), PulledPart(partition=1, first=7, last=7))


def test_what_was_told_before_a_death_and_done_again_counts_once() -> None:
    same = [advanced(0, 0, 4, 5), advanced(0, 0, 4, 5), advanced(0, 5, 9, 5)]
    longer = [advanced(0, 0, 4, 5), advanced(0, 0, 9, 10)]
    shorter = [advanced(0, 0, 9, 10), advanced(0, 0, 4, 5), advanced(0, 5, 9, 5)]
    assert [total(told).taken for told in (same, longer, shorter)] == [10, 10, 10]
    assert {total(told).parts for told in (same, longer, shorter)} == {(PulledPart(partition=0, first=0, last=9),)}


def test_offsets_without_a_message_are_no_end() -> None:
    found = total([advanced(0, 3, 9, 5), advanced(0, 20, 29, 10)])
    assert found.taken == 15
    assert found.parts == (PulledPart(partition=0, first=3, last=29),)
