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

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic, lower_builtin, models, register_model
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

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
    "multiply_tile",
    "root",
    "select_at_least",
    "select_between",
    "splat",
    "store",
    "store_bfloat16",
    "store_number",
    "store_one",
    "total",
    "transpose_block",
]

WIDTH = 16
"""Numbers in a vector."""

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, WIDTH)
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_INTS = ir.VectorType(_INT32, WIDTH)
_SHORTS = ir.VectorType(ir.IntType(16), WIDTH)


class _LanesType(types.Type):
    """numba's name for a vector."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


Lanes = _LanesType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    """A vector lives in a register."""

    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _VECTOR)


class _Bfloat16(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat16)

    def __hash__(self) -> int:
        return hash(_Bfloat16)


def _converts_bfloat16() -> bool:
    """Say whether the processor rounds to bfloat16 in one instruction; a pure function of the hardware."""
    return bool(llvmlite.binding.get_host_cpu_features().get("avx512bf16", False))


def _constant(value: float) -> Any:
    return ir.Constant(_VECTOR, [value] * WIDTH)


def _ints(value: int) -> Any:
    return ir.Constant(_INTS, [value] * WIDTH)


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Call one of LLVM's own functions."""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [value.type for value in arguments]), name
    )
    return builder.call(function, arguments)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return _call(builder, "llvm.fma.v16f32", _VECTOR, [a, b, c])


def _splat(builder: Any, value: Any) -> Any:
    single = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(single, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(_INTS, [0] * WIDTH))


def _at(builder: Any, address: Any, index: Any, size: int, kind: Any) -> Any:
    """Give a pointer to an element."""
    place = builder.add(address, builder.mul(index, ir.Constant(_INT64, size)))
    return builder.inttoptr(place, kind.as_pointer())


def _load(builder: Any, address: Any, index: Any) -> Any:
    return builder.load(_at(builder, address, index, 4, _VECTOR), align=4)


def _store(builder: Any, value: Any, address: Any, index: Any) -> None:
    builder.store(value, _at(builder, address, index, 4, _VECTOR), align=4)


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
        return _splat(builder, args[0])

    return signature(Lanes, types.float32), generate


@intrinsic
def add_product(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Give a * b + c, rounded once."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _fma(builder, *args)

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
        return _call(builder, "llvm.sqrt.v16f32", _VECTOR, list(args))

    return signature(Lanes, Lanes), generate


def _halves(builder: Any, value: Any, combine: Any) -> Any:
    """Combine the upper half with the lower one until one number is left: a tree, in the same order everywhere."""
    width = WIDTH
    while width > 1:
        width //= 2
        undefined = ir.Constant(value.type, ir.Undefined)
        low, high = (
            builder.shuffle_vector(
                value, undefined, ir.Constant(ir.VectorType(_INT32, width), [start + lane for lane in range(width)])
            )
            for start in (0, width)
        )
        value = combine(low, high)
    return builder.extract_element(value, ir.Constant(_INT32, 0))


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
        x = builder.select(builder.fcmp_unordered("<", values, _constant(-87.0)), _constant(-87.0), values)
        x = builder.select(builder.fcmp_ordered(">", x, _constant(88.0)), _constant(88.0), x)
        scaled = builder.fmul(x, _constant(1.44269504))
        whole = _call(builder, "llvm.rint.v16f32", _VECTOR, [scaled])
        rest = _fma(builder, whole, _constant(-0.693359375), x)
        rest = _fma(builder, whole, _constant(2.12194440e-4), rest)
        series = _constant(1.9875691500e-4)
        for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            series = _fma(builder, series, rest, _constant(factor))
        series = _fma(builder, builder.fmul(rest, rest), series, builder.fadd(rest, _constant(1.0)))
        exponent = builder.shl(builder.add(builder.fptosi(whole, _INTS), _ints(127)), _ints(23))
        result = builder.fmul(series, builder.bitcast(exponent, _VECTOR))
        tiny = builder.select(builder.fcmp_unordered("uno", values, values), values, _constant(0.0))
        return builder.select(builder.fcmp_unordered("<", values, _constant(-87.0)), tiny, result)

    return signature(Lanes, Lanes), generate


@intrinsic
def select_between(typing_context: Any, first: Any, low: Any, high: Any, inside: Any, outside: Any) -> Any:
    """Choose lane by lane: `inside` where low <= first + lane < high, else `outside`."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first, low, high, inside, outside = args

        def spread(number: Any) -> Any:
            short = builder.trunc(number, _INT32)
            single = builder.insert_element(ir.Constant(_INTS, ir.Undefined), short, ir.Constant(_INT32, 0))
            return builder.shuffle_vector(single, ir.Constant(_INTS, ir.Undefined), ir.Constant(_INTS, [0] * WIDTH))

        lanes = builder.add(spread(first), ir.Constant(_INTS, list(range(WIDTH))))
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
        return _load(builder, *args)

    return signature(Lanes, types.int64, types.int64), generate


@intrinsic
def store(typing_context: Any, address: Any, index: Any, values: Any) -> Any:
    """Write sixteen float32 numbers."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _store(builder, args[2], args[0], args[1])

    return signature(types.void, types.int64, types.int64, Lanes), generate


@intrinsic
def load_one(typing_context: Any, address: Any, index: Any) -> Any:
    """Read one float32 number."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_at(builder, args[0], args[1], 4, _FLOAT), align=4)

    return signature(types.float32, types.int64, types.int64), generate


@intrinsic
def store_one(typing_context: Any, address: Any, index: Any, value: Any) -> Any:
    """Write one float32 number."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _at(builder, args[0], args[1], 4, _FLOAT), align=4)

    return signature(types.void, types.int64, types.int64, types.float32), generate


@intrinsic
def store_number(typing_context: Any, address: Any, index: Any, value: Any) -> Any:
    """Write one int64."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _at(builder, args[0], args[1], 8, _INT64), align=8)

    return signature(types.void, types.int64, types.int64, types.int64), generate


@intrinsic
def load_bfloat16(typing_context: Any, address: Any, index: Any) -> Any:
    """Read sixteen bfloat16 numbers: the upper halves of float32 numbers."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        shorts = builder.load(_at(builder, args[0], args[1], 2, _SHORTS), align=2)
        return builder.bitcast(builder.shl(builder.zext(shorts, _INTS), _ints(16)), _VECTOR)

    return signature(Lanes, types.int64, types.int64), generate


@intrinsic
def store_bfloat16(typing_context: Any, address: Any, index: Any, values: Any) -> Any:
    """Write sixteen numbers as bfloat16, rounded to the nearest, to even where two are as near; NaN stays NaN."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, index, values = args
        if _converts_bfloat16():
            shorts = builder.bitcast(builder.fptrunc(values, ir.VectorType(_Bfloat16(), WIDTH)), _SHORTS)
        else:
            bits = builder.bitcast(values, _INTS)
            odd = builder.and_(builder.lshr(bits, _ints(16)), _ints(1))
            rounded = builder.add(bits, builder.add(odd, _ints(0x7FFF)))
            rounded = builder.select(builder.fcmp_unordered("uno", values, values), _ints(0x7FC00000), rounded)
            shorts = builder.trunc(builder.lshr(rounded, _ints(16)), _SHORTS)
        builder.store(shorts, _at(builder, address, index, 2, _SHORTS), align=2)

    return signature(types.void, types.int64, types.int64, Lanes), generate


@intrinsic
def add_one(typing_context: Any, address: Any) -> Any:
    """Add 1 to an int64 that threads share, and give what it was."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _INT64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(_INT64, 1), "monotonic")

    return signature(types.int64, types.int64), generate


# Blocks ---------------------------------------------------------------------------------------------------------------


@intrinsic
def transpose_block(typing_context: Any, source: Any, source_row: Any, target: Any, target_row: Any) -> Any:
    """Write the transpose of 16 x 16 float32 numbers; rows are that many numbers apart."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, source_row, target, target_row = args

        def row(stride: Any, number: int) -> Any:
            return builder.mul(stride, ir.Constant(_INT64, number))

        lines = [_load(builder, source, row(source_row, i)) for i in range(WIDTH)]
        # Four times, lines that are `span` apart exchange the halves of their blocks of twice that many numbers.
        for span in (8, 4, 2, 1):
            for i in range(WIDTH):
                if i & span:
                    continue
                a, b = lines[i], lines[i + span]
                first = [lane if not lane & span else WIDTH + lane - span for lane in range(WIDTH)]
                second = [lane + span if not lane & span else WIDTH + lane for lane in range(WIDTH)]
                lines[i] = builder.shuffle_vector(a, b, ir.Constant(_INTS, first))
                lines[i + span] = builder.shuffle_vector(a, b, ir.Constant(_INTS, second))
        for i, line in enumerate(lines):
            _store(builder, line, target, row(target_row, i))

    return signature(types.void, types.int64, types.int64, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def multiply_tile(
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

    out[r, c] = sum over k < depth of a[r * a_row + k * a_step] * b[k * b_row + c], for `num_rows` (a constant) rows and
    16 * `num_vectors` (a constant) columns, all of them float32.
    """
    rows, vectors = num_rows.literal_value, num_vectors.literal_value

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, a, a_row, a_step, b, b_row, depth, out, out_row, add = args
        zero, one = ir.Constant(_INT64, 0), ir.Constant(_INT64, 1)
        a_rows = [builder.add(a, builder.mul(a_row, ir.Constant(_INT64, 4 * r))) for r in range(rows)]
        before = builder.block
        head, body, end = (builder.append_basic_block(f"tile.{name}") for name in ("head", "body", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        k = builder.phi(_INT64)
        k.add_incoming(zero, before)
        sums = [[builder.phi(_VECTOR) for _ in range(vectors)] for _ in range(rows)]
        for line in sums:
            for value in line:
                value.add_incoming(_constant(0.0), before)
        builder.cbranch(builder.icmp_signed("<", k, depth), body, end)
        builder.position_at_end(body)
        b_line = builder.mul(k, b_row)
        columns = [_load(builder, b, builder.add(b_line, ir.Constant(_INT64, WIDTH * v))) for v in range(vectors)]
        a_place = builder.mul(k, a_step)
        for r in range(rows):
            factor = _splat(builder, builder.load(_at(builder, a_rows[r], a_place, 4, _FLOAT), align=4))
            for v in range(vectors):
                sums[r][v].add_incoming(_fma(builder, factor, columns[v], sums[r][v]), body)
        k.add_incoming(builder.add(k, one), body)
        builder.branch(head)
        builder.position_at_end(end)
        adds = builder.icmp_signed("!=", add, zero)
        for r in range(rows):
            for v in range(vectors):
                place = builder.add(builder.mul(out_row, ir.Constant(_INT64, r)), ir.Constant(_INT64, WIDTH * v))
                with builder.if_else(adds) as (then, otherwise):
                    with then:
                        _store(builder, builder.fadd(_load(builder, out, place), sums[r][v]), out, place)
                    with otherwise:
                        _store(builder, sums[r][v], out, place)

    numbers = [types.int64] * 9
    return signature(types.void, num_rows, num_vectors, *numbers), generate


@intrinsic
def keep_factors(typing_context: Any, key: Any, first: Any, threshold: Any, factor: Any) -> Any:
    """Draw for elements `first` to `first + 15` of a key: `factor` for one that is kept, 0 for one that is dropped.

    The same bits as `random_bits.keep_mask`: element n takes the sixteen bits n % 4 of word n // 4; `first` is a
    multiple of four.
    """
    words_type = ir.VectorType(_INT64, WIDTH // 4)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        key, first, threshold, factor = args

        def words(value: Any) -> Any:
            return ir.Constant(words_type, [value] * (WIDTH // 4))

        def spread(number: Any) -> Any:
            single = builder.insert_element(ir.Constant(words_type, ir.Undefined), number, ir.Constant(_INT32, 0))
            order = ir.Constant(ir.VectorType(_INT32, WIDTH // 4), [0] * (WIDTH // 4))
            return builder.shuffle_vector(single, ir.Constant(words_type, ir.Undefined), order)

        golden = 0x9E3779B97F4A7C15
        number = builder.lshr(first, ir.Constant(_INT64, 2))
        start = builder.add(key, builder.mul(number, ir.Constant(_INT64, golden)))
        steps = ir.Constant(words_type, [(lane + 1) * golden & (1 << 64) - 1 for lane in range(WIDTH // 4)])
        value = builder.add(spread(start), steps)
        for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
            value = builder.xor(value, builder.lshr(value, words(shift)))
            if multiplier is not None:
                value = builder.mul(value, words(multiplier))
        bits = builder.bitcast(value, _SHORTS)
        short = builder.trunc(threshold, ir.IntType(16))
        single = builder.insert_element(ir.Constant(_SHORTS, ir.Undefined), short, ir.Constant(_INT32, 0))
        limit = builder.shuffle_vector(single, ir.Constant(_SHORTS, ir.Undefined), ir.Constant(_INTS, [0] * WIDTH))
        return builder.select(builder.icmp_signed(">=", bits, limit), _splat(builder, factor), _constant(0.0))

    return signature(Lanes, types.int64, types.int64, types.int64, types.float32), generate
