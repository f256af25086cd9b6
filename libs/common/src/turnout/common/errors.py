"""Errors by what happens next.

`Invalid`: the input is wrong, trying again cannot help (dead letter, problem document, exit code 2).
`Unavailable`: something we need did not answer, trying again can help (retried with backoff, "not ready").
Anything else is a bug: it is logged with its traceback and nothing pretends to have handled it.

Which HTTP status, dead-letter header or exit code an error becomes is decided at the edge, never here.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class TurnoutError(Exception):
    """What Turnout raises on purpose."""


class Invalid(TurnoutError):  # noqa: N818 (what the input is, not what we did)
    """The input is wrong.

    `field` names where ("training.candidates[0].algorithm"), `problem` says what in plain words,
    `fix` says what to do about it. The message is built from the three.
    """

    def __init__(self, field: str, problem: str, *, fix: str | None = None) -> None:
        self.field = field
        self.problem = problem
        self.fix = fix
        super().__init__(f"{field}: {problem}" + (f"; {fix}" if fix else ""))

    def __reduce__(self) -> tuple[object, ...]:
        """Cross a process border whole: the default would pass the built message as `field`."""
        return (_rebuild, (type(self), self.field, self.problem, self.fix))


class Unknown(Invalid):
    """A name that nothing here has: a pipeline, a version, a column, an algorithm."""

    @classmethod
    def name(cls, field: str, kind: str, found: object, valid: Iterable[object]) -> Unknown:
        """Say which name of the `valid` ones is nearest to the one `found`."""
        names = sorted(str(v) for v in valid)
        near = get_close_matches(str(found), names, n=1, cutoff=0.5)
        if near:
            fix = f"did you mean '{near[0]}'?"
        elif names:
            fix = f"one of: {', '.join(names[:20])}" + (" …" if len(names) > 20 else "")
        else:
            fix = "there are none yet"
        return cls(field, f"unknown {kind} '{found}'", fix=fix)


class Unavailable(TurnoutError):  # noqa: N818 (as above)
    """Something we depend on did not answer: `what` it is and `why`, if known."""

    def __init__(self, what: str, why: str) -> None:
        self.what = what
        self.why = why
        super().__init__(f"{what} is not available: {why}")

    def __reduce__(self) -> tuple[object, ...]:
        """Cross a process border whole."""
        return (type(self), (self.what, self.why))


def _rebuild(kind: type[Invalid], field: str, problem: str, fix: str | None) -> Invalid:
    return kind(field, problem, fix=fix)
