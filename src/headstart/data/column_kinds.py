"""What a column holds, and its labels as plain values.

Holds the description of a column and the reading of labels. Imports numpy and pyarrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import datasets

__all__ = ["ColumnKind", "describe_column", "read_labels", "sample_rows"]

SAMPLE_ROWS = 10_000


@dataclass(frozen=True)
class ColumnKind:
    """What a sample of a column's rows shows.

    Args:
        kind: "text", "integer", "number", "boolean", "class", "list", "object", "empty" or the
            Arrow type.
        num_distinct: different values in the sample; -1 where values cannot be compared.
        num_rows: rows with a value in the sample.
        mean_length: characters a value, for text.
        is_binary: whether it holds 0 and 1, or true and false.
    """

    kind: str
    num_distinct: int
    num_rows: int
    mean_length: float
    is_binary: bool = False

    def __str__(self) -> str:
        """Describe the column without an example."""
        if self.kind == "text":
            length = f"{self.mean_length:.0f} characters on average"
            return f"text, {length}, {self.num_distinct:,} different"
        return self.kind if self.num_distinct < 0 else f"{self.kind}, {self.num_distinct:,} different"


def describe_column(table: datasets.Dataset, name: str) -> ColumnKind:
    """Look at up to 10,000 rows of a column, spread over the table.

    Args:
        table: the rows.
        name: the column.

    Returns:
        Its kind and a few numbers, never a value.
    """
    array = sample_rows(table).select_columns([name]).with_format("arrow")[:].column(name)
    values = array.drop_null()
    type = array.type
    if getattr(table.features[name], "names", None) is not None:
        return ColumnKind("class", len(pc.unique(values)), len(values), 0.0)
    if pa.types.is_string(type) or pa.types.is_large_string(type):
        lengths = pc.mean(pc.utf8_length(values)).as_py() or 0.0
        return ColumnKind("text", len(pc.unique(values)), len(values), lengths)
    if pa.types.is_nested(type):
        return ColumnKind("object" if pa.types.is_struct(type) else "list", -1, len(values), 0.0)
    if pa.types.is_null(type):
        return ColumnKind("empty", -1, 0, 0.0)
    if pa.types.is_boolean(type):
        kind = "boolean"
    elif pa.types.is_integer(type):
        kind = "integer"
    elif pa.types.is_floating(type) or pa.types.is_decimal(type):
        kind = "number"
    else:
        return ColumnKind(str(type), -1, len(values), 0.0)
    different = pc.unique(values)
    is_binary = kind != "number" and 0 < len(different) <= 2 and {int(value.as_py()) for value in different} <= {0, 1}
    return ColumnKind(kind, len(different), len(values), 0.0, is_binary)


def sample_rows(table: datasets.Dataset) -> datasets.Dataset:
    """Take up to 10,000 rows, spread over a table; the same ones each time."""
    if table.num_rows <= SAMPLE_ROWS:
        return table
    # Drawn, not every n-th row: a file may repeat its classes in a fixed order.
    drawn = np.random.default_rng(0).choice(table.num_rows, SAMPLE_ROWS, replace=False)
    return table.select(np.sort(drawn))


def read_labels(table: datasets.Dataset, label: str) -> pa.Array:
    """Read the labels of a table as one array of plain values.

    Class numbers with names become the names, whole numbers stored as fractions become integers; an
    empty string, NaN, and -1 among named classes (what published data sets mark a missing label
    with) become null.

    Args:
        table: the rows.
        label: the column with the labels.

    Returns:
        Array of strings, integers or booleans, shape (num_rows,), null where the label is missing.
        Fractions stay.
    """
    column = table.select_columns([label]).with_format("arrow")[:].column(label)
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    names = getattr(table.features[label], "names", None)
    if names is not None and pa.types.is_integer(array.type):
        numbers = pc.fill_null(array.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
        known = (numbers >= 0) & (numbers < len(names))
        indices = pa.array(np.where(known, numbers, 0), mask=~known)
        return pa.array(names, type=pa.string()).take(indices)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = array.cast(pa.large_string())
        empty = pc.equal(pc.utf8_trim_whitespace(array), "")
        return pc.if_else(empty, pa.scalar(None, array.type), array)
    if pa.types.is_integer(array.type):
        return array.cast(pa.int64())
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
        whole = pc.all(pc.equal(pc.floor(array), array)).as_py() is not False
        in_range = pc.all(pc.less(pc.abs(array), 2.0**53)).as_py() is not False
        return array.cast(pa.int64()) if whole and in_range else array
    return array
