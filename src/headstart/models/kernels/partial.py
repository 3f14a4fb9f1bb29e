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

from headstart.models.kernels.vectors import WIDTH, Lanes

__all__ = [
    "any_bits",
    "is_within",
    "load_first",
    "load_first_bfloat16",
    "magnitude",
    "negative",
    "store_first",
    "store_first_bfloat16",
    "where_at_least",
    "without_tiny",
]

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, WIDTH)
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_INTS = ir.VectorType(_INT32, WIDTH)
_SHORTS = ir.VectorType(ir.IntType(16), WIDTH)


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    from numba.core import cgutils

    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [value.type for value in arguments]), name
    )
    return builder.call(function, arguments)


def _pointer(builder: Any, address: Any, index: Any, size: int, kind: Any) -> Any:
    place = builder.add(address, builder.mul(index, ir.Constant(_INT64, size)))
    return builder.inttoptr(place, kind.as_pointer())


def _first(builder: Any, count: Any) -> Any:
    """Give a mask of the first `count` lanes."""
    single = builder.insert_element(
        ir.Constant(_INTS, ir.Undefined), builder.trunc(count, _INT32), ir.Constant(_INT32, 0)
    )
    spread = builder.shuffle_vector(single, ir.Constant(_INTS, ir.Undefined), ir.Constant(_INTS, [0] * WIDTH))
    return builder.icmp_signed("<", ir.Constant(_INTS, list(range(WIDTH))), spread)


def _masked_load(builder: Any, kind: Any, name: str, size: int, args: Any) -> Any:
    address, index, count = args
    pointer = _pointer(builder, address, index, size, kind)
    zeros = ir.Constant(kind, [0] * WIDTH)
    arguments = [pointer, ir.Constant(_INT32, size), _first(builder, count), zeros]
    return _call(builder, f"llvm.masked.load.{name}.p0", kind, arguments)


def _masked_store(builder: Any, value: Any, name: str, size: int, address: Any, index: Any, count: Any) -> None:
    pointer = _pointer(builder, address, index, size, value.type)
    arguments = [value, pointer, ir.Constant(_INT32, size), _first(builder, count)]
    _call(builder, f"llvm.masked.store.{name}.p0", ir.VoidType(), arguments)


@intrinsic
def load_first(typing_context: Any, address: Any, index: Any, count: Any) -> Any:
    """Read the first `count` of sixteen float32 numbers; the others are 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _masked_load(builder, _VECTOR, "v16f32", 4, args)

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
        shorts = _masked_load(builder, _SHORTS, "v16i16", 2, args)
        shifted = builder.shl(builder.zext(shorts, _INTS), ir.Constant(_INTS, [16] * WIDTH))
        return builder.bitcast(shifted, _VECTOR)

    return signature(Lanes, types.int64, types.int64, types.int64), generate


@intrinsic
def store_first_bfloat16(typing_context: Any, address: Any, index: Any, count: Any, values: Any) -> Any:
    """Write the first `count` of sixteen numbers as bfloat16, rounded as `store_bfloat16` rounds them."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, index, count, values = args
        _masked_store(builder, _to_shorts(builder, values), "v16i16", 2, address, index, count)

    return signature(types.void, types.int64, types.int64, types.int64, Lanes), generate


def _to_shorts(builder: Any, values: Any) -> Any:
    """Round to the nearest bfloat16, to even where two are as near; NaN stays NaN."""
    bits = builder.bitcast(values, _INTS)

    def ints(value: int) -> Any:
        return ir.Constant(_INTS, [value] * WIDTH)

    odd = builder.and_(builder.lshr(bits, ints(16)), ints(1))
    rounded = builder.add(bits, builder.add(odd, ints(0x7FFF)))
    rounded = builder.select(builder.fcmp_unordered("uno", values, values), ints(0x7FC00000), rounded)
    return builder.trunc(builder.lshr(rounded, ints(16)), _SHORTS)


@intrinsic
def magnitude(typing_context: Any, values: Any) -> Any:
    """Give the absolute values."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, "llvm.fabs.v16f32", _VECTOR, [args[0]])

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
        tiny = builder.fcmp_ordered("<", _call(builder, "llvm.fabs.v16f32", _VECTOR, [values]), limit)
        return builder.select(tiny, ir.Constant(_VECTOR, [0.0] * WIDTH), values)

    return signature(Lanes, Lanes, Lanes), generate


@intrinsic
def where_at_least(typing_context: Any, values: Any, limit: Any, chosen: Any, otherwise: Any) -> Any:
    """Choose lane by lane: `chosen` where values >= limit, else `otherwise`."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values, limit, chosen, otherwise = args
        return builder.select(builder.fcmp_ordered(">=", values, limit), chosen, otherwise)

    return signature(Lanes, Lanes, Lanes, Lanes, Lanes), generate


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
        bits = builder.icmp_unsigned("!=", builder.bitcast(args[0], _INTS), ir.Constant(_INTS, [0] * WIDTH))
        return builder.icmp_unsigned("!=", builder.bitcast(bits, ir.IntType(WIDTH)), ir.Constant(ir.IntType(WIDTH), 0))

    return signature(types.boolean, Lanes), generate
