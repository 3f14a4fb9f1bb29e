"""What the loop works with: its settings, its memory, and the functions and hooks that it calls.

May import layers 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from headstart.recipe import Duration
from headstart.runlog import CheckpointRecord

__all__ = ["Batch", "LoopParts", "LoopSettings", "MicroBatch", "StepHooks", "TrainState"]

Batch = Mapping[str, torch.Tensor]
MicroBatch = Callable[[torch.nn.Module, Batch, int], tuple[torch.Tensor, int]]


def _do_nothing(step: int) -> None:
    """Stand for a hook that nobody set."""


@dataclass(frozen=True)
class StepHooks:
    """What must happen inside a step; each hook gets the zero-based number of the step.

    Args:
        step_begins: before the first micro-batch.
        micro_batch_ends: after the backward pass of each micro-batch.
        before_optimizer: gradients are whole and clipped; not called when the update is not made.
        after_optimizer: parameters are new, gradients still there.
    """

    step_begins: Callable[[int], None] = _do_nothing
    micro_batch_ends: Callable[[int], None] = _do_nothing
    before_optimizer: Callable[[int], None] = _do_nothing
    after_optimizer: Callable[[int], None] = _do_nothing


@dataclass(frozen=True)
class LoopSettings:
    """The numbers that steer the loop, all of them derived from the recipe.

    Args:
        total_steps: updates of the whole training.
        seed: keys the random numbers of each step.
        learning_rate: zero-based step to learning rate; None leaves the optimizer's groups to the user's scheduler.
        max_grad_norm: gradients with a larger 2-norm are scaled down to it; None does not clip.
        evaluate_every: interval, or None for no evaluation.
        save_every: interval, or None for a checkpoint at the end only.
        best: score whose best checkpoint is kept and chosen; None keeps the last.
        higher_is_better: direction of `best`.
        patience: evaluations in a row without a better score after which training stops; None never does.
        on_non_finite: "stop", or "skip" the update, when a loss or gradient is not finite.
        time_limit_seconds: training time, over all starts of the run, after which it saves and stops.
    """

    total_steps: int
    seed: int
    learning_rate: Callable[[int], float] | None = None
    max_grad_norm: float | None = None
    evaluate_every: Duration | None = None
    save_every: Duration | None = None
    best: str | None = None
    higher_is_better: bool = True
    patience: int | None = None
    on_non_finite: Literal["stop", "skip"] = "stop"
    time_limit_seconds: float = math.inf


@dataclass
class TrainState:
    """What the loop must remember to go on as if it had not stopped, parameters and moments apart."""

    step: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_score: float | None = None
    evaluations_without_better: int = 0
    splits: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Give the values as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainState:
        """Build a state from what `to_dict` gave."""
        return cls(**values)


@dataclass(frozen=True)
class LoopParts:
    """The functions that the loop calls; none of them decides when.

    Args:
        make_batch: row numbers of a micro-batch to its collated tensors, on the device.
        count: targets in a batch, known before the forward pass.
        micro_batch: model, batch and the number of targets of the whole update to the batch's share of the loss
            (sum over its targets / that number) and its targets.
        evaluate: scores the model as it is, changing no state.
        save: writes a checkpoint; gets the state and the record that announces it, and returns what a reader of the run
            must know, such as an old checkpoint that cannot be removed.
        hooks: what must happen inside a step.
    """

    make_batch: Callable[[np.ndarray], Batch]
    count: Callable[[Batch], int]
    micro_batch: MicroBatch
    evaluate: Callable[[], dict[str, float]]
    save: Callable[[TrainState, CheckpointRecord], list[str]]
    hooks: StepHooks = field(default_factory=StepHooks)
