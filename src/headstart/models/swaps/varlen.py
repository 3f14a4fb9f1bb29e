"""Attention on a GPU over rows of different lengths, without work on padding and without asking the GPU for a number.

May import layers 0 and 1. PyTorch's variable-length attention takes rows that lie one after the other, and where each
begins. Taking the padding out needs the number of tokens on the host, and so a wait for the GPU. Here the padding of a
row stays where it is, and counts as a row of its own, which looks at itself alone:

    row 0: 5 tokens, 3 padding; row 1: 8 tokens        begins = 0, 5, 8, 16, 16
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

__all__ = ["attend_unpadded", "begins_of", "is_padded_on_the_right", "takes_unpadded"]


def begins_of(mask: torch.Tensor | None, batch: int, length: int, device: torch.device) -> torch.Tensor:
    """Give where tokens and padding of each row begin, when rows lie one after the other.

    Args:
        mask: shape (B, T), true where there is a token; the padding is on the right. None is no padding.
        batch: B.
        length: T.
        device: of the result.

    Returns:
        int32, shape (2 B + 1,): the first token of a row, the first padding of it, and so on; last B T.

    Example:
        >>> mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
        >>> begins_of(mask, 2, 3, mask.device).tolist()
        [0, 2, 3, 6, 6]
    """
    starts = torch.arange(batch, device=device, dtype=torch.int32) * length
    tokens = mask.to(torch.bool).sum(1, dtype=torch.int32) if mask is not None else torch.full_like(starts, length)
    pairs = torch.stack([starts, starts + tokens], 1).flatten()
    return torch.cat([pairs, torch.full_like(pairs[:1], batch * length)])


def is_padded_on_the_right(mask: torch.Tensor) -> bool:
    """Say whether no token of a mask of shape (B, T) comes after padding: one question to the GPU a forward pass.

    Example:
        >>> is_padded_on_the_right(torch.tensor([[1, 1, 0]])), is_padded_on_the_right(torch.tensor([[0, 1, 1]]))
        (True, False)
    """
    return bool((mask[:, 1:].to(torch.bool) <= mask[:, :-1].to(torch.bool)).all())


def takes_unpadded(query: torch.Tensor, dropout: float) -> bool:
    """Say whether the variable-length attention can compute this: sixteen bits on a GPU, and no weight is dropped.

    It has no dropout; which weights are dropped is decided row by row elsewhere, and needs them in memory.
    """
    return query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16) and dropout == 0.0


def attend_unpadded(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scale: float,
    causal: bool,
    attention: Callable[..., Any] = varlen_attn,
) -> torch.Tensor:
    """Compute attention of padded rows, each over its own tokens.

    Args:
        q: queries, shape (B, heads, T, D).
        k: keys, the same shape.
        v: values, the same shape.
        mask: shape (B, T), padding on the right; None is no padding.
        scale: of the scores.
        causal: a query sees no later key.
        attention: PyTorch's `varlen_attn`, or what stands for it where there is no GPU.

    Returns:
        Shape (B, T, heads, D). What stands at padding is of no use to anybody.
    """
    batch, heads, length, dim = q.shape
    begins = begins_of(mask, batch, length, q.device)
    flat = [tensor.transpose(1, 2).reshape(batch * length, heads, dim) for tensor in (q, k, v)]
    window = (-1, 0) if causal else (-1, -1)
    out: torch.Tensor = attention(*flat, begins, begins, length, length, scale=scale, window_size=window)
    return out.view(batch, length, heads, dim)
