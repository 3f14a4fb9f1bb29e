"""Rows of tokens -> the padded arrays of one batch.

Holds `collate_tokens`; imports numpy only. Shapes: `B` rows, `T` tokens of the longest row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from headstart.data.token_file import Tokens

__all__ = ["collate_tokens"]


def collate_tokens(
    tokens: Tokens,
    rows: npt.NDArray[np.integer],
    *,
    pad_token_id: int,
    pad_to_multiple_of: int = 1,
) -> dict[str, npt.NDArray[np.int64]]:
    """Pad rows of tokens on the right to the longest of them.

    Args:
        tokens: the tokens of a table.
        rows: row numbers, shape (B,); a row may occur twice.
        pad_token_id: the id put behind the tokens; the mask is 0 there.
        pad_to_multiple_of: T is rounded up to a multiple of it.

    Returns:
        `input_ids` and `attention_mask`, int64, shape (B, T), and `token_type_ids` where the tokens
        have them. T is at least 1, also where every row is empty.

    Raises:
        ValueError: `pad_to_multiple_of` is below 1.

    Example:
        >>> from headstart.data.tokens import Tokens
        >>> tokens = Tokens.from_rows([[5, 6, 7], [8]])
        >>> batch = collate_tokens(tokens, np.array([1, 0]), pad_token_id=0)
        >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist()
        ([[8, 0, 0], [5, 6, 7]], [[1, 0, 0], [1, 1, 1]])
    """
    if pad_to_multiple_of < 1:
        raise ValueError(f"pad_to_multiple_of is {pad_to_multiple_of}; expected at least 1")
    rows = np.asarray(rows, dtype=np.int64)
    lengths = tokens.lengths[rows].astype(np.int64)
    longest = max(int(lengths.max(initial=0)), 1)
    num_columns = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    is_token_BT = np.arange(num_columns) < lengths[:, None]
    # The place of each token of the batch in the flat values: start of its row, plus its place in
    # the row.
    starts = tokens.offsets[rows] - (np.cumsum(lengths) - lengths)
    places = np.repeat(starts, lengths) + np.arange(int(lengths.sum()))

    def fill(values: npt.NDArray[np.integer], padding: int) -> npt.NDArray[np.int64]:
        filled_BT = np.full(is_token_BT.shape, padding, dtype=np.int64)
        filled_BT[is_token_BT] = values[places]
        return filled_BT

    batch = {
        "input_ids": fill(tokens.input_ids, pad_token_id),
        "attention_mask": is_token_BT.astype(np.int64),
    }
    if tokens.token_type_ids is not None:
        batch["token_type_ids"] = fill(tokens.token_type_ids, 0)
    return batch
