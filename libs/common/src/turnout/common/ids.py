"""Names from content and from cause: doing something twice makes the same name, so it has one effect.

An event's id comes from what caused it, a data set's id from what is in it. Nothing here reads a clock
or draws a random number, except `new_event_id`, for an event that nobody's event caused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from uuid import UUID, uuid4, uuid5

import orjson

# The namespace of every id derived here; any fixed UUID would do, changing it would rename everything.
NAMESPACE = UUID("6f1c9a52-5d0e-5c1b-9f57-7475726e6f75")


def new_event_id() -> str:
    """An id for an event that has no cause on the bus (a person's command, a request)."""
    return str(uuid4())


def caused_event_id(cause: str, name: str, discriminator: str = "") -> str:
    """UUIDv5 of the causing event's id, the new event's name and what tells siblings apart (RFC 9562, 5.5)."""
    return str(uuid5(NAMESPACE, f"{cause}\0{name}\0{discriminator}"))


def positional_event_id(topic: str, partition: int, offset: int) -> str:
    """The id of a message that came without one: where it lies on the bus never changes."""
    return str(uuid5(NAMESPACE, f"{topic}\0{partition}\0{offset}"))


def content_id(prefix: str, *parts: object) -> str:
    """`prefix` and 80 bits of SHA-256 over the parts' canonical JSON, for example `batch-3f9a…`.

    >>> content_id("split", "fs-1", {"ratio": 0.8, "seed": 7}) == content_id("split", "fs-1", {"seed": 7, "ratio": 0.8})
    True
    """
    canonical = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS, default=_plain)
    return f"{prefix}-{hashlib.sha256(canonical).hexdigest()[:20]}"


def stable_share(key: str, salt: str = "") -> float:
    """Where `key` falls in [0, 1), evenly and for ever the same; the canary's coin."""
    digest = hashlib.sha256(f"{salt}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _plain(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | set | frozenset):
        return sorted(value, key=str) if not isinstance(value, tuple) else list(value)
    raise TypeError(f"{type(value).__name__} has no canonical form")
