"""Logs: structlog, lines for people on a terminal and JSON elsewhere, one line for each batch handled."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

import orjson
import structlog

from turnout.common.runtime.redaction import redact


def configure(level: str = "info", *, console: bool | None = None) -> None:
    """Set logging up for this process; `console` None: look whether stderr is a terminal."""
    people = sys.stderr.isatty() if console is None else console
    threshold = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if people:
        rendering: list[structlog.typing.Processor] = [_redacted, structlog.dev.ConsoleRenderer()]
    else:
        rendering = [structlog.processors.format_exc_info, _redacted, structlog.processors.JSONRenderer(_dumps)]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_Output,
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library; their warnings go the same way.
    handler = logging.StreamHandler(sys.stderr)
    foreign: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=foreign, foreign_pre_chain=shared[:-1]))
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)


class _Output:
    """Lines on stderr. That nobody can read them any more (a closed pipe) is no reason to stop working."""

    def __init__(self, *_: object) -> None: ...

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):
            print(message, file=sys.stderr, flush=True)  # noqa: T201

    log = debug = info = warn = warning = error = exception = critical = fatal = failure = msg


def _redacted(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str) and name != "exception":
            event[name] = redact(value)
    return event


def _dumps(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
