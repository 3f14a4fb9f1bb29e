"""CSV and TSV files to record batches.

Holds the choice of quoting, the check for broken quotes, and the collection of
ragged rows. Imports the standard library and pyarrow.

    bytes (UTF-8) -> delimiter and quoting -> pyarrow's streaming reader -> record batches of one
    schema

A cell is never taken as missing because of its text: "NA" and "null" stay text, and an empty cell
of a text column is empty text.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from headstart.data.arrow_values import TypeConflict
from headstart.data.csv_shape import choose_delimiter, delimiter_name, find_header, first_rows
from headstart.errors import SourceError, join_faults

__all__ = ["BLOCK_BYTES", "BlockTooSmall", "RowStream", "column_names", "read_delimited"]

BLOCK_BYTES = 8 << 20  # the types of the columns are taken from the first block


@dataclass(frozen=True)
class RowStream:
    """Rows of a file on their way into the cache.

    Args:
        schema: the columns, the same for every batch.
        batches: the rows, read as they are asked for.
        notes: what was decided while reading.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    notes: list[str]


class BlockTooSmall(Exception):
    """Tell the caller that a row is longer than a block; never leaves the package."""


def read_delimited(
    open_file: Callable[[], BinaryIO],
    name: str,
    *,
    delimiter: str,
    types: Mapping[str, pa.DataType],
    block_bytes: int = BLOCK_BYTES,
    named_delimiter: str | None = None,
    header: bool | None = None,
) -> RowStream:
    """Read a CSV or TSV file as record batches.

    Args:
        open_file: opens the uncompressed bytes anew.
        name: what messages call the file.
        delimiter: what the file's ending says; another one is taken where the header shows it.
        types: columns whose type is already known to differ from what the first rows show.
        block_bytes: how much is parsed at once; a row must fit.
        named_delimiter: what the user says separates the cells; None looks at the header.
        header: whether the first line names the columns; None looks at the lines. Without names they are `column_0`,
            ...

    Returns:
        The rows; ragged rows raise when the last batch has been read.

    Raises:
        SourceError: the header has a column name twice, a quote is broken, or rows are ragged.
        TypeConflict: later rows do not have the type of the first ones.
        BlockTooSmall: a row is longer than a block.
    """
    chosen, notes = choose_delimiter(open_file, name, delimiter, named_delimiter)
    quoted = True
    if chosen == "\t" and _has_stray_quotes(open_file):
        quoted = False
        notes.append(f'{name}: the character " is read as text, because cells begin with one that is not closed')
    if quoted:
        _check_quotes(open_file, name, chosen)
    has_header, header_notes = find_header(open_file, name, chosen, quoted=quoted, named=header)
    notes += header_notes
    for column, type in types.items():
        kind = "text" if pa.types.is_string(type) else "numbers"
        notes.append(f'{name}: column "{column}" holds different kinds of values and is read as {kind}')
    return _stream(open_file, name, chosen, quoted, has_header, types, block_bytes, notes)


def _has_stray_quotes(open_file: Callable[[], BinaryIO]) -> bool:
    """Say whether cells begin with a quote that is none, in a file of equally wide lines.

    Many published TSV files are written without quoting. Where a real quoted cell holds a tab or a
    line break, the lines differ in their number of tabs, and quoting stays on.
    """
    expected, stray = None, False
    with open_file() as file:
        for line in file:
            cells = line.rstrip(b"\r\n").split(b"\t")
            if expected is None:
                expected = len(cells)
            elif len(cells) != expected and cells != [b""]:
                return False
            for cell in cells:
                if cell.startswith(b'"') and not stray:
                    inner = cell[1:-1].replace(b'""', b"")
                    stray = len(cell) < 2 or not cell.endswith(b'"') or b'"' in inner
    return stray


def _check_quotes(open_file: Callable[[], BinaryIO], name: str, delimiter: str) -> None:
    """Raise where a quote is not closed: a lenient reader would swallow the rows after it."""
    with open_file() as file:
        if not any(b'"' in line for line in file):
            return
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with open_file() as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            line = 1
            try:
                for _ in reader:
                    line = reader.line_num + 1
            except csv.Error as error:
                raise SourceError(
                    f"{name}: a quote is broken in the row that begins at line {line} ({error}).",
                    'A cell that begins with " also ends with ", and a " inside it is written twice.',
                    "Mend that row, or save the table again from the program that made it.",
                ) from error
    finally:
        csv.field_size_limit(limit)


def _stream(
    open_file: Callable[[], BinaryIO],
    name: str,
    delimiter: str,
    quoted: bool,
    has_header: bool,
    types: Mapping[str, pa.DataType],
    block_bytes: int,
    notes: list[str],
) -> RowStream:
    from pyarrow import csv as arrow_csv

    ragged: list[Any] = []
    generated = [] if has_header else [f"column_{index}" for index in range(_count_cells(open_file, delimiter, quoted))]

    def note_ragged(row: Any) -> str:
        ragged.append(row)
        return "skip"

    file = open_file()
    try:
        reader = arrow_csv.open_csv(
            file,
            # Rows are numbered in faults only when one thread reads.
            read_options=arrow_csv.ReadOptions(
                use_threads=False, block_size=block_bytes, column_names=None if has_header else generated
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                invalid_row_handler=note_ragged,
            ),
            convert_options=arrow_csv.ConvertOptions(
                null_values=[""], strings_can_be_null=False, column_types=dict(types)
            ),
        )
        names, renamed = column_names(reader.schema.names, name)
    except pa.ArrowInvalid as error:
        file.close()
        raise _explain(error, [], name) from error
    except BaseException:
        file.close()
        raise
    schema = pa.schema(list(zip(names, reader.schema.types, strict=True)))

    def read_batches() -> Iterator[pa.RecordBatch]:
        with file:
            try:
                yield from reader
            except pa.ArrowInvalid as error:
                raise _explain(error, names, name) from error
        if ragged:
            raise _ragged_error(ragged, name, delimiter, has_header)

    return RowStream(schema, read_batches(), notes + renamed)


def _count_cells(open_file: Callable[[], BinaryIO], delimiter: str, quoted: bool) -> int:
    return max((len(row) for row in first_rows(open_file, delimiter, quoted=quoted, limit=1)), default=1)


def column_names(header: list[str], name: str) -> tuple[list[str], list[str]]:
    """Check the names of the header, and give a name to columns without one."""
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        raise SourceError(
            f"{name}: the header names a column more than once: {', '.join(twice)}.",
            "A different name for each column.",
            "Rename the columns in the first line of the file.",
        )
    names = [column or f"column_{index}" for index, column in enumerate(header)]
    missing = [new for new, old in zip(names, header, strict=True) if not old]
    notes = [f"{name}: a column without a name is called {new}" for new in missing]
    return names, notes


def _explain(error: pa.ArrowInvalid, names: list[str], name: str) -> Exception:
    """Turn pyarrow's message into a request to read again, or into an error for the user."""
    message = str(error)
    if "straddl" in message:
        return BlockTooSmall(message)
    conflict = re.search(r"In CSV column #(\d+):.*conversion error to (\S+): invalid value '(.*)'", message, re.S)
    if conflict and names:
        column, wanted, value = conflict.groups()
        number = wanted.startswith(("int", "null")) and _is_float(value)
        return TypeConflict(names[int(column)], pa.float64() if number else pa.string())
    if message.startswith("Empty CSV") or "cannot infer number of columns" in message:
        return SourceError(
            f"{name}: the file has no row.",
            "A header line and at least one row.",
            "Check the file.",
        )
    return SourceError(
        f"{name}: cannot be read as a table ({message}).",
        "A text file with a header line and the same number of cells in every row.",
        "Open the file and compare it with its ending.",
    )


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _ragged_error(ragged: list[Any], name: str, delimiter: str, has_header: bool) -> SourceError:
    rows = [f"row {row.number}: {row.actual_columns} cell{'s' * (row.actual_columns != 1)}" for row in ragged]
    expected = ragged[0].expected_columns
    first = "header" if has_header else "first row"
    count = "1 row does" if len(ragged) == 1 else f"{len(ragged):,} rows do"
    return SourceError(
        f"{name}: {count} not have as many cells as the {first}.\n{join_faults(rows)}",
        f"{expected} cells separated by {delimiter_name(delimiter)} in every row (the {first} is row 1).",
        f"Put cells that hold {delimiter_name(delimiter)} or a line break between quotes, or save the table as JSONL.",
    )
