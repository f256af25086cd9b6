"""REST of ingestion: observations in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.requests import Request

from turnout.common.bus.port import Bus
from turnout.common.errors import Invalid
from turnout.common.events import ObservationReceived, Values
from turnout.common.runtime import problems
from turnout.common.runtime.service import Clock

MOST = 1_000


class Observation(BaseModel):
    """One row of a live stream. The same `id` again (or, without one, never) is the same observation."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {
                    "pipeline": "heart-disease",
                    "entity": "patient-17",
                    "event_time": "2026-01-31T08:15:00Z",
                    "values": {"age": 63, "chol": 233.5, "thal": "3"},
                }
            ]
        },
    )

    id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    pipeline: Annotated[str, Field(min_length=1, max_length=200)]
    entity: Annotated[str, Field(min_length=1, max_length=200)]
    event_time: AwareDatetime
    values: Values


class Accepted(BaseModel):
    """The ids of the events, in the order of the rows."""

    ids: list[str]


def routes(
    bus: Bus,
    check: Callable[[Sequence[ObservationReceived]], Awaitable[None]],
    caller: Callable[[Request], Awaitable[str]],
    now: Clock,
) -> APIRouter:
    """The routes; `check` raises where a row does not fit its pipeline's schema, `caller` where a key is missing."""
    router = APIRouter(responses=dict(problems.RESPONSES))

    @router.post("/observations", status_code=HTTPStatus.ACCEPTED, dependencies=[Depends(caller)])
    async def observe(observed: Observation | list[Observation]) -> Accepted:  # pyright: ignore[reportUnusedFunction]
        """Publish observations once all of them fit their pipeline's schema; none is published otherwise."""
        rows = observed if isinstance(observed, list) else [observed]
        if not 1 <= len(rows) <= MOST:
            raise Invalid("body", f"{len(rows):,} observations", fix=f"send 1 to {MOST:,} at a time")
        events = [
            ObservationReceived.first(
                source="/ingestion", at=now(), **row.model_dump(exclude={"values"}), values=row.values
            )
            for row in rows
        ]
        await check(events)
        await bus.publish(*events)
        return Accepted(ids=[event.id for event in events])

    return router
