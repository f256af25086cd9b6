"""One deadline for a whole chain of steps, made once when the request arrives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment `at` (seconds on `clock`, which must be monotonic) by which an answer has to leave.

    >>> Deadline.after(50.0, clock=lambda: 10.0).remaining()
    0.05000000000000071
    """

    at: float
    clock: Callable[[], float]

    @classmethod
    def after(cls, milliseconds: float, clock: Callable[[], float]) -> Self:
        """The deadline `milliseconds` from now."""
        return cls(clock() + milliseconds / 1000, clock)

    def remaining(self) -> float:
        """Seconds left; negative once it has passed."""
        return self.at - self.clock()

    @property
    def passed(self) -> bool:
        """Whether nothing is left."""
        return self.remaining() <= 0
