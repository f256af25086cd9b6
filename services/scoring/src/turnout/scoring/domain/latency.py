"""How long a version's last runs took."""

from __future__ import annotations

from collections import deque

WINDOW = 500
# Quantiles are worked out again after this many observations: sorting 500 numbers costs 20 µs.
REFRESH = 25


class Latencies:
    """The last `WINDOW` run times in milliseconds and their quantiles, never older than `REFRESH` runs.

    >>> recent = Latencies()
    >>> for ms in range(1, 101): recent.add(float(ms))
    >>> recent.p50, recent.p99
    (51.0, 100.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self.p50: float | None = None
        self.p99: float | None = None
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def add(self, milliseconds: float) -> None:
        """Take in one run."""
        self._recent.append(milliseconds)
        self.count += 1
        if self.count <= 5 or self.count % REFRESH == 0:
            self._work_out()

    def clear(self) -> None:
        """Begin anew, for a version whose past says nothing any more."""
        self.count, self.p50, self.p99 = 0, None, None
        self._recent.clear()

    def proven(self, runs: int, milliseconds: float) -> bool:
        """Whether the last `runs` runs at least are there and 99 of 100 were faster than `milliseconds`."""
        return self.count >= runs and self.p99 is not None and self.p99 < milliseconds

    def _work_out(self) -> None:
        ordered = sorted(self._recent)
        last = len(ordered) - 1
        self.p50 = ordered[min(last, len(ordered) // 2)]
        self.p99 = ordered[min(last, int(len(ordered) * 0.99))]
