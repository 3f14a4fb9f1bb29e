"""From Python values to Arrow arrays of one plain type.

Holds the rules for columns that mix kinds, and for Arrow types that mean the same. Imports pyarrow
only.

    list of values, or an array of any type  ->  array of a plain type (string, int64, double, bool,
    list, struct, ...)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

__all__ = [
    "TypeConflict",
    "array_as",
    "array_from_values",
    "merge_types",
    "plain_table",
    "plain_type",
]


class TypeConflict(Exception):
    """Tell a streaming reader that a column needs a wider type than its first rows showed.

    Never leaves the package: the reader begins again with the wider type.

    Args:
        column: name of the column in the file.
        type: the Arrow type to read it as.
    """

    def __init__(self, column: str, type: pa.DataType) -> None:
        """Keep what the next attempt needs."""
        super().__init__(f"{column}: {type}")
        self.column = column
        self.type = type


def merge_types(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """Find the type that can hold the values of both.

    Numbers widen to double, no values take any type, nested types unite field by field, all else
    becomes text.

    Args:
        first: one Arrow type.
        second: the other Arrow type.

    Returns:
        The wider type.

    Example:
        >>> merge_types(pa.int64(), pa.float64())
        DataType(double)
        >>> merge_types(pa.int64(), pa.string())
        DataType(string)
    """
    if first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    if _is_number(first) and _is_number(second):
        return pa.int64() if pa.types.is_integer(first) and pa.types.is_integer(second) else pa.float64()
    if pa.types.is_nested(first) and pa.types.is_nested(second):
        try:
            schemas = [pa.schema([("value", first)]), pa.schema([("value", second)])]
            return pa.unify_schemas(schemas, promote_options="permissive").field("value").type
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return pa.string()
    return pa.string()


def _is_number(type: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type) or pa.types.is_floating(type))


def _as_text(value: object) -> str | None:
    """Write a scalar as text; a list or dict is no text and becomes a missing value."""
    if isinstance(value, str):
        return value
    if value is None or value != value or isinstance(value, (list, tuple, dict, set, bytes)):
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def array_from_values(values: Sequence[Any]) -> tuple[pa.Array, bool]:
    """Build an array from Python values and say whether they were of different kinds.

    Mixed numbers and strings become strings; among strings, a list or dict becomes a missing value,
    so that the data checks count it. NaN is a missing value.

    Args:
        values: the values of one column.

    Returns:
        The array, and True where the values had to be turned into text.

    Example:
        >>> array, mixed = array_from_values(["a", 1, None])
        >>> array.to_pylist(), mixed
        (['a', '1', None], True)
    """
    try:
        array = pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return pa.array([_as_text(value) for value in values], type=pa.string()), True
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return _cast(array, plain_type(array.type)), False


def array_as(values: Sequence[Any], type: pa.DataType, column: str) -> pa.Array:
    """Build an array of a type that is already fixed.

    Args:
        values: the values of one column.
        type: the type that earlier rows have.
        column: name of the column, for the conflict.

    Returns:
        An array of exactly this type.

    Raises:
        TypeConflict: the values need a wider type.
    """
    if pa.types.is_string(type):
        return pa.array([_as_text(value) for value in values], type=type)
    array, _ = array_from_values(values)
    merged = merge_types(type, array.type)
    if merged != type:
        raise TypeConflict(column, merged)
    return pa.array(values, type=type, from_pandas=True) if pa.types.is_nested(type) else _cast(array, type)


def plain_type(type: pa.DataType) -> pa.DataType:
    """Replace an Arrow encoding by the plain type with the same values.

    Example:
        >>> plain_type(pa.dictionary(pa.int8(), pa.large_string()))
        DataType(large_string)
    """
    if pa.types.is_dictionary(type):
        return plain_type(type.value_type)
    if pa.types.is_string_view(type):
        return pa.string()
    if pa.types.is_binary_view(type):
        return pa.binary()
    return type


def plain_table(table: pa.Table) -> pa.Table:
    """Cast categorical and view columns of a table to plain ones.

    Args:
        table: any Arrow table.

    Returns:
        A table with the same values and schema metadata.
    """
    fields = [field.with_type(plain_type(field.type)) for field in table.schema]
    if [field.type for field in fields] == list(table.schema.types):
        return table
    columns = [_cast(column, field.type) for column, field in zip(table.columns, fields, strict=True)]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields, metadata=table.schema.metadata))


def _cast(array: Any, type: pa.DataType) -> Any:
    return array if array.type == type else array.cast(type)
