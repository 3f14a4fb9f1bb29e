"""What a recipe writes as a number with a unit: a length of training, a share of the rows, a fold.

Layer 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Duration", "parse_duration", "parse_fold", "parse_limit"]

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|%|minutes?|min|hours?|h)?\s*$")
_UNITS = {"": "steps", "step": "steps", "epoch": "epochs", "%": "%", "minute": "minutes", "min": "minutes"}


@dataclass(frozen=True)
class Duration:
    """A length of training: a number and its unit.

    Args:
        number: how many; at least 0.
        unit: "steps" (optimizer updates), "epochs", "%" (of all steps) or "minutes" (wall time).
    """

    number: float
    unit: Literal["steps", "epochs", "%", "minutes"]

    def in_steps(self, *, total_steps: int, steps_per_epoch: float) -> int:
        """Count the steps that this duration lasts; minutes have no step count.

        Args:
            total_steps: steps of the whole training.
            steps_per_epoch: steps of one pass over the rows.

        Returns:
            Steps, rounded to the nearest; a part of an epoch or of the whole that is not zero gives at least 1.

        Raises:
            ValueError: the unit is minutes.

        Example:
            >>> Duration(5, "%").in_steps(total_steps=300, steps_per_epoch=100)
            15
        """
        if self.unit == "minutes":
            raise ValueError("minutes have no step count")
        if self.unit == "steps":
            return int(self.number)
        whole = total_steps / 100 if self.unit == "%" else steps_per_epoch
        return max(round(self.number * whole), 1 if self.number > 0 else 0)


def parse_duration(value: int | float | str) -> Duration:
    """Read a duration: steps (`500`), `"2 epochs"`, `"5%"`, `"10 minutes"`, `"2 hours"`.

    Raises:
        ValueError: the text is no duration, or steps are not a whole number.

    Example:
        >>> parse_duration("2 epochs")
        Duration(number=2.0, unit='epochs')
    """
    match = _DURATION.match(str(value)) if not isinstance(value, bool) else None
    if match is None:
        raise ValueError(f'{value!r} is no duration; write steps (500), "2 epochs", "5%" or "10 minutes"')
    number, unit = float(match[1]), match[2] or ""
    if unit in ("hour", "hours", "h"):
        return Duration(number * 60, "minutes")
    name: Any = _UNITS[unit.rstrip("s")]
    if name == "steps" and number != int(number):
        raise ValueError(f"{value!r} steps is not a whole number")
    if name == "%" and number > 100:
        raise ValueError(f"{value!r} is more than 100%")
    return Duration(number, name)


def parse_limit(value: int | str, num_rows: int) -> int:
    """Count the rows that a limit (`500` or `"10%"`) keeps of `num_rows`, at least one.

    Example:
        >>> parse_limit("10%", 3668)
        367
    """
    if isinstance(value, str) and value.endswith("%"):
        return max(1, round(num_rows * float(value[:-1]) / 100))
    return min(int(value), num_rows)


def parse_fold(value: str) -> tuple[int, int]:
    """Read which fold validates, counted from 1, and how many there are.

    Raises:
        ValueError: the text names no fold.

    Example:
        >>> parse_fold("2/5")
        (2, 5)
    """
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", value)
    if match is None or not 1 <= int(match[1]) <= int(match[2]) or int(match[2]) < 2:
        raise ValueError(f'{value!r} is no fold; write "2/5" for the second of five')
    return int(match[1]), int(match[2])
