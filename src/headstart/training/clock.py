"""The clock of a training: how long a step took, what is apart from it left out.

Imports the standard library only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

__all__ = ["Clock"]


class Clock:
    """Measures steps, with what is apart from them left out."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()

    def lap(self) -> float:
        """Give the seconds since the lap before."""
        mark, self._mark = self._mark, time.perf_counter()
        return self._mark - mark

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave out what happens inside."""
        began = time.perf_counter()
        yield
        self._mark += time.perf_counter() - began
