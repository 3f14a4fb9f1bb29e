"""Parquet and Arrow files to record batches.

Holds one reader a format. Imports pyarrow.

    Parquet, Arrow IPC (file and stream, Feather 2) -> record batches, with encodings replaced by plain types
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

import pyarrow as pa

from headstart.data.arrow_values import plain_table
from headstart.data.delimited import RowStream
from headstart.errors import SourceError

__all__ = ["as_schema", "plain_schema", "read_arrow", "read_parquet"]

FILE_MAGIC = b"ARROW1"
FEATHER_1_MAGIC = b"FEA1"


def plain_schema(schema: pa.Schema, types: Mapping[str, pa.DataType]) -> pa.Schema:
    """Give the schema that a table is stored with: plain types, the file's own metadata (names of classes) kept.

    Args:
        schema: of the file.
        types: columns to cast; with any, the metadata go, because they may describe another type.
    """
    plain = plain_table(schema.empty_table()).schema
    fields = [field.with_type(types.get(field.name, field.type)) for field in plain]
    return pa.schema(fields, metadata=None if types else plain.metadata)


def as_schema(batch: pa.RecordBatch, schema: pa.Schema) -> Iterable[pa.RecordBatch]:
    """Cast a batch to a schema with the same columns."""
    return pa.Table.from_batches([batch]).cast(schema).to_batches()  # type: ignore[no-any-return]


def read_parquet(file: BinaryIO, name: str, types: Mapping[str, pa.DataType]) -> RowStream:
    """Read a Parquet file as record batches.

    Args:
        file: the open bytes, seekable; closed when the last batch has been read.
        name: what messages call the file.
        types: columns to cast.

    Returns:
        The rows; the file's own schema metadata stay, so that class names are not lost.

    Raises:
        SourceError: the bytes are no Parquet file.
    """
    from pyarrow import parquet

    try:
        reader = parquet.ParquetFile(file)
        schema = plain_schema(reader.schema_arrow, types)
    except (pa.ArrowException, OSError) as error:
        file.close()
        raise _parquet_error(name, error) from error

    def read_batches() -> Iterator[pa.RecordBatch]:
        with file:
            try:
                for batch in reader.iter_batches():
                    yield from as_schema(batch, schema)
            except (pa.ArrowException, OSError) as error:
                raise _parquet_error(name, error) from error

    return RowStream(schema, read_batches(), [])


def _parquet_error(name: str, error: Exception) -> SourceError:
    return SourceError(
        f"{name}: cannot be read as Parquet ({str(error).splitlines()[0].rstrip('.')}).",
        "A whole Parquet file.",
        "Check that the file was copied to its end, and that the ending of its name is right.",
    )


def read_arrow(file: BinaryIO, name: str, types: Mapping[str, pa.DataType]) -> RowStream:
    """Read an Arrow IPC file or stream as record batches.

    Args:
        file: the open bytes, seekable; closed when the last batch has been read.
        name: what messages call the file.
        types: columns to cast.

    Returns:
        The rows; the file's own schema metadata stay.

    Raises:
        SourceError: the bytes are no Arrow file, or a Feather file of version 1.

    Source: the Arrow columnar format, section IPC; Feather 2 is an IPC file.
    """
    try:
        start = file.read(len(FILE_MAGIC))
        file.seek(0)
        if start.startswith(FEATHER_1_MAGIC):
            raise pa.ArrowInvalid("it is Feather of version 1, which few programs still read")
        is_file = start == FILE_MAGIC
        reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
        schema = plain_schema(reader.schema, types)
    except (pa.ArrowException, OSError) as error:
        file.close()
        raise _arrow_error(name, error) from error
    except BaseException:
        file.close()
        raise

    def read_batches() -> Iterator[pa.RecordBatch]:
        with file:
            try:
                for batch in (
                    (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else reader
                ):
                    yield from as_schema(batch, schema)
            except (pa.ArrowException, OSError) as error:
                raise _arrow_error(name, error) from error

    return RowStream(schema, read_batches(), [])


def _arrow_error(name: str, error: Exception) -> SourceError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return SourceError(
        f"{name}: cannot be read as Arrow ({reason}).",
        "A whole file of the Arrow IPC format (file or stream), which Feather 2 is, too.",
        "Check that the file was copied to its end, and that the ending of its name is right.",
    )
