"""Which keys the rows of a batch may look at, as the attention kernels take it.

May import layers 0 and 1; needs no numba.
"""

from __future__ import annotations

import functools

import torch

__all__ = ["MASKED", "KeyMask"]

MASKED = -1e30
"""Added to the score of a key that is not looked at: finite, so that what is subtracted from itself gives no NaN."""


class KeyMask:
    """Which keys a row's queries may look at.

    Args:
        num_keys: int64, shape (B,): keys from there on are padding.
        bias: float32, shape (B, K) with K a multiple of 16 and at least the length: added to the scores of a key, for
            masks that are not padding on the right; None adds nothing.
        starts: int64, shape (B,): where the tokens of each row begin, when they lie one after the other without
            padding; None is rows of one length.
    """

    def __init__(
        self, num_keys: torch.Tensor, bias: torch.Tensor | None = None, starts: torch.Tensor | None = None
    ) -> None:
        self.num_keys, self.bias, self.starts = num_keys, bias, starts

    @classmethod
    def of(cls, mask: torch.Tensor | None, batch_size: int, length: int) -> KeyMask:
        """Read a mask, shape (B, length), that is true (or not 0) where a key may be looked at; None is all of them."""
        if mask is None:
            return cls(torch.full((batch_size,), length, dtype=torch.int64))
        seen = mask[:, :length].to(torch.bool)
        places = torch.arange(1, length + 1)
        num_keys = (seen * places).amax(1).clamp_(min=1)
        if bool((seen.sum(1) == num_keys).all()):
            return cls(num_keys)
        bias = torch.zeros((batch_size, -(-length // 16) * 16), dtype=torch.float32)
        bias[:, :length].masked_fill_(~seen, MASKED)
        return cls(num_keys, bias)

    def numbers(self) -> tuple[int, int, int, int]:
        """Give what kernels take."""
        starts = 0 if self.starts is None else self.starts.data_ptr()
        if self.bias is None:
            return self.num_keys.data_ptr(), starts, 0, 0
        return self.num_keys.data_ptr(), starts, self.bias.data_ptr(), self.bias.shape[1]

    def shape_of(self, q: torch.Tensor) -> tuple[int, int]:
        """Give the number of rows and the tokens of the longest, for queries of shape (B, heads, T, D)."""
        return (q.shape[0], q.shape[2]) if self.starts is None else (self.starts.shape[0], self._longest)

    @functools.cached_property
    def _longest(self) -> int:
        return int(self.num_keys.max())
