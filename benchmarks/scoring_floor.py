"""One-row REST scoring beside the bare floor: an ASGI function on uvicorn, uvloop, httptools and orjson that calls
onnxruntime, with no validation, no routing, nothing kept.

Both score the same 100 boosted trees over 13 numbers, in a process of their own on one core, asked from another core
over keep-alive connections; every request is another row. Ours has everything on: validation, router, outbox (every
score durable before its reply), relay to the bus, metrics.

python benchmarks/scoring_floor.py [--seconds 2]
"""

# ruff: noqa: PLC0415 (each server imports what it needs and nothing of the other's)
from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import psutil
import uvloop

FEATURES = 13
NAMES = [f"f{index}" for index in range(FEATURES)]
CONNECTIONS = (1, 16, 64)
PATH = "/pipelines/bench/score"


def train() -> tuple[bytes, bytes]:
    """The trees as one graph over a packed tensor (the floor's) and over one tensor per column (ours)."""
    import onnx
    from onnx import TensorProto, compose, helper
    from skl2onnx import to_onnx
    from sklearn.ensemble import GradientBoostingClassifier

    draw = np.random.default_rng(0)
    table = draw.normal(size=(2000, FEATURES)).astype(np.float32)
    labels = (table[:, 0] + table[:, 1] * table[:, 2] + draw.normal(size=2000) > 0).astype(int)
    trees = GradientBoostingClassifier(n_estimators=100, random_state=0).fit(table, labels)
    packed = to_onnx(trees, table[:1], options={"zipmap": False}, target_opset={"": 18, "ai.onnx.ml": 3})
    del packed.graph.output[0]
    inputs = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [None, 1]) for name in NAMES]
    joined = helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, FEATURES])
    nodes = [
        helper.make_node("Concat", NAMES, ["X64"], axis=1),
        helper.make_node("Cast", ["X64"], ["X"], to=TensorProto.FLOAT),
    ]
    front = helper.make_model(
        helper.make_graph(nodes, "front", inputs, [joined]),
        opset_imports=list(packed.opset_import), ir_version=packed.ir_version,
    )  # fmt: skip
    columns = compose.merge_models(front, packed, io_map=[("X", packed.graph.input[0].name)], prefix1="front_")
    for node in columns.graph.node:
        node.input[:] = [
            name.removeprefix("front_") if name.removeprefix("front_") in NAMES else name for name in node.input
        ]
    for given in columns.graph.input:
        given.name = given.name.removeprefix("front_")
    onnx.checker.check_model(columns)
    return packed.SerializeToString(), columns.SerializeToString()


# --- the two servers --------------------------------------------------------------------------------------------------


def floor(port: int, model: Path) -> None:
    """The bare floor."""
    import onnxruntime as ort
    import uvicorn

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            body = b"{}"
        else:
            message = await receive()
            row = orjson.loads(message["body"])["rows"][0]
            (probabilities,) = session.run(None, {name: np.array([[row[n] for n in NAMES]], dtype=np.float32)})
            body = orjson.dumps({"rows": [{"probabilities": probabilities[0].tolist()}]})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(app, port=port, loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="error")


def ours(port: int, model: Path, durability: str) -> None:
    """Turnout's scoring service alone, with one version routed."""
    from turnout.common.cli.running import spare_garbage
    from turnout.common.events import (
        Column,
        ModelReady,
        PipelineDeclared,
        Prior,
        RoutingChanged,
        RoutingTable,
        Target,
    )
    from turnout.common.pipeline import parse
    from turnout.common.runtime import logs
    from turnout.common.runtime.environment import Environment
    from turnout.common.runtime.run import serve
    from turnout.common.runtime.settings import RuntimeSettings
    from turnout.scoring.service import build
    from turnout.scoring.settings import ScoringSettings

    logs.configure("error", console=False)

    content = model.read_bytes()

    async def run(home: Path) -> None:
        environment = Environment(RuntimeSettings(home=home))
        at = datetime.now(UTC)
        common: dict[str, Any] = {"source": "/bench", "at": at, "pipeline": "bench"}
        spec = parse("pipeline: bench\ntask: classification\nsource: {label: y}\nscoring: {slo_ms: 1000}\n")
        file = environment.lake.put_model("bench", content)
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        await environment.bus.publish(
            PipelineDeclared.first(**common, spec=spec, spec_id=spec.spec_id),
            ModelReady.first(
                **common, version="1", file=file, inputs=tuple(Column(name=n, kind="number") for n in NAMES),
                target=Target(task="classification", label="y", classes=("0", "1")), prior=Prior(value="0"),
                sample=(dict.fromkeys(NAMES, 0.5),),
            ),
            RoutingChanged.first(**common, table=RoutingTable(version=1, champion="1"), why="bench"),
        )  # fmt: skip
        service = build(environment, ScoringSettings(durability=durability))  # type: ignore[arg-type]
        spare_garbage()
        await serve(environment, [service], port=port)
        await environment.close()

    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(run(Path(folder)))


# --- the load ---------------------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """Sends the next request when the answer to the one before is there."""

    def __init__(self, request: Callable[[], bytes], took: list[float], until: float) -> None:
        self._request = request
        self._took = took
        self._until = until
        self._buffer = b""
        self._sent = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self._buffer.decode()))
            return
        self._buffer = body[length:]
        now = time.perf_counter()
        self._took.append(now - self._sent)
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None) if exc is None else self.done.set_exception(exc)

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request())


async def load(port: int, connections: int, seconds: float) -> list[float]:
    """Seconds that each request took."""
    bodies = rows()
    took: list[float] = []
    until = time.perf_counter() + seconds
    loop = asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: Connection(lambda: next(bodies), took, until), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(one.done for one in made))
    return took


def rows() -> Any:
    """Requests, each with another row."""
    draw = random.Random(1)
    ready: list[bytes] = []
    for _ in range(5000):
        body = orjson.dumps({"rows": [{name: draw.gauss(0, 1) for name in NAMES}]})
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        ready.append(head.encode() + body)
    while True:
        yield from ready


def measure(server: psutil.Process, port: int, seconds: float) -> dict[int, Measured]:
    """Per number of connections, what was measured."""
    results: dict[int, Measured] = {}
    uvloop.run(load(port, 16, 1.5))  # warm, and our version proven
    for connections in CONNECTIONS:
        before = sum(server.cpu_times()[:2])
        took = uvloop.run(load(port, connections, seconds))
        spent = sum(server.cpu_times()[:2]) - before
        ordered = sorted(took)
        p50, p99 = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
        results[connections] = Measured(len(took) / seconds, p50 * 1000, p99 * 1000, spent / len(took) * 1e6)
    return results


class Measured(NamedTuple):
    """Requests a second, milliseconds, and microseconds of the server's processor time for each request."""

    rate: float
    p50: float
    p99: float
    cpu: float


def served(arguments: list[str], port: int, ready: str, seconds: float) -> dict[int, Measured]:
    """Start a server, wait until it is ready, measure it, end it."""
    process = subprocess.Popen([sys.executable, __file__, "--serve", *arguments, "--port", str(port)])
    try:
        give_up = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=1).read()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > give_up:
                    sys.exit(f"{arguments[0]} did not start")
                time.sleep(0.05)
        return measure(psutil.Process(process.pid), port, seconds)
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load per number of connections")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if options.serve:
        os.sched_setaffinity(0, cores[:1])
        kind, model, *rest = options.serve
        if kind == "floor":
            floor(options.port, Path(model))
        else:
            ours(options.port, Path(model), *rest)
        return
    with tempfile.TemporaryDirectory() as folder:
        packed, columns = Path(folder) / "packed.onnx", Path(folder) / "columns.onnx"
        for path, content in zip((packed, columns), train(), strict=True):
            path.write_bytes(content)
        os.sched_setaffinity(0, cores[-1:])
        runs = {"floor": served(["floor", str(packed)], free_port(), "/", options.seconds)}
        for durability in ("NORMAL", "FULL"):
            name = f"turnout, synchronous={durability}"
            runs[name] = served(["ours", str(columns), durability], free_port(), "/readyz", options.seconds)
    heads = (f"{f'c{c} req/s':>11}{'x floor':>9}{'p50 ms':>8}{'p99 ms':>8}{'cpu us':>8}" for c in CONNECTIONS)
    print(f"{'':32}" + "".join(heads))
    for name, results in runs.items():
        line = f"{name:32}"
        for connections in CONNECTIONS:
            rate, p50, p99, cpu = results[connections]
            line += f"{rate:11,.0f}{rate / runs['floor'][connections].rate:9.2f}{p50:8.2f}{p99:8.2f}{cpu:8.0f}"
        print(line)


if __name__ == "__main__":
    main()
