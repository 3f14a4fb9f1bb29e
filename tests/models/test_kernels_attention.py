"""The attention kernels against PyTorch's own operations, written out."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.models import random_bits
from headstart.models.kernels import attention
from headstart.models.kernels.attention import attend, attend_backward
from headstart.models.kernels.drawing import Drops
from headstart.models.kernels.key_mask import KeyMask
from headstart.models.kernels.lowering import multiplies_bfloat16

Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
# Relative to the largest number: float32 rounding, and that of what is stored, or multiplied, in bfloat16.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 8e-3}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def inputs(rows: int, heads: int, length: int, dim: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Give queries, keys and values as parts of one tensor, as a joined product leaves them, and a gradient."""
    generator = torch.Generator().manual_seed(rows * 1000 + length)
    joined = torch.randn((rows, length, 3, heads, dim), generator=generator).to(dtype)
    grad = torch.randn((rows, length, heads, dim), generator=generator).to(dtype)
    return [*(joined[:, :, place].transpose(1, 2) for place in range(3)), grad.transpose(1, 2)]


def compute(
    tensors: list[torch.Tensor],
    mask: torch.Tensor | None,
    drops: Drops,
    scale: float = 0.3,
    *,
    causal: bool = False,
    window: int | None = None,
    num_queries: int | None = None,
) -> Results:
    q, k, v, grad_out = tensors
    rows, heads, length, dim = q.shape
    keys = KeyMask.of(mask, rows, length)
    out, statistics = attend(
        q, k, v, keys, scale=scale, drops=drops, causal=causal, window=window, num_queries=num_queries
    )
    grads = torch.empty((rows, length, 3, heads, dim), dtype=q.dtype)
    places = (grads[:, :, 0].transpose(1, 2), grads[:, :, 1].transpose(1, 2), grads[:, :, 2].transpose(1, 2))
    attend_backward(
        grad_out, q, k, v, statistics, keys, places,
        scale=scale, drops=drops, causal=causal, window=window, num_queries=num_queries,
    )  # fmt: skip
    return out, *places


@settings(deadline=None, max_examples=40)
@given(
    length=st.integers(1, 80),
    asked=st.integers(1, 80),
    dim=st.sampled_from([16, 32]),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_the_first_queries_alone_have_the_same_bits(length: int, asked: int, dim: int, dtype: torch.dtype) -> None:
    """What is left out is 0, and so is the gradient that it would get."""
    asked = min(asked, length)
    tensors = inputs(2, 3, length, dim, dtype)
    tensors[3] = tensors[3].clone()
    tensors[3][:, :, asked:] = 0.0
    mask = torch.arange(length) < torch.tensor([[length], [-(-length // 2)]])
    drops = Drops(torch.tensor([5, 6]), 0.1)
    whole = compute(tensors, mask, drops)
    tensors[3][:, :, asked:] = torch.nan  # is not read
    some = compute(tensors, mask, drops, num_queries=asked)
    assert torch.equal(some[0][:, :, :asked], whole[0][:, :, :asked])
    assert not some[0][:, :, asked:].any()
    for found, expected in zip(some[1:], whole[1:], strict=True):
        assert torch.equal(found, expected)


def pattern(rows: int, length: int, mask: torch.Tensor | None, causal: bool, window: int | None) -> torch.Tensor:
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    seen = torch.ones((rows, 1, length, length), dtype=torch.bool)
    if mask is not None:
        seen = seen & mask.bool()[:, None, None, :]
    if causal:
        seen = seen & (distance >= 0)
    return seen if window is None else seen & (distance.abs() <= window)


def expect(
    tensors: list[torch.Tensor],
    mask: torch.Tensor | None,
    drops: Drops,
    scale: float = 0.3,
    *,
    causal: bool = False,
    window: int | None = None,
) -> Results:
    """Write attention out; a query that sees nothing gets zeros."""
    q, k, v = (tensor.double().requires_grad_() for tensor in tensors[:3])
    rows, heads, length, _ = q.shape
    seen = pattern(rows, length, mask, causal, window)
    weights = (q @ k.transpose(2, 3) * scale).masked_fill(~seen, -1e30).softmax(-1) * seen.any(-1, keepdim=True)
    if drops.probability:
        keys = random_bits.split(drops.keys[:, None], torch.arange(heads))
        keys = random_bits.split(keys[..., None], torch.arange(length))
        level = round(drops.probability * random_bits.LEVELS)
        left = random_bits.LEVELS - level
        factor = random_bits.LEVELS / left if left else 0.0
        weights = weights * random_bits.keep_mask(keys, length, drops.probability) * factor
    out = weights @ v
    return out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3].double())


def assert_close(found: Results, wanted: Results, tolerance: float) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.isfinite().all()
        assert float((ours.double() - theirs).abs().max()) <= tolerance * max(1.0, float(theirs.abs().max()))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4),
    heads=st.integers(1, 3),
    length=st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 130])),
    dim=st.sampled_from([16, 32, 48, 64, 80]),
    probability=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    shape=st.sampled_from([(False, None), (True, None), (False, 0), (False, 5), (True, 7), (False, 500)]),
    data=st.data(),
)
def test_any_shape_mask_and_dropout_is_as_written_out(
    rows: int,
    heads: int,
    length: int,
    dim: int,
    probability: float,
    dtype: torch.dtype,
    shape: tuple[bool, int | None],
    data: st.DataObject,
) -> None:
    kind = data.draw(st.sampled_from(["none", "right", "left", "any", "nothing seen"]))
    numbers = st.lists(st.integers(1, length), min_size=rows, max_size=rows)
    mask = None
    if kind in ("right", "left"):
        mask = torch.arange(length)[None] < torch.tensor(data.draw(numbers))[:, None]
        mask = mask.flip(1) if kind == "left" else mask
    elif kind != "none":
        bits = data.draw(st.lists(st.booleans(), min_size=rows * length, max_size=rows * length))
        mask = torch.tensor(bits).view(rows, length)
        if kind == "nothing seen":
            mask[0] = False
    if mask is not None and data.draw(st.booleans()):
        mask = mask.to(torch.int64)
    drops = Drops(random_bits.split(length, torch.arange(rows)), probability)
    tensors = inputs(rows, heads, length, dim, dtype)
    causal, window = shape
    found = compute(tensors, mask, drops, causal=causal, window=window)
    assert_close(found, expect(tensors, mask, drops, causal=causal, window=window), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    tensors = inputs(5, 3, 37, 32, dtype)
    mask = torch.arange(37)[None] < torch.tensor([37, 3, 20, 1, 36])[:, None]
    drops = Drops(random_bits.split(7, torch.arange(5)), 0.1)
    results = []
    before = torch.get_num_threads()
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        results.append(compute(tensors, mask, drops))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dim", [16, 32, 48, 64])
def test_processors_that_do_not_multiply_pairs_compute_in_float32(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs(3, 2, 37, dim, torch.bfloat16)
    mask = torch.arange(37)[None] < torch.tensor([37, 3, 20])[:, None]
    drops = Drops(random_bits.split(7, torch.arange(3)), 0.1)
    here = attention._form_of(torch.bfloat16, dim).name
    assert here == ("pairs" if multiplies_bfloat16() and dim % 32 == 0 else "load_bfloat16")
    monkeypatch.setattr(attention, "multiplies_bfloat16", lambda: False)
    assert attention._form_of(torch.bfloat16, dim).name == "load_bfloat16"
    assert_close(compute(tensors, mask, drops), expect(tensors, mask, drops), TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_of_a_row_depend_on_nothing_beside_it(dtype: torch.dtype) -> None:
    tensors = inputs(3, 2, 53, 32, dtype)
    counts = torch.tensor([21, 53, 4])
    tensors[3] = tensors[3] * (torch.arange(53)[None] < counts[:, None])[:, None, :, None]  # none comes from padding
    drops = Drops(random_bits.split(7, torch.arange(3)), 0.1)
    whole = compute(tensors, torch.arange(53)[None] < counts[:, None], drops)
    for row, count in enumerate(counts.tolist()):
        alone = compute(
            [tensor[row : row + 1, :, :count] for tensor in tensors], None, Drops(drops.keys[row:][:1], 0.1)
        )
        assert all(torch.equal(a[row, :, :count], b[0]) for a, b in zip(whole, alone, strict=True))


def test_threads_that_call_at_once_do_not_disturb_each_other() -> None:
    tensors = inputs(4, 4, 65, 64)
    drops = Drops(torch.zeros(4, dtype=torch.int64), 0.0)
    wanted = compute(tensors, None, drops)
    faults: list[int] = []

    def work() -> None:
        for _ in range(30):
            if not all(torch.equal(a, b) for a, b in zip(compute(tensors, None, drops), wanted, strict=True)):
                faults.append(1)

    others = [threading.Thread(target=work) for _ in range(3)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    assert not faults


def test_padding_and_neighbours_do_not_change_the_bits() -> None:
    drops = Drops(random_bits.split(3, torch.arange(2)), 0.2)
    wide = inputs(2, 2, 40, 32)
    mask = torch.arange(40)[None] < torch.tensor([40, 17])[:, None]
    together = compute(wide, mask, drops)
    alone = compute([tensor[1:, :, :17] for tensor in wide], None, Drops(drops.keys[1:], 0.2))
    assert torch.equal(together[0][1, :, :17], alone[0][0])
    assert torch.equal(together[1][1, :, :17], alone[1][0])


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_hidden(place: int, value: float) -> None:
    tensors = inputs(1, 1, 20, 16)
    tensors[place] = tensors[place].contiguous()
    tensors[place][0, 0, 3, 5] = value
    found = compute(tensors, None, Drops(torch.zeros(1, dtype=torch.int64), 0.0))
    assert not all(bool(tensor.isfinite().all()) for tensor in found)


def test_a_row_of_ten_thousand_tokens_works() -> None:
    q, k, v, grad = inputs(1, 1, 10_000, 16)
    # Away from the diagonal blocks, so that the reference needs only a few queries.
    some = torch.tensor([0, 31, 32, 5_000, 9_999])
    out, grad_q, _, _ = compute([q, k, v, grad], None, Drops(torch.zeros(1, dtype=torch.int64), 0.0))
    weights = (q[:, :, some].double() @ k.double().transpose(2, 3) * 0.3).softmax(-1)
    wanted = weights @ v.double()
    assert float((out[:, :, some].double() - wanted).abs().max()) < 1e-5
    slopes = grad[:, :, some].double() @ v.double().transpose(2, 3)
    slopes = weights * (slopes - (slopes * weights).sum(-1, keepdim=True))
    assert float((grad_q[:, :, some].double() - slopes @ k.double() * 0.3).abs().max()) < 1e-5


def test_any_strides_will_do() -> None:
    tensors = inputs(2, 3, 20, 32)
    drops = Drops(torch.zeros(2, dtype=torch.int64), 0.0)
    wanted = compute(tensors, None, drops)
    found = compute([tensor.contiguous() for tensor in tensors], None, drops)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    one = tensors[3][:, :1].expand(-1, 3, -1, -1)  # a gradient of all heads that is one tensor
    found, wanted = (compute([*tensors[:3], grad], None, drops) for grad in (one, one.contiguous()))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("mask", "counts", "has_bias"),
    [
        (None, [3, 3], False),
        ([[1, 1, 0], [1, 1, 1]], [2, 3], False),
        ([[0, 1, 1], [1, 1, 1]], [3, 3], True),
        ([[1, 0, 1], [1, 0, 0]], [3, 1], True),
        ([[0, 0, 0], [1, 1, 1]], [1, 3], True),
    ],
)
def test_a_mask_is_counted_where_it_is_padding_on_the_right(
    mask: list[list[int]] | None, counts: list[int], has_bias: bool
) -> None:
    keys = KeyMask.of(None if mask is None else torch.tensor(mask), 2, 3)
    assert keys.num_keys.tolist() == counts and (keys.bias is not None) == has_bias
