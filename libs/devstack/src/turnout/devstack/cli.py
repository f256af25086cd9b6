"""`turnout-devstack up | down | status | env`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from turnout.devstack.server import MissingError, StartError
from turnout.devstack.stack import NAMES, found
from turnout.devstack.stack import up as start

out = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)
app = typer.Typer(help="Real servers without Docker, for development.", no_args_is_help=True, add_completion=False)

Folder = Annotated[Path, typer.Option("--folder", help="Where the servers keep their data and logs.")]
DEFAULT = Path(".turnout-stack")


@app.command()
def up(
    folder: Folder = DEFAULT,
    only: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(NAMES)}; again for more.")] = None,
) -> None:
    """Start what does not run yet, and wait until each answers."""
    if unknown := set(only or ()) - set(NAMES):
        errors.print(f"no server is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}", style="red")
        raise typer.Exit(2)
    try:
        start(folder, only or NAMES, told=errors.print)
    except (MissingError, StartError) as error:
        errors.print(str(error), style="red", markup=False)
        raise typer.Exit(3) from None
    errors.print("To point Turnout there: eval $(turnout-devstack env)")


@app.command()
def down(folder: Folder = DEFAULT) -> None:
    """End every server; their data go too."""
    stack = found(folder)
    if stack is None:
        errors.print(f"nothing was started in {folder}")
        return
    stack.down()
    errors.print("all are down")


@app.command()
def status(folder: Folder = DEFAULT) -> None:
    """Which servers run, and where."""
    stack = found(folder)
    well = stack is not None
    for name, server in stack.servers.items() if stack else ():
        state = "answers" if server.answers() else "runs" if server.alive() else "is gone"
        well = well and state == "answers"
        out.print(f"{name:12} {state:8} {server.address:22} {server.folder / 'log'}", markup=False)
    if stack is None:
        errors.print(f"nothing was started in {folder}")
    raise typer.Exit(0 if well else 3)


@app.command()
def env(folder: Folder = DEFAULT) -> None:
    """The variables that point Turnout at the servers, as shell commands."""
    stack = found(folder)
    if stack is None:
        errors.print(f"nothing was started in {folder}: turnout-devstack up")
        raise typer.Exit(3)
    for name, value in stack.environment().items():
        out.print(f"export {name}={shlex.quote(value)}", markup=False)
