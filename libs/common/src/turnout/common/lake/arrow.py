"""Arrow's data sets, imported without pandas.

`pyarrow.dataset` looks for pandas, which takes as long to import as all the rest of a service, and is there wherever
MLflow is; no row of the lake goes through it. Whoever asks Arrow for a data frame gets one still: then it looks again.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder


class _Hiding(MetaPathFinder):
    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:  # noqa: ARG002 (Python's)
        if fullname == self._name:
            raise ModuleNotFoundError(f"{fullname} is not looked for here", name=fullname)


@contextmanager
def _hidden(name: str) -> Generator[None]:
    """A module that nobody has imported so far is not found in the block."""
    finder = _Hiding(name)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


with _hidden("pandas"):
    import pyarrow.dataset as ds

__all__ = ["ds"]
