"""`turnout init FILE --label COLUMN`: a pipeline file from the data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from turnout.common import pipeline
from turnout.common.errors import Invalid
from turnout.common.pipeline import Source
from turnout.ingestion.domain.proposal import propose, render, slug
from turnout.ingestion.service import first_rows


def init(  # noqa: PLR0917 (a command line has as many options as it has)
    data: Annotated[Path, typer.Argument(metavar="FILE", help="The data: a file, a folder or a glob.")],
    label: Annotated[str, typer.Option(help="The column to predict.")],
    task: Annotated[
        Literal["classification", "regression"] | None, typer.Option(help="What to predict; told from the label.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The pipeline's name; the file's without its ending.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write; NAME.yaml.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Names of the columns, with commas between, if the file has no header line.")
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="What stands between columns; told from the file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a pipeline file for your data, with the reasons for each choice as comments."""
    names = tuple(part.strip() for part in columns.split(",")) if columns else None
    source = Source(columns=names, delimiter=delimiter)
    title = pipeline_name(name, data)
    target = output or Path(f"{title}.yaml")
    if target.exists() and not force:
        raise Invalid("--output", f"{target} is there already", fix="--force overwrites it, --output writes elsewhere")
    rows, warnings = first_rows(str(data), source)
    proposal = propose(rows, label, task)
    uri = Path(os.path.relpath(data.absolute(), target.absolute().parent)).as_posix()
    text = render(proposal, name=title, uri=uri, source=source, title=f"Predicts {label} from {data.name}.")
    pipeline.parse(text)
    target.write_text(text, encoding="utf-8")
    for warning in warnings:
        typer.echo(warning.message, err=True)
    kinds = len(proposal.classes)
    typer.echo(
        f"{target}: {proposal.task} of {label}" + (f" ({kinds} classes)" if kinds else "") + f", {len(rows)} columns"
    )
    for column, why in proposal.drops.items():
        typer.echo(f"  left out: {column} ({why})")
    for note in proposal.notes:
        typer.echo(f"  {note}")
    typer.echo(f"Look it over, then: turnout apply {target}")


def pipeline_name(name: str | None, data: Path) -> str:
    """The name as given, or from the file's. Raises `Invalid` for a name that no pipeline may have."""
    if name is not None and slug(name) != name:
        raise Invalid("--name", f"{name!r} is no pipeline name", fix=f"for example: {slug(name)}")
    return name or slug(data.name.split(".")[0])
