"""The application: every command in one place, and errors as messages and exit codes."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

from turnout.common import telemetry
from turnout.common.cli import asking, changing, declaring, doctor, following, keys, lineage, pulling, running
from turnout.common.cli.console import errors
from turnout.common.errors import Invalid, TurnoutError, Unavailable
from turnout.common.runtime.redaction import redact

EXIT_INVALID = 2
EXIT_UNAVAILABLE = 3

app = typer.Typer(
    name="turnout",
    help="An event-driven machine-learning pipeline that switches back to the model that works.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(telemetry.release())
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """An event-driven machine-learning pipeline that switches back to the model that works."""


for command in (
    running.up, running.run, declaring.apply, pulling.pull, following.publish, following.events, following.replay,
    asking.models,
    changing.promote, changing.rollback, changing.unpin, changing.remove, changing.forget,
    lineage.lineage, doctor.doctor,
):  # fmt: skip
    app.command()(command)
app.add_typer(keys.app, name="keys")


def run() -> None:
    """Run the command that `sys.argv` asks for."""
    try:
        for entry in sorted(entry_points(group="turnout.commands"), key=lambda e: e.name):
            app.command(entry.name)(entry.load())
        app()
    except TurnoutError as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        sys.exit(130)


def report(error: TurnoutError) -> int:
    """Say what went wrong; the exit code."""
    errors.print(redact(str(error)), style="red", markup=False, highlight=False)
    match error:
        case Invalid():
            return EXIT_INVALID
        case Unavailable():
            return EXIT_UNAVAILABLE
        case _:
            return 1
