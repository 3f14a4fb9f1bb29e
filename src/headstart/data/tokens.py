"""Texts -> token ids: tokenised once, cached by content, read as zero-copy numpy.

Holds `tokenize_table` (through the cache) and `TextEncoder` (in memory); hands on `Tokens` and
`collate_tokens`. Imports the standard library, numpy and the layers below; pyarrow and tokenizers
inside functions.

    text, pair columns -> chunks of rows -> ids of each row -> an Arrow file, mapped -> Tokens
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headstart.data.collate import collate_tokens
from headstart.data.token_file import TOKENS_FORMAT, Tokens, open_tokens, to_offsets, write_tokens
from headstart.errors import ColumnError, DataError, ModelError, RecipeError, format_rows, suggest

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    import tokenizers
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextEncoder", "Tokens", "collate_tokens", "tokenize_table"]

_CHUNK_ROWS = 1_024
"""Rows read from the table, and tokenised, at a time."""

_CHUNK_BYTES = 1 << 20
"""Text tokenised at a time, where rows are long: encodings take ~50 times the bytes of the text."""


class TextEncoder:
    """Turn texts into token ids, as `tokenizer(text, pair, truncation=True, max_length=...)` does.

    It works on a copy of the tokenizer's fast backend without the truncation and padding that may
    be baked into `tokenizer.json` or left over from earlier calls (the default model's file cuts at
    128 unsaid); the tokenizer itself is not changed. An empty pair is a pair, as in a batch of
    transformers. Encoding changes nothing inside, so threads may share an encoder.

    Args:
        tokenizer: a tokenizer of transformers with a fast backend.
        max_length: tokens of a row at most, special tokens included.
        has_pair: whether rows are pairs of texts.

    Raises:
        ModelError: the tokenizer has no fast backend.
        RecipeError: `max_length` leaves no room beside the special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, has_pair: bool = False) -> None:
        backend: tokenizers.Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"The tokenizer {type(tokenizer).__name__} has no fast backend.",
                "A tokenizer with a tokenizer.json.",
                "Convert it with the tokenizers library, or choose a checkpoint that has one.",
            )
        self._split_special_tokens = bool(tokenizer.split_special_tokens)
        self._truncation_side = str(tokenizer.truncation_side)
        self._backend = self._copy_backend(backend)
        self.has_token_types = "token_type_ids" in tokenizer.model_input_names
        self.max_length = max_length
        self.has_pair = has_pair
        num_special = self._backend.num_special_tokens_to_add(has_pair)
        if max_length <= num_special:
            raise RecipeError(
                f"data.max_length: {max_length}, but the tokenizer adds {num_special} special tokens to each row.",
                f"At least {num_special + 1}.",
                f"Set data.max_length to {num_special + 1} or more.",
            )

    def _copy_backend(self, backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
        copy = type(backend).from_str(backend.to_str())
        copy.no_truncation()
        copy.no_padding()
        # The text form leaves this out; transformers sets it at each call.
        copy.encode_special_tokens = self._split_special_tokens
        return copy

    @cached_property
    def _truncating_backend(self) -> tokenizers.Tokenizer:
        """A copy of its own, made when a row is too long: switching one copy would race."""
        copy = self._copy_backend(self._backend)
        copy.enable_truncation(self.max_length, stride=0, strategy="longest_first", direction=self._truncation_side)
        return copy

    def describe(self) -> dict[str, object]:
        """Name everything that decides the ids, for the key of the cache."""
        return {
            "tokenizer": hashlib.sha256(self._backend.to_str().encode()).hexdigest(),
            "truncation_side": self._truncation_side,
            "split_special_tokens": self._split_special_tokens,
            "token_type_ids": self.has_token_types,
            "max_length": self.max_length,
        }

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """Tokenise texts in memory.

        Args:
            texts: the first text of each row.
            pairs: the second text of each row, for an encoder of pairs.

        Returns:
            The tokens of the rows, in their order.

        Raises:
            ValueError: pairs are missing, not expected, or not as many as texts.
        """
        if (pairs is not None) != self.has_pair or (pairs is not None and len(pairs) != len(texts)):
            raise ValueError(
                f"{len(texts)} texts with {'no' if pairs is None else len(pairs)} pairs, "
                f"given to an encoder with has_pair={self.has_pair}"
            )
        inputs: list[Any] = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        parts = [
            self._encode_chunk(inputs[start : start + _CHUNK_ROWS]) for start in range(0, len(inputs), _CHUNK_ROWS)
        ]
        if not parts:
            parts = [self._encode_chunk([])]
        lengths = np.concatenate([part.lengths for part in parts])
        token_types = [part.token_type_ids for part in parts if part.token_type_ids is not None]
        return Tokens(
            input_ids=np.concatenate([part.input_ids for part in parts]),
            offsets=to_offsets(lengths),
            lengths=lengths,
            full_lengths=np.concatenate([part.full_lengths for part in parts]),
            token_type_ids=np.concatenate(token_types) if self.has_token_types else None,
        )

    def _encode_chunk(self, inputs: list[Any]) -> Tokens:
        # The "fast" call skips character offsets, which nobody reads: the same ids, half the time.
        encodings = list(self._backend.encode_batch_fast(inputs))
        full_lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int32)
        too_long = np.flatnonzero(full_lengths > self.max_length).tolist()
        if too_long:
            # Cutting ids here would lose the closing special token and, in pairs, the balance of
            # the two texts.
            shortened = self._truncating_backend.encode_batch_fast([inputs[i] for i in too_long])
            for row, encoding in zip(too_long, shortened, strict=True):
                encodings[row] = encoding
        lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int32)
        num_tokens = int(lengths.sum(dtype=np.int64))
        input_ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32, num_tokens)
        token_types = None
        if self.has_token_types:
            token_types = np.fromiter(chain.from_iterable(e.type_ids for e in encodings), np.int8, num_tokens)
        return Tokens(input_ids, to_offsets(lengths), lengths, full_lengths, token_types)


def tokenize_table(
    texts: datasets.Dataset,
    columns: tuple[str, str | None],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    cache_dir: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tokens:
    """Tokenise the rows of a table once, and read the result from the cache ever after.

    The key of the cache is the content of the text columns, the tokenizer and `max_length`: not
    file names, the order of columns, how Arrow cut the table into chunks, or how the tokenizer was
    used before. A damaged file is made anew. Memory stays flat: ids go to a temporary file chunk by
    chunk, and the result is memory-mapped.

    Args:
        texts: the table; its text columns hold text in every row.
        columns: name of the text column, and of the pair column or None.
        tokenizer: a tokenizer of transformers with a fast backend; it is not changed.
        max_length: tokens of a row at most, special tokens included. Pairs lose from the longer
            text first.
        cache_dir: folder of the files; None: `tokens` in $HEADSTART_CACHE or ~/.cache/headstart.
        progress: called with the number of rows done so far, while tokenising; not called when the
            cache has them.

    Returns:
        The tokens, in the order of the rows.

    Raises:
        ColumnError: a column is missing.
        DataError: a column holds no text, a row is null, or the cache cannot be written.
        ModelError: the tokenizer has no fast backend.
        RecipeError: `max_length` leaves no room beside the special tokens.
    """
    from headstart.data import table_cache

    names = [name for name in columns if name is not None]
    for name in names:
        if name not in texts.column_names:
            raise ColumnError(
                f'The table has no column "{name}".',
                "A column of texts.",
                suggest(name, texts.column_names),
            )
    encoder = TextEncoder(tokenizer, max_length=max_length, has_pair=len(names) == 2)
    view = texts.select_columns(list(dict.fromkeys(names))).with_format("arrow")
    content = {"format": TOKENS_FORMAT, "content": _hash_content(view, names), **encoder.describe()}
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    folder = table_cache.cache_dir("tokens") if cache_dir is None else Path(cache_dir)
    path = folder / f"{key}.arrow"
    cached = open_tokens(path, key)
    if cached is not None:
        return cached
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tokens(path, key, _encode_rows(view, names, encoder, progress), encoder.has_token_types)
    except OSError as error:
        raise DataError(
            f"{folder}: the tokens cannot be written ({error.strerror or error}).",
            "A folder that can be written to, with room for about 5 bytes per token.",
            "Make room, or set HEADSTART_CACHE to another folder.",
        ) from error
    built = open_tokens(path, key)
    if built is None:
        raise DataError(
            f"{path}: the file was written and cannot be read back.",
            "The bytes that were written.",
            "Check the disk, or set HEADSTART_CACHE to a folder on another one.",
        )
    return built


def _read_texts(view: datasets.Dataset, name: str) -> Iterator[pa.Array]:
    """Read one column, one array for each `_CHUNK_ROWS` rows, also where the table is a selection.

    Raises:
        DataError: the column does not hold text, or is null in some rows (all of them are named).
    """
    import pyarrow as pa

    start = 0
    null_rows: list[int] = []
    for part in view.iter(batch_size=_CHUNK_ROWS):
        column = part.column(name)
        _check_type(name, column.type)
        # A selection comes with a chunk a row. One array of this size costs little to put together.
        array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
        if array.null_count:
            null_rows += (np.flatnonzero(array.is_null()) + start).tolist()
        elif not null_rows:
            yield array.cast(pa.large_string())
        start += len(array)
    if null_rows:
        raise DataError(
            f'Column "{name}" is null in {len(null_rows):,} row(s): {format_rows(null_rows)}.',
            "Text in every row.",
            "Leave these rows out, or write a text into them.",
        )


def _check_type(name: str, arrow_type: pa.DataType) -> None:
    from pyarrow import types

    values = arrow_type.value_type if types.is_dictionary(arrow_type) else arrow_type
    is_text = types.is_string(values) or types.is_large_string(values)
    if not (is_text or types.is_string_view(values) or types.is_null(values)):
        raise DataError(f'Column "{name}" holds {arrow_type}.', "Text.", "Name a column that holds texts.")


def _text_ends(array: pa.Array) -> npt.NDArray[np.int64]:
    """Give the start of the first text in the buffer of texts, and the end of each."""
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)
    return offsets[array.offset : array.offset + len(array) + 1]


def _hash_content(view: datasets.Dataset, names: Sequence[str]) -> list[list[str]]:
    """Hash the bytes of all texts and the length of each, over Arrow's buffers: no loop over rows.

    What Arrow's chunks begin and end with does not enter, so their layout does not matter.
    """
    digests = []
    for name in names:
        text_hash, length_hash = hashlib.sha256(), hashlib.sha256()
        for array in _read_texts(view, name):
            ends = _text_ends(array)
            if array.buffers()[2] is not None:
                text_hash.update(memoryview(array.buffers()[2])[ends[0] : ends[-1]])
            length_hash.update(np.diff(ends).tobytes())
        digests.append([text_hash.hexdigest(), length_hash.hexdigest()])
    return digests


def _encode_rows(
    view: datasets.Dataset,
    names: Sequence[str],
    encoder: TextEncoder,
    progress: Callable[[int], None] | None,
) -> Iterator[Tokens]:
    num_done = 0
    for arrays in zip(*(_read_texts(view, name) for name in names), strict=True):
        num_bytes = np.sum([np.diff(_text_ends(array)) for array in arrays], axis=0)
        ends = np.cumsum(num_bytes)
        start = 0
        while start < len(ends):
            budget = int(ends[start] - num_bytes[start]) + _CHUNK_BYTES
            stop = max(int(np.searchsorted(ends, budget, side="right")), start + 1)
            yield encoder.encode(*(array[start:stop].to_pylist() for array in arrays))
            num_done += stop - start
            start = stop
            if progress is not None:
                progress(num_done)
