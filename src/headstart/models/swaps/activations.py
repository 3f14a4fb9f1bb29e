"""GELU in one pass, with its slope for the backward pass.

May import layers 0 and 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from headstart.models.kernels.elementwise import gelu, gelu_backward
from headstart.models.swaps.norms import kernel_obstacle
from headstart.models.swaps.swap import call, note

__all__ = ["EXACT", "TANH", "gelu_forward"]

EXACT = ("GELU", "GELUActivation")
"""Names of the classes that compute it with the error function."""
TANH = ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh", "FastGELUActivation", "AccurateGELUActivation")
"""Names of the classes that compute the form with tanh."""


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, approximate: bool) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        slopes = torch.empty_like(flat)
        out = gelu(flat, slopes, approximate=approximate)
        ctx.save_for_backward(slopes)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (slopes,) = ctx.saved_tensors
        grad = gradients[0].reshape(slopes.shape).to(slopes.dtype).contiguous()
        return gelu_backward(grad, slopes)[0].view(gradients[0].shape), None


def gelu_forward(module: nn.Module, approximate: bool, x: torch.Tensor) -> torch.Tensor:
    """Stand for the forward pass of a GELU module."""
    obstacle = kernel_obstacle(x)
    note("gelu", module, obstacle)
    if obstacle:
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    if not (torch.is_grad_enabled() and x.requires_grad):
        return gelu(x.reshape(-1, x.shape[-1]).contiguous(), approximate=approximate).view(x.shape)
    out: torch.Tensor = call(_Gelu, x, approximate)
    return out
