"""JSON and JSON Lines files to record batches.

Holds one reader a format; all give the RowStream of delimited.py. Imports the standard library and
pyarrow.

    JSONL: one object a line; JSON: a list of objects, an object of columns, or lines after all
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa

from headstart.data.arrow_values import TypeConflict, array_as, array_from_values
from headstart.data.delimited import RowStream
from headstart.errors import SourceError, join_faults

__all__ = ["read_json", "read_json_lines", "stream_rows"]

CHUNK_ROWS = 10_000
Row = Mapping[str, Any]


def read_json_lines(open_file: Callable[[], BinaryIO], name: str, types: Mapping[str, pa.DataType]) -> RowStream:
    """Read one JSON object a line.

    Args:
        open_file: opens the uncompressed bytes anew.
        name: what messages call the file.
        types: columns whose type is already known to differ from what the first rows show.

    Returns:
        The rows; broken lines raise when the last batch has been read.

    Raises:
        SourceError: lines are no JSON objects.
        TypeConflict: later rows do not have the type of the first ones.
    """
    return stream_rows(_parse_lines(open_file, name), name, types)


def _parse_lines(open_file: Callable[[], BinaryIO], name: str) -> Iterator[Row]:
    faults = []
    with open_file() as file:
        for number, line in enumerate(file, start=1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                where = f", character {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else ""
                faults.append(f"line {number}{where}")
                continue
            if isinstance(row, dict):
                yield row
            else:
                faults.append(f"line {number}: {_kind(row)}, not an object")
    if faults:
        count = "1 line is" if len(faults) == 1 else f"{len(faults):,} lines are"
        raise SourceError(
            f"{name}: {count} no JSON object.\n{join_faults(faults)}",
            'One object a line, such as {"text": "...", "label": "..."}.',
            "Mend those lines.",
        )


def read_json(open_file: Callable[[], BinaryIO], name: str, types: Mapping[str, pa.DataType]) -> RowStream:
    """Read a JSON document: a list of objects, an object of lists, or one object a line.

    Args:
        open_file: opens the uncompressed bytes anew.
        name: what messages call the file.
        types: columns whose type is already known to differ from what the first rows show.

    Returns:
        The rows.

    Raises:
        SourceError: the document is broken (line and character), or no table.
        TypeConflict: later rows do not have the type of the first ones.
    """
    with open_file() as file:
        text = file.read().decode("utf-8-sig")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        if _first_line_is_object(text):
            stream = read_json_lines(open_file, name, types)
            return RowStream(
                stream.schema,
                stream.batches,
                [*stream.notes, f"{name}: holds one JSON object a line"],
            )
        raise SourceError(
            f"{name}: line {error.lineno}, character {error.colno}: broken JSON ({error.msg}).",
            "A list of objects with the same keys.",
            "Mend that place, or check that the file is whole.",
        ) from error
    except RecursionError as error:
        raise SourceError(f"{name}: the JSON is nested too deep.", "A list of objects.", "Flatten the file.") from error
    return stream_rows(iter(_document_rows(document, name)), name, types)


def _first_line_is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text.lstrip().split("\n", 1)[0]), dict)
    except (json.JSONDecodeError, RecursionError):
        return False


def _document_rows(document: object, name: str) -> list[Row]:
    expected = 'A list of objects ([{"text": "..."}, ...]), or an object of equally long lists.'
    if isinstance(document, list):
        wrong = [index for index, row in enumerate(document) if not isinstance(row, dict)]
        if not wrong:
            return document
        faults = [f"entry {index}: {_kind(document[index])}" for index in wrong]
        raise SourceError(
            f"{name}: {len(wrong):,} entries of the list are no objects (counted from 0).\n{join_faults(faults)}",
            expected,
            "Mend those entries.",
        )
    if isinstance(document, dict) and document and all(isinstance(column, list) for column in document.values()):
        lengths = {column: len(values) for column, values in document.items()}
        if len(set(lengths.values())) == 1:
            return [dict(zip(document, values, strict=True)) for values in zip(*document.values(), strict=True)]
        raise SourceError(f"{name}: the columns differ in length: {lengths}.", expected, "Mend the file.")
    if isinstance(document, dict) and document and not any(isinstance(v, (list, dict)) for v in document.values()):
        return [document]  # one line of JSON Lines
    raise SourceError(f"{name}: holds {_kind(document)} that is no table.", expected, "Rewrite the file so.")


def _kind(value: object) -> str:
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return kinds.get(type(value), "a number")


def stream_rows(rows: Iterator[Row], name: str, types: Mapping[str, pa.DataType]) -> RowStream:
    """Cut rows into record batches of the columns that the first rows show.

    Args:
        rows: mappings of column to value; a column that a row lacks is missing there.
        name: what messages call the source.
        types: columns whose type is already known to differ from what the first rows show.

    Returns:
        The rows as batches.

    Raises:
        TypeConflict: later rows have another column, or values of another type.
    """
    first = list(itertools.islice(rows, CHUNK_ROWS))
    columns = list(dict.fromkeys(itertools.chain.from_iterable(first)))
    fields: dict[str, pa.DataType] = {}
    notes = []
    for column in columns:
        array, mixed = array_from_values([row.get(column) for row in first])
        fields[column] = types.get(column, array.type)
        widened = pa.types.is_string(fields[column]) and not (
            pa.types.is_string(array.type) or array.null_count == len(array)
        )
        if mixed or widened:
            notes.append(f'{name}: column "{column}" holds different kinds of values and is read as text')
    schema = pa.schema(list({**fields, **types}.items()))
    return RowStream(schema, _batch_rows(itertools.chain([first], _chunks(rows)), schema), notes)


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        yield chunk


def _batch_rows(chunks: Iterable[list[Row]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    known = set(schema.names)
    for chunk in chunks:
        for column in dict.fromkeys(itertools.chain.from_iterable(chunk)):
            if column not in known:
                raise TypeConflict(column, array_from_values([row.get(column) for row in chunk])[0].type)
        arrays = [array_as([row.get(field.name) for row in chunk], field.type, field.name) for field in schema]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)
