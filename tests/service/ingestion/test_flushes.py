"""What a flush of observations costs in the lake does not grow with the number of those before it."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from builders import AT
from environment import declare
from pydantic import SecretStr

from turnout.common.events import ObservationReceived
from turnout.common.lake.bucket import Bucket
from turnout.common.lake.s3 import S3Lake
from turnout.common.lake.settings import LakeSettings
from turnout.common.pipeline import PipelineFile
from turnout.common.runtime.environment import Environment
from turnout.devstack.server import free_port
from turnout.devstack.web import s3
from turnout.ingestion.adapters.extraction import kept_schema
from turnout.ingestion.reactions import Observing

FILE = PipelineFile.model_validate(
    {
        "pipeline": "p", "task": "classification", "schema": {"id": "category", "at": "timestamp", "age": "number"},
        "source": {"label": "y", "entity": "id", "event_time": "at"},
    }
)  # fmt: skip
# What the system's calls look for below the lake, once the test has begun to listen; hooks cannot be taken away.
_heard: list[str] | None = None


def _hear(event: str, given: tuple[object, ...]) -> None:
    if _heard is not None and event in {"open", "os.listdir", "os.scandir"}:
        _heard.append(f"{event} {given[0]}")


sys.addaudithook(_hear)


@contextmanager
def hearing(into: list[str]):
    global _heard  # noqa: PLW0603 (an audit hook has no other place)
    _heard = into
    try:
        yield
    finally:
        _heard = None


def observed(number: int) -> ObservationReceived:
    return ObservationReceived.first(
        source="/test", at=AT, id=f"o{number}", pipeline="p", entity=f"e{number % 3}",
        event_time=AT + timedelta(seconds=number), values={"age": float(number)},
    )  # fmt: skip


def observing(environment: Environment) -> Observing:
    return Observing(environment.lake, environment.pipelines, kept_schema, environment.now)


@pytest.fixture
async def requests(environment: Environment, tmp_path: Path) -> AsyncIterator[Callable[[], list[str]]]:
    """The environment's lake on an S3 server of the test's own, and every request that this server has answered."""
    server = s3(tmp_path / "s3", free_port())
    server.start()
    server.wait()
    settings = LakeSettings(
        uri="s3://lake/in/here", endpoint=f"http://{server.address}", access_key="any", secret_key=SecretStr("any")
    )
    Bucket(settings)._client.create_bucket(Bucket="lake")
    environment.__dict__["lake"] = S3Lake(settings, tmp_path / "staging")
    log = tmp_path / "s3" / "log"
    try:
        yield lambda: re.findall(r'"([A-Z]+ /lake\S*) HTTP', log.read_text())
    finally:
        server.kill()


async def flush_until(flushing: Observing, numbers: range) -> None:
    for number in numbers:
        assert await flushing([observed(number)]) == []


@pytest.mark.stack
async def test_requests_of_a_flush_to_s3(environment: Environment, requests: Callable[[], list[str]]) -> None:
    await declare(environment, FILE)
    flushing = observing(environment)

    async def flush(number: int) -> list[str]:
        before = len(requests())
        assert await flushing([observed(number)]) == []
        return requests()[before:]

    await flush_until(flushing, range(5))
    with_few = await flush(5)
    await flush_until(flushing, range(6, 200))
    with_many = await flush(200)
    print(f"requests of a flush: {len(with_few)} with 5 batches there, {len(with_many)} with 200")
    assert len(with_many) == len(with_few) <= 8, with_many
    assert not [one for one in with_many if "list-type" in one], with_many

    # A process that begins looks into as many as may hold what comes again, and never into all.
    flushing = observing(environment)
    begins = await flush(201)
    print(f"of the first flush of a process: {len(begins)} with 201")
    assert not [one for one in begins if "list-type" in one], begins
    assert len({one for one in begins if one.endswith("manifest.json") and one.startswith("GET")}) <= 64 + 1
    assert len(list(environment.lake.manifests("raw", "p"))) == 202


async def test_files_that_a_flush_opens_in_a_folder(environment: Environment) -> None:
    await declare(environment, FILE)
    flushing = observing(environment)

    async def flush(number: int) -> list[str]:
        heard: list[str] = []
        with hearing(heard):
            assert await flushing([observed(number)]) == []
        return [one for one in heard if str(environment.home / "lake") in one]

    await flush_until(flushing, range(5))
    with_few = await flush(5)
    await flush_until(flushing, range(6, 200))
    with_many = await flush(200)
    print(f"opened by a flush: {len(with_few)} with 5 batches there, {len(with_many)} with 200")
    assert len(with_many) == len(with_few), with_many
    folder = str(environment.home / "lake" / "raw" / "p")
    assert not [one for one in with_many if one.endswith(folder) and not one.startswith("open")], with_many
    assert len(list(environment.lake.manifests("raw", "p"))) == 201
