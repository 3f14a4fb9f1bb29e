"""Plain text to record batches.

Holds the reader of lines, and that of many small files. Imports the standard library and pyarrow.

    notes.txt          -> a row a line, column text; empty lines are left out and counted
    pos/1.txt, ...     -> a row a file, columns text, label (the folder) and file
    pos.txt, neg.txt   -> a row a line, columns text and label (the name of the file)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa

from headstart.data.delimited import RowStream
from headstart.errors import format_rows

__all__ = ["TextPart", "count_empty_lines", "read_lines", "read_parts"]

CHUNK_ROWS = 10_000


@dataclass(frozen=True)
class TextPart:
    """A text file and what its place says.

    Args:
        name: its path below the folder.
        label: of its rows.
        open_file: opens its text as UTF-8.
    """

    name: str
    label: str
    open_file: Callable[[], BinaryIO]


def read_lines(open_file: Callable[[], BinaryIO], name: str) -> RowStream:
    """Read a row a line; lines without a character are left out, and the notes count them."""
    return RowStream(
        pa.schema([("text", pa.string())]),
        _batches(({"text": line} for line in _lines(open_file)), ["text"]),
        count_empty_lines(open_file, name),
    )


def read_parts(parts: Sequence[TextPart], *, row_a_file: bool) -> RowStream:
    """Read text files whose place gives the label: a row a file (with the column `file`), or a row a line."""
    names = ["text", "label", "file"] if row_a_file else ["text", "label"]

    def rows() -> Iterator[dict[str, str]]:
        for part in parts:
            if row_a_file:
                with part.open_file() as file:
                    text = file.read().decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n")
                yield {"text": text, "label": part.label, "file": part.name}
            else:
                yield from ({"text": line, "label": part.label} for line in _lines(part.open_file))

    notes = [] if row_a_file else [note for part in parts for note in count_empty_lines(part.open_file, part.name)]
    return RowStream(pa.schema([(name, pa.string()) for name in names]), _batches(rows(), names), notes)


def count_empty_lines(open_file: Callable[[], BinaryIO], name: str) -> list[str]:
    """Say which lines of a text hold nothing but white space."""
    with open_file() as file:
        empty = [number for number, line in enumerate(file, start=1) if not line.decode("utf-8-sig").strip()]
    return [f"{name}: empty lines, left out: {len(empty):,} (line {format_rows(empty)})"] if empty else []


def _lines(open_file: Callable[[], BinaryIO]) -> Iterator[str]:
    with open_file() as file:
        for number, line in enumerate(file):
            text = line.decode("utf-8-sig" if number == 0 else "utf-8").rstrip("\r\n")
            if text.strip():
                yield text


def _batches(rows: Iterator[dict[str, str]], names: list[str]) -> Iterator[pa.RecordBatch]:
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        yield pa.RecordBatch.from_arrays([pa.array([row[name] for row in chunk], pa.string()) for name in names], names)
