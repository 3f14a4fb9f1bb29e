"""The token ids of a table, in memory and on disk.

Holds `Tokens`, and how they are written to and mapped from an Arrow file with one record batch.
Imports the standard library, numpy and `errors`; pyarrow inside functions.

    input_ids  [101 7592 102 | 101 102 | 101 2023 ...]
    offsets    [0            3         5           ...]

Row i is input_ids[offsets[i]:offsets[i + 1]].
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headstart.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TOKENS_FORMAT", "Tokens", "open_tokens", "to_offsets", "write_tokens"]

TOKENS_FORMAT = "tokens.v1"


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of the rows of a table, as flat arrays.

    Args:
        input_ids: ids of all rows one after the other, int32, shape (number of tokens,).
        offsets: start of each row in `input_ids`, and the end of the last, int64, shape (N + 1,).
        lengths: tokens of each row, int32, shape (N,).
        full_lengths: tokens of each row before truncation, int32, shape (N,).
        token_type_ids: 0 for the text and 1 for the pair, int8, as `input_ids`; None where the
            model takes none.
        path: the memory-mapped file, None where the arrays are in memory.
    """

    input_ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    full_lengths: npt.NDArray[np.int32]
    token_type_ids: npt.NDArray[np.int8] | None = None
    path: Path | None = None

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int]]) -> Tokens:
        """Take rows of ids as they are, none of them truncated.

        Example:
            >>> tokens = Tokens.from_rows([[101, 7592, 102], [101, 102]])
            >>> tokens.num_rows, tokens.offsets.tolist()
            (2, [0, 3, 5])
        """
        lengths = np.array([len(row) for row in rows], dtype=np.int32)
        input_ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
        return cls(input_ids, to_offsets(lengths), lengths, lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker maps the file itself: no token goes through a pipe.
        if self.path is not None and self.path.exists():
            return _map_again, (self.path,)
        return Tokens, (self.input_ids, self.offsets, self.lengths, self.full_lengths, self.token_type_ids)

    @property
    def num_rows(self) -> int:
        """Count the rows."""
        return len(self.lengths)

    @property
    def num_truncated(self) -> int:
        """Count the rows that lost tokens to `max_length`."""
        return int(np.count_nonzero(self.full_lengths > self.lengths))

    @property
    def num_lost_tokens(self) -> int:
        """Count the tokens that truncation cut off, over all rows."""
        return int(self.full_lengths.sum(dtype=np.int64) - self.lengths.sum(dtype=np.int64))


def to_offsets(lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Add up lengths, shape (N,), to where each row starts and the last one ends, shape (N + 1,).

    Example:
        >>> to_offsets(np.array([3, 2], dtype=np.int32)).tolist()
        [0, 3, 5]
    """
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, dtype=np.int64, out=offsets[1:])
    return offsets


def _map_again(path: Path) -> Tokens:
    tokens = open_tokens(path, path.stem)
    if tokens is None:
        raise DataError(
            f"{path}: the tokens of these rows are gone or damaged.",
            "the file that was there when the rows were handed to this process.",
            "Tokenise the rows again.",
        )
    return tokens


def _schema(key: str, checksum: str, has_token_types: bool) -> pa.Schema:
    import pyarrow as pa

    fields = [pa.field("input_ids", pa.large_list(pa.int32()))]
    if has_token_types:
        fields.append(pa.field("token_type_ids", pa.large_list(pa.int8())))
    fields += [pa.field("length", pa.int32()), pa.field("full_length", pa.int32())]
    return pa.schema(fields, metadata={"format": TOKENS_FORMAT, "key": key, "crc32": checksum})


def _checksum(tokens: Tokens) -> str:
    """Sum up all arrays: CRC-32 reads several GB a second and finds damage, not intent."""
    arrays: Iterable[npt.NDArray[Any] | None]
    arrays = (
        tokens.input_ids,
        tokens.offsets,
        tokens.lengths,
        tokens.full_lengths,
        tokens.token_type_ids,
    )
    checksum = 0
    for array in arrays:
        if array is not None:
            checksum = zlib.crc32(array.data.cast("B") if array.size else b"", checksum)
    return f"{checksum:08x}"


def write_tokens(path: Path, key: str, parts: Iterable[Tokens], has_token_types: bool) -> None:
    """Write tokens, part by part, to a file that holds all of them in one record batch.

    The parts go to nameless files first, which vanish with the process; then the whole is written
    under a temporary name, synced and renamed. Memory stays flat, and no reader ever sees half a
    file.

    Args:
        path: the file; its folder exists.
        key: what the tokens were made of, kept in the file.
        parts: the tokens of consecutive rows.
        has_token_types: whether the parts have `token_type_ids`.

    Raises:
        OSError: the folder cannot be written, or is full.
    """
    with (
        tempfile.TemporaryFile(dir=path.parent) as ids_file,
        tempfile.TemporaryFile(dir=path.parent) as types_file,
    ):
        lengths = [np.zeros(0, dtype=np.int32)]
        full_lengths = [np.zeros(0, dtype=np.int32)]
        for part in parts:
            ids_file.write(part.input_ids.data)
            if part.token_type_ids is not None:
                types_file.write(part.token_type_ids.data)
            lengths.append(part.lengths)
            full_lengths.append(part.full_lengths)
        all_lengths = np.concatenate(lengths)
        tokens = Tokens(
            input_ids=_map_array(ids_file, np.dtype(np.int32)),
            offsets=to_offsets(all_lengths),
            lengths=all_lengths,
            full_lengths=np.concatenate(full_lengths),
            token_type_ids=_map_array(types_file, np.dtype(np.int8)) if has_token_types else None,
        )
        _write_file(path, key, tokens)


def _map_array(file: IO[bytes], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    file.flush()
    if file.tell() == 0:
        return np.zeros(0, dtype=dtype)  # an empty file cannot be mapped
    return np.memmap(file, dtype=dtype, mode="r")


def _write_file(path: Path, key: str, tokens: Tokens) -> None:
    import pyarrow as pa

    def to_lists(values: npt.NDArray[Any]) -> pa.Array:
        return pa.LargeListArray.from_arrays(pa.array(tokens.offsets), pa.array(values))

    arrays = [to_lists(tokens.input_ids)]
    if tokens.token_type_ids is not None:
        arrays.append(to_lists(tokens.token_type_ids))
    arrays += [pa.array(tokens.lengths), pa.array(tokens.full_lengths)]
    schema = _schema(key, _checksum(tokens), tokens.token_type_ids is not None)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".tokens-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            with pa.ipc.new_file(file, schema) as writer:
                writer.write_batch(pa.record_batch(arrays, schema=schema))
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def open_tokens(path: Path, key: str) -> Tokens | None:
    """Map a file of tokens into memory.

    Args:
        path: the file.
        key: what the tokens were made of.

    Returns:
        The tokens, their arrays views of the file, or None where the file is missing, damaged or of
        another key.
    """
    import pyarrow as pa

    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        metadata = reader.schema.metadata or {}
        checksum = metadata.get(b"crc32", b"").decode()
        has_token_types = "token_type_ids" in reader.schema.names
        if not reader.schema.equals(_schema(key, checksum, has_token_types), check_metadata=True):
            return None
        if reader.num_record_batches != 1:
            return None
        batch = reader.get_batch(0)
        batch.validate()
        lists = batch.column("input_ids")
        tokens = Tokens(
            input_ids=lists.values.to_numpy(),
            offsets=lists.offsets.to_numpy(),
            lengths=batch.column("length").to_numpy(),
            full_lengths=batch.column("full_length").to_numpy(),
            token_type_ids=batch.column("token_type_ids").values.to_numpy() if has_token_types else None,
            path=path,
        )
    except (pa.ArrowException, OSError, OverflowError, ValueError):
        # A flipped bit in Arrow's own header may raise any of these.
        return None
    return tokens if _checksum(tokens) == checksum else None
