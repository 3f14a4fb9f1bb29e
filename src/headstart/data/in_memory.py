"""Python objects to tables: frames, lists, dicts, datasets.

Holds one conversion a kind of object. Imports pyarrow and the standard library; datasets inside
functions, pandas and polars never (a frame's own methods are used).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headstart.data.arrow_values import array_from_values, plain_table
from headstart.data.table_cache import store_rows
from headstart.errors import SourceError, format_rows

if TYPE_CHECKING:
    import datasets

__all__ = ["describe_object", "is_frame", "table_from_object"]

EXPECTED = (
    "A path, a hub name, a pandas or polars frame, a list of dicts, a list of (text, label) "
    "tuples, a dict of columns, "
    "a dict of splits, a Dataset or a DatasetDict."
)


def is_frame(source: object) -> bool:
    """Say whether an object is a pandas or polars data frame, lazy or not, without importing either."""
    kind = type(source)
    return kind.__name__ in ("DataFrame", "LazyFrame") and kind.__module__.split(".")[0] in ("pandas", "polars")


def describe_object(source: object) -> str:
    """Name a source that has no path, for the plan.

    Example:
        >>> describe_object([{"text": "a"}])
        'list in memory'
    """
    return f"{type(source).__name__} in memory"


def table_from_object(source: object) -> tuple[datasets.Dataset, list[str]]:
    """Turn rows or columns in memory into a table.

    Args:
        source: a frame, list of dicts, list of tuples (text, label) or (text, pair, label), list of
            texts, dict of columns, Arrow table or Dataset.

    Returns:
        The table, and what was decided.

    Raises:
        SourceError: the object is of another kind, has no row, or its columns differ in length.

    Example:
        >>> table, notes = table_from_object([("good", "pos"), ("bad", "neg")])
        >>> table.column_names
        ['text', 'label']
    """
    import datasets

    notes: list[str] = []
    if isinstance(source, datasets.Dataset):
        table = source.with_format(None)  # a format may hide columns, and read values otherwise
        if source.format["type"] == "custom":
            notes.append("what set_transform or with_transform computes is not read: rows are taken as they are stored")
    elif type(source).__name__ == "LazyFrame" and is_frame(source):
        table = _from_lazy(source)
    elif isinstance(source, pa.Table):
        table = datasets.Dataset(plain_table(source))
    else:
        columns = _columns(source)
        arrays = {}
        for name, values in columns.items():
            arrays[name], mixed = _array(values)
            if mixed:
                notes.append(f'column "{name}" holds different kinds of values and is read as text')
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise SourceError(
                f"The columns differ in length: {lengths}.",
                "Equally long columns.",
                "Mend the data.",
            )
        table = datasets.Dataset(pa.table(arrays))
    if table.num_rows == 0:
        raise SourceError(
            f"The {describe_object(source)} has no row.",
            "At least one row.",
            "Check how it was made.",
        )
    return table, notes


def _from_lazy(frame: Any) -> datasets.Dataset:
    """Compute a lazy frame piece by piece into the cache."""

    def batches(first: Any, rest: Any) -> Iterator[pa.RecordBatch]:
        for part in itertools.chain([first], rest):
            yield from _plain_batches(part, schema)

    try:
        parts = iter(frame.collect_batches(maintain_order=True))
        first = next(parts, None)
        if first is None:
            first = frame.head(0).collect()
        schema = plain_table(first.to_arrow().slice(0, 0)).schema
        return store_rows(schema, batches(first, parts), [])[0]
    except SourceError:
        raise
    except Exception as error:  # polars raises its own, of the plan and of each file that it reads
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(
            f"The LazyFrame cannot be computed ({lines[0][:200]}).", "A plan that runs.", "Check it with collect()."
        ) from error


def _plain_batches(part: Any, schema: pa.Schema) -> list[pa.RecordBatch]:
    """Give the record batches of a frame in a schema of plain types."""
    batches: list[pa.RecordBatch] = plain_table(part.to_arrow()).cast(schema).to_batches()
    return batches


def _array(values: Any) -> tuple[pa.Array, bool]:
    if hasattr(values, "to_arrow"):  # polars
        array = values.to_arrow()
        return plain_table(pa.table({"column": array})).column(0).combine_chunks(), False
    dtype = str(getattr(values, "dtype", "object"))
    if dtype == "object":
        return array_from_values(list(values))
    return array_from_values(values)


def _columns(source: object) -> dict[str, Any]:
    if is_frame(source):
        frame: Any = source
        names = [str(name) for name in frame.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SourceError(
                f"The frame names a column more than once: {', '.join(twice)}.",
                "Different names.",
                "Rename them.",
            )
        return {str(name): frame[name] for name in frame.columns}
    if isinstance(source, Mapping):
        wrong = [
            str(name) for name, values in source.items() if isinstance(values, str) or not hasattr(values, "__len__")
        ]
        if wrong:
            raise SourceError(
                f"The dict's entries {', '.join(wrong)} are no columns.",
                "A dict of equally long lists, or of splits (train, validation, test).",
                "Put each column's values into a list.",
            )
        return {str(name): values for name, values in source.items()}
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        return _columns_of_rows(source)
    raise SourceError(
        f"A source of the type {type(source).__name__} cannot be read.",
        EXPECTED,
        "Convert it first.",
    )


def _columns_of_rows(rows: Sequence[Any]) -> dict[str, list[Any]]:
    if not rows:
        return {}
    first = rows[0]
    kind: type | tuple[type, ...]
    if isinstance(first, Mapping):
        kind, width = Mapping, None
    elif isinstance(first, str):
        kind, width = str, None
    elif isinstance(first, (tuple, list)) and len(first) in (2, 3):
        kind, width = (tuple, list), len(first)
    else:
        raise SourceError(
            f"The list's first entry is a {type(first).__name__} that is no row.",
            EXPECTED,
            "Convert the list first.",
        )
    wrong = [
        index
        for index, row in enumerate(rows)
        if not isinstance(row, kind) or (width is not None and len(row) != width)
    ]
    if wrong:
        raise SourceError(
            f"The list's entries {format_rows(wrong)} (counted from 0) are of another kind than the first one.",
            "Rows of one kind.",
            "Mend those entries.",
        )
    if isinstance(first, Mapping):
        names = dict.fromkeys(str(name) for row in rows for name in row)
        texts = [{str(name): value for name, value in row.items()} for row in rows]
        return {name: [row.get(name) for row in texts] for name in names}
    if isinstance(first, str):
        return {"text": list(rows)}
    names_by_width = {2: ("text", "label"), 3: ("text", "pair", "label")}
    return {name: [row[index] for row in rows] for index, name in enumerate(names_by_width[len(first)])}
