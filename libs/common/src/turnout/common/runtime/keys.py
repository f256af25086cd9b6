"""API keys: kept hashed, compared in constant time, each with a scope; no key set means everything is open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from starlette.requests import Request

Scope = Literal["score", "read", "admin"]


class ApiKeys:
    """Keys in a file that only the owner can read; re-read when it changes."""

    def __init__(self, path: Path) -> None: ...

    def add(self, name: str, scope: Scope) -> str:
        """Make a key for `name`; the key itself is returned once and never kept."""
        raise NotImplementedError

    def require(self, scope: Scope) -> Callable[[Request], Awaitable[str]]:
        """A FastAPI dependency that gives the caller's name, or answers 401 / 403 as a problem document.

        The key comes as `Authorization: Bearer KEY`. `admin` includes the others. Without keys: "anonymous".
        """
        raise NotImplementedError
