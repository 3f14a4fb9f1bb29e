"""The fingerprint of a table's content.

Holds one function that hashes values, not files, chunks or code. Imports pyarrow and the standard
library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from headstart.data.arrow_values import plain_type

if TYPE_CHECKING:
    import datasets

__all__ = ["table_fingerprint"]

CHUNK_ROWS = 10_000
WIDE_TYPES = {"string": "large_string", "binary": "large_binary"}


def table_fingerprint(table: datasets.Dataset, columns: Sequence[str] | None = None) -> str:
    """Hash the values of a table.

    Equal for equal values in equal order, however they are chunked, selected, encoded or stored,
    and on any machine, so that two runs can be said to have seen the same data.

    Args:
        table: the rows.
        columns: which columns, in this order; all of them by default.

    Returns:
        SHA-256 as 64 hexadecimal digits.

    Example:
        >>> import datasets
        >>> whole = datasets.Dataset.from_dict({"text": ["a", "b", "c"]})
        >>> part = datasets.Dataset.from_dict({"text": ["a", "c"]})
        >>> table_fingerprint(whole.select([0, 2])) == table_fingerprint(part)
        True
    """
    names = list(table.column_names if columns is None else columns)
    hashers = {name: _ColumnHasher() for name in names}
    view = table.select_columns(names).with_format("arrow")
    for chunk in view.iter(batch_size=CHUNK_ROWS):
        for name in names:
            for array in chunk.column(name).chunks:
                hashers[name].update(array)
    heads = [[name, getattr(table.features[name], "names", None), hashers[name].hexdigest()] for name in names]
    return hashlib.sha256(json.dumps([table.num_rows, heads]).encode()).hexdigest()


class _ColumnHasher:
    """Hash validity, lengths and values as three streams: chunk borders leave no trace."""

    def __init__(self) -> None:
        self.type = ""
        self.streams = [hashlib.sha256() for _ in range(3)]
        self.children: dict[str, _ColumnHasher] = {}

    def hexdigest(self) -> str:
        children = {name: child.hexdigest() for name, child in self.children.items()}
        parts = [self.type, [stream.hexdigest() for stream in self.streams], children]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def update(self, array: pa.Array) -> None:
        if plain_type(array.type) != array.type:
            array = array.cast(plain_type(array.type))
        type = array.type
        validity, lengths, values = self.streams
        validity.update(array.is_valid().to_numpy(zero_copy_only=False).tobytes())
        if pa.types.is_nested(type) and not pa.types.is_struct(type) and not pa.types.is_map(type):
            self.type = "list"
            counts = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
            lengths.update(counts.to_numpy(zero_copy_only=False).tobytes())
            self._child("item").update(array.flatten())
        elif pa.types.is_struct(type):
            self.type = "struct"
            for field, child in zip(type, array.flatten(), strict=True):
                self._child(field.name).update(child)
        elif str(type) in {*WIDE_TYPES, *WIDE_TYPES.values()}:
            self.type = WIDE_TYPES.get(str(type), str(type))
            filled = pc.fill_null(array, b"" if "binary" in str(type) else "")
            lengths.update(pc.binary_length(filled).cast(pa.int64()).to_numpy(zero_copy_only=False).tobytes())
            values.update(_value_bytes(filled))
        elif pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_boolean(type):
            self.type = str(type)
            filled = pc.fill_null(array, False if pa.types.is_boolean(type) else pa.scalar(0).cast(type))
            values.update(filled.to_numpy(zero_copy_only=False).tobytes())
        else:  # dates, decimals, maps: few, and exact as Python values
            self.type = str(type)
            for value in array.to_pylist():
                values.update(f"{value!r}\n".encode())

    def _child(self, name: str) -> _ColumnHasher:
        return self.children.setdefault(name, _ColumnHasher())


def _value_bytes(array: Any) -> memoryview:
    """Give the bytes of all strings of an array, one after another, without a copy."""
    width = 8 if str(array.type).startswith("large") else 4
    _, offsets, data = array.buffers()
    if data is None or len(array) == 0:
        return memoryview(b"")
    start, end = (
        int.from_bytes(memoryview(offsets)[index * width : (index + 1) * width], "little")
        for index in (array.offset, array.offset + len(array))
    )
    return memoryview(data)[start:end]
