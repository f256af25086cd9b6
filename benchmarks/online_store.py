"""Online features of 13 columns: reads of 1 and of 100 entities, and writes of many, on one Redis, in one run.

python benchmarks/online_store.py [--rounds 2000] [--entities 1000] [--written 50000] [--no-feast]

Reads are ours, bare redis-py and Feast; writes (a refill's) ours and redis-py's pipelines of 500, into empty keys:
`bare` only sets, `bare, compared` keeps what is newer as ours does, with redis-py's WATCH, MGET and MULTI.

Bare is `redis.asyncio`: one MGET of packed values, each parsed by orjson; `bytes only` leaves the parsing out. Ours
and bare take turns, read by read, on the loop that the services use. Feast runs in an environment of its own, that the
script makes with uv and throws away, with its Redis online store on the same server.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import orjson
import redis.asyncio as aioredis
import uvloop

from turnout.common.online.port import Put
from turnout.common.online.redis import RedisOnlineStore, RedisSettings
from turnout.devstack.redis import redis
from turnout.devstack.server import Server, free_port

COLUMNS = 13
SIZES = (1, 100)
AT_ONCE = 500
AT = datetime(2026, 1, 1, tzinfo=UTC)
UV = str(Path(sys.executable).with_name("uv"))
FEAST = """
import json, statistics, sys, time, warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path

warnings.filterwarnings("ignore")
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, __version__
from feast.types import Float64

server, entities, rounds, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
columns = [f"feature_{i}" for i in range(13)]
rows = pd.DataFrame({"id": [f"e-{i}" for i in range(entities)]})
for at, name in enumerate(columns):
    rows[name] = [1.37 * at + i for i in range(entities)]
rows["at"] = datetime.now(timezone.utc)
rows.to_parquet(folder / "rows.parquet")
store = FeatureStore(config=RepoConfig(
    project="bench", provider="local", registry=str(folder / "registry.db"), entity_key_serialization_version=3,
    online_store={"type": "redis", "connection_string": server}, offline_store={"type": "file"},
))
entity = Entity(name="patient", join_keys=["id"])
view = FeatureView(
    name="heart", entities=[entity], ttl=timedelta(0), schema=[Field(name=c, dtype=Float64) for c in columns],
    source=FileSource(path=str(folder / "rows.parquet"), timestamp_field="at"),
)
store.apply([entity, view])
store.write_to_online_store("heart", rows)
asked = [f"heart:{c}" for c in columns]
found = {"version": __version__}
for size in (1, 100):
    some = [{"id": f"e-{i}"} for i in range(size)]
    answer = store.get_online_features(features=asked, entity_rows=some).to_dict()
    assert answer["feature_12"][0] == rows["feature_12"][0], answer
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        store.get_online_features(features=asked, entity_rows=some).to_dict()
        took.append(time.perf_counter() - began)
    found[str(size)] = statistics.median(took) * 1e6
print(json.dumps(found))
"""

Read = Callable[[], Awaitable[object]]


async def take_turns(reads: dict[str, Read], rounds: int) -> dict[str, list[float]]:
    """Seconds of each read, the readers one after the other in every round."""
    took: dict[str, list[float]] = {name: [] for name in reads}
    for turn in range(rounds + rounds // 10):
        for name, read in reads.items():
            began = time.perf_counter()
            await read()
            if turn >= rounds // 10:
                took[name].append(time.perf_counter() - began)
    return took


async def sets(bare: aioredis.Redis, puts: Sequence[Put]) -> None:
    """redis-py's pipelines of SET, whatever is there."""
    for start in range(0, len(puts), AT_ONCE):
        async with bare.pipeline(transaction=False) as pipe:
            for who, values, at in puts[start : start + AT_ONCE]:
                pipe.set(f"bench:f:heart:{who}", orjson.dumps([int(at.timestamp() * 1e6), values]))
            await pipe.execute()


async def compared(bare: aioredis.Redis, puts: Sequence[Put]) -> None:
    """redis-py's WATCH, MGET and MULTI: what is newer stays, as with ours."""
    for start in range(0, len(puts), AT_ONCE):
        some = puts[start : start + AT_ONCE]
        keys = [f"bench:f:heart:{who}" for who, _, _ in some]
        async with bare.pipeline() as pipe:
            await pipe.watch(*keys)
            there = await pipe.mget(keys)
            pipe.multi()
            for key, found, (_, values, at) in zip(keys, there, some, strict=True):
                stamp = int(at.timestamp() * 1e6)
                if found is None or orjson.loads(found)[0] <= stamp:
                    pipe.set(key, orjson.dumps([stamp, values]))
            await pipe.execute()


async def writes(store: RedisOnlineStore, bare: aioredis.Redis, puts: Sequence[Put]) -> dict[str, float]:
    """Entities a second into an empty server: the median of five turns of each."""
    ways: dict[str, Callable[[Sequence[Put]], Awaitable[object]]] = {
        "ours": lambda puts: store.put_many("heart", puts),
        "bare": lambda puts: sets(bare, puts),
        "bare, compared": lambda puts: compared(bare, puts),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(5):
        for name, write in ways.items():
            await bare.flushall()
            began = time.perf_counter()
            for start in range(0, len(puts), 2 * AT_ONCE):
                await write(puts[start : start + 2 * AT_ONCE])
            rates[name].append(len(puts) / (time.perf_counter() - began))
            assert await bare.dbsize() == len(puts)
    median = {name: statistics.median(each) for name, each in rates.items()}
    report = {f"{name}, entities/s": float(round(rate)) for name, rate in median.items()}
    return report | {f"ours / {name}": round(median["ours"] / median[name], 2) for name in ("bare", "bare, compared")}


async def ours_and_bare(server: Server, entities: int, rounds: int, written: int) -> dict[str, dict[str, float]]:
    values = {f"feature_{i}": 1.37 * i for i in range(COLUMNS)}
    store = RedisOnlineStore(RedisSettings(url=f"redis://{server.address}", prefix="bench:"))
    names = [f"e-{i}" for i in range(entities)]
    bare = aioredis.Redis(host="127.0.0.1", port=server.port)
    report = {"writes": await writes(store, bare, [(f"w-{i}", values, AT) for i in range(written)])}
    await store.put_many("heart", [(name, values, AT) for name in names])
    for size in SIZES:
        some = names[:size]
        keys = [f"bench:f:heart:{name}" for name in some]

        async def packed(keys: list[str] = keys) -> object:
            return await bare.mget(keys)

        async def parsed(keys: list[str] = keys) -> object:
            return [orjson.loads(value) for value in await bare.mget(keys)]

        async def ours(some: list[str] = some) -> object:
            return await store.get_many("heart", some)

        found = await store.get_many("heart", some)
        assert all(found[name].values == values for name in some)
        took = await take_turns({"ours": ours, "bare": parsed, "bare, bytes only": packed}, rounds)
        report[str(size)] = {name: round(statistics.median(each) * 1e6, 1) for name, each in took.items()}
        report[str(size)] |= {"ours, p99": round(statistics.quantiles(took["ours"], n=100)[98] * 1e6, 1)}
    await bare.aclose()
    await store.close()
    return report


def feast(server: Server, entities: int, rounds: int) -> dict[str, float] | str:
    """Microseconds of Feast by entities, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        python = f"{folder}/venv/bin/python"
        try:
            subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, f"{folder}/venv"], check=True)
            subprocess.run(
                [UV, "pip", "install", "--quiet", "--python", python, "feast[redis]"],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
        except (OSError, subprocess.CalledProcessError) as error:
            return f"skipped: Feast could not be installed ({getattr(error, 'stderr', None) or error})"
        command = [python, "-c", FEAST, server.address, str(entities), str(rounds), folder]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            return f"skipped: Feast failed: {done.stderr.strip().splitlines()[-1:]}"
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--entities", type=int, default=1000)
    parser.add_argument("--written", type=int, default=50_000, help="entities of a turn of writing")
    parser.add_argument("--no-feast", action="store_true", help="leave Feast out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = redis(Path(folder), free_port())
        server.start()
        try:
            server.wait()
            report = uvloop.run(ours_and_bare(server, given.entities, given.rounds, given.written))
            other = "left out" if given.no_feast else feast(server, given.entities, min(given.rounds, 500))
        finally:
            server.stop()
    print("median microseconds; ratios: ours / bare (aim: 1.2 at most), Feast / ours (aim: 4 for 1, 20 for 100)")
    for size in SIZES:
        row = report[str(size)]
        row["ours / bare"] = round(row["ours"] / row["bare"], 2)
        row["ours / bare, bytes only"] = round(row["ours"] / row["bare, bytes only"], 2)
        if isinstance(other, dict):
            row["Feast"] = round(other[str(size)], 1)
            row["Feast / ours"] = round(other[str(size)] / row["ours"], 1)
    print(json.dumps(report, indent=2))
    print(f"Feast: {other if isinstance(other, str) else other['version']}")


if __name__ == "__main__":
    main()
