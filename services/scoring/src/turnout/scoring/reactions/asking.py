"""What is asked, whichever way it came: rows, entities with features from the online store, or both mixed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.online.port import EntityFeatures, OnlineStore
from turnout.scoring.reactions.answering import Request
from turnout.scoring.reactions.fleet import Fleet, Lineup

log = structlog.get_logger()

MAX_ROWS = 1000
MAX_ENTITY = 200


class Asking:
    """Fetches what a request does not bring itself; `seconds` is the time for it, at most half of the deadline."""

    def __init__(self, fleet: Fleet, online: Callable[[], OnlineStore], *, seconds: float) -> None:
        self._fleet = fleet
        self._online = online
        self._seconds = seconds

    async def complete(self, request: Request) -> Request:
        """Rows of entities get their entity's features; values that the request brings itself win.

        Without the store, or when it is too slow, a row without values of its own gets the prior. Raises `Unknown`
        for an entity that the store knows nothing of and that brings no values.
        """
        lineup = self._fleet.lineup(request.pipeline)
        names = [entity for entity in dict.fromkeys(request.entities) if entity is not None]
        if not names:
            return request
        budget = min(self._seconds, (request.timeout_ms or lineup.slo_ms) / 2000)
        found = await self._fetch(request.pipeline, names, budget)
        if found is None:
            request.without = frozenset(index for index, row in enumerate(request.rows) if not row)
            return request
        request.rows = [
            _merged(lineup, found, entity, row, index)
            for index, (entity, row) in enumerate(zip(request.entities, request.rows, strict=True))
        ]
        return request

    async def _fetch(
        self, pipeline: str, entities: Sequence[str], seconds: float
    ) -> Mapping[str, EntityFeatures] | None:
        try:
            async with asyncio.timeout(seconds):
                return await self._online().get_many(pipeline, entities)
        except (TimeoutError, Unavailable) as error:
            log.warning(
                "features not available", pipeline=pipeline, entities=len(entities), why=str(error) or "too slow"
            )
            return None


def rows_and_entities(rows: object, entities: object) -> tuple[Sequence[Mapping[str, Any]], Sequence[str | None]]:
    """What stands under `rows` and `entities` of a request: as many of both, or one of the two. Raises `Invalid`."""
    if rows is None and entities is None:
        raise Invalid("rows", "is missing", fix='send {"rows": [{…}]} or {"entities": ["…"]}')
    names = _names(entities)
    if rows is None:
        found: list[Any] = [{} for _ in names]
    elif not isinstance(rows, list):
        raise Invalid("rows", "a list is expected", fix='{"rows": [{"COLUMN": VALUE}]}')
    else:
        found = rows
    if names and len(names) != len(found):
        raise Invalid("entities", f"{len(names)} entities but {len(found)} rows", fix="one entity for each row")
    if not 1 <= len(found) <= MAX_ROWS:
        raise Invalid("rows" if rows is not None else "entities", f"{len(found)} rows", fix=f"between 1 and {MAX_ROWS}")
    for index, row in enumerate(found):
        if not isinstance(row, dict):
            raise Invalid(f"rows[{index}]", "an object is expected", fix='{"COLUMN": VALUE}')
    return found, names


def _names(entities: object) -> Sequence[str]:
    if entities is None:
        return []
    if not isinstance(entities, list):
        raise Invalid("entities", "a list of texts is expected")
    for index, entity in enumerate(entities):
        if not isinstance(entity, str) or not 1 <= len(entity) <= MAX_ENTITY:
            raise Invalid(f"entities[{index}]", f"a text of 1 to {MAX_ENTITY} characters is expected")
    return entities


def _merged(
    lineup: Lineup, found: Mapping[str, EntityFeatures], entity: str | None, row: Mapping[str, Any], index: int
) -> Mapping[str, Any]:
    if entity is None:
        return row
    features = found.get(entity)
    if features is None:
        if row:
            return row
        raise Unknown(f"entities[{index}]", f"nothing is known of '{entity}'", fix="send its values in rows")
    return {name: value for name, value in features.values.items() if name in lineup.names} | dict(row)
