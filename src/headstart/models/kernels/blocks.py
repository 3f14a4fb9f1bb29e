"""Tiles of matrices that stay in registers while they are worked on.

May import layers 0 and 1. Importing this module imports numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic
from numba.core.typing.templates import signature

from headstart.models.kernels.lowering import (
    FLOAT,
    INT32,
    INT64,
    INTS,
    SHORTS,
    VECTOR,
    WIDTH,
    constant,
    fused_multiply_add,
    load_vector,
    multiply_pairs,
    pointer_to,
    splat_vector,
    store_vector,
)

__all__ = ["interleave", "multiply_pairs_tile", "multiply_tile", "transpose_block", "transpose_halves"]


def _pair(builder: Any, source: Any, first: Any, second: Any) -> Any:
    """Give sixteen numbers of 16 bits and sixteen others in turns, as words of 32 bits."""
    low, high = (builder.load(pointer_to(builder, source, index, 2, SHORTS), align=2) for index in (first, second))
    turns = ir.VectorType(INT32, 2 * WIDTH)
    order = [lane // 2 + WIDTH * (lane % 2) for lane in range(2 * WIDTH)]
    return builder.bitcast(builder.shuffle_vector(low, high, ir.Constant(turns, order)), INTS)


def _transposed(builder: Any, lines: list[Any]) -> list[Any]:
    """Give the transpose of 16 x 16 words of 32 bits."""
    # Four times, lines that are `span` apart exchange the halves of their blocks of twice that many numbers.
    for span in (8, 4, 2, 1):
        for i in range(WIDTH):
            if i & span:
                continue
            a, b = lines[i], lines[i + span]
            first = [lane if not lane & span else WIDTH + lane - span for lane in range(WIDTH)]
            second = [lane + span if not lane & span else WIDTH + lane for lane in range(WIDTH)]
            lines[i] = builder.shuffle_vector(a, b, ir.Constant(INTS, first))
            lines[i + span] = builder.shuffle_vector(a, b, ir.Constant(INTS, second))
    return lines


@intrinsic
def interleave(typing_context: Any, source: Any, first: Any, second: Any, target: Any, place: Any) -> Any:
    """Write sixteen numbers of 16 bits and sixteen others in turns; `place` counts pairs."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, first, second, target, place = args
        pairs = _pair(builder, source, first, second)
        builder.store(pairs, pointer_to(builder, target, place, 4, INTS), align=4)

    return signature(types.void, types.int64, types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def transpose_block(typing_context: Any, source: Any, source_row: Any, target: Any, target_row: Any) -> Any:
    """Write the transpose of 16 x 16 float32 numbers; rows are that many numbers apart."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, source_row, target, target_row = args

        def row(stride: Any, number: int) -> Any:
            return builder.mul(stride, ir.Constant(INT64, number))

        lines = [load_vector(builder, source, row(source_row, i)) for i in range(WIDTH)]
        for i, line in enumerate(_transposed(builder, lines)):
            store_vector(builder, line, target, row(target_row, i))

    return signature(types.void, types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def transpose_halves(typing_context: Any, source: Any, source_row: Any, last: Any, target: Any, target_row: Any) -> Any:
    """Write the transpose of 32 x 16 numbers of 16 bits; rows behind number `last` are read as that one."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, source_row, last, target, target_row = args

        def row(number: int) -> Any:
            chosen = ir.Constant(INT64, number)
            return builder.mul(source_row, builder.select(builder.icmp_signed("<", last, chosen), last, chosen))

        lines = [_pair(builder, source, row(2 * i), row(2 * i + 1)) for i in range(WIDTH)]
        for i, line in enumerate(_transposed(builder, lines)):
            place = builder.mul(target_row, ir.Constant(INT64, i))
            builder.store(line, pointer_to(builder, target, place, 2, INTS), align=4)

    return signature(types.void, *[types.int64] * 5), generate


def _make_tile(multiply_and_add: Callable[[Any, Any, Any, Any], Any]) -> Any:
    """Make what multiplies tiles; `multiply_and_add` gives a * b + c for words of a and b and float32 numbers of c."""

    @intrinsic(prefer_literal=True)
    def tile(
        typing_context: Any,
        num_rows: Any,
        num_vectors: Any,
        a: Any,
        a_row: Any,
        a_step: Any,
        b: Any,
        b_row: Any,
        depth: Any,
        out: Any,
        out_row: Any,
        add: Any,
    ) -> Any:
        """Write (or add, where `add` is not 0) a tile of a matrix product that stays in registers while it is summed.

        out[r, c] = sum over k < depth of a[r * a_row + k * a_step] * b[k * b_row + c], for `num_rows` (a constant) rows
        and 16 * `num_vectors` (a constant) columns; all places and distances count words of 32 bits.
        """
        rows, vectors = num_rows.literal_value, num_vectors.literal_value

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            _, _, a, a_row, a_step, b, b_row, depth, out, out_row, add = args
            zero, one = ir.Constant(INT64, 0), ir.Constant(INT64, 1)
            a_rows = [builder.add(a, builder.mul(a_row, ir.Constant(INT64, 4 * r))) for r in range(rows)]
            before = builder.block
            head, body, end = (builder.append_basic_block(f"tile.{name}") for name in ("head", "body", "end"))
            builder.branch(head)
            builder.position_at_end(head)
            k = builder.phi(INT64)
            k.add_incoming(zero, before)
            sums = [[builder.phi(VECTOR) for _ in range(vectors)] for _ in range(rows)]
            for line in sums:
                for value in line:
                    value.add_incoming(constant(0.0), before)
            builder.cbranch(builder.icmp_signed("<", k, depth), body, end)
            builder.position_at_end(body)
            b_line = builder.mul(k, b_row)
            columns = [
                load_vector(builder, b, builder.add(b_line, ir.Constant(INT64, WIDTH * v))) for v in range(vectors)
            ]
            a_place = builder.mul(k, a_step)
            for r in range(rows):
                factor = splat_vector(builder, builder.load(pointer_to(builder, a_rows[r], a_place, 4, FLOAT), align=4))
                for v in range(vectors):
                    sums[r][v].add_incoming(multiply_and_add(builder, factor, columns[v], sums[r][v]), body)
            k.add_incoming(builder.add(k, one), body)
            builder.branch(head)
            builder.position_at_end(end)
            adds = builder.icmp_signed("!=", add, zero)
            for r in range(rows):
                for v in range(vectors):
                    place = builder.add(builder.mul(out_row, ir.Constant(INT64, r)), ir.Constant(INT64, WIDTH * v))
                    with builder.if_else(adds) as (then, otherwise):
                        with then:
                            store_vector(
                                builder, builder.fadd(load_vector(builder, out, place), sums[r][v]), out, place
                            )
                        with otherwise:
                            store_vector(builder, sums[r][v], out, place)

        numbers = [types.int64] * 9
        return signature(types.void, num_rows, num_vectors, *numbers), generate

    return tile


multiply_tile = _make_tile(fused_multiply_add)
"""Of float32 numbers."""

multiply_pairs_tile = _make_tile(multiply_pairs)
"""Of pairs of bfloat16 numbers, neighbours along the sum; `out` is float32."""
