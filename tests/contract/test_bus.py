"""What every bus keeps. An adapter joins by adding its name to `buses.ADAPTERS`."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import pytest
from builders import declared, pipeline_file, routing, score_produced
from buses import ADAPTERS, GROUP, answer, events_of, foreign, numbered, on_kafka, open_bus, process
from ports import forwarded, free_port, tried_again

from turnout.common.bus.port import Bus, Delivery, Record, Standing
from turnout.common.errors import Invalid, Unavailable
from turnout.common.events import PipelineDeclared, RoutingChanged, ScoreProduced, SourceDataAvailable, StageFailed
from turnout.common.ids import positional_event_id

Open = Callable[[], Bus]
# Long enough for any machine; nothing waits this long unless it fails.
SECONDS = 60


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "kafka":
        on_kafka(tmp_path, request.getfixturevalue("stack").kafka)
    return request.param


@pytest.fixture
async def opened(adapter: str, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the bus of this test, as often as asked: each is a process of its own as far as the bus can tell."""
    buses: list[Bus] = []

    def make() -> Bus:
        buses.append(open_bus(adapter, tmp_path))
        return buses[-1]

    yield make
    for bus in buses:
        await bus.close()


@pytest.fixture
def bus(opened: Open) -> Bus:
    return opened()


async def take(bus: Bus, count: int, *, group: str = GROUP, done: bool = True) -> list[SourceDataAvailable]:
    """`count` events of the group, in the order of their coming."""
    found: list[SourceDataAvailable] = []
    async with asyncio.timeout(SECONDS), aclosing(bus.consume(SourceDataAvailable, group=group)) as deliveries:
        async for delivery in deliveries:
            found += events_of([delivery])
            if done:
                await delivery.done()
            if len(found) >= count:
                return found
    raise AssertionError("consume ended")


async def produced(bus: Bus) -> list[str]:
    return [received.event().causation_id or "" async for received in bus.replay(StageFailed)]


def keys(number: int) -> list[str]:
    return [f"key-{n}" for n in range(number)]


# --- publish and consume -------------------------------------------------------------------------------------------


async def test_what_is_published_arrives_whole(bus: Bus) -> None:
    sent = [numbered(n) for n in range(3)]
    await bus.publish(*sent)
    assert await take(bus, 3) == sent


async def test_nothing_to_publish_is_no_error(bus: Bus) -> None:
    await bus.publish()


async def test_one_key_stays_in_order(bus: Bus) -> None:
    await bus.publish(*(numbered(n, key) for n in range(200) for key in keys(9)))
    order = defaultdict[str, list[int]](list)
    for event in await take(bus, 1800):
        order[event.pipeline].append(int(event.uri))
    assert order == {key: list(range(200)) for key in keys(9)}


async def test_a_delivery_is_bounded_and_of_one_partition(bus: Bus) -> None:
    await bus.publish(*(numbered(n, key) for n in range(300) for key in keys(9)))
    left = 2700
    async with asyncio.timeout(SECONDS), aclosing(bus.consume(SourceDataAvailable, group=GROUP)) as deliveries:
        async for delivery in deliveries:
            assert 0 < len(delivery.received) <= 500
            assert len({received.partition for received in delivery.received}) == 1
            offsets = [received.offset for received in delivery.received]
            assert offsets == sorted(set(offsets))
            await delivery.done()
            left -= len(delivery.received)
            if not left:
                break


async def test_every_group_gets_everything(bus: Bus) -> None:
    await bus.publish(*(numbered(n) for n in range(5)))
    assert await take(bus, 5, group="one") == await take(bus, 5, group="other")


async def test_a_member_waits_for_what_comes_later(opened: Open) -> None:
    reader, writer = opened(), opened()
    waiting = asyncio.create_task(take(reader, 2))
    await writer.publish(numbered(0))
    await writer.publish(numbered(1))
    assert [event.uri for event in await waiting] == ["0", "1"]


async def test_somebody_elses_topic_by_its_name(bus: Bus) -> None:
    theirs = foreign("their.topic")
    await bus.publish(Record(theirs, b"k", b'{"pipeline": "p"}'), Record(theirs, None, b"\xff\x00"))
    found: list[Record] = []
    async with asyncio.timeout(SECONDS), aclosing(bus.consume(theirs, group=GROUP)) as deliveries:
        async for delivery in deliveries:
            found += [received.record for received in delivery.received]
            if len(found) == 2:
                break
    assert {record.value for record in found} == {b'{"pipeline": "p"}', b"\xff\x00"}


async def test_bare_json_gets_its_id_from_where_it_lies(bus: Bus) -> None:
    await bus.publish(Record("SourceDataAvailable", b"p", b'{"pipeline": "p", "uri": "x"}'))
    async with asyncio.timeout(SECONDS), aclosing(bus.consume(SourceDataAvailable, group=GROUP)) as deliveries:
        received = (await anext(deliveries)).received[0]
    event = received.event()
    assert event.id == positional_event_id("SourceDataAvailable", received.partition, received.offset)
    assert (event.source, event.time, event.correlation_id) == ("unknown", received.timestamp, event.id)


async def test_keys_values_and_headers_are_bytes_that_stay_as_they_are(bus: Bus) -> None:
    everything = bytes(range(256))
    record = Record(foreign("raw"), everything, everything * 100, (("a", everything), ("a", b""), ("ü", b"\xff")))
    await bus.publish(record)
    assert [received.record async for received in bus.replay(record.topic)] == [record]


async def test_a_large_record_passes(bus: Bus) -> None:
    value, topic = b"x" * 5_000_000, foreign("raw")
    await bus.publish(*(Record(topic, b"k", value) for _ in range(3)))
    assert [len(received.record.value or b"") async for received in bus.replay(topic)] == [5_000_000] * 3


# --- done ----------------------------------------------------------------------------------------------------------


async def test_what_is_not_done_comes_again(bus: Bus) -> None:
    await bus.publish(*(numbered(n) for n in range(4)))
    first = await take(bus, 4, done=False)
    assert await take(bus, 4) == first


async def test_what_is_done_does_not_come_again(bus: Bus) -> None:
    await bus.publish(*(numbered(n) for n in range(4)))
    await take(bus, 4)
    await bus.publish(numbered(4))
    assert [event.uri for event in await take(bus, 1)] == ["4"]


async def test_done_publishes_what_was_produced(bus: Bus) -> None:
    await bus.publish(numbered(0))
    async with asyncio.timeout(SECONDS), aclosing(bus.consume(SourceDataAvailable, group=GROUP)) as deliveries:
        delivery = await anext(deliveries)
        await delivery.done(answer(events_of([delivery])[0]), Record("SourceDataAvailable.dead", b"p", b"{}"))
        await delivery.done()  # twice is once
    assert await produced(bus) == ["p-0"]
    assert len([received async for received in bus.replay("SourceDataAvailable.dead")]) == 1
    assert sum((await bus.lag(GROUP)).values()) == 0


async def test_what_cannot_be_produced_leaves_the_delivery_undone(bus: Bus) -> None:
    await bus.publish(numbered(0))
    huge = numbered(1).model_copy(update={"uri": "x" * 9_000_000})
    async with asyncio.timeout(SECONDS), aclosing(bus.consume(SourceDataAvailable, group=GROUP)) as deliveries:
        delivery = await anext(deliveries)
        with pytest.raises(Invalid, match="name the data instead"):
            await delivery.done(answer(numbered(0)), huge)
    assert await produced(bus) == []
    assert [event.uri for event in await take(bus, 1)] == ["0"]


async def test_several_open_deliveries_move_the_offset_in_order(bus: Bus) -> None:
    await bus.publish(*(numbered(n) for n in range(1100)))
    async with asyncio.timeout(SECONDS), aclosing(bus.consume(SourceDataAvailable, group=GROUP)) as deliveries:
        first, second, third = [await anext(deliveries) for _ in range(3)]
        await second.done(answer(numbered(500)))
        assert (await bus.lag(GROUP))["SourceDataAvailable"] == 1100
        await first.done()
        assert (await bus.lag(GROUP))["SourceDataAvailable"] == 100
        assert len(third.received) == 100
    assert await produced(bus) == ["p-500"]
    assert [event.uri for event in await take(bus, 100)] == [str(n) for n in range(1000, 1100)]


async def test_done_after_leaving_is_refused(bus: Bus) -> None:
    await bus.publish(numbered(0))
    async with asyncio.timeout(SECONDS), aclosing(bus.consume(SourceDataAvailable, group=GROUP)) as deliveries:
        delivery = await anext(deliveries)
    with pytest.raises(Unavailable):
        await delivery.done(answer(numbered(0)))
    assert await produced(bus) == []


async def test_lag_says_what_is_left(bus: Bus) -> None:
    await bus.publish(*(numbered(n, key) for n in range(3) for key in keys(4)))
    await take(bus, 12)
    await bus.publish(numbered(9))
    assert await bus.lag(GROUP) == {"SourceDataAvailable": 1}
    assert await bus.lag("nobody") == {}


async def test_standing_says_where_a_group_is_in_each_partition(bus: Bus) -> None:
    theirs = foreign("their.topic")
    records = [Record(theirs, key.encode(), b"{}") for _ in range(3) for key in keys(4)]
    await bus.publish(*records)
    before = await bus.standing(theirs, GROUP)
    assert sum(at.end for at in before.values()) == 12
    assert {at.next for at in before.values()} == {0}
    async with asyncio.timeout(SECONDS), aclosing(bus.consume(theirs, group=GROUP)) as deliveries:
        delivery = await anext(deliveries)
        await delivery.done()
        partition, last = delivery.received[-1].partition, delivery.received[-1].offset
        after = await bus.standing(theirs, GROUP)
    assert after == {**before, partition: Standing(last + 1, before[partition].end)}
    assert await bus.standing(theirs, "nobody") == before


# --- members -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True], ids=["one bus", "two"])
async def test_members_share_the_partitions(opened: Open, apart: bool) -> None:
    one = opened()
    other = opened() if apart else one
    seen = defaultdict[str, Counter[int]](Counter)
    total = 0
    enough = asyncio.Event()

    async def member(name: str, bus: Bus) -> None:
        nonlocal total
        async for delivery in bus.consume(SourceDataAvailable, group=GROUP):
            for received in delivery.received:
                seen[name][received.partition] += 1
                total += 1
            await delivery.done()
            if len(seen) == 2 and all(len(partitions) >= 2 for partitions in seen.values()):
                enough.set()

    members = [asyncio.create_task(member(name, bus)) for name, bus in (("one", one), ("other", other))]
    sent = 0
    async with asyncio.timeout(SECONDS):
        while not enough.is_set():
            await one.publish(*(numbered(sent, key) for key in keys(16)))
            sent += 16
            await asyncio.sleep(0.02)
        while total < sent:
            await asyncio.sleep(0.01)
    for task in members:
        task.cancel()
    await asyncio.gather(*members, return_exceptions=True)
    assert total == sent, "each record went to one of them, once"


async def test_a_member_that_leaves_is_followed_by_another(opened: Open) -> None:
    first, second = opened(), opened()
    await first.publish(*(numbered(n, key) for n in range(2) for key in keys(8)))
    assert len(await take(first, 16)) == 16
    await first.publish(*(numbered(n, key) for n in range(2, 4) for key in keys(8)))
    assert len(await take(second, 16)) == 16


@pytest.mark.parametrize("die_at", [1, 2, 3])
async def test_killed_between_effect_and_done_it_comes_again(
    opened: Open, adapter: str, tmp_path: Path, die_at: int
) -> None:
    bus, ledger = opened(), tmp_path / "ledger"
    sent = [numbered(n, key) for n in range(200) for key in keys(8)]
    await bus.publish(*sent)
    dying = process(adapter, tmp_path, "handle", ledger, die_at)
    assert await asyncio.to_thread(dying.wait, SECONDS) == -signal.SIGKILL

    going_on = process(adapter, tmp_path, "handle", ledger)
    try:
        async with asyncio.timeout(SECONDS):
            while len(set(await produced(bus))) < len(sent):
                await asyncio.sleep(0.05)
    finally:
        going_on.kill()
        await asyncio.to_thread(going_on.wait)
    effects = Counter(ledger.read_text().split())
    assert set(effects) == {event.id for event in sent}, "nothing is lost"
    assert max(effects.values()) == 2, "what was not done came again"
    if adapter == "embedded":  # one transaction: where `done` had happened, nothing came again
        assert Counter(await produced(bus)) == Counter(event.id for event in sent)


async def test_a_killed_members_partitions_move_on(opened: Open, adapter: str, tmp_path: Path) -> None:
    bus = opened()
    holding = process(adapter, tmp_path, "hold")
    await bus.publish(numbered(0))
    assert holding.stdout is not None
    assert await asyncio.to_thread(holding.stdout.readline) == "holding\n"
    holding.kill()
    assert [event.uri for event in await take(bus, 1)] == ["0"]
    await asyncio.to_thread(holding.wait)


@pytest.mark.slow
async def test_who_was_thought_dead_is_refused(opened: Open, adapter: str, tmp_path: Path) -> None:
    bus = opened()
    asleep = process(adapter, tmp_path, "hold")
    assert asleep.stdin is not None
    assert asleep.stdout is not None
    await bus.publish(numbered(0))
    assert await asyncio.to_thread(asleep.stdout.readline) == "holding\n"
    asleep.send_signal(signal.SIGSTOP)
    assert [event.uri for event in await take(bus, 1)] == ["0"]  # after its lease
    asleep.stdin.write("\n")
    asleep.stdin.flush()
    asleep.send_signal(signal.SIGCONT)
    assert await asyncio.to_thread(asleep.stdout.readline) == "refused\n"
    assert await produced(bus) == []
    asleep.kill()
    await asyncio.to_thread(asleep.wait)


async def test_many_processes_publish_at_once(opened: Open, adapter: str, tmp_path: Path) -> None:
    bus = opened()
    reading = asyncio.create_task(take(bus, 4 * 300))
    writers = [process(adapter, tmp_path, "publish", key, 300) for key in keys(4)]
    for writer in writers:
        assert await asyncio.to_thread(writer.wait, SECONDS) == 0
    order = defaultdict[str, list[int]](list)
    for event in await reading:
        order[event.pipeline].append(int(event.uri))
    assert order == {key: list(range(300)) for key in keys(4)}


# --- replay and follow ---------------------------------------------------------------------------------------------


async def test_replay_gives_everything_and_stops(bus: Bus) -> None:
    sent = [numbered(n, key) for n in range(400) for key in keys(3)]
    await bus.publish(*sent)
    found = [received.event() async for received in bus.replay(SourceDataAvailable)]
    assert sorted(event.id for event in found) == sorted(event.id for event in sent)
    for key in keys(3):
        assert [int(e.uri) for e in found if isinstance(e, SourceDataAvailable) and e.pipeline == key] == [*range(400)]


async def test_replay_of_nothing_is_empty(bus: Bus) -> None:
    assert [received async for received in bus.replay(foreign("nothing.here"))] == []


async def test_replay_ends_though_more_comes(opened: Open) -> None:
    bus = opened()
    await bus.publish(*(numbered(n) for n in range(600)))
    count = 0
    async with asyncio.timeout(SECONDS):
        async for _ in bus.replay(SourceDataAvailable):
            count += 1
            if count % 100 == 0:
                await bus.publish(numbered(1000 + count))
    assert count == 600


async def test_a_compacted_topic_keeps_each_keys_newest(bus: Bus) -> None:
    for version in range(1, 4):
        await bus.publish(routing(version, pipeline="a"), routing(version, pipeline="b"))
    await bus.publish(Record("RoutingChanged", b"b", None))
    found = [received.event() async for received in bus.replay(RoutingChanged)]
    assert [(e.pipeline, e.table.version) for e in found if isinstance(e, RoutingChanged)] == [("a", 3)]


async def test_a_group_sees_a_compacted_topics_steps_while_they_are_young(bus: Bus) -> None:
    await bus.publish(*(routing(version) for version in range(1, 4)))
    versions: list[int] = []
    async with asyncio.timeout(SECONDS), aclosing(bus.consume(RoutingChanged, group=GROUP)) as deliveries:
        for received in (await anext(deliveries)).received:
            event = received.event()
            assert isinstance(event, RoutingChanged)
            versions.append(event.table.version)
    assert versions[-1] == 3


async def test_followers_see_what_was_and_what_comes(opened: Open) -> None:
    bus, elsewhere = opened(), opened()
    await bus.publish(declared(pipeline="a", file=pipeline_file(pipeline="a")))

    begun = asyncio.Semaphore(0)

    async def follower(bus: Bus) -> list[str | None]:
        found: list[str | None] = []
        async with aclosing(bus.follow(PipelineDeclared)) as records:
            async for received in records:
                begun.release()
                found.append(None if received.record.value is None else received.event().pipeline)
                if len(found) == 3:
                    break
        return found

    async with asyncio.timeout(SECONDS):
        followers = [asyncio.create_task(follower(b)) for b in (bus, bus, elsewhere)]
        for _ in followers:
            await begun.acquire()
        await elsewhere.publish(declared(pipeline="b", file=pipeline_file(pipeline="b")))
        await bus.publish(Record("PipelineDeclared", b"a", None))
        for one in await asyncio.gather(*followers):
            assert one == ["a", "b", None]


async def test_following_moves_no_offset(bus: Bus) -> None:
    await bus.publish(numbered(0))
    async with asyncio.timeout(SECONDS), aclosing(bus.follow(SourceDataAvailable)) as records:
        await anext(records)
    assert [event.uri for event in await take(bus, 1)] == ["0"]


# --- removal, end --------------------------------------------------------------------------------------------------


async def test_an_entitys_records_can_be_erased(bus: Bus, tmp_path: Path, adapter: str) -> None:
    secret = "the-only-Mrs-Miller"
    hers = (score_produced(f"s{n}", entity=secret) for n in range(50))
    await bus.publish(*hers, score_produced("t", entity="other"))
    gone = await bus.erase(ScoreProduced, secret)
    left = [received.event() async for received in bus.replay(ScoreProduced)]
    # Kafka removes nothing out of the middle of a log: there it ends by retention.
    assert gone == (50 if adapter == "embedded" else 0)
    entities = Counter(e.entity for e in left if isinstance(e, ScoreProduced))
    assert entities == Counter({secret: 50 - gone, "other": 1})
    if adapter == "embedded":
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


async def test_a_group_goes_on_over_what_was_erased(bus: Bus, adapter: str) -> None:
    await bus.publish(*(numbered(n, "gone") for n in range(20)), numbered(0, "stays"))
    gone = await bus.erase(SourceDataAvailable, "gone")
    assert gone == (20 if adapter == "embedded" else 0)
    assert "stays" in [event.pipeline for event in await take(bus, 21 - gone)]
    await bus.publish(numbered(1, "gone"))
    assert [event.uri for event in await take(bus, 1)] == ["1"]


async def test_retention_removes_the_old(bus: Bus, adapter: str) -> None:
    await bus.publish(numbered(0), routing(1), routing(2))
    [received] = [r async for r in bus.replay(SourceDataAvailable)]
    assert await bus.purge(received.timestamp + timedelta(days=29)) == (1 if adapter == "embedded" else 0)
    assert len([r async for r in bus.replay(SourceDataAvailable)]) == 1
    if adapter == "embedded":  # elsewhere it is the broker's to do
        assert await bus.purge(received.timestamp + timedelta(days=31)) == 1
        assert [r async for r in bus.replay(SourceDataAvailable)] == []
        await bus.publish(numbered(1))
        [later] = [r async for r in bus.replay(SourceDataAvailable)]
        assert later.offset > received.offset, "an offset is never used twice"
    assert len([r async for r in bus.replay(RoutingChanged)]) == 1


async def test_a_member_says_when_it_last_looked(bus: Bus) -> None:
    assert bus.polled(GROUP) is None
    await bus.publish(numbered(0))
    async with asyncio.timeout(SECONDS), aclosing(bus.consume(SourceDataAvailable, group=GROUP)) as deliveries:
        await (await anext(deliveries)).done()
        before = bus.polled(GROUP)
        assert before is not None
        waiting = asyncio.ensure_future(anext(deliveries))
        while bus.polled(GROUP) == before:
            await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_closed_bus_is_not_available(opened: Open) -> None:
    bus = opened()
    await bus.publish(numbered(0))
    taken: list[Delivery] = []

    async def member() -> None:
        async for delivery in bus.consume(SourceDataAvailable, group=GROUP):
            taken.append(delivery)  # noqa: PERF401 (it never ends)

    task = asyncio.create_task(member())
    async with asyncio.timeout(SECONDS):
        while not taken:
            await asyncio.sleep(0.01)
        await bus.close()
        with pytest.raises(Unavailable):
            await task
    with pytest.raises(Unavailable):
        await bus.publish(numbered(1))
    assert [event.uri for event in await take(opened(), 1)] == ["0"], "what was open comes again to somebody else"


async def test_a_bus_that_cannot_be_reached_is_not_available(
    adapter: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if adapter == "kafka":
        broker = request.getfixturevalue("stack").kafka
        port = free_port()
        on_kafka(tmp_path, f"127.0.0.1:{port}")
        bus = open_bus(adapter, tmp_path)
        with pytest.raises(Unavailable, match=f"Kafka at 127.0.0.1:{port} .* TURNOUT_KAFKA_SERVERS"):
            await bus.publish(numbered(0))
        async with asyncio.timeout(SECONDS), forwarded(port, broker):
            await tried_again(lambda: bus.publish(numbered(0)))
            assert [event.uri for event in await take(bus, 1)] == ["0"]
            await bus.close()
    else:
        (tmp_path / "bus").write_text("not a folder")
        bus = open_bus(adapter, tmp_path)
        with pytest.raises(Unavailable, match="bus"):
            await bus.publish(numbered(0))
        (tmp_path / "bus").unlink()
        await bus.publish(numbered(0))  # it is there again
        assert [event.uri for event in await take(bus, 1)] == ["0"]
        await bus.close()
