"""Optimizer, schedule, clipping and the fast path of a training that Lightning's Trainer runs.

May import layers 0 to 5, and Lightning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from headstart.durations import parse_duration
from headstart.errors import NonFiniteError, RecipeError
from headstart.learning_plan import choose_layer_decay, choose_learning_rate
from headstart.lightning.trainer_settings import precision_of
from headstart.recipe import Recipe
from headstart.training.device import Device
from headstart.training.fast_adamw import FastAdamW
from headstart.training.fast_path import FastPath, describe_parts, must_compile_kernels, start_fast_path
from headstart.training.schedules import build_schedule, schedule_numbers

__all__ = ["Optimization", "clip_gradients", "prepare_optimization"]


@dataclass
class Optimization:
    """How a model learns in one training.

    Args:
        fast: optimizer, and what was done to the model.
        parts: of the fast path, in words.
        learning_rate: the highest of the schedule.
        layer_decay: of it, from a layer to the one below; None is one rate for all.
        total_steps: updates of the schedule; None where the Trainer goes on without an end.
    """

    fast: FastPath
    parts: dict[str, str]
    learning_rate: float
    layer_decay: float | None
    total_steps: int | None = None

    def build_schedule(self, recipe: Recipe, trainer: Trainer) -> torch.optim.lr_scheduler.LambdaLR:
        """Build the recipe's schedule over the updates that the Trainer will make.

        Raises:
            RecipeError: the Trainer does not know how many there will be, and the schedule needs to.
        """
        total = trainer.estimated_stepping_batches
        warmup = parse_duration(recipe.optim.warmup or 0)
        if not math.isfinite(total) or total < 1:
            if recipe.optim.schedule != "constant" or warmup.unit == "%":
                raise RecipeError(
                    f"The Trainer goes on without an end, and the {recipe.optim.schedule} schedule needs one.",
                    "a number of epochs or steps.",
                    'Write Trainer(max_epochs=3), or TaskModule(schedule="constant").',
                )
            total = 1
        else:
            self.total_steps = int(total)
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else 1
        batches = trainer.num_training_batches
        accumulation = trainer.accumulate_grad_batches
        per_epoch = math.ceil(batches / accumulation) if math.isfinite(batches) else total / epochs
        steps = warmup.in_steps(total_steps=int(total), steps_per_epoch=per_epoch)
        numbers: dict[str, Any] = schedule_numbers(recipe.optim)
        return build_schedule(
            self.fast.optimizer, total_steps=int(total), warmup=steps, schedule=recipe.optim.schedule, **numbers
        )


def prepare_optimization(model: torch.nn.Module, recipe: Recipe, trainer: Trainer) -> Optimization:
    """Build the optimizer that the recipe describes, and put in the parts of the fast path that fit the model.

    Lazy rows are left out: their gradients are sparse, which neither callbacks nor a strategy of Lightning expect.
    """
    accumulation = trainer.accumulate_grad_batches
    recipe = choose_layer_decay(recipe, model)
    optim = choose_learning_rate(recipe, model, (recipe.train.batch_size or 32) * accumulation).optim
    device = Device(trainer.strategy.root_device, precision_of(trainer), torch.get_num_threads())

    def wants(name: str) -> bool:
        return name != "lazy_rows" and recipe.train.wants_part(name)

    if must_compile_kernels(device, wants):
        rank_zero_info("headstart: making the kernels for this processor (once, up to half a minute)")
    fast = start_fast_path(model, optim, device, wants, adds_gradients=trainer.world_size > 1 or accumulation > 1)
    return Optimization(fast, describe_parts(fast.parts), optim.peak_learning_rate, optim.layer_decay)


def clip_gradients(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, max_norm: float | None, *, step: int
) -> torch.Tensor:
    """Clip the gradients to a norm.

    Args:
        model: the gradients stand on its parameters.
        optimizer: a `FastAdamW` scales them while it makes the update.
        max_norm: None only measures.
        step: updates made so far, for the message.

    Returns:
        The norm before.

    Raises:
        NonFiniteError: it is NaN or infinite; the update must not be made.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> model.weight.grad = torch.tensor([[3.0]])
        >>> norm = clip_gradients(model, torch.optim.SGD(model.parameters(), lr=0.1), 1.5, step=0)
        >>> float(norm), round(float(model.weight.grad), 4)
        (3.0, 1.5)
    """
    plain: Any = getattr(optimizer, "optimizer", optimizer)  # Lightning's wrapper holds it
    if isinstance(plain, FastAdamW):
        norm = plain.clip(max_norm)
    else:
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    if not torch.isfinite(norm):
        raise NonFiniteError(
            f"Step {step}: the gradients are not finite; the update was not made.",
            "finite losses and gradients.",
            'Try a smaller learning_rate, or Trainer(precision="32-true"); Trainer(detect_anomaly=True) shows where.',
        )
    return norm
