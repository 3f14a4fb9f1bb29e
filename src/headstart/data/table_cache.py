"""The cache of read files: Arrow IPC streams that are memory-mapped.

Holds where they lie and how they are written. Imports the standard library and pyarrow; datasets
inside functions.

    record batches -> temporary file -> sync -> rename -> memory-mapped datasets.Dataset

A name is the SHA-256 of the file's content and of the options of reading, so a changed file is read
anew. Any file in the folder may be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from headstart.errors import SourceError

if TYPE_CHECKING:
    import datasets

__all__ = ["cache_dir", "cache_key", "load_table", "store_rows", "store_table"]

NOTES_KEY = b"headstart.notes"


def cache_dir(name: str = "tables") -> Path:
    """Give the folder that keeps one kind of cached file, and make it.

    ``HEADSTART_CACHE`` names another place than ``~/.cache/headstart``. Where the place cannot be
    written, a folder that lives as long as the process takes over.

    Args:
        name: the kind of file, a folder below the cache.

    Returns:
        An existing folder.
    """
    named = os.environ.get("HEADSTART_CACHE")
    folder = (Path(named).expanduser() if named else Path.home() / ".cache" / "headstart") / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _temporary_dir(name)
    return folder if os.access(folder, os.W_OK) else _temporary_dir(name)


@functools.cache
def _temporary_root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="headstart-")


def _temporary_dir(name: str) -> Path:
    folder = Path(_temporary_root().name) / name
    folder.mkdir(exist_ok=True)
    return folder


def cache_key(content_sha256: str, options: Mapping[str, object]) -> str:
    """Name a cached table by what it was made of.

    Args:
        content_sha256: hash of the file's bytes.
        options: everything else that decides the result, as JSON values.

    Returns:
        64 hexadecimal digits.
    """
    text = json.dumps([content_sha256, dict(options)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_table(key: str) -> tuple[datasets.Dataset, list[str]] | None:
    """Open a cached table without reading it into memory.

    Args:
        key: its name from cache_key.

    Returns:
        The table and the notes of its reading; None where there is no whole one.
    """
    path = cache_dir() / f"{key}.arrow"
    try:
        return _open(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):  # cut short or overwritten from outside: it is only a cache
        path.unlink(missing_ok=True)
        return None


def _open(path: Path) -> tuple[datasets.Dataset, list[str]]:
    import datasets

    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        metadata = reader.schema.metadata or {}
    notes: list[str] = json.loads(metadata.get(NOTES_KEY, b"[]"))
    return datasets.Dataset.from_file(str(path)), notes


def store_table(
    key: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], notes: Sequence[str]
) -> tuple[datasets.Dataset, list[str]]:
    """Write a table into the cache and open it.

    The file appears under its name only when it is whole and synced.

    Args:
        key: its name from cache_key.
        schema: the columns of every batch.
        batches: the rows; read once, never all in memory.
        notes: what was decided while reading.

    Returns:
        The memory-mapped table and the notes.

    Raises:
        SourceError: the cache cannot be written, for instance because the disk is full.
    """
    return _store(schema, batches, notes, lambda _: key)


def store_rows(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], notes: Sequence[str]
) -> tuple[datasets.Dataset, list[str]]:
    """Write rows of which nothing is known before they are read (a query, a lazy frame), named by what was written.

    Args:
        schema: the columns of every batch.
        batches: the rows; read once, never all in memory.
        notes: what was decided while reading.

    Returns:
        The memory-mapped table and the notes.

    Raises:
        SourceError: the cache cannot be written, for instance because the disk is full.
    """
    return _store(schema, batches, notes, _content_key)


def _content_key(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _store(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], notes: Sequence[str], name: Callable[[Path], str]
) -> tuple[datasets.Dataset, list[str]]:
    folder = cache_dir()
    schema = schema.with_metadata({**(schema.metadata or {}), NOTES_KEY: json.dumps(list(notes)).encode()})
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            with pa.ipc.new_stream(file, schema) as writer:
                for batch in batches:
                    _write(writer, batch, schema, folder)
            file.flush()
            os.fsync(file.fileno())
        whole = folder / f"{name(Path(temporary))}.arrow"
        os.replace(temporary, whole)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return _open(whole)


def _write(writer: pa.RecordBatchWriter, batch: pa.RecordBatch, schema: pa.Schema, folder: Path) -> None:
    batch = pa.RecordBatch.from_arrays(batch.columns, schema=schema)
    try:
        writer.write_batch(batch)
    except OSError as error:
        raise SourceError(
            f"{folder}: the cache of read files cannot be written ({error}).",
            "Free space for a copy of the data in Arrow format.",
            "Free space there, or set HEADSTART_CACHE to another folder.",
        ) from error
