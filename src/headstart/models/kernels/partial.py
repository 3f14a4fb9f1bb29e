"""Vectors of which only the first numbers count, and questions about whole vectors.

May import layers 0 and 1. Memory beyond the numbers that count is neither read nor written: a tensor's last vector may
end anywhere. Importing this module imports numba.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic
from numba.core.typing.templates import signature

from headstart.models.kernels.lowering import (
    INT32,
    INTS,
    SHORTS,
    VECTOR,
    WIDTH,
    call,
    pointer_to,
    round_to_bfloat16,
    widen_bfloat16,
)
from headstart.models.kernels.vectors import Lanes

__all__ = [
    "any_bits",
    "is_within",
    "load_first",
    "load_first_bfloat16",
    "magnitude",
    "negative",
    "store_first",
    "store_first_bfloat16",
    "without_tiny",
]


def _first(builder: Any, count: Any) -> Any:
    """Give a mask of the first `count` lanes."""
    single = builder.insert_element(ir.Constant(INTS, ir.Undefined), builder.trunc(count, INT32), ir.Constant(INT32, 0))
    spread = builder.shuffle_vector(single, ir.Constant(INTS, ir.Undefined), ir.Constant(INTS, [0] * WIDTH))
    return builder.icmp_signed("<", ir.Constant(INTS, list(range(WIDTH))), spread)


def _masked_load(builder: Any, kind: Any, name: str, size: int, args: Any) -> Any:
    address, index, count = args
    pointer = pointer_to(builder, address, index, size, kind)
    zeros = ir.Constant(kind, [0] * WIDTH)
    arguments = [pointer, ir.Constant(INT32, size), _first(builder, count), zeros]
    return call(builder, f"llvm.masked.load.{name}.p0", kind, arguments)


def _masked_store(builder: Any, value: Any, name: str, size: int, address: Any, index: Any, count: Any) -> None:
    pointer = pointer_to(builder, address, index, size, value.type)
    arguments = [value, pointer, ir.Constant(INT32, size), _first(builder, count)]
    call(builder, f"llvm.masked.store.{name}.p0", ir.VoidType(), arguments)


@intrinsic
def load_first(typing_context: Any, address: Any, index: Any, count: Any) -> Any:
    """Read the first `count` of sixteen float32 numbers; the others are 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _masked_load(builder, VECTOR, "v16f32", 4, args)

    return signature(Lanes, types.int64, types.int64, types.int64), generate


@intrinsic
def store_first(typing_context: Any, address: Any, index: Any, count: Any, values: Any) -> Any:
    """Write the first `count` of sixteen float32 numbers."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, index, count, values = args
        _masked_store(builder, values, "v16f32", 4, address, index, count)

    return signature(types.void, types.int64, types.int64, types.int64, Lanes), generate


@intrinsic
def load_first_bfloat16(typing_context: Any, address: Any, index: Any, count: Any) -> Any:
    """Read the first `count` of sixteen bfloat16 numbers, as float32; the others are 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        shorts = _masked_load(builder, SHORTS, "v16i16", 2, args)
        return widen_bfloat16(builder, shorts)

    return signature(Lanes, types.int64, types.int64, types.int64), generate


@intrinsic
def store_first_bfloat16(typing_context: Any, address: Any, index: Any, count: Any, values: Any) -> Any:
    """Write the first `count` of sixteen numbers as bfloat16, rounded as `store_bfloat16` rounds them."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, index, count, values = args
        _masked_store(builder, round_to_bfloat16(builder, values), "v16i16", 2, address, index, count)

    return signature(types.void, types.int64, types.int64, types.int64, Lanes), generate


@intrinsic
def magnitude(typing_context: Any, values: Any) -> Any:
    """Give the absolute values."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call(builder, "llvm.fabs.v16f32", VECTOR, [args[0]])

    return signature(Lanes, Lanes), generate


@intrinsic
def negative(typing_context: Any, values: Any) -> Any:
    """Give the values with their signs turned."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fneg(args[0])

    return signature(Lanes, Lanes), generate


@intrinsic
def without_tiny(typing_context: Any, values: Any, limit: Any) -> Any:
    """Put +0 in the place of each number whose absolute value is below a positive limit; NaN stays NaN."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values, limit = args
        tiny = builder.fcmp_ordered("<", call(builder, "llvm.fabs.v16f32", VECTOR, [values]), limit)
        return builder.select(tiny, ir.Constant(VECTOR, [0.0] * WIDTH), values)

    return signature(Lanes, Lanes, Lanes), generate


@intrinsic
def is_within(typing_context: Any, values: Any, limit: Any) -> Any:
    """Say whether every number is at most its limit; a NaN is not."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        beyond = builder.bitcast(builder.fcmp_unordered(">", *args), ir.IntType(WIDTH))
        return builder.icmp_unsigned("==", beyond, ir.Constant(ir.IntType(WIDTH), 0))

    return signature(types.boolean, Lanes, Lanes), generate


@intrinsic
def any_bits(typing_context: Any, values: Any) -> Any:
    """Say whether any of the numbers is something else than +0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.icmp_unsigned("!=", builder.bitcast(args[0], INTS), ir.Constant(INTS, [0] * WIDTH))
        return builder.icmp_unsigned("!=", builder.bitcast(bits, ir.IntType(WIDTH)), ir.Constant(ir.IntType(WIDTH), 0))

    return signature(types.boolean, Lanes), generate
