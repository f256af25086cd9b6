"""Monitoring over REST: reports for whoever may read, decisions for whoever may decide, and one page to look at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from starlette.requests import Request

from turnout.common.events import RoutingTable
from turnout.common.history.port import HistoryStore, Joined
from turnout.common.runtime import problems
from turnout.monitoring.domain import page, report
from turnout.monitoring.domain.progress import Progress
from turnout.monitoring.domain.report import AuditLine, PipelineLine, PipelineReport, Quality
from turnout.monitoring.reactions import Watch

# Outcomes of a version that a report looks at.
OUTCOMES = 5_000
VersionName = Annotated[str, Field(min_length=1, max_length=200, coerce_numbers_to_str=True)]
Caller = Callable[[Request], Awaitable[str]]


class Reason(BaseModel):
    """Why somebody decides so, for the audit trail."""

    why: str = Field(default="", max_length=1_000)


class Promotion(Reason):
    """Which version shall answer."""

    version: VersionName


class Forgetting(Reason):
    """Whom to forget."""

    entity: str = Field(min_length=1, max_length=200)


NO_REASON = Reason()


class Done(BaseModel):
    """The event that carries the decision to every service."""

    event: str
    at: datetime


class Reports:
    """Reads what a report needs and puts it together."""

    def __init__(self, watch: Watch, history: HistoryStore, progress: Progress) -> None:
        self._watch = watch
        self._history = history
        self._progress = progress

    async def lines(self) -> list[PipelineLine]:
        """Every pipeline."""
        return [
            await self._watch.ask(name, lambda standing, name=name: report.line(standing, self._progress.of(name)))
            for name in await self._watch.names()
        ]

    async def pipeline(self, pipeline: str) -> PipelineReport:
        """One pipeline whole. Raises `Unknown`."""
        joined = await self._joined(pipeline)
        stage = self._progress.of(pipeline)
        return await self._watch.ask(pipeline, lambda standing: report.report(standing, stage, joined))

    async def quality(self, pipeline: str) -> dict[str, Quality]:
        """Predicted against actual, per version. Raises `Unknown`."""
        joined = await self._joined(pipeline)
        return await self._watch.ask(
            pipeline,
            lambda standing: {version: report.quality(standing, version, pairs) for version, pairs in joined.items()},
        )

    async def audit(self, pipeline: str, limit: int) -> list[AuditLine]:
        """A pipeline's decisions, newest first; those of a removed one too. Raises `Unknown`."""
        entries = await self._history.audit(pipeline, limit=limit)
        if not entries:
            await self._watch.ask(pipeline, lambda _: None)
        return [report.audit_line(entry) for entry in entries]

    async def _joined(self, pipeline: str) -> dict[str, list[Joined]]:
        versions = await self._watch.ask(pipeline, report.versions)
        return {v: list(await self._history.joined(pipeline, version=v, limit=OUTCOMES)) for v in versions}


async def _admin(request: Request) -> str:
    callers: Callers = request.app.state.callers
    return await callers.admin(request)


async def _reader(request: Request) -> str:
    callers: Callers = request.app.state.callers
    return await callers.read(request)


Who = Annotated[str, Depends(_admin)]
MAY_READ = [Depends(_reader)]


@dataclass(frozen=True)
class Callers:
    """Who may read and who may decide."""

    read: Caller
    admin: Caller


def app(watch: Watch, reports: Reports, callers: Callers) -> FastAPI:
    """Monitoring's own routes."""
    made = FastAPI(
        title="Turnout monitoring",
        summary="Versions, routing and what became of the scores",
        responses=dict(problems.RESPONSES),
    )
    made.state.callers = callers
    _reading(made, reports)
    _deciding(made, watch)
    return made


def _reading(made: FastAPI, reports: Reports) -> None:
    @made.get("/", dependencies=MAY_READ, response_class=HTMLResponse, include_in_schema=False)
    async def look() -> HTMLResponse:
        lines = await reports.lines()
        drawn = [line.pipeline for line in lines if line.champion][: page.PIPELINES]
        shown = [await reports.pipeline(name) for name in drawn]
        # Nothing on the page runs or is fetched, whatever a column or a category is called.
        headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return HTMLResponse(page.render(lines, shown), headers=headers)

    @made.get("/pipelines", dependencies=MAY_READ)
    async def pipelines() -> list[PipelineLine]:
        """Every pipeline: where it stands, who answers, how often."""
        return await reports.lines()

    @made.get("/pipelines/{pipeline}", dependencies=MAY_READ)
    async def pipeline(pipeline: str) -> PipelineReport:
        """One pipeline: its table, and each version's traffic, times, features and outcomes."""
        return await reports.pipeline(pipeline)

    @made.get("/pipelines/{pipeline}/quality", dependencies=MAY_READ)
    async def quality(pipeline: str) -> dict[str, Quality]:
        """Predicted against actual, per version."""
        return await reports.quality(pipeline)

    @made.get("/pipelines/{pipeline}/audit", dependencies=MAY_READ)
    async def audit(pipeline: str, limit: Annotated[int, Field(ge=1, le=10_000)] = 100) -> list[AuditLine]:
        """Who decided what and why, newest first."""
        return await reports.audit(pipeline, limit)


def _deciding(made: FastAPI, watch: Watch) -> None:
    @made.post("/pipelines/{pipeline}/promote")
    async def promote(pipeline: str, promotion: Promotion, who: Who) -> RoutingTable:
        """Let a version answer from now on, and pin it."""
        return await watch.promote(pipeline, promotion.version, by=who, why=promotion.why)

    @made.post("/pipelines/{pipeline}/rollback")
    async def rollback(pipeline: str, who: Who, reason: Reason = NO_REASON) -> RoutingTable:
        """Let the version before answer from now on, and pin it."""
        return await watch.rollback(pipeline, by=who, why=reason.why)

    @made.post("/pipelines/{pipeline}/unpin")
    async def unpin(pipeline: str, who: Who, reason: Reason = NO_REASON) -> RoutingTable:
        """Let automation decide again."""
        return await watch.unpin(pipeline, by=who, why=reason.why)

    @made.post("/pipelines/{pipeline}/forget")
    async def forget(pipeline: str, forgetting: Forgetting, who: Who) -> Done:
        """Remove everything of an entity, everywhere."""
        event = await watch.forget(pipeline, forgetting.entity, by=who, why=forgetting.why)
        return Done(event=event.id, at=event.time)

    async def remove(pipeline: str, who: Who, reason: Reason = NO_REASON) -> Done:
        """Remove the pipeline, everywhere; the audit trail stays."""
        event = await watch.remove(pipeline, by=who, why=reason.why)
        return Done(event=event.id, at=event.time)

    made.post("/pipelines/{pipeline}/remove", operation_id="remove_by_post")(remove)
    made.delete("/pipelines/{pipeline}")(remove)
