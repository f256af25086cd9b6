"""`turnout promote`, `rollback`, `remove`, `forget`: asked of monitoring, which alone decides, over REST."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer
from pydantic import JsonValue, ValidationError

from turnout.common.cli.console import Home, Key, Url, out, settings_of
from turnout.common.cli.describe import routes
from turnout.common.errors import Invalid, Unavailable, Unknown
from turnout.common.events import RoutingTable
from turnout.common.runtime.home import address

Pipeline = Annotated[str, typer.Argument(help="Name of the pipeline.")]
Why = Annotated[str, typer.Option(help="The reason, for the audit trail.")]
SECONDS = 30.0


def promote(
    pipeline: Pipeline,
    version: Annotated[str, typer.Argument(help="The version that shall answer.")],
    why: Why = "",
    home: Home = None,
    key: Key = None,
    url: Url = None,
) -> None:
    """Make a version the champion, and keep it so until somebody says otherwise."""
    _tell(ask(home, url, key, pipeline, "promote", {"version": version, "why": why}), f"{pipeline}: version {version}")


def rollback(
    pipeline: Pipeline,
    version: Annotated[str | None, typer.Argument(help="Back to this version (default: the previous one).")] = None,
    why: Why = "",
    home: Home = None,
    key: Key = None,
    url: Url = None,
) -> None:
    """Go back to the previous version."""
    if version is None:
        _tell(ask(home, url, key, pipeline, "rollback", {"why": why}), f"{pipeline} rolled back")
    else:
        promote(pipeline, version, why or "rolled back", home, key, url)


def unpin(
    pipeline: Pipeline,
    why: Why = "",
    home: Home = None,
    key: Key = None,
    url: Url = None,
) -> None:
    """Let automation decide again, after a person has promoted or rolled back."""
    _tell(ask(home, url, key, pipeline, "unpin", {"why": why}), f"{pipeline} is decided by automation again")


def remove(
    pipeline: Pipeline,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: Home = None,
    key: Key = None,
    url: Url = None,
) -> None:
    """End a pipeline: its data, models and history go; the audit trail stays."""
    if not yes:
        typer.confirm(f"Remove {pipeline} with everything it made?", abort=True)
    _tell(ask(home, url, key, pipeline, "remove", {}), f"{pipeline} is being removed")


def forget(
    pipeline: Pipeline,
    entity: Annotated[str, typer.Argument(help="The entity whose data go.")],
    home: Home = None,
    key: Key = None,
    url: Url = None,
) -> None:
    """Remove everything that is kept of an entity."""
    _tell(ask(home, url, key, pipeline, "forget", {"entity": entity}), f"{entity} is being forgotten by {pipeline}")


def ask(
    home: Any, url: str | None, key: str | None, pipeline: str, what: str, body: Mapping[str, JsonValue]
) -> Mapping[str, JsonValue]:
    """POST to monitoring's routes; its answer.

    Raises `Unavailable` if nothing runs, `Unknown` or `Invalid` with the service's own words if it refuses.
    """
    base = url or _running(home)
    path = f"{base.rstrip('/')}/services/monitoring/pipelines/{quote(pipeline, safe='')}/{what}"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    sent = {name: value for name, value in body.items() if value not in ("", None)}
    try:
        reply = httpx.post(path, json=sent, headers=headers, timeout=SECONDS)
    except httpx.HTTPError as error:
        raise Unavailable(f"Turnout at {base}", str(error) or type(error).__name__) from None
    if reply.is_success:
        return reply.json() if reply.content else {}
    raise refusal(reply)


def refusal(reply: httpx.Response) -> Exception:
    """The error that a problem document stands for."""
    try:
        found = reply.json()
        field, detail, fix = found.get("field"), str(found["detail"]), found.get("fix")
    except (ValueError, KeyError, AttributeError):
        field, detail, fix = None, reply.text[:200] or reply.reason_phrase, None
    match reply.status_code:
        case 401 | 403:
            return Invalid("key", detail, fix=fix or "give it with --key or TURNOUT_KEY; `turnout keys add` makes one")
        case 404 if field is not None:
            return Unknown(field, detail, fix=fix)
        case status if status < 500:
            return Invalid(field or "request", detail, fix=fix)
        case _:
            return Unavailable("Turnout", detail)


def _running(home: Any) -> str:
    folder = settings_of(home).home
    there = address(folder)
    if there is None:
        raise Unavailable("Turnout", f"nothing runs on {folder}; start `turnout up`, or name --url")
    return there.url


def _tell(reply: Mapping[str, JsonValue], otherwise: str) -> None:
    try:
        out.print(routes(RoutingTable.model_validate(reply)), markup=False)
    except ValidationError:  # no table: something else was asked for
        out.print(otherwise, markup=False)
