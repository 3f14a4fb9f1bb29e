"""One data file to a memory-mapped table.

Holds the known endings, the check of the bytes (empty, UTF-8), and the way through the cache.
Imports the standard library and pyarrow; datasets inside functions.

    path -> hash and UTF-8 check (one pass) -> in the cache? -> else reader of the format -> cache
    -> datasets.Dataset
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import pyarrow as pa

from headstart.data.arrow_values import TypeConflict, merge_types
from headstart.data.delimited import BLOCK_BYTES, BlockTooSmall, RowStream, read_delimited
from headstart.data.json_rows import read_json, read_json_lines, read_parquet
from headstart.data.table_cache import cache_key, load_table, store_table
from headstart.errors import HeadstartError, SourceError

if TYPE_CHECKING:
    import datasets

__all__ = ["KNOWN_ENDINGS", "file_format", "read_file", "strip_endings"]

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
KNOWN_ENDINGS = f"{', '.join(FORMATS)}, each also with .gz"
CHUNK_BYTES = 1 << 20
MAX_BLOCK_BYTES = 1 << 30  # pyarrow counts a block in 32 bits
READER_VERSION = 1  # part of the cache key: raise it when a reader gives other values for the same bytes
SPREADSHEETS = {".xlsx", ".xls", ".ods"}


def file_format(path: Path) -> str | None:
    """Say how a file is read, from the ending of its name.

    Args:
        path: the file; it need not exist.

    Returns:
        "csv", "tsv", "json", "jsonl" or "parquet"; None for any other ending.

    Example:
        >>> file_format(Path("reviews.CSV.gz"))
        'csv'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def strip_endings(path: Path) -> str:
    """Give the name of a data file without .gz and the ending of its format.

    Example:
        >>> strip_endings(Path("data/train-1.csv.gz"))
        'train-1'
    """
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return Path(name).stem


def read_file(path: Path, *, types: Mapping[str, pa.DataType] | None = None) -> tuple[datasets.Dataset, list[str]]:
    """Read one file of a known format into the cache and memory-map it.

    Args:
        path: an existing file.
        types: columns to read as another type than the one the file shows (for shards that differ).

    Returns:
        The table, and what was decided while reading it.

    Raises:
        SourceError: the file cannot be opened, is empty, has no row, or is broken.

    Source: UTF-8 and line rules of RFC 4180 (CSV), RFC 8259 (JSON), jsonlines.org.
    """
    format = file_format(path)
    if format is None:
        raise _unknown_ending(path)
    try:
        digest = _scan(path, is_text=format != "parquet")
        return _read_cached(path, format, digest, dict(types or {}))
    except HeadstartError:
        raise
    except PermissionError as error:
        raise SourceError(
            f"{path}: no permission to read the file.",
            "A file that you may read.",
            f"Ask its owner, or run: chmod u+r {path}",
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(
            f"{path}: cannot be unpacked ({error}).",
            "A whole gzip file, as the ending .gz says.",
            "Check that the file was copied to its end, or take .gz off its name if it is not packed.",
        ) from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error}).", "A readable file.", "Check the path.") from error


def _unknown_ending(path: Path) -> SourceError:
    fix = "Rename the file if its content has one of these formats."
    if path.suffix.lower() in SPREADSHEETS:
        fix = "Save the sheet as CSV (UTF-8)."
    elif path.suffix.lower() == ".txt":
        fix = "Plain text has no column of labels: make a table of texts and labels from it (docs/data.md shows how)."
    return SourceError(
        f'{path}: the ending of the file ("{path.suffix}") is not known.',
        f"One of {KNOWN_ENDINGS}.",
        fix,
    )


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _scan(path: Path, *, is_text: bool) -> str:
    """Hash the unpacked bytes, and check on the way that text is there and valid UTF-8."""
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    num_bytes, num_lines, blank = 0, 0, True
    with _open(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            if is_text:
                pending = decoder.getstate()[0]
                try:
                    decoder.decode(chunk)
                except UnicodeDecodeError as error:
                    line = num_lines + error.object[: error.start].count(b"\n") + 1
                    raise _encoding_error(path, line, num_bytes - len(pending) + error.start, error) from error
                if b"\0" in chunk:
                    raise _binary_error(path)
                num_lines += chunk.count(b"\n")
            blank = blank and not chunk.strip(b"\xef\xbb\xbf \t\r\n")
            num_bytes += len(chunk)
    if is_text:
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise _encoding_error(path, num_lines + 1, num_bytes - len(error.object), error) from error
    if num_bytes == 0 or (is_text and blank):
        raise SourceError(f"{path}: the file is empty.", "At least one row.", "Check that it is the right file.")
    return digest.hexdigest()


def _encoding_error(path: Path, line: int, offset: int, error: UnicodeDecodeError) -> SourceError:
    byte = error.object[error.start]
    start = error.object[:2]
    encoding = "UTF-16" if offset == 0 and start in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"
    if (start == b"PK" and line <= 2) or path.suffix.lower() in SPREADSHEETS:
        return _binary_error(path)
    source = f"gunzip -c {path} | iconv" if path.suffix.lower() == ".gz" else "iconv"
    given = "" if path.suffix.lower() == ".gz" else f" {path}"
    target = f"{strip_endings(path)}-utf8{''.join(s for s in path.suffixes if s.lower() in FORMATS)}"
    return SourceError(
        f"{path}: line {line} holds the byte 0x{byte:02X} (byte {offset:,} of the file), which is not UTF-8.",
        "Text in UTF-8.",
        f"If the text is in {encoding}, run: {source} -f {encoding} -t UTF-8{given} > {target}",
    )


def _binary_error(path: Path) -> SourceError:
    return SourceError(
        f"{path}: the file holds binary data, not text.",
        f"Text in UTF-8, as the ending {path.suffix} says.",
        "Check what the file is; save a spreadsheet as CSV (UTF-8).",
    )


def _read_cached(
    path: Path, format: str, digest: str, types: dict[str, pa.DataType]
) -> tuple[datasets.Dataset, list[str]]:
    named = {column: str(type) for column, type in types.items()}
    # The file's name stands in the notes, so it is part of the key.
    key = cache_key(digest, {"format": format, "types": named, "name": path.name, "version": READER_VERSION})
    table, notes = load_table(key) or _convert(path, format, key, types)
    if table.num_rows == 0:
        raise SourceError(
            f"{path}: the file has {_columns_but_no_row(table.column_names)}.",
            "At least one row.",
            "Check that it is the right file, and that it was written to its end.",
        )
    return table, notes


def _convert(path: Path, format: str, key: str, types: dict[str, pa.DataType]) -> tuple[datasets.Dataset, list[str]]:
    """Read a file into the cache; begin again where later rows need other options."""
    block_bytes = BLOCK_BYTES
    while True:
        try:
            stream = _open_stream(path, format, types, block_bytes)
            return store_table(key, stream.schema, stream.batches, stream.notes)
        except TypeConflict as conflict:
            known = types.get(conflict.column, pa.null())
            types = {**types, conflict.column: merge_types(known, conflict.type)}
        except BlockTooSmall as error:
            if block_bytes >= MAX_BLOCK_BYTES:
                raise SourceError(f"{path}: a row is longer than 1 GiB.", "Shorter rows.", "Split it.") from error
            block_bytes = min(block_bytes * 8, MAX_BLOCK_BYTES)


def _columns_but_no_row(columns: list[str]) -> str:
    return f"a header ({', '.join(columns)}) and no row" if columns else "no row"


def _open_stream(path: Path, format: str, types: Mapping[str, pa.DataType], block_bytes: int) -> RowStream:
    def open_file() -> BinaryIO:
        return _open(path)

    if format in ("csv", "tsv"):
        delimiter = "\t" if format == "tsv" else ","
        return read_delimited(open_file, path.name, delimiter=delimiter, types=types, block_bytes=block_bytes)
    if format == "jsonl":
        return read_json_lines(open_file, path.name, types)
    if format == "json":
        return read_json(open_file, path.name, types)
    with _open(path) as file:
        # Parquet is read from its end; a packed one has to be in memory for that.
        packed = file.read() if path.suffix.lower() == ".gz" else None
    return read_parquet(path.open("rb") if packed is None else io.BytesIO(packed), path.name, types)
