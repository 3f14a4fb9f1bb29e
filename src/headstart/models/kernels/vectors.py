"""Sixteen numbers at a time: the vocabulary in which the kernels are written.

May import layers 0 and 1. numba compiles Python loops, but leaves it to luck whether they become vector instructions.
Here a kernel says so itself: `Lanes` is sixteen float32 numbers, one instruction each on a processor with AVX-512 and
two or four on others, so that the same kernel runs everywhere. Memory is an address and an index of elements:

    values = load(address, index)            16 float32 numbers
    values = load_bfloat16(address, index)   16 bfloat16 numbers, as float32

Importing this module imports numba.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic, lower_builtin, models, register_model
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from headstart.models.kernels.lowering import (
    FLOAT,
    INT32,
    INT64,
    INTS,
    SHORTS,
    VECTOR,
    WIDTH,
    call,
    constant,
    fused_multiply_add,
    ints,
    load_vector,
    pointer_to,
    round_to_bfloat16,
    splat_vector,
    store_vector,
    widen_bfloat16,
)

__all__ = [
    "WIDTH",
    "add_one",
    "add_product",
    "exp",
    "keep_factors",
    "larger",
    "largest",
    "load",
    "load_bfloat16",
    "load_one",
    "root",
    "select_at_least",
    "select_between",
    "splat",
    "store",
    "store_bfloat16",
    "store_number",
    "store_one",
    "total",
]


class _LanesType(types.Type):
    """numba's name for a vector."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


Lanes = _LanesType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    """A vector lives in a register."""

    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, VECTOR)


# Arithmetic -----------------------------------------------------------------------------------------------------------


def _define_operator(function: Any, instruction: str) -> None:
    @infer_global(function)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            return signature(Lanes, Lanes, Lanes) if args == (Lanes, Lanes) else None

    @lower_builtin(function, Lanes, Lanes)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define_operator(_function, _instruction)


@intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """Give a vector of one number sixteen times."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return splat_vector(builder, args[0])

    return signature(Lanes, types.float32), generate


@intrinsic
def add_product(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Give a * b + c, rounded once."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return fused_multiply_add(builder, *args)

    return signature(Lanes, Lanes, Lanes, Lanes), generate


@intrinsic
def larger(typing_context: Any, a: Any, b: Any) -> Any:
    """Give the larger one of each pair."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return signature(Lanes, Lanes, Lanes), generate


@intrinsic
def select_at_least(typing_context: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """Choose lane by lane: `yes` where a >= b, else `no`."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">=", args[0], args[1]), args[2], args[3])

    return signature(Lanes, Lanes, Lanes, Lanes, Lanes), generate


@intrinsic
def root(typing_context: Any, a: Any) -> Any:
    """Give the square roots."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call(builder, "llvm.sqrt.v16f32", VECTOR, list(args))

    return signature(Lanes, Lanes), generate


def _halves(builder: Any, value: Any, combine: Any) -> Any:
    """Combine the upper half with the lower one until one number is left: a tree, in the same order everywhere."""
    width = WIDTH
    while width > 1:
        width //= 2
        undefined = ir.Constant(value.type, ir.Undefined)
        low, high = (
            builder.shuffle_vector(
                value, undefined, ir.Constant(ir.VectorType(INT32, width), [start + lane for lane in range(width)])
            )
            for start in (0, width)
        )
        value = combine(low, high)
    return builder.extract_element(value, ir.Constant(INT32, 0))


@intrinsic
def total(typing_context: Any, values: Any) -> Any:
    """Give the sum of the sixteen numbers."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _halves(builder, args[0], builder.fadd)

    return signature(types.float32, Lanes), generate


@intrinsic
def largest(typing_context: Any, values: Any) -> Any:
    """Give the largest of the sixteen numbers."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _halves(builder, args[0], lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))

    return signature(types.float32, Lanes), generate


@intrinsic
def exp(typing_context: Any, values: Any) -> Any:
    """Give e to the power of each number, to 2e-7 relative; 0 below -87; what is no number stays so.

    2 to the power of the nearest whole number of x log2(e), times a polynomial in what is left (Cody and Waite 1980).
    Below -87 results would be denormal numbers soon, which are slow.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (values,) = args
        x = builder.select(builder.fcmp_unordered("<", values, constant(-87.0)), constant(-87.0), values)
        x = builder.select(builder.fcmp_ordered(">", x, constant(88.0)), constant(88.0), x)
        scaled = builder.fmul(x, constant(1.44269504))
        whole = call(builder, "llvm.rint.v16f32", VECTOR, [scaled])
        rest = fused_multiply_add(builder, whole, constant(-0.693359375), x)
        rest = fused_multiply_add(builder, whole, constant(2.12194440e-4), rest)
        series = constant(1.9875691500e-4)
        for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            series = fused_multiply_add(builder, series, rest, constant(factor))
        series = fused_multiply_add(builder, builder.fmul(rest, rest), series, builder.fadd(rest, constant(1.0)))
        exponent = builder.shl(builder.add(builder.fptosi(whole, INTS), ints(127)), ints(23))
        result = builder.fmul(series, builder.bitcast(exponent, VECTOR))
        tiny = builder.select(builder.fcmp_unordered("uno", values, values), values, constant(0.0))
        return builder.select(builder.fcmp_unordered("<", values, constant(-87.0)), tiny, result)

    return signature(Lanes, Lanes), generate


@intrinsic
def select_between(typing_context: Any, first: Any, low: Any, high: Any, inside: Any, outside: Any) -> Any:
    """Choose lane by lane: `inside` where low <= first + lane < high, else `outside`."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first, low, high, inside, outside = args

        def spread(number: Any) -> Any:
            short = builder.trunc(number, INT32)
            single = builder.insert_element(ir.Constant(INTS, ir.Undefined), short, ir.Constant(INT32, 0))
            return builder.shuffle_vector(single, ir.Constant(INTS, ir.Undefined), ir.Constant(INTS, [0] * WIDTH))

        lanes = builder.add(spread(first), ir.Constant(INTS, list(range(WIDTH))))
        chosen = builder.and_(
            builder.icmp_signed(">=", lanes, spread(low)), builder.icmp_signed("<", lanes, spread(high))
        )
        return builder.select(chosen, inside, outside)

    return signature(Lanes, types.int64, types.int64, types.int64, Lanes, Lanes), generate


# Memory ---------------------------------------------------------------------------------------------------------------


@intrinsic
def load(typing_context: Any, address: Any, index: Any) -> Any:
    """Read sixteen float32 numbers."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return load_vector(builder, *args)

    return signature(Lanes, types.int64, types.int64), generate


@intrinsic
def store(typing_context: Any, address: Any, index: Any, values: Any) -> Any:
    """Write sixteen float32 numbers."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        store_vector(builder, args[2], args[0], args[1])

    return signature(types.void, types.int64, types.int64, Lanes), generate


@intrinsic
def load_one(typing_context: Any, address: Any, index: Any) -> Any:
    """Read one float32 number."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(pointer_to(builder, args[0], args[1], 4, FLOAT), align=4)

    return signature(types.float32, types.int64, types.int64), generate


@intrinsic
def store_one(typing_context: Any, address: Any, index: Any, value: Any) -> Any:
    """Write one float32 number."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], pointer_to(builder, args[0], args[1], 4, FLOAT), align=4)

    return signature(types.void, types.int64, types.int64, types.float32), generate


@intrinsic
def store_number(typing_context: Any, address: Any, index: Any, value: Any) -> Any:
    """Write one int64."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], pointer_to(builder, args[0], args[1], 8, INT64), align=8)

    return signature(types.void, types.int64, types.int64, types.int64), generate


@intrinsic
def load_bfloat16(typing_context: Any, address: Any, index: Any) -> Any:
    """Read sixteen bfloat16 numbers: the upper halves of float32 numbers."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        shorts = builder.load(pointer_to(builder, args[0], args[1], 2, SHORTS), align=2)
        return widen_bfloat16(builder, shorts)

    return signature(Lanes, types.int64, types.int64), generate


@intrinsic
def store_bfloat16(typing_context: Any, address: Any, index: Any, values: Any) -> Any:
    """Write sixteen numbers as bfloat16, rounded to the nearest, to even where two are as near; NaN stays NaN."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, index, values = args
        shorts = round_to_bfloat16(builder, values)
        builder.store(shorts, pointer_to(builder, address, index, 2, SHORTS), align=2)

    return signature(types.void, types.int64, types.int64, Lanes), generate


@intrinsic
def add_one(typing_context: Any, address: Any) -> Any:
    """Add 1 to an int64 that threads share, and give what it was."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], INT64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(INT64, 1), "monotonic")

    return signature(types.int64, types.int64), generate


@intrinsic
def keep_factors(typing_context: Any, key: Any, first: Any, threshold: Any, factor: Any) -> Any:
    """Draw for elements `first` to `first + 15` of a key: `factor` for one that is kept, 0 for one that is dropped.

    The same bits as `random_bits.keep_mask`: element n takes the sixteen bits n % 4 of word n // 4; `first` is a
    multiple of four.
    """
    words_type = ir.VectorType(INT64, WIDTH // 4)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        key, first, threshold, factor = args

        def words(value: Any) -> Any:
            return ir.Constant(words_type, [value] * (WIDTH // 4))

        def spread(number: Any) -> Any:
            single = builder.insert_element(ir.Constant(words_type, ir.Undefined), number, ir.Constant(INT32, 0))
            order = ir.Constant(ir.VectorType(INT32, WIDTH // 4), [0] * (WIDTH // 4))
            return builder.shuffle_vector(single, ir.Constant(words_type, ir.Undefined), order)

        golden = 0x9E3779B97F4A7C15
        number = builder.lshr(first, ir.Constant(INT64, 2))
        start = builder.add(key, builder.mul(number, ir.Constant(INT64, golden)))
        steps = ir.Constant(words_type, [(lane + 1) * golden & (1 << 64) - 1 for lane in range(WIDTH // 4)])
        value = builder.add(spread(start), steps)
        for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
            value = builder.xor(value, builder.lshr(value, words(shift)))
            if multiplier is not None:
                value = builder.mul(value, words(multiplier))
        bits = builder.bitcast(value, SHORTS)
        short = builder.trunc(threshold, ir.IntType(16))
        single = builder.insert_element(ir.Constant(SHORTS, ir.Undefined), short, ir.Constant(INT32, 0))
        limit = builder.shuffle_vector(single, ir.Constant(SHORTS, ir.Undefined), ir.Constant(INTS, [0] * WIDTH))
        return builder.select(builder.icmp_signed(">=", bits, limit), splat_vector(builder, factor), constant(0.0))

    return signature(Lanes, types.int64, types.int64, types.int64, types.float32), generate
