"""An entity's newest values as one packed value: the merge that keeps the newest of each column, and its bytes.

JSON, so that a person can read it: `[STAMP, {COLUMN: VALUE}, {COLUMN: STAMP}]`. Stamps are microseconds since 1970.
The first is the newest column's; the third part names only the columns that are older, and is left out where all were
measured together: reading then costs one parse and no loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from turnout.common.errors import Invalid
from turnout.common.events import Values
from turnout.common.online.port import EntityFeatures, Put

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def check(entity: str, values: Values) -> None:
    """Raise `Invalid` for a value that JSON cannot hold."""
    try:
        orjson.dumps(dict(values))
    except orjson.JSONEncodeError as error:
        raise Invalid(f"values of {entity!r}", str(error), fix="send numbers and valid text") from None


def check_all(puts: Sequence[Put]) -> None:
    """`check` each; one pass over all where, as nearly always, nothing is wrong."""
    try:
        orjson.dumps([dict(values) for _, values, _ in puts])
    except orjson.JSONEncodeError:
        for entity, values, _ in puts:
            check(entity, values)
        raise


def merged(packed: bytes | None, values: Values, stamp: int) -> bytes | None:
    """`packed` with those of `values` that are not older than what is there; None if all are."""
    if packed is None:
        return orjson.dumps([stamp, dict(values)]) if values else None
    newest, kept, older = _parts(packed)
    newer = {name: value for name, value in values.items() if name not in kept or older.get(name, newest) <= stamp}
    if not newer:
        return None
    stamps = {name: older.get(name, newest) for name in kept} | dict.fromkeys(newer, stamp)
    newest = max(stamps.values())
    older = {name: when for name, when in stamps.items() if when != newest}
    return orjson.dumps([newest, kept | newer, older] if older else [newest, kept | newer])


def features(entities: Sequence[str], packed: Sequence[bytes | None]) -> dict[str, EntityFeatures]:
    """What `merged` packed of those entities that have something. Raises `ValueError` for anything else."""
    # One parse for all: a call for each would cost as much as the connection does.
    together = orjson.loads(b"[" + b",".join(b"null" if value is None else value for value in packed) + b"]")
    try:
        return {
            entity: EntityFeatures(found[1], _EPOCH + timedelta(0, 0, found[0]))
            for entity, found in zip(entities, together, strict=True)
            if found is not None
        }
    except (TypeError, LookupError, OverflowError):
        raise ValueError("not a packed value") from None


def newest_score(packed: bytes | None, score: str, stamp: int) -> bytes | None:
    """The score with its stamp; None if the one that is there is newer."""
    if packed is not None and _score_stamp(packed) > stamp:
        return None
    return b"%d %s" % (stamp, score.encode())


def score(packed: bytes) -> tuple[str, datetime]:
    """What `newest_score` packed. Raises `ValueError` for anything else."""
    return packed.partition(b" ")[2].decode(), moment(_score_stamp(packed))


def microseconds(of: datetime) -> int:
    """Microseconds since 1970; a moment without a zone is UTC."""
    aware = of if of.tzinfo else of.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def moment(stamp: int) -> datetime:
    """The moment of `microseconds`, in UTC."""
    return _EPOCH + timedelta(microseconds=stamp)


def _parts(packed: bytes) -> tuple[int, dict[str, Any], dict[str, int]]:
    try:
        newest, kept, *older = orjson.loads(packed)
    except TypeError:
        raise ValueError("not a packed value") from None
    return newest, kept, older[0] if older else {}


def _score_stamp(packed: bytes) -> int:
    return int(packed.partition(b" ")[0])
