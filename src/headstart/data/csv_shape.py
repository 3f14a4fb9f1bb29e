"""What separates the cells of a text table, and whether its first line names the columns.

Holds the rules for looking; what the user names wins. Imports the standard library and `errors`.

    first lines -> delimiter (the ending's, else the most frequent one, else a rare one that cuts all lines alike)
                -> header (yes, unless the first line can only be a row)
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from headstart.errors import SourceError

__all__ = ["choose_delimiter", "delimiter_name", "find_header", "first_rows"]

USUAL = (",", ";", "\t", "|")
RARE = ("\x01", "\x1f", "^", "~")  # Hive's and ASCII's own separators, and two that exports use
SAMPLE_LINES = 1_000
SAMPLE_LINE_BYTES = 1 << 20
MIN_WORDS = 4  # in a cell that is a text and no name
# Cells that name a column: a first line with one of them is a header.
USUAL_NAMES = {
    "text", "texts", "sentence", "sentence1", "sentence2", "review", "content", "body", "comment", "message",
    "tweet", "title", "document", "description", "question", "answer", "label", "labels", "class", "category",
    "target", "sentiment", "stars", "rating", "score", "topic", "intent", "id", "idx", "index", "date", "name",
    "split", "source", "url", "user", "premise", "hypothesis",
}  # fmt: skip


def delimiter_name(delimiter: str) -> str:
    r"""Give the way that messages write a delimiter.

    Example:
        >>> delimiter_name(";"), delimiter_name("\t")
        ('";"', 'tab')
    """
    names = {"\t": "tab", " ": "space", "\x01": "the character 0x01", "\x1f": "the character 0x1F"}
    return names.get(delimiter, f'"{delimiter}"')


def choose_delimiter(
    open_file: Callable[[], BinaryIO], name: str, expected: str, named: str | None
) -> tuple[str, list[str]]:
    """Choose what separates the cells.

    Args:
        open_file: opens the text (UTF-8) anew.
        name: what messages call the file.
        expected: what the file's ending says.
        named: what the user says; must be in the first line.

    Returns:
        The delimiter, and a note where it is not the expected one.

    Raises:
        SourceError: the first line does not hold the named one.
    """
    with open_file() as file:
        lines = _first_lines(file)
    header = _outside_quotes(lines[0]) if lines else ""
    if named is not None:
        found = [delimiter_name(other) for other in (*USUAL, *RARE) if other in header]
        if named not in header:
            raise SourceError(
                f"{name}: the first line has no {delimiter_name(named)}, which data.delimiter names.",
                f"The character between the cells; the line has {', '.join(found) or 'none'}.",
                "Correct data.delimiter, or leave it out.",
            )
        return named, []
    chosen = _look_for_delimiter(header, expected, lines)
    return chosen, [f"{name}: the cells are separated by {delimiter_name(chosen)}"] if chosen != expected else []


def _look_for_delimiter(header: str, expected: str, lines: Sequence[str]) -> str:
    if expected in header:
        return expected
    best = max(USUAL, key=header.count)
    if header.count(best):
        return best
    for rare in RARE:
        counts = {_outside_quotes(line).count(rare) for line in lines}
        if len(lines) > 1 and len(counts) == 1 and counts != {0}:
            return rare
    return expected


def find_header(
    open_file: Callable[[], BinaryIO], name: str, delimiter: str, *, quoted: bool, named: bool | None
) -> tuple[bool, list[str]]:
    """Say whether the first line names the columns.

    It does, unless it can only be a row: a text of several words, beside a value that its column repeats further down,
    and no
    usual name of a column.

    Args:
        open_file: opens the text (UTF-8) anew.
        name: what messages call the file.
        delimiter: between the cells.
        quoted: whether quotes enclose cells.
        named: what the user says; None looks.

    Returns:
        The answer, and what was decided or looks doubtful.
    """
    if named is not None:
        return named, [] if named else [f"{name}: no header line, as data.header says: the columns are column_0, ..."]
    rows = first_rows(open_file, delimiter, quoted=quoted, limit=SAMPLE_LINES)
    if len(rows) < 2 or len(rows[0]) < 2:
        return True, []
    first, rest = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    cells = [cell.strip() for cell in first]
    if first in rest or any(cell.lower() in USUAL_NAMES for cell in cells) or not all(cells):
        return True, []
    has_text = any(len(cell.split()) >= MIN_WORDS for cell in cells)
    repeated = [cell for index, cell in enumerate(cells) if any(row[index].strip() == cell for row in rest)]
    counted = cells == [str(index) for index in range(len(cells))]  # what a frame without names writes
    if has_text and repeated:
        return False, [
            f'{name}: the first line is a row, not a header ("{_short(repeated[0])}" '
            "comes again below it): the columns are "
            "column_0, ... (data.header: true takes it as a header)"
        ]
    has_number = any(_is_number(cell) for cell in cells) and not counted
    if has_text or has_number:
        shown = ", ".join(f'"{_short(cell)}"' for cell in cells[:3])
        return True, [
            f"{name}: the first line is taken as the names of the columns ({shown}); "
            "if it is a row, set data.header: false"
        ]
    return True, []


def first_rows(open_file: Callable[[], BinaryIO], delimiter: str, *, quoted: bool, limit: int) -> list[list[str]]:
    """Parse the first rows of a text table; a broken one ends them."""
    before = csv.field_size_limit(sys.maxsize)
    rows: list[list[str]] = []
    try:
        with open_file() as file:
            # One line of a broken file may be the whole of it.
            text = io.StringIO(file.read(SAMPLE_LINE_BYTES).decode("utf-8-sig", errors="ignore"), newline="")
            quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
            reader = (row for row in csv.reader(text, delimiter=delimiter, quoting=quoting) if row)
            rows.extend(itertools.islice(reader, limit))
    except csv.Error:
        pass
    finally:
        csv.field_size_limit(before)
    return rows


def _first_lines(file: BinaryIO) -> list[str]:
    text = file.read(SAMPLE_LINE_BYTES).decode("utf-8-sig", errors="ignore")
    cut = len(text.encode()) >= SAMPLE_LINE_BYTES - 4
    lines = [line.rstrip("\r") for line in text.split("\n") if line.rstrip("\r")]
    return (lines[:-1] if cut and len(lines) > 1 else lines)[:SAMPLE_LINES]


def _outside_quotes(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(cell: str) -> str:
    return cell if len(cell) <= 30 else f"{cell[:30]}..."
