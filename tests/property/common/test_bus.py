"""The embedded bus against a model of it: whatever is published, done, erased, lost and opened again."""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from turnout.common.bus.embedded import EmbeddedBus
from turnout.common.bus.log import Partition
from turnout.common.bus.members import share_out
from turnout.common.bus.port import Delivery, Record

KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
TOPIC = "theirs"


class Bus(RuleBasedStateMachine):
    """Values are numbers in the order of their publication, so order per key can be read from them."""

    groups = Bundle("groups")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.number = 0
        self.published: dict[bytes, list[int]] = defaultdict(list)
        self.erased: set[int] = set()
        self.done: dict[str, dict[bytes, list[int]]] = defaultdict(lambda: defaultdict(list))

    @initialize()
    def open(self) -> None:
        self.bus = EmbeddedBus(Path(self.folder.name), synchronous="NORMAL")

    @rule(target=groups, name=st.sampled_from(["g", "h"]))
    def group(self, name: str) -> str:
        return name

    @rule(keys=st.lists(KEYS, min_size=1, max_size=12))
    def publish(self, keys: list[bytes]) -> None:
        records = [self._next(key) for key in keys]
        self.runner.run(self.bus.publish(*records))

    @rule(group=groups, deliveries=st.integers(1, 3), finish=st.booleans())
    def consume(self, group: str, deliveries: int, finish: bool) -> None:
        self.runner.run(self._consume(group, deliveries, finish))

    @rule(key=KEYS)
    def erase(self, key: bytes) -> None:
        gone = self.runner.run(self.bus.erase(TOPIC, key.decode()))
        there = [number for number in self.published[key] if number not in self.erased]
        assert gone == len(there)
        self.erased |= set(there)

    @rule()
    def open_again(self) -> None:
        self.runner.run(self.bus.close())
        self.open()

    @invariant()
    def replay_gives_what_is_there(self) -> None:
        found = self.runner.run(self._replay())
        assert found == {
            key: there
            for key, numbers in self.published.items()
            if (there := [number for number in numbers if number not in self.erased])
        }

    @invariant()
    def what_is_done_came_in_order_and_once(self) -> None:
        for done in self.done.values():
            for key, numbers in done.items():
                there = [number for number in self.published[key] if number in set(numbers)]
                assert numbers == there

    def teardown(self) -> None:
        for group in ("g", "h"):
            self.runner.run(self._consume(group, 1000, True))
            for key, numbers in self.published.items():
                missing = set(numbers) - set(self.done[group][key]) - self.erased
                assert not missing, "every record that was not erased reached the group"
        self.runner.run(self.bus.close())
        self.runner.close()
        self.folder.cleanup()

    def _next(self, key: bytes) -> Record:
        self.number += 1
        self.published[key].append(self.number)
        return Record(TOPIC, key, str(self.number).encode())

    async def _replay(self) -> dict[bytes, list[int]]:
        found: dict[bytes, list[int]] = defaultdict(list)
        async for received in self.bus.replay(TOPIC):
            found[received.record.key or b""].append(int(received.record.value or b""))
        return found

    async def _consume(self, group: str, deliveries: int, finish: bool) -> None:
        async with aclosing(self.bus.consume(TOPIC, group=group)) as found:
            for _ in range(deliveries if finish else 1):
                delivery = await self._next_delivery(found, group)
                if delivery is None:
                    return
                if finish:
                    await delivery.done()
                    for received in delivery.received:
                        self.done[group][received.record.key or b""].append(int(received.record.value or b""))

    async def _next_delivery(self, found: AsyncGenerator[Delivery], group: str) -> Delivery | None:
        """The next one, or None once the group has nothing left; the group knows only after it has joined."""
        waiting = asyncio.ensure_future(anext(found))
        while not (await asyncio.wait({waiting}, timeout=0.01))[0]:
            if (await self.bus.lag(group)).get(TOPIC, 1) == 0:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                return None
        return await waiting


TestBus = Bus.TestCase
TestBus.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.lists(st.sampled_from("xyz"), min_size=1), max_size=5),
    st.integers(1, 8),
)
def test_every_partition_has_one_reader_and_shares_are_even(members: dict[str, list[str]], count: int) -> None:
    partitions = [Partition(n, topic, n, 0) for topic in "xyz" for n in range(count)]
    shares = share_out(partitions, members)
    given_out = [partition for share in shares.values() for partition in share]
    wanted = {topic for topics in members.values() for topic in topics}
    assert sorted(given_out, key=str) == sorted((p for p in partitions if p.topic in wanted), key=str)
    assert all(p.topic in members[member] for member, share in shares.items() for p in share)
    if len({tuple(sorted(set(topics))) for topics in members.values()}) == 1:
        sizes = [len(share) for share in shares.values()]
        assert max(sizes) - min(sizes) <= 1
    assert share_out(reversed(partitions), dict(reversed(members.items()))) == shares
