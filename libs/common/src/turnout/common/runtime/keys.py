"""API keys: kept hashed, compared in constant time, each with a scope; no key set means everything is open."""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from turnout.common.errors import Invalid, Unavailable

Scope = Literal["score", "read", "admin"]
ANONYMOUS = "anonymous"
# How long a change of the file may go unnoticed.
FRESH_SECONDS = 1.0


class _Key(BaseModel):
    sha256: str
    scope: Scope


_FILE = TypeAdapter(dict[str, _Key])


class ApiKeys:
    """Keys in a file that only the owner can read; re-read when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: Mapping[str, _Key] = {}
        self._stamp: tuple[int, int] | None = None
        self._looked = float("-inf")

    def add(self, name: str, scope: Scope) -> str:
        """Make a key for `name`; the key itself is returned once and never kept. Blocks.

        Raises `Invalid` if the name is taken or empty, or there is no such scope.
        """
        if scope not in get_args(Scope):
            raise Invalid("scope", f"unknown scope '{scope}'", fix=f"one of: {', '.join(get_args(Scope))}")
        if not name.strip():
            raise Invalid("name", "it is empty", fix="say whose key it is")
        self._read()
        if name in self._keys:
            raise Invalid("name", f"there is a key for '{name}' already", fix="take another name")
        key = f"turnout_{secrets.token_urlsafe(32)}"
        kept = dict(self._keys) | {name: _Key(sha256=sha256(key.encode()).hexdigest(), scope=scope)}
        self._write(kept)
        self._read()
        return key

    def require(self, scope: Scope) -> Callable[[Request], Awaitable[str]]:
        """A FastAPI dependency that gives the caller's name, or answers 401 / 403 as a problem document.

        The key comes as `Authorization: Bearer KEY`. `admin` includes the others. Without keys: "anonymous".
        """

        async def caller(request: Request) -> str:
            if time.monotonic() - self._looked > FRESH_SECONDS:
                await asyncio.to_thread(self._read)
            if not self._keys:
                return ANONYMOUS
            return self._name(request.headers.get("authorization", ""), scope)

        return caller

    def allows(self, header: str, scope: Scope) -> bool:
        """Whether a request with this `Authorization` may pass, as far as is known without reading the file again;
        if not, `require` finds out and says why."""
        if time.monotonic() - self._looked > FRESH_SECONDS:
            return False
        if self._keys:
            try:
                self._name(header, scope)
            except HTTPException:
                return False
        return True

    def check(self, key: str | None, scope: Scope) -> str:
        """The name behind a key, for a command that needs no web server. Blocks. Raises `Invalid`."""
        self._read()
        if not self._keys:
            return ANONYMOUS
        found = self._find(key) if key else None
        if found is None:
            raise Invalid("key", "it is not known" if key else "one is needed", fix="give it with --key or TURNOUT_KEY")
        name, kept = found
        if kept.scope not in (scope, "admin"):
            raise Invalid("key", f"the key of '{name}' has scope {kept.scope}", fix=f"this needs {scope}")
        return name

    def names(self) -> Mapping[str, Scope]:
        """Who has a key, of which scope. Blocks."""
        self._read()
        return {name: key.scope for name, key in self._keys.items()}

    def _name(self, header: str, scope: Scope) -> str:
        kind, _, key = header.partition(" ")
        challenge = {"www-authenticate": "Bearer"}
        if kind.lower() != "bearer" or not key:
            raise HTTPException(HTTPStatus.UNAUTHORIZED, "a key is needed: send `Authorization: Bearer KEY`", challenge)
        found = self._find(key)
        if found is None:
            raise HTTPException(HTTPStatus.UNAUTHORIZED, "the key is not known", challenge)
        name, kept = found
        if kept.scope not in (scope, "admin"):
            raise HTTPException(HTTPStatus.FORBIDDEN, f"the key of '{name}' has scope {kept.scope}, this needs {scope}")
        return name

    def _find(self, key: str) -> tuple[str, _Key] | None:
        digest = sha256(key.strip().encode()).hexdigest()
        # Every key is compared, so that the time taken says nothing of which one was near.
        matching = [(name, kept) for name, kept in self._keys.items() if hmac.compare_digest(kept.sha256, digest)]
        return matching[0] if matching else None

    def _read(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._keys, self._stamp = {}, None
        except OSError as error:
            raise Unavailable(f"the keys at {self._path}", error.strerror or "cannot be read") from None
        else:
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._keys, self._stamp = self._parse(), stamp
        self._looked = time.monotonic()

    def _parse(self) -> Mapping[str, _Key]:
        try:
            return _FILE.validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            # Keys were set once: open to nobody is right, open to all is not.
            raise Unavailable(f"the keys at {self._path}", "the file cannot be read; repair or remove it") from None

    def _write(self, keys: Mapping[str, _Key]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_FILE.dump_json(dict(keys), indent=2))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path)
