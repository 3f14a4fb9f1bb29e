"""How long the texts of a table are, and how numbers spread.

Holds the words and characters of each row, and the bins of a histogram. Imports numpy and pyarrow.

    table + text columns -> words, characters of each row
    numbers              -> edges of bins, numbers in each
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import datasets
    from numpy.typing import NDArray

__all__ = ["count_in_bins", "measure_texts"]

CHUNK_ROWS = 10_000
TAIL_FRACTION = 0.7  # bins of one width end at the 99th percentile where that is below this share of the largest


def measure_texts(table: datasets.Dataset, names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count words and characters of each row, chunk by chunk.

    A word is what lies between white space. A row of two texts counts both; a missing text counts nothing.

    Args:
        table: the rows.
        names: columns of the texts.

    Returns:
        Words and characters, int64, each of shape (num_rows,).

    Example:
        >>> import datasets
        >>> table = datasets.Dataset.from_dict({"a": ["good film", " ", None], "b": ["x", "y", "zwei"]})
        >>> [counts.tolist() for counts in measure_texts(table, ["a", "b"])]
        [[3, 1, 1], [10, 2, 4]]
    """
    words = np.zeros(table.num_rows, dtype=np.int64)
    characters = np.zeros(table.num_rows, dtype=np.int64)
    start = 0
    for chunk in table.select_columns(list(names)).with_format("arrow").iter(batch_size=CHUNK_ROWS):
        rows = slice(start, start + chunk.num_rows)
        start += chunk.num_rows
        for name in names:
            texts = pc.fill_null(chunk.column(name).cast(pa.large_string()), "")
            characters[rows] += pc.utf8_length(texts).to_numpy()
            bare = pc.utf8_trim_whitespace(texts)
            parts = pc.list_value_length(pc.utf8_split_whitespace(bare)).to_numpy()
            words[rows] += np.where(pc.equal(bare, "").to_numpy(), 0, parts)
    return words, characters


def count_in_bins(values: NDArray[Any], max_bins: int = 36) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Count numbers in bins of one round width; a long tail gets one wider bin at the end.

    Args:
        values: finite numbers, at least one; the bins of whole numbers have whole edges.
        max_bins: bins at most, without that of the tail.

    Returns:
        The edges, shape (bins + 1,), and the numbers in each bin, shape (bins,). A bin holds what is not below its
        first edge and below its second; of fractions, the last one holds its second, too.

    Example:
        >>> edges, counts = count_in_bins(np.array([1, 1, 2, 5]))
        >>> edges.tolist(), counts.tolist()
        ([1, 2, 3, 4, 5, 6], [2, 1, 0, 0, 1])
        >>> edges, counts = count_in_bins(np.array([0.1, 0.2, 0.9]), max_bins=5)
        >>> edges.tolist(), counts.tolist()
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [1, 1, 0, 0, 1])
    """
    low, high = values.min().item(), values.max().item()
    whole = isinstance(low, int)
    if low == high:
        return np.array([low, low + 1]), np.array([len(values)])
    top = np.percentile(values, 99).item()
    if top - low >= TAIL_FRACTION * (high - low) or top <= low:
        top = high
    width = _round_up((top - low + (1 if whole else 0)) / max_bins)
    width = max(1, math.ceil(width)) if whole else width
    first, last = _bins(low, top, width, whole)
    while last - first > max_bins:  # where the edges are round, one bin more may be needed
        width = _round_up(width * 1.5)
        first, last = _bins(low, top, width, whole)
    numbers = np.arange(first, last + 1)
    # A quotient, where the width is a fraction: 3 / 5 is the number that 0.6 is written as, 3 * 0.2 is not.
    edges: NDArray[Any] = numbers * width if width >= 1 else numbers / round(1 / width)
    if whole:
        edges = edges.astype(np.int64)
        edges[0] = max(edges[0], low)
    if high > edges[-1] or (whole and high == edges[-1]):
        edges = np.append(edges, high + 1 if whole else np.nextafter(high, np.inf))
    places = np.searchsorted(edges, values, side="right") - 1
    return edges, np.bincount(np.clip(places, 0, len(edges) - 2), minlength=len(edges) - 1).astype(np.int64)


def _bins(low: float, top: float, width: float, whole: bool) -> tuple[int, int]:
    """Number the first bin and the one after the last; the largest fraction may lie on the last edge."""
    first = math.floor(low / width)
    return first, max(first + 1, math.floor(top / width) + 1 if whole else math.ceil(top / width - 1e-9))


def _round_up(width: float) -> float:
    """Give the next number of the form 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(width))
    for factor in (1, 2, 5, 10):
        if width <= factor * power * (1 + 1e-9):
            return factor * power
    raise AssertionError(width)
