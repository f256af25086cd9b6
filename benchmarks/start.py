"""Start-up time and memory of `turnout up`, beside an empty FastAPI application on uvicorn; time of the demo.

python benchmarks/start.py [--runs 3] [--demo]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]
TURNOUT = str(Path(sys.executable).with_name("turnout"))
EMPTY = "from fastapi import FastAPI; import uvicorn; app = FastAPI(); uvicorn.run(app, port={port}, log_level='error')"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def measure(command: list[str], url: str, environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Seconds until `url` answers, and MiB of the process and its children a second later."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
    )
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url).status_code < 500:
                    break
            if process.poll() is not None:
                sys.exit(f"{command[0]} ended with exit code {process.returncode}")
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        time.sleep(1)
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        return seconds, sum(p.memory_info().rss for p in tree) / 2**20
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--demo", action="store_true", help="also time the demo")
    given = parser.parse_args()
    ours: list[tuple[float, float]] = []
    empty: list[tuple[float, float]] = []
    for _ in range(given.runs):
        port = free_port()
        empty.append(measure([sys.executable, "-c", EMPTY.format(port=port)], f"http://127.0.0.1:{port}/docs"))
        port = free_port()
        with tempfile.TemporaryDirectory() as home:
            ours.append(
                measure([TURNOUT, "up", "--home", home, "--port", str(port)], f"http://127.0.0.1:{port}/readyz")
            )
    report = {
        name: {
            "seconds": round(statistics.median(s for s, _ in runs), 2),
            "MiB": round(statistics.median(m for _, m in runs)),
        }
        for name, runs in (("turnout up", ours), ("empty FastAPI", empty))
    }
    report["ratio"] = {
        key: round(report["turnout up"][key] / report["empty FastAPI"][key], 1) for key in ("seconds", "MiB")
    }
    if given.demo:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as home:
            demo = [
                sys.executable,
                str(ROOT / "examples/breast_cancer/demo.py"),
                "--home",
                home,
                "--port",
                str(free_port()),
            ]
            subprocess.run(demo, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        report["demo"] = {"seconds": round(time.perf_counter() - began, 1)}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
