"""Dropout of hidden states, drawn and applied in one pass, and drawn again for the backward pass.

May import layers 0 and 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from headstart.models.dropout import draw_row_keys, has_row_keys
from headstart.models.kernels.drawing import Drops
from headstart.models.kernels.elementwise import drop
from headstart.models.random_bits import split
from headstart.models.swaps.norms import kernel_obstacle
from headstart.models.swaps.swap import call, note, unwatched

__all__ = ["dropout"]


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, drops: Drops) -> torch.Tensor:
        ctx.drops = drops
        return _drop(x, drops)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _drop(gradients[0], ctx.drops), None


def _drop(x: torch.Tensor, drops: Drops) -> torch.Tensor:
    length = x.shape[-2] if x.ndim > 2 else 0
    return drop(x.reshape(-1, x.shape[-1]).contiguous(), length, drops).view(x.shape)


def dropout(module: nn.Dropout, x: torch.Tensor) -> torch.Tensor:
    """Stand for `nn.Dropout.forward`."""
    if not module.training or module.p == 0.0:
        return x
    obstacle = _obstacle(module, x)
    note("dropout", module, obstacle)
    if obstacle:
        return F.dropout(x, module.p, True, module.inplace)
    keys = draw_row_keys(module, len(x))
    for size in x.shape[1:-2]:  # heads, where weights of attention are dropped
        keys = split(keys.unsqueeze(-1), torch.arange(size))
    out: torch.Tensor = call(_Drop, x, Drops(keys.contiguous(), module.p))
    return out


@unwatched
def _obstacle(module: nn.Dropout, x: torch.Tensor) -> str:
    """Say why PyTorch must drop; empty where the kernels can."""
    if module.inplace:
        return "it works in place"
    if x.ndim < 2:
        return "the tensors have no rows"
    if not has_row_keys(len(x)):
        return "the tensors are not the batch's rows"
    return kernel_obstacle(x, any_width=True)
