"""What the loop works with: its settings, its memory, and the functions and hooks that it calls.

May import layers 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch

from headstart.durations import Duration
from headstart.runlog import CheckpointRecord
from headstart.training.processes import Processes
from headstart.training.schedules import PlateauRule

__all__ = [
    "Batch",
    "LoopParts",
    "LoopSettings",
    "MicroBatch",
    "StepHooks",
    "TrainState",
    "UpdateGradients",
    "UpdatePlan",
]

Batch = Mapping[str, torch.Tensor]
MicroBatch = Callable[[torch.nn.Module, Batch, int], tuple[torch.Tensor, int]]


class UpdatePlan(Protocol):
    """Which rows make up which update; `data.batches.BatchPlan` is one, and a front end may bring its own.

    An answer about a step that is not yet made may change while training goes on, where an epoch ends early.
    """

    def locate(self, step: int) -> tuple[int, int]:
        """Give the zero-based epoch of the update after `step` updates, and its index into `updates(epoch)`."""
        ...

    def updates(self, epoch: int) -> Sequence[Sequence[np.ndarray]] | Mapping[int, Sequence[np.ndarray]]:
        """Give, by index, the row numbers of each micro-batch of an update of an epoch, over all processes."""
        ...

    def steps_in_epoch(self, epoch: int) -> int:
        """Count the updates of an epoch, at least 1."""
        ...

    def num_tokens(self, rows: np.ndarray) -> int:
        """Count the tokens of rows; 0 where they are not known."""
        ...


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
        update_made: parameters are new; for who does not look at gradients, which may not be clipped yet.
    """

    step_begins: Callable[[int], None] = _do_nothing
    micro_batch_ends: Callable[[int], None] = _do_nothing
    before_optimizer: Callable[[int], None] = _do_nothing
    after_optimizer: Callable[[int], None] = _do_nothing
    update_made: Callable[[int], None] = _do_nothing

    @property
    def see_gradients(self) -> bool:
        """Say whether a hook may look at clipped gradients."""
        return self.before_optimizer is not _do_nothing or self.after_optimizer is not _do_nothing


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
        on_non_finite: when a loss or gradient is not finite, "stop"; "skip" the update; or "rollback" to the last
            checkpoint and skip the update when its turn comes again.
        time_limit_seconds: training time, over all starts of the run, after which it saves and stops.
        on_evaluation_error: "warn" goes on without the scores of an evaluation that fails; "raise" does not.
        plateau: when the learning rate falls because a score gets no better; None never.
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
    on_non_finite: Literal["stop", "skip", "rollback"] = "stop"
    time_limit_seconds: float = math.inf
    on_evaluation_error: Literal["warn", "raise"] = "warn"
    plateau: PlateauRule | None = None


@dataclass
class TrainState:
    """What the loop must remember to go on as if it had not stopped, parameters and moments apart.

    Args:
        step: updates whose turn has passed; a skipped one counts, so that the step names the place in the batch plan.
        seconds: training time over all starts of the run.
        best_step: step of the best evaluation so far.
        best_score: its score.
        evaluations_without_better: in a row, since then.
        splits: how often micro-batches are halved because memory ran out.
        skipped_steps: updates (zero-based) that were not finite and are passed over after a rollback.
        rate_factor: what the plateau schedule has made of the learning rate so far.
        plateau_best: best score that it has seen.
        plateau_waited: evaluations in a row without a better one, since it changed the learning rate.
        loss_scale: state of the scaler of a float16 training; None in others, and before its first update.
    """

    step: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_score: float | None = None
    evaluations_without_better: int = 0
    splits: int = 0
    skipped_steps: list[int] = field(default_factory=list)
    rate_factor: float = 1.0
    plateau_best: float | None = None
    plateau_waited: int = 0
    loss_scale: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the values as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainState:
        """Build a state from what `to_dict` gave."""
        return cls(**values)


@dataclass(frozen=True)
class UpdateGradients:
    """What is known of an update once its gradients are.

    Args:
        loss: mean over the targets of the update.
        gradient_norm: 2-norm of all gradients before clipping.
        pieces: row numbers of each micro-batch of this process.
        losses: share of each of them in the loss.
    """

    loss: float
    gradient_norm: float
    pieces: list[np.ndarray]
    losses: list[torch.Tensor]

    @property
    def is_finite(self) -> bool:
        """Say whether the update can be made."""
        return self.loss_is_finite and math.isfinite(self.gradient_norm)

    @property
    def loss_is_finite(self) -> bool:
        """Say whether the loss alone is finite."""
        return math.isfinite(self.loss)


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
        restore: goes back to the newest whole checkpoint: model, optimizer and log as they were then; returns the state
            that belongs to them. None where nothing can be gone back to.
        examine: writes down what is known of an update that is not finite, and says it in a sentence; gets the
            zero-based step, the rows of the update and its gradients.
        name_rows: the numbers by which a user knows rows of the training table.
        processes: all that train this model together.
        hooks: what must happen inside a step.
    """

    make_batch: Callable[[np.ndarray], Batch]
    count: Callable[[Batch], int]
    micro_batch: MicroBatch
    evaluate: Callable[[], dict[str, float]]
    save: Callable[[TrainState, CheckpointRecord], list[str]]
    restore: Callable[[], TrainState] | None = None
    examine: Callable[[int, np.ndarray, UpdateGradients], str] | None = None
    name_rows: Callable[[np.ndarray], list[int]] = np.ndarray.tolist
    processes: Processes = field(default_factory=Processes)
    hooks: StepHooks = field(default_factory=StepHooks)
