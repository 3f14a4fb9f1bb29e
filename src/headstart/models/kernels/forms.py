"""How numbers lie in the scratch areas of kernels that multiply small matrices, and what multiplies them there.

May import layers 0 and 1. Importing this module imports numba. A word has 32 bits: one float32 number, or a pair of
bfloat16 numbers that are neighbours along the sum of a product, on processors that multiply such pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from headstart.models.kernels.blocks import interleave, multiply_pairs_tile, multiply_tile, transpose_block
from headstart.models.kernels.vectors import splat, store, store_bfloat16

__all__ = ["Form", "transpose"]


def _make_multiply(tile: Any) -> Any:
    """Make what multiplies matrices; all places and distances count words."""

    @njit
    def multiply(a, a_row, a_step, b, b_row, depth, out, out_row, rows, columns, add):
        """Multiply matrices tile by tile: `columns` is a multiple of 16, `rows` of 8."""
        column = 0
        while column + 64 <= columns:
            for row in range(0, rows, 4):
                tile(
                    4, 4, a + row * a_row * 4, a_row, a_step, b + column * 4, b_row, depth,
                    out + (row * out_row + column) * 4, out_row, add,
                )  # fmt: skip
            column += 64
        while column + 32 <= columns:
            for row in range(0, rows, 8):
                tile(
                    8, 2, a + row * a_row * 4, a_row, a_step, b + column * 4, b_row, depth,
                    out + (row * out_row + column) * 4, out_row, add,
                )  # fmt: skip
            column += 32
        if column < columns:
            for row in range(0, rows, 8):
                tile(
                    8, 1, a + row * a_row * 4, a_row, a_step, b + column * 4, b_row, depth,
                    out + (row * out_row + column) * 4, out_row, add,
                )  # fmt: skip

    return multiply


@njit(inline="always")
def _fill_zero(address, first, last):
    zero = splat(np.float32(0.0))
    for index in range(first, last, 16):
        store(address, index, zero)


@njit
def transpose(source, target, rows, columns):
    """Write the transpose of (rows, columns); both are multiples of 16."""
    for row in range(0, rows, 16):
        for column in range(0, columns, 16):
            transpose_block(source + (row * columns + column) * 4, columns, target + (column * rows + row) * 4, rows)


class Form:
    """How numbers lie in the scratch area, and what multiplies them there.

    Args:
        name: of the kernels' variant.
        size: bytes of a number in the tensors.
        per_word: numbers in a word of the scratch area, neighbours along the sum of a product.
        read: reads sixteen words' worth of numbers of the tensors, as they lie in the scratch area.
        write: writes sixteen float32 numbers to the tensors.
    """

    def __init__(self, name: str, size: int, per_word: int, read: Any, write: Any) -> None:
        self.name, self.size, self.per_word, self.read, self.write = name, size, per_word, read, write
        self.multiply = _make_multiply(multiply_tile if per_word == 1 else multiply_pairs_tile)
        self.put = store if per_word == 1 else store_bfloat16

    def make_take(self) -> Any:
        """Make what lays out lines of a tensor one after the other, and zeros behind them up to `padded` lines."""
        read, size, per_word = self.read, self.size, self.per_word

        @njit(inline="always")
        def take(target, source, row_stride, rows, padded, dim):
            words = dim // per_word
            for row in range(rows):
                line = source + row * row_stride * size
                for lane in range(0, words, 16):
                    store(target, row * words + lane, read(line, lane))
            _fill_zero(target, rows * words, padded * words)

        return take

    def make_pair(self) -> Any:
        """Make what puts pairs of lines into words, where a word holds two; gives where they lie."""
        if self.per_word == 1:

            @njit(inline="always")
            def pair(source, target, lines, width):
                return source

        else:

            @njit(inline="always")
            def pair(source, target, lines, width):
                for line in range(0, lines, 2):
                    for lane in range(0, width, 16):
                        interleave(
                            source, line * width + lane, (line + 1) * width + lane, target, line // 2 * width + lane
                        )
                return target

        return pair
