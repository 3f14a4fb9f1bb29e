"""What columns beside text and label say of rows: how much each counts, which belong together, when each was.

Imports numpy and pyarrow; pandas inside a function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headstart.data.column_kinds import describe_column
from headstart.errors import ColumnError, DataError, format_rows, suggest

if TYPE_CHECKING:
    import datasets
    from numpy.typing import NDArray

__all__ = ["read_groups", "read_times", "read_weights"]


def read_weights(table: datasets.Dataset, column: str) -> NDArray[np.float64]:
    """Read what each row counts; float64 of shape (N,).

    Raises:
        ColumnError: there is no such column, or it holds no numbers.
        DataError: a weight is missing, negative or infinite, or all are 0.
    """
    array = _column(table, column, "data.weight")
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_decimal(array.type)):
        raise ColumnError(
            f'The column "{column}", named in data.weight, holds {describe_column(table, column)}.',
            "A number in each row.",
            "Name another column.",
        )
    weights: NDArray[np.float64] = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong) or not weights.sum() > 0:
        found = (
            f"{len(wrong):,} rows (rows {format_rows(wrong.tolist())}, counted from 0)" if len(wrong) else "All rows"
        )
        raise DataError(
            f'{found} have no usable weight in the column "{column}".',
            "A finite number of at least 0 in each row, and more than 0 in some.",
            "Mend these rows, or name another column in data.weight.",
        )
    return weights


def read_groups(table: datasets.Dataset, column: str) -> NDArray[Any]:
    """Read which rows belong together; equal values for rows of a group, of any kind, shape (N,).

    A row without a value is a group of its own.

    Raises:
        ColumnError: there is no such column.
    """
    array = _column(table, column, "data.group")
    names = pc.cast(array, pa.string()).to_numpy(zero_copy_only=False).astype(object)
    missing = array.is_null().to_numpy(zero_copy_only=False)
    # No value can begin with this character where it is a name.
    names[missing] = [f"\0{row}" for row in np.flatnonzero(missing)]
    groups: NDArray[Any] = names
    return groups


def read_times(table: datasets.Dataset, column: str) -> NDArray[np.float64]:
    """Read when each row was, as numbers that grow with time; float64 of shape (N,).

    Numbers are taken as they are, texts as ISO 8601 (2024-03-01, 2024-03-01T12:30:00Z).

    Raises:
        ColumnError: there is no such column, or it holds no times.
        DataError: a time is missing.
    """
    array = _column(table, column, "data.time")
    if pa.types.is_temporal(array.type):
        array = array.cast(pa.timestamp("us")).cast(pa.int64())
    elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = _parse_times(array, column)
    elif not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise ColumnError(
            f'The column "{column}", named in data.time, holds {describe_column(table, column)}.',
            "Dates, times or numbers.",
            "Name another column.",
        )
    times: NDArray[np.float64] = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    missing = np.flatnonzero(~np.isfinite(times))
    if len(missing):
        raise DataError(
            f'{len(missing):,} rows (rows {format_rows(missing.tolist())}, counted from 0) have no time in "{column}".',
            "A time in each row.",
            "Mend these rows, or leave them out.",
        )
    return times


def _parse_times(array: pa.Array, column: str) -> pa.Array:
    import pandas as pd

    texts = pd.Series(array.to_pandas())
    parsed = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True)
    wrong = np.flatnonzero((parsed.isna() & texts.notna()).to_numpy())
    if len(wrong):
        shown = format_rows(wrong.tolist())
        raise DataError(
            f'{len(wrong):,} rows (rows {shown}, counted from 0) of "{column}" hold texts that are no times.',
            "Dates and times as in 2024-03-01 or 2024-03-01T12:30:00Z (ISO 8601), or numbers.",
            "Write them so, or name another column in data.time.",
        )
    return pa.array(parsed.dt.tz_localize(None), type=pa.timestamp("us"), from_pandas=True).cast(pa.int64())


def _column(table: datasets.Dataset, name: str, setting: str) -> pa.Array:
    if name not in table.column_names:
        raise ColumnError(
            f'There is no column "{name}", which {setting} names.',
            "A column of the table.",
            suggest(name, table.column_names),
        )
    column = table.select_columns([name]).with_format("arrow")[:].column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
