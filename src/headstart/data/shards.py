"""Several files to one table a split.

Holds the reading of shards and the uniting of their column types. Imports pyarrow (through
files.py); datasets inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headstart.data.arrow_values import merge_types
from headstart.data.data_file import DataFile
from headstart.data.files import ReadFile, read_file
from headstart.errors import SourceError
from headstart.read_options import ReadOptions

if TYPE_CHECKING:
    import datasets

__all__ = ["read_shards"]


def read_shards(files: Mapping[str, Sequence[DataFile]], options: ReadOptions) -> dict[str, ReadFile]:
    """Read the files of each split and put those of one split together.

    The type of a column is guessed from each file alone; files that guess differently are read
    again.

    Args:
        files: the files of each split in reading order.
        options: what the user says about them.

    Returns:
        One table a split, what was decided, and which options had an effect.

    Raises:
        SourceError: a file cannot be read, or the files of a split differ in their columns.
    """
    read = {file: read_file(file, options=options) for file in (file for group in files.values() for file in group)}
    notes = [note for found in read.values() for note in found.notes]
    applied = frozenset(name for found in read.values() for name in found.applied)
    tables = {file: found.table for file, found in read.items()}
    notes += _unite_types(tables, options)
    splits = {split: _join([(file, tables[file]) for file in group]) for split, group in files.items()}
    # The notes are of all splits: the first one carries them.
    return {
        split: ReadFile(table, notes if index == 0 else [], applied)
        for index, (split, table) in enumerate(splits.items())
    }


def _unite_types(tables: dict[DataFile, datasets.Dataset], options: ReadOptions) -> list[str]:
    """Read files again whose columns have another type than the same columns of other files."""
    merged: dict[str, Any] = {}
    for table in tables.values():
        for column in table.features.arrow_schema:
            merged[column.name] = merge_types(merged.get(column.name, column.type), column.type)
    notes = []
    for file, table in tables.items():
        schema = table.features.arrow_schema
        types = {column.name: merged[column.name] for column in schema if column.type != merged[column.name]}
        if types:
            again = read_file(file, options=options, types=types)
            tables[file] = again.table
            notes += again.notes
            notes.append(f"{file.name}: read as in the other files: {', '.join(types)}")
    return notes


def _join(shards: list[tuple[DataFile, datasets.Dataset]]) -> datasets.Dataset:
    import datasets

    first_file, first = shards[0]
    for file, shard in shards[1:]:
        different = set(first.column_names) ^ set(shard.column_names)
        if different:
            raise SourceError(
                f"{file.shown}: the columns differ from those of {first_file.name} in: {', '.join(sorted(different))}.",
                "The same columns in every file of a split.",
                "Rename or add the columns, or move the file out of the folder.",
            )
    if len(shards) == 1:
        return first
    try:
        return datasets.concatenate_datasets([shard for _, shard in shards])
    except (ValueError, TypeError) as error:
        raise SourceError(
            f"{first_file.shown}: the columns differ between the files {', '.join(file.name for file, _ in shards)}.",
            "The same kind of values in the same column of every file.",
            f"Mend the files ({error}).",
        ) from error
