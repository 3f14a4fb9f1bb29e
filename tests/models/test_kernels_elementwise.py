"""The passes between the products against PyTorch's own operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from headstart.models import random_bits
from headstart.models.kernels import elementwise
from headstart.models.kernels.drawing import Drops
from headstart.models.kernels.elementwise import (
    add_columns,
    drop,
    drop_add_norm,
    drop_add_norm_backward,
    gelu,
    gelu_backward,
)
from headstart.models.kernels.packing import turned_width

DTYPES = [torch.float32, torch.bfloat16]
sizes = {
    "rows": st.integers(1, 5),
    "length": st.integers(1, 40),
    "width": st.sampled_from([16, 32, 48, 80, 208]),
    "probability": st.sampled_from([0.0, 1e-9, 0.1, 0.5, 1.0]),
    "dtype": st.sampled_from(DTYPES),
}


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + shape[0])).to(dtype)


def factors(drops: Drops, length: int, width: int) -> torch.Tensor:
    """Give what each element is multiplied with, by `random_bits`."""
    keys = random_bits.split(drops.keys[:, None], torch.arange(length))
    level = round(drops.probability * random_bits.LEVELS)
    left = random_bits.LEVELS - level
    keep = random_bits.keep_mask(keys, width, drops.probability).view(-1, width)
    return keep * (random_bits.LEVELS / left if left else 0.0)


def assert_close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 2e-6) -> None:
    rounding = 2**-8 if found.dtype == torch.bfloat16 else 0.0
    limit = tolerance * float(wanted.abs().max()) + tolerance + wanted.abs() * rounding
    assert bool(((found.double() - wanted.double()).abs() <= limit).all())


@settings(max_examples=40, deadline=None)
@given(**{**sizes, "width": st.integers(1, 70)})
def test_dropped_are_the_elements_that_random_bits_names(
    rows: int, length: int, width: int, probability: float, dtype: torch.dtype
) -> None:
    drops = Drops(random_bits.split(11, torch.arange(rows)), probability)
    values = numbers(rows * length, width, dtype=dtype)
    found = drop(values, length, drops)
    assert torch.equal(found, (values.float() * factors(drops, length, width)).to(dtype))


@settings(max_examples=40, deadline=None)
@given(has_residual=st.booleans(), **sizes)
def test_norm_of_what_is_left_and_the_residual(
    rows: int, length: int, width: int, probability: float, dtype: torch.dtype, has_residual: bool
) -> None:
    drops = Drops(random_bits.split(11, torch.arange(rows)), probability)
    lines = rows * length
    values, residual = numbers(lines, width, dtype=dtype), numbers(lines, width, seed=1, dtype=dtype)
    weight, bias, grad = numbers(width), numbers(width, seed=1), numbers(lines, width, seed=2, dtype=dtype)
    inner = [tensor.double().requires_grad_() for tensor in (values, residual, weight, bias)]
    left = inner[0] * factors(drops, length, width)
    total = left + inner[1] if has_residual else left
    wanted = F.layer_norm(total, (width,), inner[2], inner[3], 1e-5)
    gradients = torch.autograd.grad(wanted, [total, left, *inner[2:], inner[0]], grad.double())

    written = values.clone()
    out, statistics = drop_add_norm(written, residual if has_residual else None, weight, bias, 1e-5, length, drops)
    # The backward pass works with the sum as it is stored.
    stored = total.detach()
    assert_close(written, stored)
    assert_close(out, wanted.detach(), 1e-5)
    of_residual, of_values, sums = drop_add_norm_backward(grad, written, weight, statistics, length, drops)
    coarse = 2e-5 if dtype == torch.float32 else 2e-2
    assert_close(of_residual, gradients[0], coarse * 2)
    assert_close(of_values, gradients[4], coarse * 2)
    assert sums.dtype == torch.float32
    assert_close(sums[0], gradients[2], coarse * 2)
    assert_close(sums[1], gradients[3], coarse)
    assert_close(sums[2], gradients[4].sum(0), coarse * 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.sampled_from([16, 48, 208]), st.floats(0.1, 30), st.booleans(), st.sampled_from(DTYPES))
def test_gelu_and_its_slope(lines: int, width: int, scale: float, approximate: bool, dtype: torch.dtype) -> None:
    values, grad = (numbers(lines, width) * scale).to(dtype), numbers(lines, width, seed=1, dtype=dtype)
    inner = values.double().requires_grad_()
    wanted = F.gelu(inner, approximate="tanh" if approximate else "none")
    (slope,) = torch.autograd.grad(wanted, inner, grad.double())
    slopes = torch.empty_like(values)
    out = gelu(values, slopes, approximate=approximate)
    assert_close(out, wanted.detach())
    assert torch.equal(gelu(values, approximate=approximate), out)
    found, _ = gelu_backward(grad, slopes)
    assert float((found.double() - slope).abs().max()) <= (4e-6 if dtype == torch.float32 else 1.2e-2) * float(
        grad.abs().max()
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 100), st.integers(1, 70), st.sampled_from(DTYPES))
def test_sums_of_columns_of_any_width(lines: int, width: int, dtype: torch.dtype) -> None:
    values = numbers(lines, width, dtype=dtype)
    found = add_columns(values)
    assert found.dtype == torch.float32
    assert float((found.double() - values.double().sum(0)).abs().max()) <= 1e-5 * lines


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 100), st.sampled_from([16, 48, 208]))
def test_what_a_pass_gives_is_turned_on_the_way(lines: int, width: int) -> None:
    bfloat16 = torch.bfloat16
    values, slopes, more = (numbers(lines, width, seed=seed, dtype=bfloat16) for seed in range(3))

    def room() -> torch.Tensor:
        return torch.full((width, turned_width(lines)), float("nan"), dtype=bfloat16)

    turned = room()
    assert torch.equal(add_columns(values, turned), add_columns(values))
    assert torch.equal(turned[:, :lines], values.t())

    turned = room()
    out, sums = gelu_backward(values, slopes, turned=turned)
    assert torch.equal(out, values * slopes)
    assert torch.equal(turned[:, :lines], out.t())
    assert torch.equal(sums, add_columns(out))

    weight, statistics, turned = numbers(width), numbers(lines, 2).abs() + 0.5, room()
    drops = Drops(random_bits.split(11, torch.arange(lines)), 0.3)
    wanted = drop_add_norm_backward(values + more, slopes, weight, statistics, 1, drops)
    found = drop_add_norm_backward(values.clone(), slopes, weight, statistics, 1, drops, more=more, turned=turned)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert torch.equal(turned[:, :lines], found[1].t())


@pytest.mark.parametrize("lines", [1, 32, 33, 1024, 1025, 70_000])
def test_sums_of_many_lines_lose_nothing(lines: int) -> None:
    values = numbers(lines, 80)
    assert float((add_columns(values).double() - values.double().sum(0)).abs().max()) <= 2e-6 * lines**0.5 * 10


def run_drop(values: torch.Tensor, drops: Drops) -> Any:
    return (drop(values, 7, drops),)


def run_norm(values: torch.Tensor, drops: Drops) -> Any:
    weight = torch.ones(values.shape[1])
    written = values.clone()
    out, statistics = drop_add_norm(written, values, weight, weight, 1e-5, 7, drops)
    return out, statistics, *drop_add_norm_backward(values, written, weight, statistics, 7, drops)


def run_gelu(values: torch.Tensor, drops: Drops) -> Any:
    slopes = torch.empty_like(values)
    return gelu(values, slopes), slopes, *gelu_backward(values, slopes), add_columns(values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", [run_drop, run_norm, run_gelu])
def test_bits_do_not_depend_on_the_number_of_threads(run: Callable[..., Any], dtype: torch.dtype) -> None:
    values, drops = numbers(63 * 7, 48, dtype=dtype), Drops(random_bits.split(5, torch.arange(63)), 0.1)
    before = torch.get_num_threads()
    results = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        results.append(run(values, drops))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", [run_drop, run_norm, run_gelu])
def test_what_is_no_number_is_not_hidden(run: Callable[..., Any], dtype: torch.dtype) -> None:
    values = numbers(14, 48, dtype=dtype)
    values[3, 5] = float("nan")
    first = run(values, Drops(torch.zeros(2, dtype=torch.int64), 0.0))[0]
    assert bool(first[3, 5].isnan()) and bool(first[4].isfinite().all())


def test_a_chunk_ends_where_the_lines_end() -> None:
    lines = elementwise.LINES
    for count in (lines - 1, lines, lines + 1, 3 * lines + 2):
        values = torch.zeros((count + 1, 16))
        drop(values[:count] + 1.0, count, Drops(torch.zeros(1, dtype=torch.int64), 0.0), out=values[:count])
        assert bool((values[:count] == 1).all()) and bool((values[count] == 0).all())
