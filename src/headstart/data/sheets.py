"""Spreadsheets (.xlsx, .xls, .ods) to record batches.

Holds the choice of the sheet and the reading of its cells. Imports the standard library and pyarrow; python-calamine
(extra
`sheets`) inside functions.

    workbook -> the sheet that is named, or the only one with cells -> header row -> rows

A workbook has at most about a million rows a sheet, and the library holds the sheet in memory.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa

from headstart.data.delimited import RowStream, column_names
from headstart.data.json_rows import stream_rows
from headstart.errors import SourceError, format_rows, suggest

__all__ = ["choose_sheet", "read_sheet", "sheet_names"]


def sheet_names(open_file: Callable[[], BinaryIO], name: str) -> list[str]:
    """List the sheets of a workbook that have cells, in their order.

    Raises:
        SourceError: it is no workbook, has a password, or the extra `sheets` is missing.
    """
    with open_file() as file:
        book = _open(file, name)
        kept = [sheet.name for sheet in book.sheets_metadata if str(sheet.typ).endswith("WorkSheet")]
        return [sheet for sheet in kept if book.get_sheet_by_name(sheet).total_height > 0]


def choose_sheet(names: list[str], name: str, wanted: str | int | None) -> tuple[str, list[str]]:
    """Choose the sheet that is read.

    Args:
        names: of the sheets with cells.
        name: what messages call the file.
        wanted: a name, or a number from 1; None where nothing is said.

    Returns:
        Its name, and what was decided.

    Raises:
        SourceError: there is no such sheet, or several and none is named.
    """
    fix = f"Name it: --set data.sheet={names[0]!r}" if names else "Check that it is the right file."
    if not names:
        raise SourceError(f"{name}: no sheet has a cell.", "A sheet with a header and rows.", fix)
    if isinstance(wanted, int) and 1 <= wanted <= len(names) and str(wanted) not in names:
        return names[wanted - 1], [f'{name}: the sheet "{names[wanted - 1]}"']
    if wanted is not None:
        if str(wanted) not in names:
            raise SourceError(
                f'{name}: no sheet "{wanted}" with cells.',
                f"The name of a sheet, or its number from 1 to {len(names)}.",
                suggest(str(wanted), names),
            )
        return str(wanted), [f'{name}: the sheet "{wanted}"']
    if len(names) > 1:
        raise SourceError(
            f"{name}: {len(names)} sheets have cells: {', '.join(names)}.",
            "One sheet, a named one, or sheets that are called train, validation and test.",
            fix,
        )
    return names[0], []


def read_sheet(
    open_file: Callable[[], BinaryIO], name: str, sheet: str, header: bool | None, types: Mapping[str, pa.DataType]
) -> RowStream:
    """Read one sheet.

    Whole numbers are integers, dates and times are text in ISO 8601, and an empty cell is missing. Rows without a cell
    are left
    out and counted.

    Args:
        open_file: opens the workbook anew.
        name: what messages call the file.
        sheet: which sheet.
        header: false: the first row holds values, and the columns are `column_0`, ...
        types: columns whose type is already known to differ from what the first rows show.

    Raises:
        SourceError: a column is named twice, or has cells and no header row.
        TypeConflict: later rows do not have the type of the first ones.
    """
    with open_file() as file:
        rows = _open(file, name).get_sheet_by_name(sheet).to_python(skip_empty_area=True)
    kept = [row for row in rows if any(cell != "" for cell in row)]
    notes = []
    if len(kept) < len(rows):
        empty = [index + 1 for index, row in enumerate(rows) if not any(cell != "" for cell in row)]
        notes.append(f"{name}: rows of the sheet without a cell, left out: {len(empty):,} (row {format_rows(empty)})")
    if header is False:
        names = [f"column_{index}" for index in range(len(kept[0]))]
        notes.append(f"{name}: no header line, as data.header says: the columns are column_0, ...")
    else:
        names, renamed = column_names([str(_value(cell) if cell != "" else "") for cell in kept[0]], name)
        notes += renamed
        kept = kept[1:]
    stream = stream_rows(_as_rows(kept, names), name, types)
    return RowStream(stream.schema, stream.batches, [*notes, *stream.notes])


def _as_rows(rows: list[list[Any]], names: list[str]) -> Iterator[Mapping[str, Any]]:
    for row in rows:
        yield {column: None if cell == "" else _value(cell) for column, cell in zip(names, row, strict=True)}


def _value(cell: Any) -> Any:
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return int(cell)
    if isinstance(cell, (datetime.date, datetime.time)):
        return cell.isoformat()
    return str(cell) if isinstance(cell, datetime.timedelta) else cell


def _open(file: BinaryIO, name: str) -> Any:
    try:
        import python_calamine as calamine
    except ImportError as error:
        raise SourceError(
            f"{name}: spreadsheets need the package python-calamine.",
            "The extra that reads them.",
            "Run: pip install 'headstart[sheets]' (or save the sheet as CSV).",
        ) from error
    try:
        return calamine.CalamineWorkbook.from_filelike(file)
    except calamine.PasswordError as error:
        raise SourceError(
            f"{name}: the workbook has a password.", "A workbook without one.", "Save it without a password."
        ) from error
    except calamine.CalamineError as error:
        raise SourceError(
            f"{name}: cannot be read as a spreadsheet ({str(error).rstrip('.')}).",
            "A whole workbook, .xlsx, .xls or .ods, as its ending says.",
            "Open it in the program that made it, and save it again.",
        ) from error
