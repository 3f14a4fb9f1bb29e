"""LLVM's words for sixteen numbers at a time: types, constants, and what several of the kernels' words are made of.

May import layers 0 and 1. Each function adds instructions where an `llvmlite` builder stands, and gives their result.
"""

from __future__ import annotations

import functools
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils

__all__ = [
    "FLOAT",
    "INT32",
    "INT64",
    "INTS",
    "SHORTS",
    "VECTOR",
    "WIDTH",
    "call",
    "constant",
    "fused_multiply_add",
    "ints",
    "load_vector",
    "multiplies_bfloat16",
    "multiply_pairs",
    "pointer_to",
    "round_to_bfloat16",
    "splat_vector",
    "store_vector",
    "widen_bfloat16",
]

WIDTH = 16
"""Numbers in a vector."""

FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, WIDTH)
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
INTS = ir.VectorType(INT32, WIDTH)
SHORTS = ir.VectorType(ir.IntType(16), WIDTH)


class _Bfloat16(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat16)

    def __hash__(self) -> int:
        return hash(_Bfloat16)


@functools.cache
def multiplies_bfloat16() -> bool:
    """Say whether the processor rounds to bfloat16, and multiplies pairs of it, in one instruction each.

    A pure function of the hardware.
    """
    return bool(llvmlite.binding.get_host_cpu_features().get("avx512bf16", False))


def constant(value: float) -> Any:
    """Give a vector of one constant."""
    return ir.Constant(VECTOR, [value] * WIDTH)


def ints(value: int) -> Any:
    """Give a vector of one whole number."""
    return ir.Constant(INTS, [value] * WIDTH)


def call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Call one of LLVM's own functions."""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [value.type for value in arguments]), name
    )
    return builder.call(function, arguments)


def fused_multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Give a * b + c, rounded once."""
    return call(builder, "llvm.fma.v16f32", VECTOR, [a, b, c])


def multiply_pairs(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Give c + a[0] * b[0] + a[1] * b[1] for the two bfloat16 numbers in each word of a and b."""
    pairs = ir.VectorType(_Bfloat16(), 2 * WIDTH)
    factors = [builder.bitcast(value, pairs) for value in (a, b)]
    return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", VECTOR, [c, *factors])


def splat_vector(builder: Any, value: Any) -> Any:
    """Give a vector of one number that is known only later."""
    single = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, ir.Constant(INT32, 0))
    return builder.shuffle_vector(single, ir.Constant(VECTOR, ir.Undefined), ir.Constant(INTS, [0] * WIDTH))


def pointer_to(builder: Any, address: Any, index: Any, size: int, kind: Any) -> Any:
    """Give a pointer to an element."""
    place = builder.add(address, builder.mul(index, ir.Constant(INT64, size)))
    return builder.inttoptr(place, kind.as_pointer())


def load_vector(builder: Any, address: Any, index: Any) -> Any:
    """Read sixteen float32 numbers."""
    return builder.load(pointer_to(builder, address, index, 4, VECTOR), align=4)


def store_vector(builder: Any, value: Any, address: Any, index: Any) -> None:
    """Write sixteen float32 numbers."""
    builder.store(value, pointer_to(builder, address, index, 4, VECTOR), align=4)


def round_to_bfloat16(builder: Any, values: Any) -> Any:
    """Give the sixteen bits of each number's nearest bfloat16, to even where two are as near; NaN stays NaN."""
    if multiplies_bfloat16():
        return builder.bitcast(builder.fptrunc(values, ir.VectorType(_Bfloat16(), WIDTH)), SHORTS)
    bits = builder.bitcast(values, INTS)
    odd = builder.and_(builder.lshr(bits, ints(16)), ints(1))
    rounded = builder.add(bits, builder.add(odd, ints(0x7FFF)))
    rounded = builder.select(builder.fcmp_unordered("uno", values, values), ints(0x7FC00000), rounded)
    return builder.trunc(builder.lshr(rounded, ints(16)), SHORTS)


def widen_bfloat16(builder: Any, shorts: Any) -> Any:
    """Give bfloat16 numbers as float32: they are the upper halves of those."""
    return builder.bitcast(builder.shl(builder.zext(shorts, INTS), ints(16)), VECTOR)
