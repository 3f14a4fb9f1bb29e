"""AdamW in one pass: gradient, moments, weight and working copy of every number, each touched once.

May import layers 0 and 1. One launch works on all tensors: they stand in a table of `ENTRY` whole numbers each, and the
chunks (tensor, first element, elements) of a fixed size do not cross tensors. For a number w with gradient g:

    g = factor g
    m = beta1 m + (1 - beta1) g              |m| < 1e-30 becomes 0
    v = beta2 v + (1 - beta2) g g            v < 1e-37 becomes 0
    w = (1 - rate decay) w - step_size m / (sqrt(v) root_scale + epsilon)

step_size = rate / (1 - beta1^n), root_scale = 1 / sqrt(1 - beta2^n) at update n. Moments that tiny change no float32
weight, and without the two limits they would go through denormal numbers, which are slow, and never become 0.

`adamw_rows` makes up for updates that rows of a matrix have missed because their gradient was 0: the same operations
in the same order, so that a row has the same bits as if it had never missed one. It leaves out what provably changes
nothing: divisions once a moment is too small to move the weight, and moments that are 0.

Importing this module imports numba.
"""

from __future__ import annotations

from numba import njit

from headstart.models.kernels.launch import float_of, kernel, number_at
from headstart.models.kernels.partial import (
    any_bits,
    is_within,
    load_first,
    load_first_bfloat16,
    magnitude,
    negative,
    store_first,
    store_first_bfloat16,
    without_tiny,
)
from headstart.models.kernels.vectors import (
    WIDTH,
    add_product,
    larger,
    load,
    load_bfloat16,
    root,
    select_at_least,
    splat,
    store,
    store_bfloat16,
)

__all__ = ["CHUNK", "ENTRY", "NUMBERS", "adamw_pass", "adamw_rows", "square_sums", "sum_rows"]

CHUNK = 16_384
"""Elements of a chunk; a chunk that begins inside a tensor begins at a multiple of it."""
ENTRY = 8
"""Whole numbers of a tensor's entry: address of the gradient (0: none), whether it is bfloat16, addresses of weight,
both moments and the bfloat16 working copy (0: none), row of the table of numbers, 0."""
NUMBERS = 8
"""Numbers of an update, as bits: beta1, 1 - beta1, beta2, 1 - beta2, 1 - rate decay, step_size, root_scale, epsilon."""

_TINY_MOMENT = 1e-30
_TINY_SQUARE = 1e-37
# Updates between two looks at whether a weight can still move.
_LOOK = 8


@njit(error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
def _number(table, row, place):  # type: ignore[no-untyped-def]
    return splat(float_of(number_at(table, row * NUMBERS + place)))


@njit(error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
def _read_numbers(table, row):  # type: ignore[no-untyped-def]
    return (
        _number(table, row, 0),
        _number(table, row, 1),
        _number(table, row, 2),
        _number(table, row, 3),
        _number(table, row, 4),
        negative(_number(table, row, 5)),
        _number(table, row, 6),
        _number(table, row, 7),
    )


@njit(error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
def _advance(w, m, v, g, numbers):  # type: ignore[no-untyped-def]
    """Make one update of sixteen numbers."""
    beta1, rest1, beta2, rest2, decay, step, scale, epsilon = numbers
    m = without_tiny(add_product(m, beta1, g * rest1), splat(_TINY_MOMENT))
    v = without_tiny(add_product(v, beta2, g * rest2 * g), splat(_TINY_SQUARE))
    w = add_product(step, m / add_product(root(v), scale, epsilon), w * decay)
    return w, m, v


@kernel
def adamw_pass(chunk: int, worker: int, chunks: int, entries: int, table: int, factor: int) -> None:
    """Make an update of all tensors.

    Args:
        chunk: which one.
        worker: not used.
        chunks: (number of the tensor, first element, elements) of each chunk.
        entries: `ENTRY` numbers of each tensor.
        table: rows of `NUMBERS`.
        factor: bits of the number that gradients are multiplied with.
    """
    entry = entries + number_at(chunks, 3 * chunk) * 8 * ENTRY
    gradient = number_at(entry, 0)
    if gradient != 0:
        is_bfloat16 = number_at(entry, 1) != 0
        weight, moment, square = number_at(entry, 2), number_at(entry, 3), number_at(entry, 4)
        copy, row = number_at(entry, 5), number_at(entry, 6)
        first, count = number_at(chunks, 3 * chunk + 1), number_at(chunks, 3 * chunk + 2)
        scaled = splat(float_of(factor))
        numbers = _read_numbers(table, row)
        rest = count % WIDTH
        last = first + count - rest
        for i in range(first, last, WIDTH):
            g = load_bfloat16(gradient, i) if is_bfloat16 else load(gradient, i)
            w, m, v = _advance(load(weight, i), load(moment, i), load(square, i), g * scaled, numbers)
            store(weight, i, w)
            store(moment, i, m)
            store(square, i, v)
            if copy != 0:
                store_bfloat16(copy, i, w)
        if rest:
            g = load_first_bfloat16(gradient, last, rest) if is_bfloat16 else load_first(gradient, last, rest)
            w, m, v = load_first(weight, last, rest), load_first(moment, last, rest), load_first(square, last, rest)
            w, m, v = _advance(w, m, v, g * scaled, numbers)
            store_first(weight, last, rest, w)
            store_first(moment, last, rest, m)
            store_first(square, last, rest, v)
            if copy != 0:
                store_first_bfloat16(copy, last, rest, w)


@kernel
def square_sums(chunk: int, worker: int, chunks: int, entries: int, sums: int) -> None:
    """Sum the squares of a chunk of gradients into sixteen numbers.

    Args:
        chunk: which one.
        worker: not used.
        chunks: (number of the tensor, first element, elements) of each chunk.
        entries: `ENTRY` numbers of each tensor, of which the first two are read.
        sums: sixteen float32 numbers a chunk, written.
    """
    entry = entries + number_at(chunks, 3 * chunk) * 8 * ENTRY
    gradient, is_bfloat16 = number_at(entry, 0), number_at(entry, 1) != 0
    first, count = number_at(chunks, 3 * chunk + 1), number_at(chunks, 3 * chunk + 2)
    rest = count % (4 * WIDTH)
    last = first + count - rest
    a = splat(0.0)
    b, c, d = a, a, a
    if gradient != 0:
        for i in range(first, last, 4 * WIDTH):
            if is_bfloat16:
                x, y = load_bfloat16(gradient, i), load_bfloat16(gradient, i + WIDTH)
                z, u = load_bfloat16(gradient, i + 2 * WIDTH), load_bfloat16(gradient, i + 3 * WIDTH)
            else:
                x, y = load(gradient, i), load(gradient, i + WIDTH)
                z, u = load(gradient, i + 2 * WIDTH), load(gradient, i + 3 * WIDTH)
            a, b = add_product(x, x, a), add_product(y, y, b)
            c, d = add_product(z, z, c), add_product(u, u, d)
        for i in range(last, first + count, WIDTH):
            left = min(WIDTH, first + count - i)
            x = load_first_bfloat16(gradient, i, left) if is_bfloat16 else load_first(gradient, i, left)
            a = add_product(x, x, a)
    store(sums, chunk * WIDTH, (a + b) + (c + d))


@kernel
def sum_rows(chunk: int, worker: int, values: int, width: int, order: int, ends: int, sums: int) -> None:
    """Sum the rows that belong together, in their order, beginning with +0.

    Args:
        chunk: number of the sum.
        worker: not used.
        values: float32 rows.
        width: numbers of a row.
        order: numbers of the rows, those of one sum next to each other.
        ends: where in `order` each sum ends.
        sums: float32 rows, written.
    """
    begin = number_at(ends, chunk - 1) if chunk > 0 else 0
    end = number_at(ends, chunk)
    for i in range(0, width, WIDTH):
        left = min(WIDTH, width - i)
        x = splat(0.0)
        for n in range(begin, end):
            x = x + load_first(values, number_at(order, n) * width + i, left)
        store_first(sums, chunk * width + i, left, x)


@njit(error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
def _is_far(values, limit):  # type: ignore[no-untyped-def]
    """Say whether each of the numbers, none negative, is at least the limit, or +0."""
    return not any_bits(select_at_least(values, limit, splat(0.0), values))


@njit(error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
def _make_up(w, m, v, table, now, end, most, floor):  # type: ignore[no-untyped-def]
    """Make the updates `now` to `end` - 1 of sixteen numbers whose gradient is 0 in all of them.

    Args:
        w: weights.
        m: their first moments.
        v: their second moments.
        table: numbers of every update.
        now: first update.
        end: behind the last one.
        most: the largest step_size of the table; infinite where the bound below does not hold.
        floor: a v as large as this stays above the limit to the end, and m / sqrt(v) falls.
    """
    zero = splat(0.0)
    # A product and a comparison in turn take four times as long as products alone: numbers far above the limits go on
    # without comparing.
    beta1, beta2, epsilon = _number(table, 0, 0), _number(table, 0, 2), _number(table, 0, 7)
    power = beta1 * beta1 * beta1 * beta1
    far = splat(1.01 * _TINY_MOMENT) / (power * power)  # after _LOOK = 8 products still above it
    lasts = _is_far(v, floor)
    moves = any_bits(m)
    while moves and now < end:
        last = min(now + _LOOK, end)
        if lasts and _is_far(magnitude(m), far):
            for n in range(now, last):
                m, v = m * beta1, v * beta2
                step = m / add_product(root(v), _number(table, n, 6), epsilon)
                w = add_product(negative(_number(table, n, 5)), step, w * _number(table, n, 4))
        else:
            for n in range(now, last):
                w, m, v = _advance(w, m, v, zero, _read_numbers(table, n))
        now = last
        # What is added to w is at most most |m| / max(epsilon, sqrt(v)), and does not grow. Half of the distance to w's
        # neighbours is at least 2^-25 |w|; w may shrink by a quarter to the end. So from 2^-26 |w| on w does not move.
        divisor = larger(select_at_least(v, floor, root(v), zero), epsilon)
        moves = any_bits(m) and not is_within(magnitude(m) / divisor * most, magnitude(w) * splat(2.0**-26))
    while any_bits(m) and now < end:
        last = min(now + _LOOK, end)
        if lasts and _is_far(magnitude(m), far):
            for n in range(now, last):
                m, v, w = m * beta1, v * beta2, w * _number(table, n, 4)
        else:
            for n in range(now, last):
                m = without_tiny(add_product(m, beta1, zero), splat(_TINY_MOMENT))
                v = without_tiny(add_product(v, beta2, zero), splat(_TINY_SQUARE))
                w = w * _number(table, n, 4)
        now = last
    if _is_far(v, floor):
        for n in range(now, end):
            v, w = v * beta2, w * _number(table, n, 4)
    else:
        for n in range(now, end):
            v = without_tiny(add_product(v, beta2, zero), splat(_TINY_SQUARE))
            w = w * _number(table, n, 4)
    return w, m, v


@njit(error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
def _is_still(moment, square, begin, width):  # type: ignore[no-untyped-def]
    """Say whether all moments of a row are 0."""
    for i in range(0, width, WIDTH):
        left = min(WIDTH, width - i)
        if any_bits(load_first(moment, begin + i, left)) or any_bits(load_first(square, begin + i, left)):
            return False
    return True


@njit(error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
def _decay(weight, begin, width, table, now, end):  # type: ignore[no-untyped-def]
    """Decay the weights of a row without moments: eight vectors at once, because each waits for its last product."""
    for i in range(0, width, 8 * WIDTH):
        at, left = begin + i, width - i  # past the end of the row there are none
        a, b = load_first(weight, at, left), load_first(weight, at + 16, left - 16)
        c, d = load_first(weight, at + 32, left - 32), load_first(weight, at + 48, left - 48)
        e, f = load_first(weight, at + 64, left - 64), load_first(weight, at + 80, left - 80)
        g, h = load_first(weight, at + 96, left - 96), load_first(weight, at + 112, left - 112)
        for n in range(now, end):
            decay = _number(table, n, 4)
            a, b, c, d, e, f, g, h = (
                a * decay,
                b * decay,
                c * decay,
                d * decay,
                e * decay,
                f * decay,
                g * decay,
                h * decay,
            )
        store_first(weight, at, left, a)
        store_first(weight, at + 16, left - 16, b)
        store_first(weight, at + 32, left - 32, c)
        store_first(weight, at + 48, left - 48, d)
        store_first(weight, at + 64, left - 64, e)
        store_first(weight, at + 80, left - 80, f)
        store_first(weight, at + 96, left - 96, g)
        store_first(weight, at + 112, left - 112, h)


@kernel
def adamw_rows(
    chunk: int,
    worker: int,
    rows_per_chunk: int,
    num_rows: int,
    rows: int,
    starts: int,
    width: int,
    weight: int,
    moment: int,
    square: int,
    copy: int,
    table: int,
    end: int,
    most: int,
    floor: int,
    gradient: int,
    factor: int,
) -> None:
    """Make up for what rows of a matrix have missed, and make an update of them where there is a gradient.

    Args:
        chunk: which rows.
        worker: not used.
        rows_per_chunk: how many.
        num_rows: of all chunks.
        rows: their numbers, each once.
        starts: how many updates of the table each of them has had.
        width: numbers of a row.
        weight: float32 matrix.
        moment: its first moments.
        square: its second moments.
        copy: its bfloat16 working copy, 0 for none.
        table: `NUMBERS` of every update.
        end: how many updates the rows shall have had before that of the gradient, whose numbers stand at that place.
        most: see `_make_up`, bits.
        floor: see `_make_up`, bits.
        gradient: float32 rows in the order of `rows`, 0 for none.
        factor: bits of the number that gradients are multiplied with.
    """
    most_lanes, floor_lanes, scaled = splat(float_of(most)), splat(float_of(floor)), splat(float_of(factor))
    for place in range(chunk * rows_per_chunk, min((chunk + 1) * rows_per_chunk, num_rows)):
        begin = number_at(rows, place) * width
        start = number_at(starts, place)
        if start < end and _is_still(moment, square, begin, width):
            _decay(weight, begin, width, table, start, end)
            start = end
        for i in range(0, width, WIDTH):
            left = min(WIDTH, width - i)
            at = begin + i
            w, m, v = load_first(weight, at, left), load_first(moment, at, left), load_first(square, at, left)
            if start < end:
                w, m, v = _make_up(w, m, v, table, start, end, most_lanes, floor_lanes)
            if gradient != 0:
                g = load_first(gradient, place * width + i, left) * scaled
                w, m, v = _advance(w, m, v, g, _read_numbers(table, end))
            store_first(weight, at, left, w)
            store_first(moment, at, left, m)
            store_first(square, at, left, v)
            if copy != 0:
                store_first_bfloat16(copy, at, left, w)
