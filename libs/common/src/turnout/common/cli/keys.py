"""`turnout keys …`."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from turnout.common.cli.console import Home, errors, out, settings_of
from turnout.common.runtime.home import open_home
from turnout.common.runtime.keys import ApiKeys, Scope

app = typer.Typer(help="API keys: once one is set, changing calls need one.", no_args_is_help=True)


@app.callback()
def _keys() -> None:
    """API keys: once one is set, changing calls need one."""


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is; it stands in the audit trail.")],
    scope: Annotated[str, typer.Option(help="score, read or admin (which includes both).")] = "score",
    home: Home = None,
) -> None:
    """Make a key and print it; it is shown this once."""
    settings = settings_of(home)
    open_home(settings.home)
    key = ApiKeys(settings.home / "keys.json").add(name, cast("Scope", scope))
    errors.print(f"The key of {name} ({scope}); it is not kept, so keep it yourself:", markup=False)
    out.print(key, markup=False)
