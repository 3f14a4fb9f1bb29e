"""Optimizers and learning-rate schedules.

May import layers 0 and 1. A schedule is a pure function of the step; the optimizer is PyTorch's own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from headstart.recipe import OptimSection

__all__ = ["build_optimizer", "learning_rate_factor", "parameter_groups"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into those with and without weight decay.

    Biases and the parameters of normalisation layers are not decayed: they have one dimension, or belong to a module
    whose class name ends in "Norm".

    Args:
        model: its parameters keep their order inside a group.
        weight_decay: factor of the decayed group.

    Returns:
        Two groups as `torch.optim` takes them; an empty group is left out.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        >>> [(group["weight_decay"], len(group["params"])) for group in parameter_groups(model, 0.01)]
        [(0.01, 1), (0.0, 3)]

    Source: as in BERT's own optimizer (Devlin et al. 2019) and transformers' Trainer.
    """
    norms = {
        id(parameter)
        for module in model.modules()
        if type(module).__name__.endswith("Norm")
        for parameter in module.parameters(recurse=False)
    }
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 or id(parameter) in norms else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, optim: OptimSection) -> torch.optim.Optimizer:
    """Build the optimizer that a recipe's `optim` section describes.

    Args:
        model: its trainable parameters are optimized.
        optim: name and numbers; the learning rate is the highest of the schedule.

    Returns:
        `torch.optim.AdamW` or `torch.optim.SGD`, in PyTorch's fused form where the parameters' device has one.

    Example:
        >>> from headstart.recipe import OptimSection
        >>> type(build_optimizer(nn.Linear(2, 2), OptimSection(name="sgd"))).__name__
        'SGD'

    Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization (AdamW).
    """
    groups = parameter_groups(model, optim.weight_decay)
    fused = {parameter.device.type for group in groups for parameter in group["params"]} <= {"cpu", "cuda"}
    if optim.name == "sgd":
        # PyTorch has no fused SGD for parameters of which each process holds a part.
        fused = fused and not any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"])
        return torch.optim.SGD(groups, lr=optim.learning_rate, momentum=optim.momentum or 0.0, fused=fused)
    return torch.optim.AdamW(
        groups,
        lr=optim.learning_rate,
        betas=(_number(optim.beta1), _number(optim.beta2)),
        eps=_number(optim.epsilon),
        fused=fused,
    )


def learning_rate_factor(
    step: int, *, total_steps: int, warmup_steps: int, schedule: Literal["linear", "cosine", "constant"]
) -> float:
    """Give the factor (0 to 1) on the highest learning rate that update `step` uses.

    Args:
        step: zero-based number of the update.
        total_steps: updates of the whole training.
        warmup_steps: updates over which the factor rises from 0 to 1; 0 starts at 1.
        schedule: what follows the warm-up: "linear" to 0, half a "cosine" to 0, or "constant".

    Example:
        >>> [learning_rate_factor(s, total_steps=4, warmup_steps=2, schedule="linear") for s in range(4)]
        [0.0, 0.5, 1.0, 0.5]

    Source: the same numbers as transformers' get_linear_schedule_with_warmup and its cosine and constant kin.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def _number(value: float | None) -> float:
    if value is None:
        raise TypeError("the recipe fills in every number of its optimizer")
    return value
