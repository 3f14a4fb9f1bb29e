"""Matrix products: linear layers over bfloat16 copies, three of them as one, and float32 through oneDNN.

May import layers 0 and 1.

    out = x weight' + bias        grad_x = grad_out weight        grad_weight = grad_out' x
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.nn import functional as F

from headstart.models.kernels.elementwise import add_columns
from headstart.models.kernels.packing import transpose, turned_width
from headstart.models.swaps.swap import call, note, unwatched
from headstart.models.working_copies import WorkingCopies

__all__ = [
    "JoinedLinears",
    "Operands",
    "Products",
    "computes_in_bfloat16",
    "conv1d",
    "has_onednn_product",
    "joined_linear",
    "keep",
    "kept",
    "linear",
    "multiply",
    "multiply_transposed",
    "room_to_turn",
    "weight_and_bias",
]


_MANY_LINES = 128
_LARGEST_ROOM = 2**23  # numbers: sixteen MiB, which nobody misses
_own = threading.local()


def computes_in_bfloat16() -> bool:
    """Say whether products are to be in bfloat16 here (autocast on the CPU)."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def has_onednn_product() -> bool:
    """Say whether PyTorch hands out oneDNN's float32 product by itself."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Give x weight' + bias; float32 through oneDNN, because MKL takes a slow path on AMD's processors."""
    if weight.is_mkldnn or (x.dtype == torch.float32 and x.numel() and weight.numel()):
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)


class Operands(NamedTuple):
    """What a linear layer is computed with.

    Args:
        forward: for x forward' + bias.
        backward: its transpose, for grad backward'.
        bias: None adds nothing.
    """

    forward: torch.Tensor
    backward: torch.Tensor
    bias: torch.Tensor | None


def room_to_turn(a: torch.Tensor) -> torch.Tensor | None:
    """Give room for the transpose of a matrix where `multiply_transposed` multiplies by it; None where it does not.

    The same room again and again, because what was written and read last is in the cache.
    """
    if not _is_turned(a):
        return None
    shape = a.shape[1], turned_width(a.shape[0])
    size = shape[0] * shape[1]
    if size > _LARGEST_ROOM:
        return torch.empty(shape, dtype=torch.bfloat16)
    room: torch.Tensor | None = getattr(_own, "room", None)
    if room is None or room.shape[0] < size:
        room = _own.room = torch.empty(size, dtype=torch.bfloat16)
    return room[:size].view(shape)


def _is_turned(a: torch.Tensor) -> bool:
    # oneDNN is slow at reading a matrix across; where there is much of it, turning it before is faster.
    return a.dtype == torch.bfloat16 and a.shape[0] >= _MANY_LINES and not a.shape[1] % 16 and a.is_contiguous()


def multiply_transposed(a: torch.Tensor, b: torch.Tensor, turned: torch.Tensor | None = None) -> torch.Tensor:
    """Give a' b, the gradient of a weight, summed over the lines of both.

    Args:
        a: gradients, shape (N, out).
        b: what was multiplied, shape (N, in).
        turned: what `room_to_turn` gave for `a`, where a kernel has written its transpose already.
    """
    if turned is not None:
        return F.linear(turned[:, : a.shape[0]], b.t())
    room = room_to_turn(a)
    if room is not None:
        return F.linear(transpose(a, room)[:, : a.shape[0]], b.t())
    return multiply(a.t(), b.t())


def weight_and_bias(
    grad: torch.Tensor, x: torch.Tensor, needs_weight: bool, needs_bias: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Give the gradients of weight and bias of a linear layer, None for what is not needed.

    Args:
        grad: of its output, contiguous, shape (N, out).
        x: its input, shape (N, in).
        needs_weight: whether the first is needed.
        needs_bias: whether the second is needed.
    """
    turned = room_to_turn(grad) if needs_weight and needs_bias else None
    bias = add_columns(grad, turned) if needs_bias else None
    return multiply_transposed(grad, x, turned) if needs_weight else None, bias


@dataclass
class Products:
    """What matrix products are computed with.

    Args:
        copies: bfloat16 copies for what runs under autocast; None leaves it to autocast.
        onednn: whether float32 goes through oneDNN.
        result: what the model's own way gives hidden states in, where products are in bfloat16.
    """

    copies: WorkingCopies | None = None
    onednn: bool = False
    result: torch.dtype = torch.float32

    @unwatched
    def operands(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Operands | None:
        """Give weight and bias as the products take them; None where these are PyTorch's own."""
        if x.device.type != "cpu" or x.numel() == 0:
            return None
        if computes_in_bfloat16():
            if self.copies is None or not self.copies.covers(weight, bias) or not x.is_floating_point():
                return None
            return Operands(*self.copies.operands(weight), None if bias is None else self.copies.of(bias))
        if self.onednn and x.dtype == weight.dtype == torch.float32:
            return Operands(weight.detach(), weight.detach().t(), None if bias is None else bias.detach())
        return None


def keep(ctx: Any, backward: torch.Tensor, *tensors: torch.Tensor) -> None:
    """Keep the weight and other tensors for the backward pass."""
    # A packed weight is not for those who handle what is saved, such as hooks that move it out of memory.
    ctx.packed = backward if backward.is_mkldnn else None
    ctx.save_for_backward(*(tensors if backward.is_mkldnn else (backward, *tensors)))


def kept(ctx: Any) -> tuple[torch.Tensor, ...]:
    """Give what `keep` has kept, in that order."""
    saved: tuple[torch.Tensor, ...] = ctx.saved_tensors
    return saved if ctx.packed is None else (ctx.packed, *saved)


class Product(torch.autograd.Function):
    """A linear layer; weight and bias are what gets the gradients, the operands what is computed with."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        operands: Operands,
        is_transposed: bool,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(operands.forward.dtype)
        keep(ctx, operands.backward, flat)
        ctx.shape, ctx.is_transposed = x.shape, is_transposed
        return multiply(flat, operands.forward, operands.bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        backward, flat = kept(ctx)
        grad = gradients[0].reshape(len(flat), -1).to(flat.dtype)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = multiply(grad, backward).view(ctx.shape) if needs_x else None
        if ctx.is_transposed:
            grad_weight = multiply_transposed(flat, grad) if needs_weight else None
            grad_bias = add_columns(grad.contiguous()) if needs_bias else None
        else:
            grad_weight, grad_bias = weight_and_bias(grad.contiguous(), flat, needs_weight, needs_bias)
        return grad_x, grad_weight, grad_bias, None, None


def linear(part: str, module: nn.Linear, products: Products, x: torch.Tensor) -> torch.Tensor:
    """Stand for `nn.Linear.forward`."""
    operands = products.operands(x, module.weight, module.bias)
    if operands is None:
        return F.linear(x, module.weight, module.bias)
    note(part, module)
    out: torch.Tensor = call(Product, x, module.weight, module.bias, operands, False)
    return out


def conv1d(part: str, module: nn.Module, products: Products, x: torch.Tensor) -> torch.Tensor:
    """Stand for the forward pass of transformers' `Conv1D`: a linear layer whose weight lies the other way round."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Parameter) and isinstance(bias, Parameter)
    operands = products.operands(x, weight, bias)
    if operands is None:
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    note(part, module)
    turned = Operands(operands.backward, operands.forward, operands.bias)
    out: torch.Tensor = call(Product, x, weight, bias, turned, True)
    return out


class _JoinedProduct(torch.autograd.Function):
    """Several linear layers of one input as one product; outputs are parts of one tensor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, operands: Operands, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1]).to(operands.forward.dtype)
        keep(ctx, operands.backward, flat)
        ctx.shape, ctx.has_bias = x.shape, operands.bias is not None
        weights = parameters[: len(parameters) // 2] if ctx.has_bias else parameters
        ctx.rows = [weight.shape[0] for weight in weights]
        out = multiply(flat, operands.forward, operands.bias).view(*x.shape[:-1], -1)
        parts: tuple[torch.Tensor, ...] = out.split(ctx.rows, -1)
        return parts

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        backward, flat = kept(ctx)
        grad = _join(gradients, flat.dtype)
        needed = ctx.needs_input_grad[2:]
        nothing = (None,) * len(ctx.rows)
        grad_x = multiply(grad, backward).view(ctx.shape) if ctx.needs_input_grad[0] else None
        weight, bias = weight_and_bias(grad, flat, any(needed[: len(ctx.rows)]), any(needed[len(ctx.rows) :]))
        weights = nothing if weight is None else weight.split(ctx.rows)
        if not ctx.has_bias:
            return grad_x, None, *weights
        return grad_x, None, *weights, *(nothing if bias is None else bias.split(ctx.rows))


def _join(gradients: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
    """Give gradients side by side as one matrix; without copying where the attention has left them so."""
    first, width = gradients[0], sum(grad.shape[-1] for grad in gradients)
    place, lies_joined = first.data_ptr(), True
    for grad in gradients:
        lies_joined &= grad.dtype == dtype and grad.stride() == first.stride() and grad.data_ptr() == place
        place += grad.shape[-1] * grad.element_size()
    strides = first.stride()
    lies_joined &= strides[-1] == 1 and strides[-2] == width
    lies_joined &= first.ndim == 2 or strides[0] == width * first.shape[1]
    if lies_joined and first.ndim <= 3:
        return first.as_strided((first.numel() // first.shape[-1], width), (width, 1))
    return torch.cat([grad.reshape(-1, grad.shape[-1]).to(dtype) for grad in gradients], -1)


class JoinedLinears:
    """Linear layers that get the same input: the first one that is called computes the outputs of all.

    Args:
        modules: with as many columns each, all of them with a bias or none.
        products: whose copies give them as one matrix.
    """

    def __init__(self, modules: tuple[nn.Linear, ...], products: Products) -> None:
        self.modules, self.products = modules, products
        self.num_wasted = 0
        """Outputs that nobody asked for."""
        # One assignment gives it and takes it away, so that threads that share a model do not mix their outputs.
        self._held: tuple[torch.Tensor, int, dict[int, torch.Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"modules": self.modules, "products": self.products}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def let_go(self) -> None:
        """Drop what is left of an interrupted forward pass."""
        if self._held is not None:
            self.num_wasted += len(self._held[2])
        self._held = None

    def forward(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Stand for `nn.Linear.forward` of one of them."""
        with torch._C.DisableTorchFunction():
            version = 0 if x.is_inference() else x._version
        held = self._held
        if held is not None and held[0] is x and held[1] == version:
            out = held[2].pop(index, None)
            if not held[2]:
                self._held = None
            if out is not None:
                return out
        weights = [module.weight for module in self.modules]
        biases = [module.bias for module in self.modules if module.bias is not None]
        operands = self._operands(x, weights, biases)
        if operands is None:
            return linear("bf16_weights", self.modules[index], self.products, x)
        self.let_go()
        for module in self.modules:
            note("joined_qkv", module)
            note("bf16_weights", module)
        outputs = call(_JoinedProduct, x, operands, *weights, *biases)
        self._held = x, version, {place: output for place, output in enumerate(outputs) if place != index}
        result: torch.Tensor = outputs[index]
        return result

    @unwatched
    def _operands(
        self, x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]
    ) -> Operands | None:
        copies = self.products.copies
        if not computes_in_bfloat16() or copies is None or not copies.covers(*weights, *biases) or x.numel() == 0:
            return None
        return Operands(*copies.operands(*weights), copies.of(*biases) if biases else None)


def joined_linear(index: int, joined: JoinedLinears, x: torch.Tensor) -> torch.Tensor:
    """Stand for `nn.Linear.forward` of a joined layer."""
    return joined.forward(index, x)
