"""The fast path of one training: the model's parts and the optimizer's, put together.

May import layers 0 to 2. Which parts are on follows from the recipe, the model and the machine; it is decided before
the first step, and written down with the reason for each part that is off.

    speed_up(model)  +  build_optimizer(copies=..., lazy_rows=...)  ->  FastPath(optimizer, parts)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from headstart.models.kernels import are_compiled
from headstart.models.speed import PARTS, Part, SpeedUp, speed_up
from headstart.models.swaps.padding_free import PART as PADDING_FREE
from headstart.recipe_sections import FAST_PARTS, OptimSection
from headstart.training.device import Device
from headstart.training.fast_adamw import FastAdamW
from headstart.training.onednn import remember_products
from headstart.training.optim import build_optimizer, optimizer_parts, replace_optimizer

__all__ = ["FastPath", "describe_parts", "must_compile_kernels", "start_fast_path", "take_over"]


@dataclass
class FastPath:
    """What makes a training fast.

    Args:
        optimizer: over the model's trainable parameters.
        parts: one for each of `recipe.FAST_PARTS`, in their order.
        handle: what was done to the model; None where nothing was.
    """

    optimizer: torch.optim.Optimizer
    parts: list[Part]
    handle: SpeedUp | None = None

    @property
    def leaves_padding_out(self) -> bool:
        """Whether padding costs next to nothing, so that rows of any length may share a batch."""
        return self.is_on(PADDING_FREE)

    def is_on(self, name: str) -> bool:
        """Whether a part is in use."""
        return any(part.name == name and part.on for part in self.parts)

    def undo(self) -> None:
        """Leave the model as an ordinary one, with its weights up to date."""
        if isinstance(self.optimizer, FastAdamW):
            self.optimizer.stop_lazy()
        if self.handle is not None:
            for parameter in self.handle.copies.tensors if self.handle.copies is not None else ():
                parameter.grad_dtype = parameter.dtype
            self.handle.undo()


def must_compile_kernels(device: Device, wants: Callable[[str], bool]) -> bool:
    """Say whether the fast path's kernels have to be compiled before they can be used, which takes a while."""
    return device.torch_device.type == "cpu" and any(wants(name) for name in FAST_PARTS) and not are_compiled()


def start_fast_path(
    model: torch.nn.Module,
    optim: OptimSection,
    device: Device,
    wants: Callable[[str], bool],
    *,
    is_sharded: bool = False,
    adds_gradients: bool = False,
    why_not: Mapping[str, str] | None = None,
) -> FastPath:
    """Build the optimizer, and let the model compute by the parts that fit it.

    Args:
        model: on its device.
        optim: what the optimizer is to be.
        device: where and in which precision it computes.
        wants: says whether a part is asked for.
        is_sharded: each process will hold a part of each parameter.
        adds_gradients: an update adds gradients of several micro-batches or processes, which bfloat16 would round.
        why_not: parts that this training cannot have, and why.
    """
    obstacles = {name: reason for name, reason in (why_not or {}).items() if wants(name)}
    remember_products()
    if is_sharded or not any(wants(name) for name in FAST_PARTS):
        reason = "each process holds a part of the model" if is_sharded else "switched off"
        optimizer = build_optimizer(model, optim, fast=False)
        return FastPath(optimizer, [Part(name, False, reason=reason) for name in FAST_PARTS])

    def is_possible(name: str) -> bool:
        return wants(name) and name not in obstacles

    handle = speed_up(
        model,
        # Where products are in float16, no part is on that asks.
        precision="fp32" if device.precision == "fp16" else device.precision,
        parts={name: is_possible(name) for name in PARTS},
    )
    optimizer = build_optimizer(
        model, optim, fast=wants("optimizer_pass"), lazy_rows=is_possible("lazy_rows"), copies=handle.copies
    )
    fast = _join(handle, optimizer, adds_gradients)
    fast.parts = [replace(part, reason=obstacles.get(part.name, part.reason)) for part in fast.parts]
    return fast


def take_over(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    device: Device,
    *,
    why_not: str = "",
    adds_gradients: bool = False,
) -> FastPath:
    """Make a training fast whose optimizer somebody else has built.

    Args:
        model: on its device.
        optimizer: a `torch.optim.AdamW` that has made no step gives its groups to a `FastAdamW`; another one stays.
        device: where and in which precision it computes.
        why_not: a reason for which any optimizer stays.
        adds_gradients: see `start_fast_path`.
    """
    remember_products()
    handle = speed_up(model, precision="fp32" if device.precision == "fp16" else device.precision)
    return _join(handle, replace_optimizer(model, optimizer, why_not=why_not, copies=handle.copies), adds_gradients)


def _join(handle: SpeedUp, optimizer: torch.optim.Optimizer, adds_gradients: bool) -> FastPath:
    """Put the parts of the model and of the optimizer together."""
    if handle.copies is not None and handle.copies.kept_by_optimizer and not adds_gradients:
        for parameter in handle.copies.tensors:
            if parameter.ndim > 1:  # the product's result is in bfloat16 anyway
                parameter.grad_dtype = torch.bfloat16
    found = {part.name: part for part in [*handle.parts, *optimizer_parts(optimizer)]}
    if handle.copies is not None and not handle.copies.kept_by_optimizer:
        for name in ("bf16_weights", "packed_weights", "joined_qkv", "whole_layers", PADDING_FREE):
            if found[name].on:
                found[name] = replace(found[name], on=False, places=0, reason="needs optimizer_pass")
    return FastPath(optimizer, [found[name] for name in FAST_PARTS], handle)


def describe_parts(parts: list[Part]) -> dict[str, str]:
    """Say of each part, in words, where it is in use or why it is not.

    Example:
        >>> describe_parts([Part("gelu", True, 6), Part("attention", False, reason="switched off")])
        {'gelu': 'used in 6 places', 'attention': 'not used: switched off'}
    """

    def words(part: Part) -> str:
        if not part.on:
            return f"not used: {part.reason}"
        return "used" if not part.places else f"used in {part.places} place{'' if part.places == 1 else 's'}"

    return {part.name: words(part) for part in parts}
