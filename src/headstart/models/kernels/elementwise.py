"""What lies between the matrix products of a Transformer: dropout, residual, layer norm, GELU, sums of columns.

May import layers 0 and 1. Each is one pass forward and one backward over (N, H) numbers in float32 or bfloat16, H a
multiple of 16 where nothing else is said. A chunk is `LINES` lines; sums over lines are kept a chunk and added up in
the order of the chunks.

    drop_add_norm     z = residual + keep * values        out = (z - mean) / deviation * weight + bias
    gelu              out = u * Phi(u)                    and its slope, which the backward pass multiplies with
    drop              out = keep * values
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit

from headstart.models.kernels.blocks import transpose_halves
from headstart.models.kernels.drawing import Drops, split_key
from headstart.models.kernels.launch import Kernel, bits_of, float_of, kernel, num_workers, number_at
from headstart.models.kernels.partial import (
    load_first,
    load_first_bfloat16,
    store_first,
    store_first_bfloat16,
)
from headstart.models.kernels.vectors import (
    WIDTH,
    add_product,
    exp,
    keep_factors,
    larger,
    load,
    load_bfloat16,
    load_one,
    select_at_least,
    splat,
    store,
    store_bfloat16,
    store_number,
    store_one,
    total,
)

__all__ = [
    "add_columns",
    "drop",
    "drop_add_norm",
    "drop_add_norm_backward",
    "gelu",
    "gelu_backward",
]

LINES = 32
"""Lines of a chunk."""


@njit(inline="always")
def _key_of(keys, line, length, places):
    """Give the key of a token: that of its row, split by its place in the row; where rows have no tokens, the row's."""
    if length == 0:
        return number_at(keys, line)
    if places != 0:
        place = number_at(places, line)
        return split_key(number_at(keys, place >> 32), place & 0xFFFFFFFF)
    return split_key(number_at(keys, line // length), line % length)


def _make_drop(read: Any, write: Any, read_first: Any, write_first: Any) -> Kernel:
    @kernel(variant=read.__name__)
    def drop(chunk, worker, values, out, lines, width, length, places, keys, threshold, factor):
        rest = width % WIDTH
        whole = width - rest
        for line in range(chunk * LINES, min((chunk + 1) * LINES, lines)):
            key = _key_of(keys, line, length, places)
            for lane in range(0, whole, WIDTH):
                kept = keep_factors(key, lane, threshold, float_of(factor))
                write(out, line * width + lane, read(values, line * width + lane) * kept)
            if rest:
                kept = keep_factors(key, whole, threshold, float_of(factor))
                place = line * width + whole
                write_first(out, place, rest, read_first(values, place, rest) * kept)

    return drop


def _make_norm(read: Any, write: Any) -> Kernel:
    @kernel(variant=read.__name__)
    def norm(
        chunk, worker, values, residual, out, weight, bias, statistics, scratch, lines, width, length, epsilon,
        places, keys, threshold, factor,
    ):  # fmt: skip
        row = scratch + worker * width * 4
        zero = splat(np.float32(0.0))
        for line in range(chunk * LINES, min((chunk + 1) * LINES, lines)):
            key = _key_of(keys, line, length, places) if threshold > -32768 else 0
            sums = zero
            for lane in range(0, width, 16):
                value = read(values, line * width + lane)
                if threshold > -32768:
                    value = value * keep_factors(key, lane, threshold, float_of(factor))
                if residual != 0:
                    value = value + read(residual, line * width + lane)
                store(row, lane, value)
                sums = sums + value
            mean = total(sums) / np.float32(width)
            means = splat(mean)
            squares = zero
            for lane in range(0, width, 16):
                rest = load(row, lane) - means
                squares = add_product(rest, rest, squares)
            scale = np.float32(1.0) / np.float32(math.sqrt(total(squares) / np.float32(width) + float_of(epsilon)))
            scales = splat(scale)
            store_one(statistics, 2 * line, mean)
            store_one(statistics, 2 * line + 1, scale)
            for lane in range(0, width, 16):
                value = load(row, lane)
                if residual != 0 or threshold > -32768:
                    write(values, line * width + lane, value)
                value = add_product((value - means) * scales, load(weight, lane), load(bias, lane))
                write(out, line * width + lane, value)

    return norm


def _make_norm_backward(read: Any, write: Any, turn: Any) -> Kernel:
    @kernel(variant=read.__name__)
    def norm_backward(
        chunk, worker, grad_out, more, sums, weight, statistics, grad_sum, grad_values, partial, scratch, turned,
        turned_width, lines, width, length, places, keys, threshold, factor,
    ):  # fmt: skip
        first, last = chunk * LINES, min((chunk + 1) * LINES, lines)
        area = scratch + worker * LINES * 16
        zero = splat(np.float32(0.0))
        for line in range(first, last):
            means = splat(load_one(statistics, 2 * line))
            scales = splat(load_one(statistics, 2 * line + 1))
            plain, weighted = zero, zero
            for lane in range(0, width, 16):
                if more != 0:
                    both = read(grad_out, line * width + lane) + read(more, line * width + lane)
                    write(grad_out, line * width + lane, both)
                slope = read(grad_out, line * width + lane) * load(weight, lane)
                plain = plain + slope
                weighted = add_product(slope, (read(sums, line * width + lane) - means) * scales, weighted)
            place = area + (line - first) * 16
            store_one(place, 0, total(plain) / np.float32(width))
            store_one(place, 1, total(weighted) / np.float32(width))
            if threshold > -32768:
                store_number(place, 1, _key_of(keys, line, length, places))
        out = partial + chunk * width * 3 * 4
        for lane in range(0, width, 16):
            grad_weight, grad_bias, grad_shift = zero, zero, zero
            weights = load(weight, lane)
            for line in range(first, last):
                place = area + (line - first) * 16
                scales = splat(load_one(statistics, 2 * line + 1))
                normal = (read(sums, line * width + lane) - splat(load_one(statistics, 2 * line))) * scales
                slope = read(grad_out, line * width + lane)
                grad_weight = add_product(slope, normal, grad_weight)
                grad_bias = grad_bias + slope
                rest = add_product(slope, weights, zero - splat(load_one(place, 0)))
                value = (rest - normal * splat(load_one(place, 1))) * scales
                write(grad_sum, line * width + lane, value)
                if threshold > -32768:
                    value = value * keep_factors(number_at(place, 1), lane, threshold, float_of(factor))
                    write(grad_values, line * width + lane, value)
                grad_shift = grad_shift + value
            if turned != 0:
                turn(grad_values, first, lines, width, lane, turned, turned_width)
            store(out, lane, grad_weight)
            store(out, width + lane, grad_bias)
            store(out, 2 * width + lane, grad_shift)

    return norm_backward


def _make_gelu(read: Any, write: Any) -> Kernel:
    @kernel(variant=read.__name__)
    def gelu(chunk, worker, values, out, slopes, lines, width, approximate):
        one, half, zero = splat(np.float32(1.0)), splat(np.float32(0.5)), splat(np.float32(0.0))
        for place in range(chunk * LINES * width, min((chunk + 1) * LINES, lines) * width, 16):
            u = read(values, place)
            square = u * u
            if approximate != 0:
                # u / (1 + exp(-2 s)) with s = sqrt(2 / pi) (u + 0.044715 u^3), which is u (1 + tanh(s)) / 2
                inner = add_product(square * u, splat(np.float32(0.044715)), u)
                share = one / (one + exp(inner * splat(np.float32(-1.5957691216))))
                slope_in = add_product(square, splat(np.float32(0.134145)), one) * splat(np.float32(1.5957691216))
                slope = add_product(u * share * (one - share), slope_in, share)
            else:
                # Phi(u) by Abramowitz & Stegun 1964, 7.1.26, to 1e-7; it shares exp(-u^2 / 2) with the slope
                size = larger(u, zero - u)
                t = one / add_product(size, splat(np.float32(0.3275911 / math.sqrt(2))), one)
                bell = exp(square * splat(np.float32(-0.5)))
                series = add_product(t, splat(np.float32(1.061405429)), splat(np.float32(-1.453152027)))
                series = add_product(series, t, splat(np.float32(1.421413741)))
                series = add_product(series, t, splat(np.float32(-0.284496736)))
                series = add_product(series, t, splat(np.float32(0.254829592)))
                tail = half * series * t * bell
                share = select_at_least(u, zero, one - tail, tail)
                slope = add_product(u * bell, splat(np.float32(0.3989422804)), share)
            write(out, place, u * share)
            if slopes != 0:
                write(slopes, place, slope)

    return gelu


def _make_gelu_backward(read: Any, write: Any, turn: Any) -> Kernel:
    @kernel(variant=read.__name__)
    def gelu_backward(chunk, worker, grad, slopes, out, partial, turned, turned_width, lines, width):
        first, last = chunk * LINES, min((chunk + 1) * LINES, lines)
        for lane in range(0, width, 16):
            store(partial, chunk * width + lane, splat(np.float32(0.0)))
        for line in range(first, last):
            for lane in range(0, width, 16):
                place = line * width + lane
                write(out, place, read(grad, place) * read(slopes, place))
                sums = load(partial, chunk * width + lane) + read(out, place)  # as it is rounded
                store(partial, chunk * width + lane, sums)
        if turned != 0:
            for lane in range(0, width, 16):
                turn(out, first, lines, width, lane, turned, turned_width)

    return gelu_backward


def _make_columns(read: Any, turn: Any) -> Kernel:
    @kernel(variant=read.__name__)
    def columns(chunk, worker, values, partial, turned, turned_width, lines, width):
        first, last = chunk * LINES, min((chunk + 1) * LINES, lines)
        for lane in range(0, width, 16):
            store(partial, chunk * width + lane, splat(np.float32(0.0)))
        for line in range(first, last):
            for lane in range(0, width, 16):
                sums = load(partial, chunk * width + lane) + read(values, line * width + lane)
                store(partial, chunk * width + lane, sums)
        if turned != 0:
            for lane in range(0, width, 16):
                turn(values, first, lines, width, lane, turned, turned_width)

    return columns


@njit(inline="always")
def _turn(values, first, lines, width, lane, turned, turned_width):
    """Write the transpose of sixteen columns of a chunk."""
    source, target = values + (first * width + lane) * 2, turned + (lane * turned_width + first) * 2
    transpose_halves(source, width, lines - 1 - first, target, turned_width)


@njit(inline="always")
def _cannot_turn(values, first, lines, width, lane, turned, turned_width):
    pass


_MEMORY = {torch.float32: (load, store), torch.bfloat16: (load_bfloat16, store_bfloat16)}
_FIRST = {
    torch.float32: (load_first, store_first),
    torch.bfloat16: (load_first_bfloat16, store_first_bfloat16),
}
_TURN = {torch.float32: _cannot_turn, torch.bfloat16: _turn}
_drop = {dtype: _make_drop(*memory, *_FIRST[dtype]) for dtype, memory in _MEMORY.items()}
_norm = {dtype: _make_norm(*memory) for dtype, memory in _MEMORY.items()}
_norm_backward = {dtype: _make_norm_backward(*memory, _TURN[dtype]) for dtype, memory in _MEMORY.items()}
_gelu = {dtype: _make_gelu(*memory) for dtype, memory in _MEMORY.items()}
_gelu_backward = {dtype: _make_gelu_backward(*memory, _TURN[dtype]) for dtype, memory in _MEMORY.items()}
_columns = {dtype: _make_columns(memory[0], _TURN[dtype]) for dtype, memory in _MEMORY.items()}


def _num_chunks(lines: int) -> int:
    return -(-lines // LINES)


def drop(values: torch.Tensor, length: int, drops: Drops, out: torch.Tensor | None = None) -> torch.Tensor:
    """Drop elements of (B * length, H) numbers, each known by its row, its place and its column; H may be any here.

    Where `length` is 0 the lines are rows without tokens: (B, H) numbers, each known by its row and its column.
    """
    lines, width = values.shape
    out = torch.empty_like(values) if out is None else out
    _drop[values.dtype](
        _num_chunks(lines), values.data_ptr(), out.data_ptr(), lines, width, length, *drops.place_numbers
    )
    return out


def drop_add_norm(
    values: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    length: int,
    drops: Drops,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the layer norm of `residual` plus what dropout leaves of `values`.

    Args:
        values: shape (B * length, H); the sum, which the backward pass needs, is written over it.
        residual: same shape and dtype; None adds nothing.
        weight: float32, shape (H,).
        bias: float32, shape (H,).
        epsilon: added to the variance.
        length: tokens of a row, where `drops` does not say which token each line is.
        drops: of `values`.

    Returns:
        The result, like `values`, and mean and 1 / deviation of each line, float32, shape (B * length, 2).
    """
    lines, width = values.shape
    out = torch.empty_like(values)
    statistics = torch.empty((lines, 2), dtype=torch.float32)
    scratch = torch.empty(num_workers(_num_chunks(lines)) * width, dtype=torch.float32)
    _norm[values.dtype](
        _num_chunks(lines), values.data_ptr(), 0 if residual is None else residual.data_ptr(), out.data_ptr(),
        weight.data_ptr(), bias.data_ptr(), statistics.data_ptr(), scratch.data_ptr(), lines, width, length,
        bits_of(epsilon), *drops.place_numbers,
    )  # fmt: skip
    return out, statistics


def drop_add_norm_backward(
    grad: torch.Tensor,
    sums: torch.Tensor,
    weight: torch.Tensor,
    statistics: torch.Tensor,
    length: int,
    drops: Drops,
    *,
    more: torch.Tensor | None = None,
    turned: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the gradients of `drop_add_norm`.

    Args:
        grad: of the result.
        sums: what `drop_add_norm` left in `values`.
        weight: as `drop_add_norm` got it.
        statistics: as `drop_add_norm` gave them.
        length: tokens of a row, where `drops` does not say which token each line is.
        drops: of `values`.
        more: what comes back on another way, like `grad`, to which it is added first; None adds nothing.
        turned: room for the transpose of the gradient of `values`, as `packing.transpose` takes it.

    Returns:
        The gradient of the residual; that of `values` (the same tensor where nothing is dropped); and, float32, shape
        (3, H), those of weight and bias, and the sum of the lines of that of `values`.
    """
    lines, width = grad.shape
    count = _num_chunks(lines)
    grad_sum = torch.empty_like(grad)
    grad_values = torch.empty_like(grad) if drops.level else grad_sum
    partial = torch.empty((count, 3, width), dtype=torch.float32)
    scratch = torch.empty(num_workers(count) * LINES * 4, dtype=torch.float32)
    _norm_backward[grad.dtype](
        count, grad.data_ptr(), 0 if more is None else more.data_ptr(), sums.data_ptr(), weight.data_ptr(),
        statistics.data_ptr(), grad_sum.data_ptr(), grad_values.data_ptr(), partial.data_ptr(), scratch.data_ptr(),
        *_room(turned), lines, width, length, *drops.place_numbers,
    )  # fmt: skip
    return grad_sum, grad_values, partial.sum(0)


def gelu(
    values: torch.Tensor,
    slopes: torch.Tensor | None = None,
    *,
    approximate: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Give GELU (Hendrycks & Gimpel 2016) of (N, H) numbers.

    Args:
        values: float32 or bfloat16.
        slopes: like `values`; the derivative is written there. None for a forward pass alone.
        approximate: the form with tanh.
        out: where the result goes; may be `values`.
    """
    lines, width = values.shape
    out = torch.empty_like(values) if out is None else out
    place = 0 if slopes is None else slopes.data_ptr()
    _gelu[values.dtype](_num_chunks(lines), values.data_ptr(), out.data_ptr(), place, lines, width, int(approximate))
    return out


def gelu_backward(
    grad: torch.Tensor, slopes: torch.Tensor, out: torch.Tensor | None = None, turned: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Multiply a gradient by the slopes.

    Args:
        grad: of what `gelu` gave.
        slopes: as `gelu` gave them.
        out: where the result goes; may be one of them.
        turned: room for the transpose of the result, as `packing.transpose` takes it.

    Returns:
        The result, and what `add_columns` gives of it.
    """
    lines, width = grad.shape
    out = torch.empty_like(grad) if out is None else out
    partial = torch.empty((_num_chunks(lines), width), dtype=torch.float32)
    _gelu_backward[grad.dtype](
        _num_chunks(lines), grad.data_ptr(), slopes.data_ptr(), out.data_ptr(), partial.data_ptr(), *_room(turned),
        lines, width,
    )  # fmt: skip
    return out, partial.sum(0)


def add_columns(values: torch.Tensor, turned: torch.Tensor | None = None) -> torch.Tensor:
    """Give the sum of the lines of (N, H) numbers, float32, shape (H,); H may be any number here.

    Args:
        values: float32 or bfloat16.
        turned: room for their transpose, as `packing.transpose` takes it.
    """
    lines, width = values.shape
    if width % WIDTH:
        return values.sum(0, dtype=torch.float32)
    partial = torch.empty((_num_chunks(lines), width), dtype=torch.float32)
    _columns[values.dtype](_num_chunks(lines), values.data_ptr(), partial.data_ptr(), *_room(turned), lines, width)
    return partial.sum(0)


def _room(turned: torch.Tensor | None) -> tuple[int, int]:
    return (0, 0) if turned is None else (turned.data_ptr(), turned.shape[1])
