"""Weights as oneDNN multiplies with them, so that it does not lay them out anew in each product.

May import layers 0 and 1. Tensors of this kind are opaque: only oneDNN's own operators take them. Its layout is not
documented, so what the kernels write is compared with what oneDNN makes of the same weight, to the bit.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch

__all__ = ["PackedWeight", "pack_all"]

_BLOCK = 64


class PackedWeight:
    """One weight, for the forward and for the backward pass.

    Args:
        weight: bfloat16, shape (N, K), contiguous.

    Attributes:
        forward: for x weight'.
        backward: for grad weight.
        chunks: what the kernel that packs is told of it.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        reorder: Any = torch.ops.mkldnn._reorder_linear_weight
        self.forward: torch.Tensor = reorder(weight)
        self.backward: torch.Tensor = reorder(weight.t().contiguous())
        addresses = (weight.data_ptr(), *(torch.ops.mkldnn.data_ptr(form) for form in (self.forward, self.backward)))
        self.chunks = [(*addresses, first, *weight.shape) for first in range(0, weight.shape[0], _BLOCK)]

    @classmethod
    def of(cls, weight: torch.Tensor) -> PackedWeight | None:
        """Pack a weight; None where oneDNN lays it out in another way than the kernel does."""
        if not cls.has_blocks(weight):
            return None
        packed = cls(weight)
        expected = packed._bits()
        if any(len(bits) != weight.numel() for bits in expected):
            return None
        pack_all([packed])
        return packed if all(map(np.array_equal, packed._bits(), expected)) else None

    @staticmethod
    def has_blocks(weight: torch.Tensor) -> bool:
        """Say whether the layout has no remainders."""
        return weight.ndim == 2 and not any(size % _BLOCK for size in weight.shape)

    def _bits(self) -> list[np.ndarray]:
        """Give a copy of the bits of both forms."""
        operators: Any = torch.ops.mkldnn
        return [
            np.frombuffer(ctypes.string_at(operators.data_ptr(form), operators._nbytes(form)), dtype=np.uint16)
            for form in (self.forward, self.backward)
        ]


def pack_all(weights: list[PackedWeight]) -> None:
    """Write both forms of the weights as they are now."""
    from headstart.models.kernels.packing import pack

    pack(np.array([chunk for weight in weights for chunk in weight.chunks], dtype=np.int64))
