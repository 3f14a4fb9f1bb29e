"""Attention over rows of a few hundred tokens, forward and backward, without a matrix of weights in memory.

May import layers 0 and 1. One chunk is one head of one row: its queries, keys and values are laid out in a scratch area
that stays in the core's own cache, and so are its scores, a block of queries at a time. They become float32 there, or
stay pairs of bfloat16 numbers where the processor multiplies such pairs; weights are rounded to bfloat16 then before
they multiply values. Scores, sums and the softmax are float32 always. What is dropped is drawn again in the backward
pass, and the weights are computed again from each query's largest score and one over the sum (Dao et al. 2022,
"FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness").

    scores = scale * q k' + bias        weights = softmax(scores)        out = (keep * weights) v
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from numba import njit

from headstart.models.kernels.drawing import Drops, split_key
from headstart.models.kernels.forms import Form, transpose
from headstart.models.kernels.key_mask import MASKED, KeyMask
from headstart.models.kernels.launch import Kernel, bits_of, float_of, kernel, num_workers, number_at
from headstart.models.kernels.lowering import multiplies_bfloat16
from headstart.models.kernels.vectors import (
    add_product,
    exp,
    keep_factors,
    larger,
    largest,
    load,
    load_bfloat16,
    load_one,
    select_between,
    splat,
    store,
    store_bfloat16,
    store_one,
    total,
)

__all__ = ["attend", "attend_backward"]

_BLOCK = 32  # queries whose scores are in memory at a time
_NOTHING_SEEN = -1e29


@njit(inline="always")
def _round_up(number, step):
    return (number + step - 1) // step * step


@njit(inline="always")
def _lines_of(row, starts, count, length):
    """Give how many lines after the place that a row's stride leads to its lines begin, and how many it has."""
    if starts != 0:
        return number_at(starts, row), count
    return 0, length


@njit(inline="always")
def _head_of(tensor, batch_stride, head_stride, row_stride, row, head, begin, size):
    """Give where the numbers of a head of a row begin."""
    return tensor + (row * batch_stride + head * head_stride + begin * row_stride) * size


@njit(inline="always")
def _first_key(query, window):
    return max(0, query - window) if window >= 0 else 0


@njit(inline="always")
def _end_of_keys(query, keys, causal, window):
    end = min(keys, query + 1) if causal else keys
    return min(end, query + window + 1) if window >= 0 else end


def _make_forward(form: Form) -> Kernel:
    write, put, size, per_word = form.write, form.put, form.size, form.per_word
    multiply, take, pair = form.multiply, form.make_take(), form.make_pair()

    @kernel(variant=form.name)
    def forward(
        chunk, worker, q, k, v, out, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
        out_batch, out_head, out_row, statistics, num_keys, starts, bias, bias_row, scratch, scratch_size, heads,
        length, asked, dim, scale, causal, window, keys, threshold, factor,
    ):  # fmt: skip
        row, head = chunk // heads, chunk % heads
        count = number_at(num_keys, row)
        begin, end = _lines_of(row, starts, count, length)
        asked = min(asked, end)
        padded, words = _round_up(count, 16), dim // per_word
        queries = scratch + worker * scratch_size * 4
        keys_across = queries + _round_up(length, 16) * words * 4
        taken = keys_across + padded * words * 4
        paired = taken + padded * words * 4
        scores = paired + padded * words * 4
        weights = scores + _BLOCK * padded * 4
        sums = weights + _BLOCK * padded // per_word * 4
        outputs = sums + _BLOCK * 4
        even = _round_up(asked, 8)
        take(queries, _head_of(q, q_batch, q_head, q_row, row, head, begin, size), q_row, asked, even, dim)
        take(taken, _head_of(k, k_batch, k_head, k_row, row, head, begin, size), k_row, count, padded, dim)
        transpose(taken, keys_across, padded, words)
        take(taken, _head_of(v, v_batch, v_head, v_row, row, head, begin, size), v_row, count, padded, dim)
        values = pair(taken, paired, padded, dim)
        masked, scales = splat(np.float32(MASKED)), splat(float_of(scale))
        place = _head_of(out, out_batch, out_head, out_row, row, head, begin, size)
        for start in range(0, asked, _BLOCK):
            rows = min(_BLOCK, asked - start)
            padded_rows = _round_up(rows, 8)
            first = start * words * 4
            multiply(queries + first, words, 1, keys_across, padded, words, scores, padded, padded_rows, padded, 0)
            for index in range(rows):
                query = start + index
                line, weight_line = scores + index * padded * 4, weights + index * padded // per_word * 4
                low, high = _first_key(query, window), _end_of_keys(query, count, causal, window)
                highest = masked
                for lane in range(0, padded, 16):
                    score = load(line, lane) * scales
                    if bias != 0:
                        score = score + load(bias, row * bias_row + lane)
                    score = select_between(lane, low, high, score, masked)
                    store(line, lane, score)
                    highest = larger(highest, score)
                top = largest(highest)
                tops = splat(top)
                sum_of_lanes = splat(np.float32(0.0))
                drawn = split_key(split_key(number_at(keys, row), head), query) if threshold > -32768 else 0
                for lane in range(0, padded, 16):
                    weight = exp(load(line, lane) - tops)
                    sum_of_lanes = sum_of_lanes + weight
                    if threshold > -32768:
                        weight = weight * keep_factors(drawn, lane, threshold, float_of(factor))
                    put(weight_line, lane, weight)
                total_weight = total(sum_of_lanes)
                inverse = np.float32(1.0) / total_weight
                # no key to look at: 0, as PyTorch has it
                if top <= np.float32(_NOTHING_SEEN) and total_weight == total_weight:
                    top, inverse = np.float32(0.0), np.float32(0.0)
                store_one(sums, index, inverse)
                # Not the logarithm of the sum, which would be a call of a function for each line.
                store_one(statistics, 2 * (chunk * length + query), top)
                store_one(statistics, 2 * (chunk * length + query) + 1, inverse)
            depth = (count + per_word - 1) // per_word
            multiply(weights, padded // per_word, 1, values, dim, depth, outputs, dim, padded_rows, dim, 0)
            for index in range(rows):
                factors = splat(load_one(sums, index))
                for lane in range(0, dim, 16):
                    write(place, (start + index) * out_row + lane, load(outputs, index * dim + lane) * factors)
        for index in range(asked, end):
            for lane in range(0, dim, 16):
                write(place, index * out_row + lane, splat(np.float32(0.0)))

    return forward


def _make_backward(form: Form) -> Kernel:
    write, put, size, per_word = form.write, form.put, form.size, form.per_word
    multiply, take, pair = form.multiply, form.make_take(), form.make_pair()

    @njit(inline="always")
    def spill(source, target, row_stride, rows, dim, factor):
        factors = splat(factor)
        for row in range(rows):
            for lane in range(0, dim, 16):
                write(target, row * row_stride + lane, load(source, row * dim + lane) * factors)

    @kernel(variant=form.name)
    def backward(
        chunk, worker, q, k, v, grad_out, grad_q, grad_k, grad_v, q_batch, q_head, q_row, k_batch, k_head, k_row,
        v_batch, v_head, v_row, go_batch, go_head, go_row, gq_batch, gq_head, gq_row, gk_batch, gk_head, gk_row,
        gv_batch, gv_head, gv_row, statistics, num_keys, starts, bias, bias_row, scratch, scratch_size, heads, length,
        asked, dim, scale, causal, window, keys, threshold, factor,
    ):  # fmt: skip
        row, head = chunk // heads, chunk % heads
        count = number_at(num_keys, row)
        begin, end = _lines_of(row, starts, count, length)
        asked = min(asked, end)
        padded, words = _round_up(count, 16), dim // per_word
        of_queries, of_keys = _round_up(length, 16) * words * 4, padded * words * 4
        queries = scratch + worker * scratch_size * 4
        grads = queries + of_queries
        taken = grads + of_queries
        keys_across = taken + of_keys
        values_across = keys_across + of_keys
        grad_keys = values_across + of_keys
        grad_values = grad_keys + padded * dim * 4
        scores = grad_values + padded * dim * 4
        slopes = scores + _BLOCK * padded * 4
        grad_queries = slopes + _BLOCK * padded * 4
        weights = grad_queries + _BLOCK * dim * 4
        # Where words are pairs: what is multiplied, and pairs of lines for sums over lines.
        kept_weights = weights + padded * 4
        kept_slopes = kept_weights + _BLOCK * padded // per_word * 4
        paired_weights = kept_slopes + _BLOCK * padded // per_word * 4
        paired_slopes = paired_weights + _BLOCK * padded // per_word * 4
        paired_queries = paired_slopes + _BLOCK * padded // per_word * 4
        paired_grads = paired_queries + of_queries
        paired_keys = paired_grads + of_queries
        even = _round_up(asked, 8)
        take(queries, _head_of(q, q_batch, q_head, q_row, row, head, begin, size), q_row, asked, even, dim)
        take(grads, _head_of(grad_out, go_batch, go_head, go_row, row, head, begin, size), go_row, asked, even, dim)
        query_lines, grad_lines = pair(queries, paired_queries, even, dim), pair(grads, paired_grads, even, dim)
        take(taken, _head_of(v, v_batch, v_head, v_row, row, head, begin, size), v_row, count, padded, dim)
        transpose(taken, values_across, padded, words)
        take(taken, _head_of(k, k_batch, k_head, k_row, row, head, begin, size), k_row, count, padded, dim)
        transpose(taken, keys_across, padded, words)
        key_lines = pair(taken, paired_keys, padded, dim)
        masked, nothing, scales = splat(np.float32(MASKED)), splat(np.float32(0.0)), splat(float_of(scale))
        grad_place = _head_of(grad_q, gq_batch, gq_head, gq_row, row, head, begin, size)
        for start in range(0, asked, _BLOCK):
            rows = min(_BLOCK, asked - start)
            padded_rows = _round_up(rows, 8)
            first = start * words * 4
            multiply(queries + first, words, 1, keys_across, padded, words, scores, padded, padded_rows, padded, 0)
            multiply(grads + first, words, 1, values_across, padded, words, slopes, padded, padded_rows, padded, 0)
            for index in range(rows):
                query = start + index
                line, slope_line = scores + index * padded * 4, slopes + index * padded * 4
                kept_line = index * padded // per_word * 4
                low, high = _first_key(query, window), _end_of_keys(query, count, causal, window)
                tops = splat(load_one(statistics, 2 * (chunk * length + query)))
                inverse = splat(load_one(statistics, 2 * (chunk * length + query) + 1))
                drawn = split_key(split_key(number_at(keys, row), head), query) if threshold > -32768 else 0
                products = nothing
                for lane in range(0, padded, 16):
                    score = load(line, lane) * scales
                    if bias != 0:
                        score = score + load(bias, row * bias_row + lane)
                    score = select_between(lane, low, high, score, masked)
                    weight = exp(score - tops) * inverse
                    slope = load(slope_line, lane)
                    store(weights, lane, weight)
                    if threshold > -32768:
                        kept = keep_factors(drawn, lane, threshold, float_of(factor))
                        put(kept_weights + kept_line, lane, weight * kept)
                        slope = slope * kept
                    else:
                        put(kept_weights + kept_line, lane, weight)
                    store(slope_line, lane, slope)
                    products = add_product(weight, slope, products)
                # Of these numbers, not of the output, which is rounded where it is bfloat16.
                mean_slope = splat(total(products))
                for lane in range(0, padded, 16):
                    slope = load(weights, lane) * (load(slope_line, lane) - mean_slope)
                    put(kept_slopes + kept_line, lane, slope)
            if rows % per_word:  # the pair of the last line is one of zeros
                for lane in range(0, padded, 16):
                    put(kept_weights + rows * padded // per_word * 4, lane, nothing)
                    put(kept_slopes + rows * padded // per_word * 4, lane, nothing)
            depth = (count + per_word - 1) // per_word
            multiply(kept_slopes, padded // per_word, 1, key_lines, dim, depth, grad_queries, dim, padded_rows, dim, 0)
            spill(grad_queries, grad_place + start * gq_row * size, gq_row, rows, dim, float_of(scale))
            add, depth = 1 if start else 0, (rows + per_word - 1) // per_word
            weight_lines = pair(kept_weights, paired_weights, rows, padded)
            slope_lines = pair(kept_slopes, paired_slopes, rows, padded)
            first = start // per_word * dim * 4
            multiply(weight_lines, 1, padded, grad_lines + first, dim, depth, grad_values, dim, padded, dim, add)
            multiply(slope_lines, 1, padded, query_lines + first, dim, depth, grad_keys, dim, padded, dim, add)
        key_place = _head_of(grad_k, gk_batch, gk_head, gk_row, row, head, begin, size)
        value_place = _head_of(grad_v, gv_batch, gv_head, gv_row, row, head, begin, size)
        spill(grad_values, value_place, gv_row, count, dim, np.float32(1.0))
        spill(grad_keys, key_place, gk_row, count, dim, float_of(scale))
        for index in range(asked, end):
            for lane in range(0, dim, 16):
                write(grad_place, index * gq_row + lane, nothing)
        for index in range(count, end):  # nobody looks at a key that is padding
            for lane in range(0, dim, 16):
                write(value_place, index * gv_row + lane, nothing)
                write(key_place, index * gk_row + lane, nothing)

    return backward


# The last form is for heads of a multiple of 32 numbers, on processors that multiply pairs of bfloat16.
_FORMS = (
    Form("load", 4, 1, load, store),
    Form("load_bfloat16", 2, 1, load_bfloat16, store_bfloat16),
    Form("pairs", 2, 2, load, store_bfloat16),
)
_forward = {form.name: _make_forward(form) for form in _FORMS}
_backward = {form.name: _make_backward(form) for form in _FORMS}


def _form_of(dtype: torch.dtype, dim: int) -> Form:
    """Choose by what is given and by the processor alone."""
    floats, halves, pairs = _FORMS
    if dtype == torch.float32:
        return floats
    return pairs if multiplies_bfloat16() and dim % 32 == 0 else halves


# An area for each thread that calls, because it may call while another one waits for its kernel.
_scratch = threading.local()


def _scratch_area(size: int, num_chunks: int) -> torch.Tensor:
    """Give memory for each worker; the same again and again, because fresh memory costs more than the work in it."""
    wanted = size * num_workers(num_chunks)
    held: torch.Tensor | None = getattr(_scratch, "area", None)
    if held is None or held.numel() < wanted:
        held = _scratch.area = torch.empty(wanted, dtype=torch.float32)
    return held


def _strides(tensor: torch.Tensor, mask: KeyMask) -> tuple[int, int, int]:
    return tensor.stride(0) if mask.starts is None else 0, tensor.stride(1), tensor.stride(2)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: KeyMask,
    *,
    scale: float,
    drops: Drops,
    causal: bool = False,
    window: int | None = None,
    num_queries: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention.

    Args:
        q: shape (B, heads, T, D), float32 or bfloat16, D a multiple of 16; any strides, but numbers of one head lie
            side by side. The same for `k` and `v`. A query that sees no key gets zeros. Rows that lie one after the
            other, as `mask.starts` says, have shape (1, heads, N, D); what comes behind the last is left as it is.
        k: keys.
        v: values.
        mask: keys that are there.
        scale: of the scores.
        drops: of the weights.
        causal: a query sees no later key.
        window: a query sees keys up to so many places away; None sees all.
        num_queries: the first ones, which are answered; the others get zeros. None is all.

    Returns:
        The output, shape (B, heads, T, D) with memory laid out as (B, T, heads, D), and of each query the largest score
        and one over the sum of what the softmax divides, float32, shape (B, heads, T, 2), T that of the longest row.
    """
    _, heads, _, dim = q.shape
    batch, length = mask.shape_of(q)
    out = q.new_empty((q.shape[0], q.shape[2], heads, dim)).transpose(1, 2)
    statistics = torch.empty((batch, heads, length, 2), dtype=torch.float32)
    form, padded = _form_of(q.dtype, dim), -(-length // 16) * 16
    words = dim // form.per_word
    size = 4 * padded * words + _BLOCK * (padded + padded // form.per_word + dim + 1) + 16
    scratch = _scratch_area(size, batch * heads)
    _forward[form.name](
        batch * heads, *(tensor.data_ptr() for tensor in (q, k, v, out)),
        *(stride for tensor in (q, k, v, out) for stride in _strides(tensor, mask)), statistics.data_ptr(),
        *mask.numbers(), scratch.data_ptr(), size, heads, length, length if num_queries is None else num_queries, dim,
        bits_of(scale), int(causal), -1 if window is None else window, *drops.numbers(),
    )  # fmt: skip
    return out, statistics


def attend_backward(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    statistics: torch.Tensor,
    mask: KeyMask,
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    *,
    scale: float,
    drops: Drops,
    causal: bool = False,
    window: int | None = None,
    num_queries: int | None = None,
) -> None:
    """Compute the gradients of `attend`.

    Args:
        grad_out: gradient of the output, same shape and dtype.
        q: what `attend` got, as all that is not said here.
        k: keys.
        v: values.
        statistics: as `attend` gave them.
        mask: keys that are there.
        grads: where those of `q`, `k` and `v` go; of any strides, but numbers of one head lie side by side.
        scale: of the scores.
        drops: of the weights.
        causal: a query sees no later key.
        window: how far away a query sees.
        num_queries: the queries that were answered.
    """
    _, heads, _, dim = q.shape
    batch, length = mask.shape_of(q)
    form, padded = _form_of(q.dtype, dim), -(-length // 16) * 16
    words = dim // form.per_word
    size = padded * (8 * words + 2 * dim + 1) + _BLOCK * (2 * padded + 4 * padded // form.per_word + dim) + 16
    scratch = _scratch_area(size, batch * heads)
    tensors = (q, k, v, grad_out, *grads)
    _backward[form.name](
        batch * heads, *(tensor.data_ptr() for tensor in tensors),
        *(stride for tensor in tensors for stride in _strides(tensor, mask)), statistics.data_ptr(), *mask.numbers(),
        scratch.data_ptr(), size, heads, length, length if num_queries is None else num_queries, dim, bits_of(scale),
        int(causal), -1 if window is None else window, *drops.numbers(),
    )  # fmt: skip
