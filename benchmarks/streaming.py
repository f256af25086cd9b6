"""Streaming scoring over Kafka: consume → decode → score with ONNX → produce with the same headers, ours beside peers.

200-byte JSON rows of 13 numbers, 100 boosted trees, one core for the engine, one broker; every engine reads the same
topic, writes to one of its own, at least once with the offset after the output. The rate is what the broker says: the
last four fifths of the outputs by the time between the first and the last of them, so no engine's start counts; CPU
likewise. Then 500 rows/s at a constant rate, timed from when each was due until its output is read: ours beside bare
aiokafka and confluent-kafka.

Each peer is written as its documentation has it, with the settings that were fastest here: confluent-kafka's loop takes
10,000 messages at a time ("confluent-500" is the same with our deliveries' size, which it needs to be quick at low
rates), bare aiokafka writes prebuilt batches ("aiokafka-send" sends record by record). Ours keeps several deliveries
open, as the port allows. All engines in Python run with the same settings of the garbage collector, Turnout's.

All keep at least once: FastStream flushes before a batch counts as handled (`no_confirm` alone would commit before the
outputs are there), Faust waits for each output's acknowledgement, quixstreams flushes before each of its commits,
bytewax after each batch, and keeps its offsets itself.

python benchmarks/streaming.py [--rows 300000] [--rounds 1] [--seconds 10] [--only ours,confluent] [--no-latency]

quixstreams, FastStream and bytewax run in an environment of their own, that the script makes with uv and throws away.
"""

# ruff: noqa: PLC0415, ARG001 (each engine imports what it needs; the peers' environment has nothing of ours)
from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

FEATURES = 13
NAMES = [f"f{index:02d}" for index in range(FEATURES)]
PARTITIONS = 4
BATCH = 500
# Deliveries that ours keeps open at once: as many rows as confluent-kafka's loop, the fewer commits the more of them.
OPEN = 16
HEADERS = [("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("ce_specversion", b"1.0")]
PEERS = ("quixstreams", "faststream[confluent]", "bytewax", "confluent-kafka", "onnxruntime", "orjson", "numpy")
SOURCE = "bench-rows"
RATE = 500
# The first of so many parts of the rows does not count.
WARM = 5


class Scorer:
    """The work that every engine does on a batch: parse, score, say."""

    def __init__(self, model: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(Path(model).read_bytes(), options)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, rows: Sequence[bytes]) -> list[bytes]:
        parsed = [orjson.loads(row) for row in rows]
        table = np.array([[row[name] for name in NAMES] for row in parsed], dtype=np.float32)
        shares = self._session.run(None, {self._input: table})[1][:, 1].tolist()
        return [orjson.dumps({"id": row["id"], "p": share}) for row, share in zip(parsed, shares, strict=True)]


# --- the engines: each runs until it is killed ------------------------------------------------------------------------


def ours(servers: str, target: str, scorer: Scorer, folder: str) -> None:
    import uvloop

    from turnout.common.bus.kafka.bus import KafkaBus
    from turnout.common.bus.kafka.settings import KafkaSettings
    from turnout.common.bus.port import Delivery, Record

    async def work() -> None:
        bus = KafkaBus(KafkaSettings(servers=servers, create_topics=False), home=Path(folder))
        room = asyncio.Semaphore(OPEN)

        async def end(delivery: Delivery, produced: Sequence[Record]) -> None:
            await delivery.done(*produced)
            room.release()

        async with asyncio.TaskGroup() as ending:
            async for delivery in bus.consume(SOURCE, group=target):
                records = [received.record for received in delivery.received]
                scored = scorer([record.value or b"" for record in records])
                produced = [Record(target, r.key, value, r.headers) for r, value in zip(records, scored, strict=True)]
                ending.create_task(end(delivery, produced))
                await room.acquire()

    uvloop.run(work())


def aiokafka(servers: str, target: str, scorer: Scorer, folder: str) -> None:
    """Prebuilt batches: what a key's partition is in one topic it is in the other, so nothing is hashed."""
    import uvloop
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    async def work() -> None:
        consumer = AIOKafkaConsumer(
            SOURCE, bootstrap_servers=servers, group_id=target, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        producer = AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True, max_batch_size=512 * 1024)
        await consumer.start()
        await producer.start()
        while True:
            sent: list[Any] = []
            for partition, records in (await consumer.getmany(timeout_ms=1000, max_records=4 * BATCH)).items():
                scored = scorer([record.value for record in records])
                batch = producer.create_batch()
                for record, value in zip(records, scored, strict=True):
                    fields = {"timestamp": None, "key": record.key, "value": value, "headers": list(record.headers)}
                    if batch.append(**fields) is None:
                        sent.append(await producer.send_batch(batch, target, partition=partition.partition))
                        batch = producer.create_batch()
                        batch.append(**fields)
                sent.append(await producer.send_batch(batch, target, partition=partition.partition))
            await asyncio.gather(*sent)
            await consumer.commit()

    uvloop.run(work())


def aiokafka_send(servers: str, target: str, scorer: Scorer, folder: str) -> None:
    """getmany and send, as its documentation has it."""
    import uvloop
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    async def work() -> None:
        consumer = AIOKafkaConsumer(
            SOURCE, bootstrap_servers=servers, group_id=target, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        producer = AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True)
        await consumer.start()
        await producer.start()
        while True:
            sent: list[Any] = []
            for records in (await consumer.getmany(timeout_ms=1000, max_records=4 * BATCH)).values():
                scored = scorer([record.value for record in records])
                sent += [
                    await producer.send(target, value, key=record.key, headers=list(record.headers))
                    for record, value in zip(records, scored, strict=True)
                ]
            await asyncio.gather(*sent)
            await consumer.commit()

    uvloop.run(work())


def confluent(servers: str, target: str, scorer: Scorer, folder: str, batch: int = 20 * BATCH) -> None:
    import confluent_kafka

    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": servers, "group.id": target, "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )  # fmt: skip
    producer = confluent_kafka.Producer({"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 1})
    consumer.subscribe([SOURCE])
    while True:
        messages = consumer.consume(batch, timeout=0.05)
        if not messages:
            continue
        scored = scorer([message.value() for message in messages])
        for message, value in zip(messages, scored, strict=True):
            producer.produce(target, value, key=message.key(), headers=message.headers())
            producer.poll(0)
        producer.flush()
        consumer.commit(asynchronous=False)


def confluent_500(servers: str, target: str, scorer: Scorer, folder: str) -> None:
    confluent(servers, target, scorer, folder, BATCH)


def quixstreams(servers: str, target: str, scorer: Scorer, folder: str) -> None:
    from quixstreams import Application

    app = Application(
        broker_address=servers, consumer_group=target, auto_offset_reset="earliest", state_dir=folder,
        loglevel="ERROR", auto_create_topics=False,
    )  # fmt: skip
    rows = app.topic(SOURCE, value_deserializer="bytes", key_deserializer="bytes")
    scores = app.topic(target, value_serializer="bytes", key_serializer="bytes")
    app.dataframe(rows).apply(lambda row: scorer([row])[0]).to_topic(scores)
    app.run()


def faststream(servers: str, target: str, scorer: Scorer, folder: str) -> None:
    from faststream import AckPolicy, FastStream
    from faststream.confluent import KafkaBroker, KafkaMessage

    broker = KafkaBroker(servers, logger=None)
    scores = broker.publisher(target)

    @broker.subscriber(
        SOURCE, batch=True, max_records=BATCH, group_id=target, auto_offset_reset="earliest",
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )  # fmt: skip
    async def score(messages: list[Any], raw: KafkaMessage) -> None:
        scored = scorer([message.value() for message in raw.raw_message])
        for message, value in zip(raw.raw_message, scored, strict=True):
            headers = {name: content.decode() for name, content in message.headers() or []}
            await scores.publish(value, key=message.key(), headers=headers, no_confirm=True)
        await scores.flush()

    asyncio.run(FastStream(broker, logger=None).run())


def bytewax(servers: str, target: str, scorer: Scorer, folder: str) -> None:
    from datetime import timedelta

    from bytewax import operators as op
    from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
    from bytewax.dataflow import Dataflow
    from bytewax.recovery import RecoveryConfig, init_db_dir
    from bytewax.testing import run_main

    def score(messages: list[Any]) -> list[Any]:
        scored = scorer([message.value for message in messages])
        return [
            KafkaSinkMessage(key=message.key, value=value, headers=message.headers)
            for message, value in zip(messages, scored, strict=True)
        ]

    store = Path(folder) / "recovery"
    store.mkdir()
    init_db_dir(store, 1)
    flow = Dataflow("bench")
    rows = op.input("rows", flow, KafkaSource([servers], [SOURCE], tail=True, batch_size=4 * BATCH))
    scores = op.flat_map_batch("score", rows, score)
    op.output("scores", scores, KafkaSink([servers], target))
    run_main(flow, epoch_interval=timedelta(seconds=1), recovery_config=RecoveryConfig(str(store)))


def faust(servers: str, target: str, scorer: Scorer, folder: str) -> None:
    import faust as library

    app = library.App(
        target, broker=f"kafka://{servers}", value_serializer="raw", key_serializer="raw", web_enabled=False,
        datadir=folder, topic_partitions=PARTITIONS, consumer_auto_offset_reset="earliest",
    )  # fmt: skip
    rows = app.topic(SOURCE, value_serializer="raw")
    scores = app.topic(target, value_serializer="raw")

    @app.agent(rows)
    async def score(stream: Any) -> None:
        async for events in stream.take_events(BATCH, within=0.1):
            scored = scorer([event.value for event in events])
            await asyncio.gather(
                *[
                    await scores.send(key=event.key, value=value, headers=event.headers)
                    for event, value in zip(events, scored, strict=True)
                ]
            )

    app.finalize()
    library.Worker(app, loglevel="ERROR").execute_from_commandline()


ENGINES: dict[str, Callable[[str, str, Scorer, str], None]] = {
    "ours": ours, "confluent": confluent, "confluent-500": confluent_500, "aiokafka": aiokafka,
    "aiokafka-send": aiokafka_send, "quixstreams": quixstreams, "faststream": faststream, "bytewax": bytewax,
    "faust": faust,
}  # fmt: skip
FOREIGN = ("quixstreams", "faststream", "bytewax")


# --- the measuring --------------------------------------------------------------------------------------------------


def train(path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn.ensemble import GradientBoostingClassifier

    draw = np.random.default_rng(0)
    table = draw.normal(size=(2000, FEATURES)).astype(np.float32)
    labels = (table[:, 0] + table[:, 1] * table[:, 2] + draw.normal(size=2000) > 0).astype(int)
    trees = GradientBoostingClassifier(n_estimators=100, random_state=0).fit(table, labels)
    path.write_bytes(to_onnx(trees, table[:1], options={"zipmap": False}).SerializeToString())


def a_row(number: int, draw: np.random.Generator) -> bytes:
    row: dict[str, Any] = {"id": f"{number:08d}"}
    for name, value in zip(NAMES, draw.normal(size=FEATURES), strict=True):
        row[name] = round(float(value), 5)
    return orjson.dumps(row)


def make_topic(servers: str, name: str) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    config = {"message.timestamp.type": "LogAppendTime"}
    admin = AdminClient({"bootstrap.servers": servers})
    for future in admin.create_topics([NewTopic(name, PARTITIONS, 1, config=config)]).values():
        future.result(30)


def fill(servers: str, rows: int) -> float:
    """Write the rows; their mean size in bytes."""
    import confluent_kafka

    make_topic(servers, SOURCE)
    producer = confluent_kafka.Producer({"bootstrap.servers": servers, "linger.ms": 20})
    draw = np.random.default_rng(1)
    size = 0
    for number in range(rows):
        row = a_row(number, draw)
        size += len(row)
        while True:
            try:
                producer.produce(SOURCE, row, key=b"%d" % (number % 1000), headers=HEADERS)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()
    return size / rows


@contextmanager
def engine(
    name: str, python: str, servers: str, target: str, model: Path, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """An engine on a core of its own, where there are two."""
    place = folder / target
    place.mkdir()
    command = [python, __file__, "engine", name, servers, target, str(model), str(place)]
    pinned = ["taskset", "-c", "1", *command] if (os.cpu_count() or 1) > 1 else command
    with (folder / f"{target}.log").open("wb") as log:
        process = subprocess.Popen(pinned, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@dataclass
class Outputs:
    """What came of an engine: different rows, those in a second, and CPU seconds for each; the first fifth does not
    count, so that no engine's start does, nor what it did before it showed its first batch."""

    rows: int
    rate: float
    cpu: float


def outputs(servers: str, target: str, expected: int, process: subprocess.Popen[bytes]) -> Outputs:
    import confluent_kafka

    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": servers, "group.id": f"{target}-check", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([target])
    seen: set[bytes] = set()
    moments: list[int] = []
    came = time.monotonic()
    samples: list[tuple[float, float]] = []
    while len(seen) < expected and time.monotonic() - came < 60 and process.poll() is None:
        samples.append((time.time() * 1000, spent(process.pid)))
        for message in consumer.consume(1000, timeout=0.5):
            if message.error():
                continue
            came = time.monotonic()
            moments.append(message.timestamp()[1])
            assert [(k, v) for k, v in message.headers() if k in dict(HEADERS)] == HEADERS, message.headers()
            seen.add(orjson.loads(message.value())["id"])
    consumer.close()
    moments.sort()
    skipped = len(moments) // WARM
    if not moments or moments[-1] == moments[skipped]:
        return Outputs(len(seen), 0.0, 0.0)
    begin, end = moments[skipped], moments[-1]
    counted = len(moments) - skipped
    # The broker's clock is ours; this reader may be behind the engine.
    before, after = np.interp([begin, end], *zip(*samples, strict=True))
    return Outputs(len(seen), counted / (end - begin) * 1000, float(after - before) / counted)


def spent(pid: int) -> float:
    """CPU seconds of a process; no engine here has another one."""
    import psutil

    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def throughput(
    name: str, target: str, python: str, servers: str, rows: int, model: Path, folder: Path
) -> dict[str, float] | None:
    make_topic(servers, target)
    with engine(name, python, servers, target, model, folder) as process:
        found = outputs(servers, target, rows, process)
    if found.rows < rows or not found.rate:
        tail = (folder / f"{target}.log").read_text(errors="replace")[-600:]
        print(f"{name}: {found.rows} of {rows} rows came; its log ends:\n{tail}")
        return None
    return {"rows": found.rate, "cpu": found.cpu * 1e6}


async def latency(servers: str, target: str, seconds: float) -> list[float]:
    """Milliseconds from when each row was due until its output was read, at a constant rate."""
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    producer = AIOKafkaProducer(bootstrap_servers=servers)
    consumer = AIOKafkaConsumer(target, bootstrap_servers=servers)
    await producer.start()
    await consumer.start()
    # What the topic holds from before would be read first, and make the reader late, not the engine.
    await consumer.seek_to_end()
    for partition in consumer.assignment():
        await consumer.position(partition)
    due: dict[str, float] = {}
    took: list[float] = []
    total = int(RATE * seconds)
    draw = np.random.default_rng(2)
    rows = [a_row(10_000_000 + number, draw) for number in range(total)]

    async def read() -> None:
        async for message in consumer:
            moment = due.get(orjson.loads(message.value)["id"])
            if moment is not None:
                took.append((time.perf_counter() - moment) * 1000)
            if len(took) >= total:
                return

    reading = asyncio.create_task(read())
    began = time.perf_counter() + 0.5
    for number, row in enumerate(rows):
        moment = began + number / RATE
        await asyncio.sleep(max(0.0, moment - time.perf_counter()))
        due[f"{10_000_000 + number:08d}"] = moment
        await producer.send(SOURCE, row, key=b"%d" % (number % 1000), headers=HEADERS)
    await asyncio.wait_for(reading, 60)
    await producer.stop()
    await consumer.stop()
    return took[RATE:]  # the first second warms everything up


def peers(folder: Path) -> str | None:
    """The interpreter of an environment with the peers; None if they cannot be had."""
    uv = str(Path(sys.executable).with_name("uv"))
    python = folder / "peers" / "bin" / "python"
    try:
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder / "peers")], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *PEERS], check=True)
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"without quixstreams, FastStream and bytewax: {error}")
        return None
    return str(python)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--only", default=",".join(ENGINES))
    parser.add_argument("--no-latency", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends too
    from turnout.devstack.stack import running

    names = given.only.split(",")
    with tempfile.TemporaryDirectory() as place, running(Path(place) / "stack", "kafka") as stack:
        folder = Path(place)
        model = folder / "model.onnx"
        train(model)
        size = fill(stack.kafka, given.rows)
        foreign = peers(folder) if any(name in FOREIGN for name in names) else None
        print(f"{given.rows} rows of {size:.0f} bytes, {PARTITIONS} partitions\n")
        found: dict[str, list[dict[str, float]]] = {}
        for number in range(given.rounds):
            for name in names:
                python = foreign if name in FOREIGN else sys.executable
                target = f"bench-{name}-{number}"
                if python and (one := throughput(name, target, python, stack.kafka, given.rows, model, folder)):
                    found.setdefault(name, []).append(one)
        middle = {
            name: {key: statistics.median(one[key] for one in many) for key in ("rows", "cpu")}
            for name, many in found.items()
        }
        best = middle.get("ours", {}).get("rows")
        print(f"{'engine':14} {'rows/s':>10} {'ours is':>8} {'µs CPU each':>12}")
        for name, one in middle.items():
            ratio = f"{best / one['rows']:.2f} ×" if best else ""
            print(f"{name:14} {one['rows']:10,.0f} {ratio:>8} {one['cpu']:12.1f}")
        if given.no_latency:
            return
        print(f"\n{RATE} rows/s, from due to read, ms\n{'engine':12} {'p50':>8} {'p99':>8}")
        for name in ("ours", "aiokafka", "aiokafka-send", "confluent-500"):
            target = f"bench-late-{name}"
            make_topic(stack.kafka, target)
            with engine(name, sys.executable, stack.kafka, target, model, folder) as process:
                # What the topic already holds comes first.
                outputs(stack.kafka, target, given.rows, process)
                took = sorted(asyncio.run(latency(stack.kafka, target, given.seconds)))
            print(f"{name:12} {statistics.median(took):8.1f} {took[int(len(took) * 0.99)]:8.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["engine"]:
        _, _, name, servers, target, model, folder = sys.argv
        scorer = Scorer(model)
        # As `turnout run` does it.
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)
        ENGINES[name](servers, target, scorer, folder)
    else:
        main()
