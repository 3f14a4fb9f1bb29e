"""The exceptions of headstart and the shape of their messages.

Holds the exception tree, the three-part message and nearest-name suggestions. Imports the standard library only.

    HeadstartError
    ├── RecipeError      (ValueError)    a setting is unknown, out of range or contradicts another
    ├── DataError        (ValueError)    a source cannot be read, or its rows cannot be used
    │   ├── SourceError  (OSError)       the file, folder or hub name itself
    │   ├── ColumnError  (KeyError)      a column is missing or cannot be found by looking
    │   └── LabelError                   the labels: one class, a class unknown to training, wrong kind
    ├── ModelError       (OSError)       a model folder or tokenizer cannot be loaded
    ├── CheckpointError  (RuntimeError)  a checkpoint or run folder is broken, busy or of another run
    └── TrainingError    (RuntimeError)  training cannot go on
        ├── NonFiniteError               a loss or gradient is NaN or infinite
        └── ProcessLostError             one of several processes has ended or does not answer

    HeadstartWarning     (UserWarning)   rows are cut or left out while predicting; an older name is read;
                                         a tracker fails after the last record of a run
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "CheckpointError",
    "ColumnError",
    "DataError",
    "HeadstartError",
    "HeadstartWarning",
    "LabelError",
    "ModelError",
    "NonFiniteError",
    "ProcessLostError",
    "RecipeError",
    "SourceError",
    "TrainingError",
    "format_rows",
    "join_faults",
    "nearest_name",
    "suggest",
]

MAX_FAULTS_SHOWN = 5


class HeadstartError(Exception):
    """Base class of every error that headstart raises on purpose.

    The message has three parts: what was found and where, what was expected, what to do.

    Args:
        found: what was found, and where (file, column, row, setting).
        expected: what was expected instead.
        fix: what the user can do.

    Example:
        >>> print(HeadstartError("a.csv: the file is empty.", "A header and at least one row.", "Check the path."))
        a.csv: the file is empty.
        Expected: A header and at least one row.
        To do: Check the path.
    """

    def __init__(self, found: str, expected: str = "", fix: str = "") -> None:
        self.found = found
        self.expected = expected
        self.fix = fix
        lines = [found]
        if expected:
            lines.append(f"Expected: {expected}")
        if fix:
            lines.append(f"To do: {fix}")
        super().__init__("\n".join(lines))

    def __str__(self) -> str:
        # KeyError quotes its argument; a message is for reading.
        return str(self.args[0]) if self.args else ""


class RecipeError(HeadstartError, ValueError):
    """Raised when a setting is unknown, out of range, without effect, or contradicts another."""


class DataError(HeadstartError, ValueError):
    """Raised when a source cannot be read or its rows cannot be used."""


class SourceError(DataError, OSError):
    """Raised when a file, folder or hub name is missing, unreadable or broken."""


class ColumnError(DataError, KeyError):
    """Raised when a column is missing, or cannot be found by looking."""


class LabelError(DataError):
    """Raised when the labels do not allow training or scoring."""


class ModelError(HeadstartError, OSError):
    """Raised when a model or its tokenizer cannot be loaded."""


class CheckpointError(HeadstartError, RuntimeError):
    """Raised when a checkpoint or run folder is broken, in use, or belongs to another run."""


class TrainingError(HeadstartError, RuntimeError):
    """Raised when training cannot go on."""


class NonFiniteError(TrainingError):
    """Raised when a loss or gradient is NaN or infinite; the update was not made."""


class ProcessLostError(TrainingError):
    """Raised when one of several processes that train together has ended or does not answer.

    Args:
        found: which one.
        expected: what was expected instead.
        fix: what the user can do.
        ranks: numbers of the processes that are lost, from 0.
    """

    def __init__(self, found: str, expected: str = "", fix: str = "", *, ranks: Sequence[int] = ()) -> None:
        super().__init__(found, expected, fix)
        self.ranks = list(ranks)


class HeadstartWarning(UserWarning):
    """Issued where rows are cut or left out, an older name is read, or a tracker fails after a run's last record."""


def nearest_name(name: str, available: Iterable[str]) -> str | None:
    """Find the available name that is most like the given one.

    Args:
        name: what the user wrote.
        available: the names that exist.

    Returns:
        The nearest name, or None where nothing is similar.

    Example:
        >>> nearest_name("lable", ["id", "label", "text"])
        'label'
        >>> nearest_name("adam", ["nadam", "adamw"])
        'adamw'
    """
    names = list(available)
    by_lower = {candidate.lower(): candidate for candidate in reversed(names)}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    matches = difflib.get_close_matches(name.lower(), list(by_lower), n=5, cutoff=0.6)
    if not matches:
        return None

    def likeness(candidate: str) -> tuple[float, bool]:
        ratio = difflib.SequenceMatcher(None, candidate, name.lower()).ratio()
        return ratio, candidate.startswith(name.lower())  # of those that are equally like it, what begins with it

    return by_lower[max(matches, key=likeness)]


def suggest(name: str, available: Sequence[str]) -> str:
    """Write the sentence that offers the nearest name and lists the available ones.

    Example:
        >>> suggest("lable", ["id", "label"])
        'Did you mean "label"? Available: id, label.'
    """
    nearest = nearest_name(name, available)
    question = f'Did you mean "{nearest}"? ' if nearest is not None else ""
    return f"{question}Available: {', '.join(available) or 'none'}."


def format_rows(rows: Sequence[int]) -> str:
    """Name the first five rows and count the rest.

    Example:
        >>> format_rows([3, 8, 9, 12, 40, 41, 77])
        '3, 8, 9, 12, 40 and 2 more'
    """
    shown = ", ".join(str(row) for row in rows[:MAX_FAULTS_SHOWN])
    rest = len(rows) - MAX_FAULTS_SHOWN
    return f"{shown} and {rest:,} more" if rest > 0 else shown


def join_faults(faults: Sequence[str]) -> str:
    """Put several faults into one message: the first five a line each, then a count.

    Example:
        >>> print(join_faults(["train.epochs: -1", "optim.nmae: unknown"]))
        - train.epochs: -1
        - optim.nmae: unknown
    """
    shown = [f"- {fault}" for fault in faults[:MAX_FAULTS_SHOWN]]
    rest = len(faults) - MAX_FAULTS_SHOWN
    if rest > 0:
        shown.append(f"- and {rest:,} more")
    return "\n".join(shown)
