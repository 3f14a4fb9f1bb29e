"""One update's gradients: micro-batches, their losses, clipping, and what happens when memory runs out.

May import layers 0 to 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from headstart.errors import TrainingError, format_rows
from headstart.models.dropout import RandomKey, keyed_randomness
from headstart.runlog import WarningRecord
from headstart.training.device import Device
from headstart.training.state import LoopParts, LoopSettings, TrainState

__all__ = ["compute_gradients"]


def compute_gradients(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    update: Sequence[np.ndarray],
    parts: LoopParts,
    settings: LoopSettings,
    device: Device,
    state: TrainState,
) -> tuple[float, float, list[WarningRecord]]:
    """Compute loss and clipped gradients of one update.

    The loss is a sum over the targets of the whole update divided by their number, so that splitting an update into
    micro-batches changes nothing. Out of memory begins the update again from zero gradients with its micro-batches
    halved; `state.splits` remembers how often.

    Args:
        model: gradients are left on its parameters.
        optimizer: used to clear gradients.
        update: row numbers of each micro-batch.
        parts: makes batches and losses.
        settings: seed and clipping.
        device: where to compute, and the precision of the forward pass.
        state: the step, and the splits so far.

    Returns:
        The update's loss, the 2-norm of its gradients before clipping, and a warning for each time memory ran out.

    Raises:
        TrainingError: one row alone does not fit into memory.
    """
    warnings: list[WarningRecord] = []
    while True:
        pieces = [piece for rows in update for piece in np.array_split(rows, min(2**state.splits, len(rows)))]
        try:
            batches = [parts.make_batch(rows) for rows in pieces]
            num_targets = sum(parts.count(batch) for batch in batches)
            total = torch.zeros((), device=device.torch_device)
            for index, (rows, batch) in enumerate(zip(pieces, batches, strict=True)):
                key = RandomKey(settings.seed, state.step, rows.tolist(), index)
                with keyed_randomness(key, device.torch_device, model), device.autocast():
                    loss, _ = parts.micro_batch(model, batch, num_targets)
                loss.backward()
                total += loss.detach()
                parts.hooks.micro_batch_ends(state.step)
            limit = settings.max_grad_norm if settings.max_grad_norm is not None else math.inf
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
            # One transfer a step: loss and norm are read together, and they say whether the update is finite.
            value, gradient_norm = torch.stack([total.float(), norm.float()]).tolist()
            return value, gradient_norm, warnings
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            largest = max(len(rows) for rows in pieces)
            if largest == 1:
                raise TrainingError(
                    f"Step {state.step}: out of memory with one row alone ({format_rows(pieces[0].tolist())}).",
                    "memory for one row, its gradients and the optimizer's moments.",
                    "Set a smaller data.max_length, or choose a smaller model.",
                ) from error
        optimizer.zero_grad(set_to_none=True)
        state.splits += 1
        message = f"out of memory with {largest} rows in a forward pass; the update begins again with half as many"
        warnings.append(WarningRecord(state.step, "out_of_memory", message, []))


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text
