"""Why one row costs a model several times as much inside a server as in a loop of its own.

Times the same run of 100 boosted trees (`scoring_floor.py`): back to back; with a server's other work between two runs;
with a part of the processor's caches used up between them; after the core has slept; and inside the bare floor at
several numbers of connections. Medians of wall time, one thread, one core.

python benchmarks/model_in_server.py [--seconds 2]
"""

# ruff: noqa: PLC0415 (the server imports what it needs)
from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
import uvloop
from scoring_floor import FEATURES, NAMES, free_port, load, train

RUNS = 3000


def session_of(model: Path) -> ort.InferenceSession:
    """The trees on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])


def median(run: Callable[[int], object], between: Callable[[], object]) -> float:
    """Microseconds of a run, with something done before each."""
    took: list[float] = []
    for number in range(RUNS):
        between()
        began = time.perf_counter()
        run(number)
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


def alone(model: Path) -> dict[str, float]:
    """What a run costs after each kind of work."""
    session = session_of(model)
    name = session.get_inputs()[0].name
    rows = np.random.default_rng(0).normal(size=(1000, 1, FEATURES)).astype(np.float32)
    body = orjson.dumps({"rows": [dict.fromkeys(NAMES, 0.5)]})
    here, there = socket.socketpair()
    caches = np.zeros(4 * 1024 * 1024 // 8)

    def like_a_server() -> None:
        here.send(body)
        orjson.dumps(orjson.loads(there.recv(65536)))

    return {
        "back to back": median(lambda n: session.run(None, {name: rows[n % 1000]}), lambda: None),
        "after a socket and JSON": median(lambda n: session.run(None, {name: rows[n % 1000]}), like_a_server),
        "after 4 MB of other memory": median(lambda n: session.run(None, {name: rows[n % 1000]}), caches.sum),
        "after 0.3 ms of sleep": median(
            lambda n: session.run(None, {name: rows[n % 1000]}), lambda: time.sleep(0.0003)
        ),
    }  # fmt: skip


def serve(port: int, model: Path) -> None:
    """The bare floor, which says on GET how long its runs took."""
    import uvicorn

    session = session_of(model)
    name = session.get_inputs()[0].name
    took: list[float] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            body = orjson.dumps(statistics.median(took) * 1e6 if took else 0)
            took.clear()
        else:
            row = orjson.loads((await receive())["body"])["rows"][0]
            cells = np.array([[row[n] for n in NAMES]], dtype=np.float32)
            began = time.perf_counter()
            (probabilities,) = session.run(None, {name: cells})
            took.append(time.perf_counter() - began)
            body = orjson.dumps({"rows": [{"probabilities": probabilities[0].tolist()}]})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(app, port=port, loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="error")


def inside(model: Path, seconds: float) -> dict[str, float]:
    """What a run costs inside the server, by the number of connections."""
    port = free_port()
    process = subprocess.Popen([sys.executable, __file__, "--serve", str(model), "--port", str(port)])
    found: dict[str, float] = {}
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).read()
                break
            except OSError:
                time.sleep(0.05)
        for connections in (1, 4, 16, 64):
            uvloop.run(load(port, connections, seconds))
            reply = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).read()
            found[f"in the server, {connections} connections"] = orjson.loads(reply)
    finally:
        process.terminate()
        process.wait(20)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load per number of connections")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if options.serve:
        os.sched_setaffinity(0, cores[:1])
        serve(options.port, options.serve)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "packed.onnx"
        model.write_bytes(train()[0])
        os.sched_setaffinity(0, cores[-1:])
        results = alone(model) | inside(model, options.seconds)
    first = next(iter(results.values()))
    for name, microseconds in results.items():
        print(f"{name:34}{microseconds:8.1f} us{microseconds / first:7.1f} x")


if __name__ == "__main__":
    main()
