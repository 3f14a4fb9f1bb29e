"""Layer norm, alone and with the linear layer, the dropout and the residual before it.

May import layers 0 and 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from headstart.models.dropout import draw_row_keys, has_row_keys
from headstart.models.kernels.drawing import NO_DROPS, Drops
from headstart.models.kernels.elementwise import drop_add_norm, drop_add_norm_backward
from headstart.models.swaps.products import (
    Operands,
    Products,
    keep,
    kept,
    multiply,
    multiply_transposed,
    room_to_turn,
)
from headstart.models.swaps.swap import call, has_hooks, is_ours_or_own, note, unwatched

__all__ = ["kernel_obstacle", "layer_norm", "norm_obstacle", "project_and_add"]


@unwatched
def kernel_obstacle(x: torch.Tensor, *, any_width: bool = False) -> str:
    """Say why the kernels do not take a tensor; empty where they do.

    Args:
        x: whose last axis they take in steps of 16.
        any_width: it need not be a multiple of that.
    """
    if x.device.type != "cpu":
        return f"the tensors are on {x.device.type}"
    if x.dtype not in (torch.float32, torch.bfloat16):
        return f"the numbers are {x.dtype}"
    if x.numel() == 0:
        return "the batch is empty"
    if x.shape[-1] % 16 and not any_width:
        return f"a width of {x.shape[-1]} is not a multiple of 16"
    return ""


@unwatched
def norm_obstacle(norm: nn.Module, x: torch.Tensor) -> str:
    """Say why the kernels do not take a layer norm of a tensor; empty where they do."""
    weight, bias = norm.weight, norm.bias
    if not isinstance(weight, torch.Tensor) or norm.normalized_shape != (x.shape[-1],):
        return "the layer norm has no weight, or several axes"
    if weight.dtype != torch.float32 or (bias is not None and bias.dtype != torch.float32):
        return "the layer norm's weights are not float32"
    return kernel_obstacle(x)


def _bias_of(norm: nn.LayerNorm) -> torch.Tensor:
    return torch.zeros_like(norm.weight) if norm.bias is None else norm.bias


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        out, statistics = drop_add_norm(flat, None, weight, bias, epsilon, len(flat), NO_DROPS)
        ctx.save_for_backward(flat, weight, statistics)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, weight, statistics = ctx.saved_tensors
        grad = gradients[0].reshape(flat.shape).to(flat.dtype).contiguous()
        grad_x, _, sums = drop_add_norm_backward(grad, flat, weight, statistics, len(flat), NO_DROPS)
        return grad_x.view(gradients[0].shape), sums[0], sums[1], None


def layer_norm(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    """Stand for `nn.LayerNorm.forward`."""
    obstacle = norm_obstacle(module, x)
    note("norms", module, obstacle)
    if obstacle:
        return F.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)
    out: torch.Tensor = call(_Norm, x, module.weight, _bias_of(module), module.eps)
    return out


class _ProjectAndAdd(torch.autograd.Function):
    """layer_norm(residual + dropout(x weight' + bias)), one pass after the product."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        norm_weight: torch.Tensor,
        norm_bias: torch.Tensor,
        operands: Operands,
        epsilon: float,
        drops: Drops,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(operands.forward.dtype)
        rest = residual.reshape(-1, residual.shape[-1]).to(flat.dtype)
        sums = multiply(flat, operands.forward, operands.bias)
        out, statistics = drop_add_norm(
            sums, rest.contiguous(), norm_weight, norm_bias, epsilon, residual.shape[1], drops
        )
        keep(ctx, operands.backward, flat, sums, norm_weight, statistics)
        ctx.shape, ctx.residual_shape, ctx.drops = x.shape, residual.shape, drops
        return out.view(residual.shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        backward, flat, sums, norm_weight, statistics = kept(ctx)
        grad = gradients[0].reshape(sums.shape).to(sums.dtype).contiguous()
        turned = room_to_turn(grad) if ctx.needs_input_grad[2] else None
        grad_rest, grad_sums, columns = drop_add_norm_backward(
            grad, sums, norm_weight, statistics, ctx.residual_shape[1], ctx.drops, turned=turned
        )
        return (
            multiply(grad_sums, backward).view(ctx.shape) if ctx.needs_input_grad[0] else None,
            grad_rest.view(ctx.residual_shape) if ctx.needs_input_grad[1] else None,
            multiply_transposed(grad_sums, flat, turned) if ctx.needs_input_grad[2] else None,
            columns[2],
            columns[0],
            columns[1],
            *(None,) * 3,
        )


def project_and_add(
    module: nn.Module, products: Products, is_last: bool, hidden_states: torch.Tensor, input_tensor: torch.Tensor
) -> torch.Tensor:
    """Stand for the forward pass of a module with `dense`, `dropout` and `LayerNorm`, after which a residual is added.

    BertSelfOutput and BertOutput, and their like in the models that have taken them over. Under autocast what flows
    from layer to layer is bfloat16 here, where autocast lets it become float32; what the last one gives is what the
    model's own way gives.
    """
    dense, norm, dropout = module.dense, module.LayerNorm, module.dropout
    operands = None
    obstacle = _together_obstacle(module, input_tensor)
    if not obstacle:
        operands = products.operands(hidden_states, dense.weight, dense.bias)  # type: ignore[union-attr, arg-type]
        if operands is None:
            obstacle = "its linear layer is computed by PyTorch"
        elif operands.forward.dtype == torch.float32 != input_tensor.dtype:
            obstacle = "the residual is of another dtype"
    note("norms", module, obstacle)
    if operands is None or obstacle:
        return norm(dropout(dense(hidden_states)) + input_tensor)  # type: ignore[operator, no-any-return]
    assert isinstance(dense, nn.Linear) and isinstance(norm, nn.LayerNorm) and isinstance(dropout, nn.Dropout)
    probability = dropout.p if dropout.training else 0.0
    drops = Drops(draw_row_keys(dropout, len(input_tensor)), probability) if probability else NO_DROPS
    out: torch.Tensor = call(
        _ProjectAndAdd,
        hidden_states,
        input_tensor,
        dense.weight,
        dense.bias,
        norm.weight,
        _bias_of(norm),
        operands,
        norm.eps,
        drops,
    )
    return out.to(products.result) if is_last and out.dtype == torch.bfloat16 else out


@unwatched
def _together_obstacle(module: nn.Module, residual: torch.Tensor) -> str:
    """Say why the modules inside have to be called one by one; empty where they need not."""
    for name, kind in (("dense", nn.Linear), ("dropout", nn.Dropout), ("LayerNorm", nn.LayerNorm)):
        child = getattr(module, name)
        # Somebody may have put an adapter, a hook or a function of his own there since.
        if type(child) is not kind or has_hooks(child) or not is_ours_or_own(child):
            return f"{name} is not PyTorch's own, or has hooks"
    if residual.ndim != 3 or not has_row_keys(len(residual)):
        return "the tensors have no rows of tokens"
    return norm_obstacle(module.LayerNorm, residual)  # type: ignore[arg-type]
