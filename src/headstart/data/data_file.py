"""A file of data: where its bytes lie, how they are packed, and which format they have.

Holds the known endings. Imports the standard library and pyarrow (for Zstandard).

    reviews.csv.zst              -> format csv, packed with zst
    data.zip: train/a.jsonl      -> a member of an archive, read in place, never extracted to the path that it names
    https://host/reviews.csv     -> a copy in the cache, under the name that the address ends with
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow as pa

from headstart.errors import SourceError

__all__ = [
    "FORMATS",
    "KNOWN_ENDINGS",
    "PACKINGS",
    "DataFile",
    "file_format",
    "local_file",
    "packing_of",
    "strip_endings",
    "unpack_errors",
]

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".xlsx": "sheets",
    ".xls": "sheets",
    ".ods": "sheets",
    ".txt": "text",
}
TEXT_FORMATS = ("csv", "tsv", "json", "jsonl", "text")
PACKINGS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard"}
KNOWN_ENDINGS = f"{', '.join(FORMATS)}, each also with {', '.join(PACKINGS)} or inside a .zip"
unpack_errors = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def packing_of(path: PurePath) -> str | None:
    """Give the ending that says how a file is packed.

    Example:
        >>> packing_of(Path("a.csv.ZST")), packing_of(Path("a.csv"))
        ('.zst', None)
    """
    suffix = path.suffix.lower()
    return suffix if suffix in PACKINGS else None


def file_format(path: PurePath) -> str | None:
    """Say how a file is read, from the ending of its name.

    Args:
        path: the file; it need not exist.

    Returns:
        "csv", "tsv", "json", "jsonl", "parquet", "arrow", "sheets" or "text"; None for any other ending.

    Example:
        >>> file_format(Path("reviews.CSV.gz"))
        'csv'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKINGS:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def strip_endings(path: PurePath) -> str:
    """Give the name of a data file without the endings of its packing and format.

    Example:
        >>> strip_endings(Path("data/train-1.csv.gz"))
        'train-1'
    """
    packing = packing_of(path)
    return Path(path.name[: -len(packing)] if packing else path.name).stem


@dataclass(frozen=True)
class DataFile:
    """One file of data.

    Args:
        inside: its place below the folder, archive or pattern that was named; the name at its end says the format.
        shown: what messages call it.
        locate: gives the path of the bytes on this machine; downloads them where they are elsewhere.
        member: its name inside the zip archive that `locate` gives; None for a file of its own.
    """

    inside: PurePosixPath
    shown: str
    locate: Callable[[], Path]
    member: str | None = None

    @property
    def name(self) -> str:
        """The name without folders."""
        return self.inside.name

    @property
    def format(self) -> str | None:
        """How it is read; see file_format."""
        return file_format(self.inside)

    @property
    def is_packed(self) -> bool:
        """Whether the bytes on disk are not the bytes of the format."""
        return self.member is not None or packing_of(self.inside) is not None

    def open(self) -> BinaryIO:
        """Open the unpacked bytes, to be read from the first to the last."""
        path = self.locate()
        if self.member is not None:
            with zipfile.ZipFile(path) as archive:
                raw = cast(BinaryIO, archive.open(self.member))
        else:
            raw = path.open("rb")
        try:
            return _unpacked(raw, packing_of(self.inside))
        except BaseException:
            raw.close()
            raise

    def open_seekable(self) -> BinaryIO:
        """Open the unpacked bytes for formats that are read from their end; a packed file is unpacked to disk first."""
        if not self.is_packed:
            return self.locate().open("rb")
        from headstart.data.table_cache import cache_dir

        copy = tempfile.TemporaryFile(dir=cache_dir("unpacked"))  # noqa: SIM115 - the caller closes it
        try:
            with self.open() as packed:
                shutil.copyfileobj(packed, copy, 1 << 20)
            copy.seek(0)
        except BaseException:
            copy.close()
            raise
        return cast(BinaryIO, copy)

    def unpack_fault(self, error: BaseException) -> SourceError | None:
        """Say what went wrong while unpacking; None where the error is of another kind."""
        # bz2 and Arrow's Zstandard raise an OSError without a number.
        is_ours = isinstance(error, unpack_errors) or (
            self.is_packed and (isinstance(error, OSError) and error.errno is None)
        )
        locked = self.member is not None and isinstance(error, (RuntimeError, NotImplementedError))
        if locked:
            return SourceError(
                f"{self.shown}: cannot be taken out of the archive ({error}).",
                "An archive without a password, packed with deflate, bzip2 or LZMA.",
                "Unpack it, and name the folder.",
            )
        if not is_ours:
            return None
        ending = packing_of(self.inside)
        kind = f"{PACKINGS[ending]} file, as the ending {ending} says" if ending else "zip archive"
        off = f", or take {ending} off its name if it is not packed" if ending else ""
        return SourceError(
            f"{self.shown}: cannot be unpacked ({str(error).rstrip('.')}).",
            f"A whole {kind}.",
            f"Check that the file was copied to its end{off}.",
        )


def local_file(path: Path, inside: PurePosixPath | None = None) -> DataFile:
    """Describe a file on this machine.

    Example:
        >>> local_file(Path("data/reviews.csv")).shown
        'data/reviews.csv'
    """
    return DataFile(inside or PurePosixPath(path.name), str(path), lambda: path)


def _unpacked(raw: BinaryIO, packing: str | None) -> BinaryIO:
    if packing is None:
        return raw
    if packing == ".gz":
        return cast(BinaryIO, _Closing(gzip.GzipFile(fileobj=raw, mode="rb"), raw))
    if packing == ".bz2":
        return cast(BinaryIO, _Closing(bz2.BZ2File(raw), raw))
    if packing == ".xz":
        return cast(BinaryIO, _Closing(lzma.LZMAFile(raw), raw))
    return cast(BinaryIO, _Closing(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"), raw))


class _Closing(io.BufferedReader):
    """A reader of unpacked bytes that closes the packed ones, too."""

    def __init__(self, unpacked: Any, packed: BinaryIO) -> None:
        super().__init__(_Raw(unpacked), 1 << 17)
        self._packed = packed

    def close(self) -> None:
        super().close()
        self._packed.close()


class _Raw(io.RawIOBase):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self._stream.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()
