"""Laying matrices out as oneDNN multiplies with them, so that it need not do so in each product.

May import layers 0 and 1. oneDNN takes the matrix B of a bfloat16 product in blocks of 64 columns, two of its rows side
by side, because one instruction multiplies pairs:

    B[k, n]  lies at  [n / 64] [k / 2] [n % 64] [k % 2]

That is what it does where AVX-512 multiplies bfloat16; `models/packed_weights.py` compares, and packs nothing else.
"""

from __future__ import annotations

import numpy as np
import torch

from headstart.models.kernels.blocks import interleave, transpose_block, transpose_halves
from headstart.models.kernels.launch import kernel, number_at

__all__ = ["pack", "transpose", "turned_width"]


@kernel
def _pack(chunk, worker, table):
    entry = table + chunk * 48
    weight, forward, backward = number_at(entry, 0), number_at(entry, 1), number_at(entry, 2)
    first, lines, width = number_at(entry, 3), number_at(entry, 4), number_at(entry, 5)
    words = width // 2
    source = weight + first * width * 2
    # Neighbours in a line of the weight are a pair of the transpose: one word of 32 bits.
    target = forward + first * width * 2
    for word in range(0, words, 16):
        for line in range(0, 64, 16):
            transpose_block(source + (line * words + word) * 4, words, target + (word * 64 + line) * 4, 64)
    for block in range(width // 64):
        target = backward + (block * lines + first) * 128
        for line in range(0, 64, 2):
            for lane in range(0, 64, 16):
                place = line * width + block * 64 + lane
                interleave(source, place, place + width, target, line * 32 + lane)


def pack(table: np.ndarray) -> None:
    """Lay weights out for x weight' (forward) and for grad weight (backward).

    Args:
        table: int64, shape (chunks, 6). A chunk is 64 lines of a weight of (lines, width) bfloat16 numbers, both
            multiples of 64:
            address of the weight, of its forward and of its backward form, first line of the chunk, lines, width.
    """
    _pack(len(table), table.ctypes.data)


@kernel
def _transpose(chunk, worker, values, out, lines, width, out_width):
    begin, end = chunk * 128, min((chunk + 1) * 128, lines)
    # Column by column, because lines of the result are far apart.
    for column in range(0, width, 16):
        for first in range(begin, end, 32):
            source = values + (first * width + column) * 2
            transpose_halves(source, width, lines - 1 - first, out + (column * out_width + first) * 2, out_width)


def turned_width(lines: int) -> int:
    """Give how far apart the lines of the transpose of so many are: whole cache lines, which no two threads share."""
    return -(-lines // 32) * 32


def transpose(values: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Write the transpose of bfloat16 numbers.

    Args:
        values: shape (N, H), contiguous, H a multiple of 16.
        out: shape (H, `turned_width(N)`), contiguous; its first N columns become the transpose.

    Returns:
        `out`.
    """
    lines, width = values.shape
    _transpose(-(-lines // 128), values.data_ptr(), out.data_ptr(), lines, width, out.shape[1])
    return out
