"""What a metric takes: lists, arrays and tensors become plain Python values, checked row by row.

Imports numpy and layer 0. A kind says what one row of a column must be:

    tensor([0.2, 0.7])  ->  to_rows  ->  [0.2, 0.7]  ->  read_column(CLASS_NUMBER, ...)  ->  DataError: take the argmax

Rows are plain values (int, float, str, lists and dicts of them), so that they can be written as JSON and read by
another process without loss: a float32 becomes the double of the same value.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from headstart.errors import DataError, format_rows

__all__ = [
    "ANYTHING",
    "CLASS_NUMBER",
    "CLASS_NUMBERS",
    "NUMBER",
    "NUMBERS",
    "TEXT",
    "TEXTS",
    "TEXT_OR_TEXTS",
    "Kind",
    "plain",
    "read_column",
    "to_rows",
]

_PLAIN: Final = (str, int, float, bool, type(None))
_AS_NUMBERS: Final = "Give numbers."
_AS_TEXTS: Final = "Give texts: decode token ids with tokenizer.batch_decode, class numbers with the label names."


@dataclass(frozen=True)
class Kind:
    """What one row of a column must be.

    Args:
        dtype: short name, as in the `features` of a metric.
        expected: the same in words.
        read: gives the row as it is kept; raises TypeError, ValueError or the like where it does not fit.
        advise: what to do about a row that does not fit.
    """

    dtype: str
    expected: str
    read: Callable[[Any], Any]
    advise: Callable[[Any], str]


def plain(value: Any) -> Any:
    """Turn a value into plain Python: tensors, arrays, scalars and Arrow values, also inside lists and dicts.

    A value of another type stays what it is.

    Example:
        >>> plain((np.float32(0.5), np.array([[1, 2]])))
        [0.5, [[1, 2]]]
    """
    if type(value) in _PLAIN:
        return value
    if hasattr(value, "detach"):
        value = _array_of(value)
    if isinstance(value, np.ndarray | np.generic):
        # The elements of an object array are still what they were before.
        return plain(value.tolist()) if value.dtype == object else value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    for method in ("as_py", "tolist"):
        if hasattr(value, method):
            return plain(getattr(value, method)())
    return value


def to_rows(column: str, values: Any) -> list[Any]:
    """Turn what the user gave for a column into a list with one plain value a row.

    Args:
        column: its name, for the message.
        values: list, tuple, array, tensor, series, or anything else that can be iterated.

    Raises:
        DataError: it is no sequence of rows.

    Example:
        >>> to_rows("predictions", np.array([0, 1]))
        [0, 1]
    """
    rows: Any = plain(values)
    if isinstance(rows, Iterable) and not isinstance(rows, list | str | bytes | Mapping):
        rows = [plain(row) for row in rows]
    if not isinstance(rows, list):
        raise DataError(
            f"{column} is {_short(rows)}.",
            "a list, array or tensor with one entry a row.",
            "Put a single row into a list, or give it with metric.add(prediction=..., reference=...).",
        )
    return rows


def read_column(kind: Kind, column: str, values: Any) -> list[Any]:
    """Read a column and check every row.

    Args:
        kind: what a row must be.
        column: its name, for the message.
        values: what the user gave.

    Returns:
        Plain values, one a row.

    Raises:
        DataError: rows do not fit; the message names the first five.

    Example:
        >>> read_column(CLASS_NUMBER, "predictions", np.array([1.0, 0.0]))
        [1, 0]
    """
    rows = to_rows(column, values)
    kept, misfits = [], []
    for index, row in enumerate(rows):
        try:
            kept.append(kind.read(row))
        except (ArithmeticError, LookupError, TypeError, ValueError):
            misfits.append(index)
    if misfits:
        first = rows[misfits[0]]
        raise DataError(
            f"{column}: row {format_rows(misfits)} cannot be used; row {misfits[0]} is {_short(first)}.",
            f"{kind.expected} in every row.",
            kind.advise(first),
        )
    return kept


def _array_of(tensor: Any) -> Any:
    tensor = tensor.detach().cpu()
    try:
        return tensor.numpy()
    except TypeError:
        return tensor.float().numpy()  # numpy has no bfloat16


def _short(value: Any) -> str:
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def _class_number(value: Any) -> int:
    if isinstance(value, int | float) and value == int(value):
        return int(value)
    raise TypeError


def _class_numbers(value: Any) -> list[int]:
    return [_class_number(item) for item in _list(value)]


def _number(value: Any) -> float:
    if isinstance(value, int | float):
        return float(value)
    raise TypeError


def _numbers(value: Any) -> list[float]:
    return [_number(item) for item in _list(value)]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError


def _texts(value: Any) -> list[str]:
    return [_text(item) for item in _list(value)]


def _text_or_texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else _texts(value)
    if not texts:
        raise ValueError
    return texts


def _list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    raise TypeError


def _advise_class_number(value: Any) -> str:
    if isinstance(value, str):
        return "Give the index of the class: label_names.index(text) for a label, int(text) for a number in a text."
    if isinstance(value, list):
        if value and all(isinstance(item, int) for item in value):
            return 'For several labels a row load the configuration "multilabel", where the metric has it.'
        return "Give the most probable class: scores.argmax(-1)."
    if isinstance(value, float):
        return "Give classes, not scores: (probabilities > 0.5) for two classes, scores.argmax(-1) for more."
    return "Give one whole number a row, and leave out rows without a label."


def _advise_class_numbers(value: Any) -> str:
    if isinstance(value, list):
        return "Give 0 or 1 for each label: (probabilities > 0.5)."
    return 'Give a list with 0 or 1 for each label, or load the metric without "multilabel".'


def _advise_number(value: Any) -> str:
    if isinstance(value, list):
        return 'Take the last axis away with squeeze(-1), or load the configuration "multilist" for several outputs.'
    return _AS_NUMBERS


CLASS_NUMBER: Final = Kind("int", "a whole class number", _class_number, _advise_class_number)
CLASS_NUMBERS: Final = Kind("list<int>", "a list of whole numbers", _class_numbers, _advise_class_numbers)
NUMBER: Final = Kind("float", "a number", _number, _advise_number)
NUMBERS: Final = Kind("list<float>", "a list of numbers", _numbers, lambda value: "Give one number for each output.")
TEXT: Final = Kind("string", "a text", _text, lambda value: _AS_TEXTS)
TEXTS: Final = Kind(
    "list<string>", "a list of texts", _texts, lambda value: "Give a list of label names for each row, one a token."
)
TEXT_OR_TEXTS: Final = Kind(
    "string or list<string>", "a text, or a list of at least one text", _text_or_texts, lambda value: _AS_TEXTS
)
ANYTHING: Final = Kind("any", "anything", lambda value: value, lambda value: "")
