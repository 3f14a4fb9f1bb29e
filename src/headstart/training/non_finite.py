"""What happens when a loss or gradient is NaN or infinite: the update is not made, and everything about it is said.

May import layers 0 to 2.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import torch

from headstart.errors import format_rows
from headstart.runlog import WarningRecord
from headstart.training.gradients import numbers_of
from headstart.training.loss_scaling import is_scale_too_large
from headstart.training.sharding import whole
from headstart.training.state import LoopParts, LoopSettings, TrainState, UpdateGradients

__all__ = ["MAX_ROLLBACKS", "describe_non_finite", "find_non_finite", "roll_back", "what_happens"]

MAX_ROLLBACKS: Final = 10
"""Updates that a run goes back for; past that it is not a few rows that are at fault."""

_IN_WORDS = {
    "stop": "the run stops",
    "skip": "the update is skipped",
    "rollback": "the run goes back to the last checkpoint and will pass over this update",
}


def what_happens(
    settings: LoopSettings, state: TrainState, parts: LoopParts, gradients: UpdateGradients
) -> Literal["stop", "skip", "rollback", "rescale"]:
    """Decide what follows from an update that is not finite: as set, but no endless going back.

    Where a float16 loss was scaled too far, the update is left out and the scale is smaller from now on.
    """
    if is_scale_too_large(gradients, state):
        return "rescale"
    if settings.on_non_finite == "rollback":
        # Nor a training of which nothing would be left.
        limit = min(MAX_ROLLBACKS, settings.total_steps - 1)
        if parts.restore is None or len(state.skipped_steps) >= limit:
            return "stop"
    return settings.on_non_finite


def describe_non_finite(
    gradients: UpdateGradients, rows: np.ndarray, what: str, state: TrainState, parts: LoopParts
) -> WarningRecord:
    """Make the record of an update that is not finite: its numbers, its rows, what happens now, where to look."""
    if what == "rescale":
        assert state.loss_scale is not None
        message = (
            f"gradients left the range of float16; the update is skipped, and losses are scaled by "
            f"{state.loss_scale['scale']:g} from now on"
        )
        return WarningRecord(state.step, "loss_scale", message, [])
    details = parts.examine(state.step, rows, gradients) if parts.examine is not None else ""
    numbers = parts.name_rows(rows)
    message = (
        f"loss {gradients.loss}, gradient norm {gradients.gradient_norm}: not finite, {_IN_WORDS[what]}; "
        f"its rows are {format_rows(numbers)}{f'; {details}' if details else ''}"
    )
    return WarningRecord(state.step, "non_finite", message, numbers)


def roll_back(state: TrainState, parts: LoopParts) -> None:
    """Put everything back to the last checkpoint, and remember to pass over the update that brought us here.

    Args:
        state: changed in place; the time spent and the halved micro-batches stay as they are.
        parts: knows how to restore.
    """
    assert parts.restore is not None
    restored = parts.restore()
    skipped = sorted({*restored.skipped_steps, *state.skipped_steps, state.step})
    seconds, splits = state.seconds, state.splits
    for name, value in vars(restored).items():
        setattr(state, name, value)
    state.skipped_steps, state.seconds, state.splits = skipped, seconds, splits


def find_non_finite(model: torch.nn.Module, gradients: UpdateGradients) -> tuple[list[int], list[str]]:
    """Find where an update stopped being finite.

    Args:
        model: its gradients still stand.
        gradients: of the update.

    Returns:
        Row numbers of the micro-batches whose loss is not finite, and names of the parameters whose gradient is not.
    """
    rows = [
        int(row)
        for piece, loss in zip(gradients.pieces, gradients.losses, strict=True)
        if not bool(torch.isfinite(loss))
        for row in piece
    ]
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(numbers_of(whole(parameter.grad))).all())
    ]
    return rows, names
