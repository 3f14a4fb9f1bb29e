"""What is remarkable about the data: one finding a kind and split, in one sentence.

Imports numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from headstart.errors import format_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MAX_BAD_FRACTION",
    "MAX_ROWS_KEPT",
    "Finding",
    "FindingLog",
    "Level",
    "count_rows",
    "level_of",
    "rows_where",
]

MAX_ROWS_KEPT = 1_000
MAX_BAD_FRACTION = 0.01  # of the rows: up to here rows without text or label are skipped
Level = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """Something about the data that the user should know.

    Args:
        kind: its name, such as "missing_text", "duplicates" or "leakage".
        split: the split it was found in.
        count: how many rows (or classes) it is about.
        rows: their row numbers counted from 0, at most the first 1,000.
        message: one sentence.
        level: "info", "warning", or "error" where it forbids training.
    """

    kind: str
    split: str
    count: int
    rows: list[int]
    message: str
    level: Level


@dataclass
class FindingLog:
    """The findings of one look at the data.

    Args:
        strict: whether what is skipped or kept otherwise forbids training.
        findings: so far.
    """

    strict: bool
    findings: list[Finding] = field(default_factory=list)

    def add(self, kind: str, split: str, rows: NDArray[np.int64] | Sequence[int], text: str, level: Level) -> None:
        """Note something about rows of a split."""
        numbers = [int(row) for row in rows[:MAX_ROWS_KEPT]]
        where = f" (rows {_first(numbers, len(rows))}, counted from 0)" if numbers else ""
        message = f"{split}: {text}{where}"
        self.findings.append(Finding(kind, split, len(rows), numbers, message, level))

    def skip(self, kind: str, split: str, bad: NDArray[np.bool_], what: str) -> None:
        """Note rows that cannot be used: skipped up to 1 % of the split, an error above and if strict."""
        rows = rows_where(bad)
        if not len(rows):
            return
        fraction = len(rows) / len(bad)
        if self.strict or fraction > MAX_BAD_FRACTION:
            limit = "none is allowed with data.strict" if self.strict else "at most 1 % may be skipped"
            text = f"{count_rows(len(rows))} {what}, {fraction:.1%} of the split; {limit}"
            self.add(kind, split, rows, text, "error")
        else:
            self.add(kind, split, rows, f"{count_rows(len(rows))} {what} skipped", "warning")


def _first(rows: Sequence[int], total: int) -> str:
    shown = format_rows(list(rows[:5]))
    return shown if total <= 5 else f"{shown} and {total - 5:,} more"


def rows_where(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Give the numbers of the rows for which something is true; int64, ascending."""
    return np.flatnonzero(mask).astype(np.int64)


def count_rows(number: int) -> str:
    """Write a number of rows in words."""
    return "1 row" if number == 1 else f"{number:,} rows"


def level_of(strict: bool, count: int, total: int) -> Level:
    """Say how grave something kept and counted is: an error if strict and past 1 %."""
    return "error" if strict and count > MAX_BAD_FRACTION * total else "warning"
