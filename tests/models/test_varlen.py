"""Attention for GPUs, with a plain function in the place of PyTorch's own, which needs a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headstart.models.swaps.varlen import attend_unpadded, begins_of, takes_unpadded


def plain_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    begins: torch.Tensor,
    begins_of_keys: torch.Tensor,
    longest: int,
    longest_keys: int,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """Compute what `torch.nn.attention.varlen.varlen_attn` documents, one row after the other."""
    out = torch.full_like(q, float("nan"))
    for first, end in zip(begins.tolist(), begins.tolist()[1:], strict=False):
        assert end - first <= longest == longest_keys
        scores = torch.einsum("qhd,khd->hqk", q[first:end], k[first:end]) * scale
        if window_size == (-1, 0):
            scores = scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), float("-inf"))
        out[first:end] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[first:end])
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [[5, 8, 1], [8, 8, 8]])
def test_equals_masked_attention(lengths: list[int], causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 8, 16, requires_grad=True) for _ in range(3))
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    out = attend_unpadded(q, k, v, mask, scale=0.25, causal=causal, attention=plain_varlen)
    seen = mask[:, None, None, :].expand(3, 1, 8, 8)
    if causal:
        seen = seen & torch.ones(8, 8, dtype=torch.bool).tril()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=0.25).transpose(1, 2)
    assert torch.allclose(out[mask], expected[mask], atol=1e-6)
    ours = torch.autograd.grad(out[mask].cos().sum(), (q, k, v))
    theirs = torch.autograd.grad(expected[mask].cos().sum(), (q, k, v))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def test_no_mask_is_no_padding() -> None:
    assert begins_of(None, 2, 3, torch.device("cpu")).tolist() == [0, 3, 3, 6, 6]


def test_takes_sixteen_bits_on_a_gpu_without_dropout() -> None:
    class Stand:
        def __init__(self, kind: str, dtype: torch.dtype) -> None:
            self.device, self.dtype = torch.device(kind), dtype

    def takes(kind: str, dtype: torch.dtype, dropout: float) -> bool:
        stand: Any = Stand(kind, dtype)
        return takes_unpadded(stand, dropout)

    assert takes("cuda", torch.bfloat16, 0.0)
    assert not takes("cuda", torch.bfloat16, 0.1)
    assert not takes("cuda", torch.float32, 0.0)
    assert not takes("cpu", torch.bfloat16, 0.0)


def test_transformers_gets_it_through_its_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the mask is looked at once, and rows are computed without their padding."""
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

    from headstart.models.swaps import attention

    calls: list[bool] = []

    def unpadded(*tensors: Any, **options: Any) -> torch.Tensor:
        calls.append(options["causal"])
        return attend_unpadded(*tensors, **options, attention=plain_varlen)

    monkeypatch.setattr(attention, "takes_unpadded", lambda query, dropout: dropout == 0.0)
    monkeypatch.setattr(attention, "attend_unpadded", unpadded)
    q, k, v = (torch.randn(2, 2, 8, 16) for _ in range(3))
    tokens = torch.arange(8) < torch.tensor([[5], [8]])
    for function, causal in ((bidirectional_mask_function, False), (causal_mask_function, True)):
        mask = attention.carry_padding(torch.ones(2, 1, 8, 8, dtype=torch.bool), tokens, function)
        out, _ = attention.attention_forward(torch.nn.Identity(), q, k, v, mask, 0.0, None)
        seen = tokens[:, None, None, :].expand(2, 1, 8, 8)
        seen = seen & torch.ones(8, 8, dtype=torch.bool).tril() if causal else seen
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2)
        assert torch.allclose(out[tokens], expected[tokens], atol=1e-6)
        assert calls.pop() is causal
    left = attention.carry_padding(torch.ones(2, 1, 8, 8, dtype=torch.bool), tokens.flip(1), causal_mask_function)
    attention.attention_forward(torch.nn.Identity(), q, k, v, left, 0.0, None)
    assert not calls
