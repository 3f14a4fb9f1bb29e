"""One data file to a memory-mapped table.

Holds the check of the bytes (empty, encoding) and the way through the cache. Imports the standard library and pyarrow;
datasets inside functions.

    DataFile -> hash and encoding (one pass) -> in the cache? -> else reader of the format -> cache -> datasets.Dataset
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import pyarrow as pa

from headstart.data.arrow_values import TypeConflict, merge_types
from headstart.data.columnar import read_arrow, read_parquet
from headstart.data.data_file import (
    FORMATS,
    KNOWN_ENDINGS,
    TEXT_FORMATS,
    DataFile,
    file_format,
    local_file,
    packing_of,
    strip_endings,
    unpack_errors,
)
from headstart.data.delimited import BLOCK_BYTES, BlockTooSmall, RowStream, read_delimited
from headstart.data.encodings import Scan, candidates, decode_fault, guess_encoding, open_as_utf8, scan_bytes
from headstart.data.json_rows import read_json, read_json_lines
from headstart.data.plain_text import read_lines
from headstart.data.sheets import choose_sheet, read_sheet, sheet_names
from headstart.data.table_cache import cache_key, load_table, store_table
from headstart.errors import HeadstartError, SourceError
from headstart.read_options import ReadOptions

if TYPE_CHECKING:
    import datasets

__all__ = ["KNOWN_ENDINGS", "FileText", "ReadFile", "file_format", "guarded", "read_file", "strip_endings", "text_of"]

T = TypeVar("T")
MAX_BLOCK_BYTES = 1 << 30  # pyarrow counts a block in 32 bits
READER_VERSION = 2  # part of the cache key: raise it when a reader gives other values for the same bytes
SAMPLE_BYTES = 1 << 18  # of lines with bytes outside ASCII, for the guess of an encoding


@dataclass(frozen=True)
class ReadFile:
    """What reading gave.

    Args:
        table: the rows, memory-mapped.
        notes: what was decided.
        applied: names of the options of reading that had an effect.
    """

    table: datasets.Dataset
    notes: list[str]
    applied: frozenset[str] = frozenset()


@dataclass(frozen=True)
class FileText:
    """A text file that reads as UTF-8.

    Args:
        digest: SHA-256 of its own bytes.
        encoding: of its own bytes.
        open_file: opens it as UTF-8.
        notes: what was decided about the encoding.
        applied: {"encoding"} where what the user named was used.
    """

    digest: str
    encoding: str
    open_file: Callable[[], BinaryIO]
    notes: list[str]
    applied: frozenset[str]


def read_file(
    file: DataFile | Path,
    *,
    options: ReadOptions | None = None,
    types: Mapping[str, pa.DataType] | None = None,
    sheet: str | None = None,
) -> ReadFile:
    """Read one file of a known format into the cache and memory-map it.

    Args:
        file: an existing file.
        options: what the user says about it.
        types: columns to read as another type than the one the file shows (for shards that differ).
        sheet: of a workbook whose sheets are splits; None chooses by the options.

    Returns:
        The table, what was decided while reading it, and which options had an effect.

    Raises:
        SourceError: the file cannot be opened, is empty, has no row, or is broken.

    Source: UTF-8 and line rules of RFC 4180 (CSV), RFC 8259 (JSON), jsonlines.org.
    """
    data_file = local_file(file) if isinstance(file, Path) else file
    chosen = options or ReadOptions()
    if data_file.format is None:
        raise _unknown_ending(data_file)
    return guarded(data_file, lambda: _read(data_file, chosen, dict(types or {}), sheet))


def guarded(file: DataFile, read: Callable[[], T]) -> T:
    """Call a reader, and say in words what goes wrong with the bytes of a file."""
    try:
        return read()
    except HeadstartError:
        raise
    except PermissionError as error:
        raise SourceError(
            f"{file.shown}: no permission to read the file.",
            "A file that you may read.",
            f"Ask its owner, or run: chmod u+r {file.shown}",
        ) from error
    except (OSError, *unpack_errors, RuntimeError, NotImplementedError) as error:
        fault = file.unpack_fault(error)
        if fault is not None:
            raise fault from error
        if not isinstance(error, OSError):
            raise
        raise SourceError(f"{file.shown}: cannot be read ({error}).", "A readable file.", "Check the path.") from error


def _unknown_ending(file: DataFile) -> SourceError:
    fix = "Rename the file if its content has one of these formats."
    if file.inside.suffix.lower() in (".db", ".sqlite", ".sqlite3", ".duckdb"):
        kind = "duckdb" if file.inside.suffix.lower() == ".duckdb" else "sqlite"
        fix = f"Name a database by its address: {kind}:///{file.shown}"
    return SourceError(
        f'{file.shown}: the ending of the file ("{file.inside.suffix}") is not known.',
        f"One of {KNOWN_ENDINGS}.",
        fix,
    )


def text_of(file: DataFile, options: ReadOptions, *, may_be_empty: bool = False) -> FileText:
    """Find the encoding of a text file: what the bytes say, then what the user names, then a guess where it is safe.

    Raises:
        SourceError: the file is empty, binary, or its encoding cannot be known; with the place and how candidates read
            it.
    """
    with file.open() as opened:
        scan = scan_bytes(opened)
    if (scan.num_bytes == 0 or scan.is_blank) and not may_be_empty:
        raise SourceError(f"{file.shown}: the file is empty.", "At least one row.", "Check that it is the right file.")
    named = options.encoding
    is_utf8 = scan.bad is None and not scan.has_nul
    wants_utf8 = named in ("utf-8", "utf-8-sig")
    if is_utf8 and (named is None or wants_utf8 or scan.has_utf8):
        used = frozenset({"encoding"}) if wants_utf8 else frozenset()
        return FileText(scan.digest, "utf-8", file.open, [], used)
    if scan.bad is None and scan.has_nul and (named is None or wants_utf8) and scan.bom is None:
        raise _binary_error(file)
    if named is not None:
        _check_named(file, named, scan)
        return _transcoded(file, scan, named, [f"{file.name}: read as {named}, as data.encoding says"], {"encoding"})
    encoding = scan.bom
    if encoding is None:
        if scan.start.startswith(b"PK") or scan.has_nul:
            raise _binary_error(file)
        # Characters that are valid UTF-8 beside bytes that are not: a damaged file, or two encodings in one.
        encoding = None if scan.has_utf8 else guess_encoding(_sample(file))
        if encoding is None:
            raise _encoding_error(file, scan)
    fault = decode_fault(file.open, encoding)
    if fault is not None:
        raise _encoding_error(file, scan) if scan.bom is None else _undecodable(file, encoding, fault)
    how = "says its byte order mark" if scan.bom else "a guess; another one: --set data.encoding=NAME"
    return _transcoded(file, scan, encoding, [f"{file.name}: read as {encoding} ({how})"], set())


def _transcoded(file: DataFile, scan: Scan, encoding: str, notes: list[str], applied: set[str]) -> FileText:
    return FileText(scan.digest, encoding, lambda: open_as_utf8(file.open, encoding), notes, frozenset(applied))


def _check_named(file: DataFile, named: str, scan: Scan) -> None:
    fault = decode_fault(file.open, named)
    if fault is not None:
        raise _undecodable(file, named, fault)
    with open_as_utf8(file.open, named) as text:
        start = text.read(4096)
    if b"\0" in start:
        raise _binary_error(file)
    if named.startswith(("utf-16", "utf-32")) and scan.is_ascii and not scan.has_nul:
        raise SourceError(
            f"{file.shown}: the text is plain ASCII, and data.encoding names {named}.",
            f"Two or four bytes a character, as {named} has them.",
            "Leave data.encoding out.",
        )


def _undecodable(file: DataFile, encoding: str, fault: tuple[int, int, int]) -> SourceError:
    line, offset, byte = fault
    return SourceError(
        f"{file.shown}: line {line} holds the byte 0x{byte:02X} (byte {offset:,} of the file), "
        f"which {encoding} cannot read.",
        f"Text in {encoding} from the first to the last byte.",
        "Name another encoding with data.encoding, or mend the file.",
    )


def _sample(file: DataFile) -> bytes:
    """Give lines that have bytes outside ASCII."""
    taken: list[bytes] = []
    with file.open() as opened:
        for line in itertools.takewhile(lambda _: sum(map(len, taken)) < SAMPLE_BYTES, opened):
            if not line.isascii():
                taken.append(line[:SAMPLE_BYTES])
    return b"".join(taken)


def _encoding_error(file: DataFile, scan: Scan) -> SourceError:
    line, offset, byte = scan.bad or (1, 0, 0)
    what = f"line {line} holds the byte 0x{byte:02X} (byte {offset:,} of the file), which is not UTF-8"
    if scan.has_utf8:
        return SourceError(
            f"{file.shown}: {what}; other characters of the file are.",
            "Text in one encoding.",
            f"Mend that line: {_pipe(file, 'UTF-8 -c')} leaves the byte out, and {_pipe(file, 'WINDOWS-1252')} reads "
            "the whole file as Western European.",
        )
    readings = candidates(_bad_line(file, line))
    shown = "".join(f'\n- {name}: "{text}"' for name, text in readings)
    reads = f" Its line reads as{shown}" if shown else ""
    best = readings[0][0] if readings else "cp1252"
    return SourceError(
        f"{file.shown}: {what}, and there is too little to tell in which encoding it is.{reads}",
        "Text in UTF-8, or a named encoding.",
        f"Name the encoding, for example --set data.encoding={best}; or write the file anew: "
        f"{_pipe(file, 'WINDOWS-1252' if best == 'cp1252' else best)}",
    )


def _bad_line(file: DataFile, number: int) -> bytes:
    with file.open() as opened:
        return next(itertools.islice(opened, number - 1, None), b"")[:2000]


def _pipe(file: DataFile, encoding: str) -> str:
    tools = {".gz": "gunzip -c", ".bz2": "bunzip2 -c", ".xz": "xz -dc", ".zst": "zstd -dc"}
    packing = packing_of(file.inside)
    target = f"{strip_endings(file.inside)}-utf8{''.join(s for s in file.inside.suffixes if s.lower() in FORMATS)}"
    start = f"{tools[packing]} {file.shown} | iconv" if packing else "iconv"
    return f"{start} -f {encoding} -t UTF-8{'' if packing else f' {file.shown}'} > {target}"


def _binary_error(file: DataFile) -> SourceError:
    ending = next((suffix for suffix in reversed(file.inside.suffixes) if suffix.lower() in FORMATS), "")
    return SourceError(
        f"{file.shown}: the file holds binary data, not text.",
        f"Text, as the ending {ending} says; text with zero bytes needs a byte order mark or data.encoding (utf-16).",
        "Check what the file is; a spreadsheet keeps its own ending (.xlsx, .xls, .ods).",
    )


def _read(file: DataFile, options: ReadOptions, types: dict[str, pa.DataType], sheet: str | None) -> ReadFile:
    format = file.format or ""
    if format in TEXT_FORMATS:
        text = text_of(file, options)
        applied = set(text.applied)
        if format in ("csv", "tsv"):
            applied |= {"delimiter", "header"}
        own = {
            "encoding": text.encoding,
            **({k: v for k, v in options.given().items() if k in ("delimiter", "header")}),
        }
        notes = text.notes
        digest = text.digest

        def open_stream(types: Mapping[str, pa.DataType], block_bytes: int) -> RowStream:
            return _text_stream(format, text.open_file, file.name, options, types, block_bytes)
    else:
        with file.open() as opened:
            scan = scan_bytes(opened)
        if scan.num_bytes == 0:
            raise SourceError(
                f"{file.shown}: the file is empty.", "At least one row.", "Check that it is the right file."
            )
        digest, notes, own, applied = scan.digest, [], {}, set()
        if format == "sheets":
            if sheet is None:
                sheet, notes = choose_sheet(sheet_names(file.open_seekable, file.shown), file.name, options.sheet)
                applied = {"sheet"}
            applied |= {"header"}
            own = {"sheet": sheet, "header": options.header}

        def open_stream(types: Mapping[str, pa.DataType], block_bytes: int) -> RowStream:
            if format == "sheets":
                return read_sheet(file.open_seekable, file.name, str(sheet), options.header, types)
            return (read_parquet if format == "parquet" else read_arrow)(file.open_seekable(), file.name, types)

    named = {column: str(type) for column, type in types.items()}
    # The file's name stands in the notes, so it is part of the key.
    key = cache_key(digest, {"format": format, "types": named, "name": file.name, "version": READER_VERSION, **own})
    table, read_notes = load_table(key) or _convert(file, key, types, open_stream)
    if table.num_rows == 0:
        raise SourceError(
            f"{file.shown}: the file has {_columns_but_no_row(table.column_names)}.",
            "At least one row.",
            "Check that it is the right file, and that it was written to its end.",
        )
    return ReadFile(table, [*notes, *read_notes], frozenset(applied))


def _text_stream(
    format: str,
    open_file: Callable[[], BinaryIO],
    name: str,
    options: ReadOptions,
    types: Mapping[str, pa.DataType],
    block_bytes: int,
) -> RowStream:
    if format in ("csv", "tsv"):
        return read_delimited(
            open_file,
            name,
            delimiter="\t" if format == "tsv" else ",",
            types=types,
            block_bytes=block_bytes,
            named_delimiter=options.delimiter,
            header=options.header,
        )
    if format == "text":
        return read_lines(open_file, name)
    return (read_json_lines if format == "jsonl" else read_json)(open_file, name, types)


def _convert(
    file: DataFile,
    key: str,
    types: dict[str, pa.DataType],
    open_stream: Callable[[Mapping[str, pa.DataType], int], RowStream],
) -> tuple[datasets.Dataset, list[str]]:
    """Read a file into the cache; begin again where later rows need other options."""
    block_bytes = BLOCK_BYTES
    while True:
        try:
            stream = open_stream(types, block_bytes)
            return store_table(key, stream.schema, stream.batches, stream.notes)
        except TypeConflict as conflict:
            known = types.get(conflict.column, pa.null())
            types = {**types, conflict.column: merge_types(known, conflict.type)}
        except BlockTooSmall as error:
            if block_bytes >= MAX_BLOCK_BYTES:
                raise SourceError(f"{file.shown}: a row is longer than 1 GiB.", "Shorter rows.", "Split it.") from error
            block_bytes = min(block_bytes * 8, MAX_BLOCK_BYTES)


def _columns_but_no_row(columns: Sequence[str]) -> str:
    return f"a header ({', '.join(columns)}) and no row" if columns else "no row"
