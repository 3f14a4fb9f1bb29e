"""Matrices laid out for oneDNN: the same bits as oneDNN's own, and never those of a weight of before."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter
from torch.nn import functional as F

from headstart.models import packed_weights
from headstart.models.kernels.packing import transpose, turned_width
from headstart.models.packed_weights import PackedWeight
from headstart.models.swaps import products
from headstart.models.swaps.products import multiply, multiply_transposed, room_to_turn, weight_and_bias
from headstart.models.working_copies import WorkingCopies
from small_families import PACKS

needs_layout = pytest.mark.skipif(not PACKS, reason="oneDNN multiplies in another layout on this processor")

BLOCKS = st.integers(1, 4)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


@needs_layout
@given(lines=BLOCKS, columns=BLOCKS, tokens=st.integers(1, 70))
@settings(max_examples=30, deadline=None)
def test_products_are_those_of_the_weight(lines: int, columns: int, tokens: int) -> None:
    weight = random(64 * lines, 64 * columns)
    packed = PackedWeight.of(weight)
    assert packed is not None
    for form, matrix in ((packed.forward, weight), (packed.backward, weight.t())):
        x, bias = random(tokens, matrix.shape[1], seed=1), random(matrix.shape[0], seed=2)
        assert torch.allclose(multiply(x, form, bias).float(), F.linear(x, matrix, bias).float(), rtol=2**-7, atol=0.1)
        assert torch.allclose(multiply(x, form).float(), F.linear(x, matrix).float(), rtol=2**-7, atol=1e-3)


@needs_layout
@pytest.mark.parametrize("shape", [(63, 64), (64, 96), (2, 64), (64,)])
def test_sizes_that_are_no_blocks_are_left_to_onednn(shape: tuple[int, ...]) -> None:
    assert PackedWeight.of(random(*shape)) is None


@needs_layout
def test_another_layout_is_left_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor for which oneDNN chooses another one."""
    monkeypatch.setattr(packed_weights, "pack_all", lambda weights: ctypes.memset(weights[0].chunks[0][1], 0, 2))
    assert PackedWeight.of(random(64, 64)) is None


@needs_layout
@pytest.mark.parametrize(
    ("shape", "words"), [((64, 64), "oneDNN lays these weights out"), ((2, 64), "multiples of 64")]
)
def test_it_says_why_nothing_is_packed(shape: tuple[int, int], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_weights, "pack_all", lambda weights: ctypes.memset(weights[0].chunks[0][1], 0, 2))
    weight = Parameter(random(*shape).float())
    copies = WorkingCopies([[weight]])
    copies.packs = True
    assert not copies.operands(weight)[0].is_mkldnn
    assert words in copies.packing_obstacle


def by_optimizer(copies: WorkingCopies, parameters: list[Parameter]) -> None:
    for parameter in parameters:
        copies.tensors[parameter].mul_(-2.0)
        parameter.data.mul_(-2.0)
    copies.written()


def by_loading(copies: WorkingCopies, parameters: list[Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(parameter.flip(0))


def through_data(copies: WorkingCopies, parameters: list[Parameter]) -> None:
    for parameter in parameters:
        parameter.data.add_(1.0)
    copies.refresh()


@needs_layout
@pytest.mark.parametrize("change", [by_optimizer, by_loading, through_data])
@pytest.mark.parametrize("asked_before", ["joined", "alone", "both", "neither"])
def test_they_are_packed_anew_when_weights_have_changed(
    change: Callable[[WorkingCopies, list[Parameter]], None], asked_before: str
) -> None:
    parameters = [Parameter(random(64, 128, seed=seed).float()) for seed in (0, 1)]
    copies = WorkingCopies([parameters])
    copies.packs = True

    def check() -> None:
        ways = {"joined": [tuple(parameters)], "alone": [(parameter,) for parameter in parameters]}
        names = [asked_before] if asked_before in ways else ["joined", "alone"]
        for key in [key for name in names for key in ways[name]]:
            whole = torch.cat(list(key)).to(torch.bfloat16)
            forward, backward = copies.operands(*key)
            assert forward.is_mkldnn and backward.is_mkldnn
            assert torch.equal(multiply(torch.eye(128, dtype=torch.bfloat16), forward), whole.t())
            assert torch.equal(multiply(torch.eye(len(whole), dtype=torch.bfloat16), backward), whole)

    if asked_before != "neither":
        check()
    for _ in range(2):
        change(copies, parameters)
        check()


def test_without_the_part_products_take_the_copies() -> None:
    weight = Parameter(random(64, 64).float())
    forward, backward = WorkingCopies([[weight]]).operands(weight)
    assert not forward.is_mkldnn
    assert torch.equal(forward, weight.to(torch.bfloat16))
    assert torch.equal(backward, forward.t())


@given(lines=st.integers(1, 300), columns=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_transpose_is_the_transpose(lines: int, columns: int) -> None:
    values = random(lines, 16 * columns)
    turned = transpose(values, torch.empty(16 * columns, turned_width(lines), dtype=torch.bfloat16))
    assert torch.equal(turned[:, :lines], values.t())


@pytest.mark.parametrize("lines", [1, 127, 128, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_gradient_of_a_weight_is_summed_over_all_lines(lines: int, dtype: torch.dtype) -> None:
    a, b = random(lines, 48, seed=1).to(dtype), random(lines, 33, seed=2).to(dtype)
    expected = a.double().t() @ b.double()
    assert torch.allclose(multiply_transposed(a, b).double(), expected, rtol=2**-7, atol=1e-3)
    half = torch.cat([a, a], 1)[:, :48]  # its lines are further apart than they are long
    assert torch.allclose(multiply_transposed(half, b).double(), expected, rtol=2**-7, atol=1e-3)


def test_room_to_turn_is_used_again_and_is_not_kept_where_it_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = room_to_turn(random(300, 48)), room_to_turn(random(128, 32))
    assert large is not None and large.shape == (48, 320)
    assert small is not None and small.data_ptr() == large.data_ptr()
    monkeypatch.setattr(products, "_LARGEST_ROOM", 48 * 320 - 1)
    other = room_to_turn(random(300, 48))
    assert other is not None and other.data_ptr() != large.data_ptr()
    assert room_to_turn(random(127, 48)) is None and room_to_turn(random(300, 40)) is None
    assert room_to_turn(random(300, 48).float()) is None and room_to_turn(random(48, 300).t()) is None


@pytest.mark.parametrize("lines", [1, 127, 128, 300])
@pytest.mark.parametrize("needs_weight", [True, False])
@pytest.mark.parametrize("needs_bias", [True, False])
def test_gradients_of_a_linear_layer(lines: int, needs_weight: bool, needs_bias: bool) -> None:
    grad, x = random(lines, 48, seed=1), random(lines, 32, seed=2)
    weight, bias = weight_and_bias(grad, x, needs_weight, needs_bias)
    assert (weight is not None) == needs_weight and (bias is not None) == needs_bias
    assert weight is None or torch.equal(weight, multiply_transposed(grad, x))
    assert bias is None or torch.allclose(bias.double(), grad.double().sum(0), atol=1e-4)
