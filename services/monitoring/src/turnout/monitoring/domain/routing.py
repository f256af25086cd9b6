"""Which versions answer after something happened: one table in, the next one or none out.

What automation does not do: undo a person's pin, choose again a version that was found unfit, take away the last
version that answers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from turnout.common.errors import Invalid, Unknown
from turnout.common.events import RoutingTable


@dataclass(frozen=True, slots=True)
class Decision:
    """The next table (None: it stays as it is), what was done in a word, and why in a sentence."""

    table: RoutingTable | None
    action: str
    why: str


def deploy(
    table: RoutingTable | None,
    version: str,
    *,
    automatic: bool,
    unfit: Collection[str] = (),
    last: int = 0,
) -> Decision:
    """A new version may answer. `last` is the number of the pipeline's last table, if there was one before."""
    if version in unfit:
        return Decision(None, "passed over", f"version {version} was found unfit before it was deployed")
    if table is not None and version in (table.champion, table.previous, table.challenger):
        return Decision(None, "kept", f"version {version} is in the table already")
    if not automatic:
        return Decision(None, "waits", f"version {version} waits for a person: deployment.approval is manual")
    if table is None:
        first = RoutingTable(version=last + 1, champion=version)
        return Decision(first, "deployed", f"version {version} is the first")
    if table.pinned:
        return Decision(None, "waits", f"version {version} waits: a person pinned version {table.champion}")
    following = _next(table, champion=version, previous=_fit(table.champion, unfit))
    return Decision(following, "deployed", f"version {version} is new; {table.champion} stands behind it")


def switch_back(table: RoutingTable, version: str, why: str, *, unfit: Collection[str] = ()) -> Decision:
    """A version was found unfit: the champion gives way to the one before it, a challenger just goes."""
    if version == table.challenger:
        return Decision(_next(table, challenger=None, share=0.0), "withdrawn", why)
    if version != table.champion:
        return Decision(None, "recorded", f"{why}; version {version} does not answer first")
    if table.pinned:
        return Decision(None, "recorded", f"{why}; a person pinned version {version}, it stays")
    if table.previous is None or table.previous in unfit:
        return Decision(None, "recorded", f"{why}; there is no sound version to go back to, it stays")
    return Decision(_next(table, champion=table.previous, previous=None), "switched back", why)


def promote(
    table: RoutingTable | None,
    version: str,
    *,
    known: Collection[str],
    unfit: Collection[str] = (),
    last: int = 0,
) -> Decision:
    """A person wants this version to answer; it is pinned until a person unpins it. Raises `Unknown`."""
    if version not in known:
        raise Unknown.name("version", "version", version, known)
    if table is None:
        return Decision(RoutingTable(version=last + 1, champion=version, pinned=True), "promoted", "")
    if version == table.champion:
        return Decision(None if table.pinned else _next(table, pinned=True), "promoted", "")
    following = _next(
        table,
        champion=version,
        previous=_fit(table.champion, unfit),
        challenger=None if version == table.challenger else table.challenger,
        pinned=True,
    )
    return Decision(following, "promoted", "")


def rollback(table: RoutingTable | None, pipeline: str) -> Decision:
    """A person wants the version before; it is pinned. Raises `Invalid` if there is none."""
    if table is None or table.previous is None:
        raise Invalid(
            "previous",
            f"'{pipeline}' has no previous version to go back to",
            fix="promote the version that you want",
        )
    return Decision(_next(table, champion=table.previous, previous=None, pinned=True), "rolled back", "")


def unpin(table: RoutingTable | None, pipeline: str) -> Decision:
    """A person lets automation decide again. Raises `Invalid` if nothing is deployed."""
    if table is None:
        raise Invalid("pinned", f"'{pipeline}' has no version yet", fix="wait for its first version")
    return Decision(_next(table, pinned=False) if table.pinned else None, "unpinned", "")


def _next(table: RoutingTable, **changes: object) -> RoutingTable:
    return RoutingTable.model_validate({**table.model_dump(), **changes, "version": table.version + 1})


def _fit(version: str, unfit: Collection[str]) -> str | None:
    return None if version in unfit else version
