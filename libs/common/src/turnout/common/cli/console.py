"""What the commands share: where they print, and the options that many of them have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from turnout.common.runtime.environment import Environment
from turnout.common.runtime.home import open_home
from turnout.common.runtime.settings import RuntimeSettings

T = TypeVar("T")

out = Console(highlight=False, soft_wrap=True)
# A tree is cut at the console's edge, and an id that is cut off cannot be looked up.
wide = Console(highlight=False, width=1_000)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Home = Annotated[
    Path | None, typer.Option("--home", help="Folder of the bus and the stores (env TURNOUT_HOME; default .turnout).")
]
Key = Annotated[str | None, typer.Option("--key", envvar="TURNOUT_KEY", help="The API key, once one is set.")]
Url = Annotated[
    str | None, typer.Option("--url", envvar="TURNOUT_URL", help="Where Turnout answers, if not on this home.")
]


def settings_of(home: Path | None) -> RuntimeSettings:
    """Settings from the environment, with the home that the command names."""
    return RuntimeSettings() if home is None else RuntimeSettings(home=home)


@asynccontextmanager
async def environment(home: Path | None) -> AsyncGenerator[Environment]:
    """The ports of a home, closed afterwards."""
    settings = settings_of(home)
    open_home(settings.home)
    made = Environment(settings)
    try:
        yield made
    finally:
        await made.close()


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a command's coroutine."""
    return asyncio.run(work())
