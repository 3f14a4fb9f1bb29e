"""Several files to one table a split.

Holds the reading of shards and the uniting of their column types. Imports pyarrow (through
files.py); datasets inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.data.arrow_values import merge_types
from headstart.data.files import read_file
from headstart.errors import SourceError

if TYPE_CHECKING:
    import datasets

__all__ = ["read_shards"]


def read_shards(
    files: Mapping[str, Sequence[Path]],
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """Read the files of each split and put those of one split together.

    The type of a column is guessed from each file alone; files that guess differently are read
    again.

    Args:
        files: the files of each split in reading order.

    Returns:
        One table a split, and what was decided.

    Raises:
        SourceError: a file cannot be read, or the files of a split differ in their columns.
    """
    tables: dict[Path, datasets.Dataset] = {}
    notes: list[str] = []
    for path in (path for paths in files.values() for path in paths):
        tables[path], file_notes = read_file(path)
        notes += file_notes
    notes += _unite_types(tables)
    splits = {split: _join([(path, tables[path]) for path in paths]) for split, paths in files.items()}
    return splits, notes


def _unite_types(tables: dict[Path, datasets.Dataset]) -> list[str]:
    """Read files again whose columns have another type than the same columns of other files."""
    merged: dict[str, Any] = {}
    for table in tables.values():
        for column in table.features.arrow_schema:
            merged[column.name] = merge_types(merged.get(column.name, column.type), column.type)
    notes = []
    for path, table in tables.items():
        schema = table.features.arrow_schema
        types = {column.name: merged[column.name] for column in schema if column.type != merged[column.name]}
        if types:
            tables[path], file_notes = read_file(path, types=types)
            notes += file_notes
            notes.append(f"{path.name}: read as in the other files: {', '.join(types)}")
    return notes


def _join(shards: list[tuple[Path, datasets.Dataset]]) -> datasets.Dataset:
    import datasets

    first_path, first = shards[0]
    for path, shard in shards[1:]:
        different = set(first.column_names) ^ set(shard.column_names)
        if different:
            raise SourceError(
                f"{path}: the columns differ from those of {first_path.name} in: {', '.join(sorted(different))}.",
                "The same columns in every file of a split.",
                "Rename or add the columns, or move the file out of the folder.",
            )
    if len(shards) == 1:
        return first
    try:
        return datasets.concatenate_datasets([shard for _, shard in shards])
    except (ValueError, TypeError) as error:
        raise SourceError(
            f"{first_path.parent}: the files {', '.join(path.name for path, _ in shards)} differ in their columns.",
            "The same kind of values in the same column of every file.",
            f"Mend the files ({error}).",
        ) from error
