"""Ingestion put together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path

import pyarrow as pa
import structlog
from fastapi import FastAPI

from turnout.common.errors import Unavailable
from turnout.common.events import (
    EntityForgotten,
    ObservationReceived,
    PipelineDeclared,
    PipelineRemoved,
    SourceDataAvailable,
    TopicPullRequested,
    Warn,
)
from turnout.common.lake.port import Lake
from turnout.common.pipeline import Source
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Clock, Reaction, Service
from turnout.common.runtime.warming import Warming
from turnout.ingestion.adapters.extraction import extract, kept_schema, open_source, warm
from turnout.ingestion.adapters.files import examine, find
from turnout.ingestion.http import routes
from turnout.ingestion.ports import Limits
from turnout.ingestion.pulling import Pulling
from turnout.ingestion.reactions import Extraction, Forgetting, Observing, Removing
from turnout.ingestion.settings import IngestionSettings
from turnout.ingestion.topics import Topics

log = structlog.get_logger()
_SWEEP_EVERY = timedelta(hours=1)


def build(environment: Environment) -> Service:
    """The service over what the process offers."""
    settings = IngestionSettings()
    limits = Limits(
        piece_bytes=settings.piece_bytes,
        threads=settings.threads,
        expansion=settings.expansion,
        expansion_floor=settings.expansion_floor,
    )
    lake, pipelines, now = environment.lake, environment.pipelines, environment.now
    extraction = Extraction(
        lake, pipelines, environment.executor, extract,
        roots=(*environment.settings.source_roots, environment.home), limits=limits, now=now,
    )  # fmt: skip
    observing = Observing(
        lake, pipelines, kept_schema, now,
        pace=timedelta(seconds=settings.flush_seconds), enough=settings.flush_rows,
    )  # fmt: skip
    topics = Topics(pipelines, observing.schema)
    pulling = Pulling(environment.bus, pipelines, topics, now)
    app = FastAPI(title="Turnout ingestion", description="Files and observations into the lake.")
    app.include_router(routes(environment.bus, observing.check, environment.keys.require("score"), now))
    age = timedelta(hours=settings.sweep_hours)
    warming = Warming(environment, partial(warm, lake), lambda: asyncio.to_thread(lake.warm))
    return Service(
        name="ingestion",
        reactions=[
            Reaction("extract", [SourceDataAvailable], extraction, long=True, parallel=settings.parallel),
            Reaction("observe", [ObservationReceived], observing),
            Reaction("pull", [TopicPullRequested], pulling, long=True, parallel=settings.pulls),
            Reaction("forget", [EntityForgotten], Forgetting(lake, pipelines)),
            Reaction("remove", [PipelineRemoved], Removing(lake)),
        ],
        app=app,
        background=[lambda: _sweep(lake, now, age), pulling.schedule, warming.warm_up],
        follows=[PipelineDeclared, PipelineRemoved],
        passing=topics.streams,
        waiting_for=lambda: [*warming.waiting_for(), *pulling.waiting_for()],
    )


def first_rows(uri: str, source: Source) -> tuple[Mapping[str, pa.Array], list[Warn]]:
    """The columns of the first rows of what `uri` names, and what a person should know of them; for `turnout init`.

    Raises `Invalid` where they cannot be read.
    """
    limits = Limits()
    file = examine(find(uri, [Path("/")])[0], source.format, limits)
    opened = open_source(file, source, limits)
    return opened.sample(), opened.warnings


async def _sweep(lake: Lake, now: Clock, age: timedelta) -> None:
    """Take away what writers left that died, now and every hour."""
    while True:
        try:
            files = await asyncio.to_thread(lake.sweep, now() - age)
        except Unavailable as error:
            log.warning("the lake could not be swept", error=str(error))
        else:
            log.info("lake swept", files=files)
        await asyncio.sleep(_SWEEP_EVERY.total_seconds())
