"""One update's gradients: micro-batches, their losses, clipping, and what happens when memory runs out.

May import layers 0 to 2.

    rows of the update -> dealt to processes -> micro-batches -> sum of losses / targets of the whole update
    gradients, summed over micro-batches and processes -> clipped
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from headstart.data.dealing import deal_update
from headstart.errors import TrainingError, format_rows
from headstart.models.dropout import RandomKey, keyed_randomness
from headstart.models.walk import parameters_of
from headstart.runlog import WarningRecord
from headstart.training.device import Device
from headstart.training.fast_adamw import FastAdamW
from headstart.training.gradients import numbers_of, share_rows
from headstart.training.loss_scaling import finish_scaling, start_scaling
from headstart.training.memory import MemoryWatch, free_memory
from headstart.training.processes import Processes
from headstart.training.sharding import whole
from headstart.training.state import Batch, LoopParts, LoopSettings, TrainState, UpdateGradients

__all__ = ["compute_gradients", "make_update"]


def compute_gradients(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    update: Sequence[np.ndarray],
    parts: LoopParts,
    settings: LoopSettings,
    device: Device,
    state: TrainState,
) -> tuple[UpdateGradients, list[WarningRecord]]:
    """Compute loss and clipped gradients of one update.

    The loss is a sum over the targets of the whole update divided by their number, so that splitting an update into
    micro-batches or dealing it to processes changes nothing. Out of memory, in any process, begins the update again in
    all of them, from zero gradients and with the micro-batches halved; `state.splits` remembers how often.

    Args:
        model: gradients are left on its parameters.
        optimizer: used to clear gradients.
        update: row numbers of each micro-batch, over all processes.
        parts: makes batches and losses, and knows the other processes.
        settings: seed and clipping.
        device: where to compute, and the precision of the forward pass.
        state: the step, the splits so far and the scale of a float16 loss; both change where they must.

    Returns:
        The update's loss and the norm of its gradients, and a warning for each time memory ran out.

    Raises:
        TrainingError: one row alone does not fit into memory.
        ProcessLostError: another process has ended or does not answer; the parameters are as they were.
    """
    warnings: list[WarningRecord] = []
    own = deal_update(update, parts.processes.count)[parts.processes.rank]
    while True:
        pieces = [piece for rows in own if len(rows) for piece in np.array_split(rows, min(2**state.splits, len(rows)))]
        # Where every pass is one of all processes, those without rows go along with one that counts nothing.
        idle = [update[0][:1]] * (len(own) - len(pieces)) if parts.processes.shards else []
        gradients = _try_gradients(model, optimizer, pieces, idle, parts, settings, device, state)
        if gradients is not None:
            return gradients, warnings
        optimizer.zero_grad(set_to_none=True)
        free_memory()
        largest = max(parts.processes.gather(max((len(rows) for rows in pieces), default=0)))
        if largest <= 1:
            rows = format_rows(parts.name_rows(np.concatenate(update)))
            raise TrainingError(
                f"Step {state.step}: out of memory with one row alone (one of {rows}).",
                "memory for one row, its gradients and the optimizer's moments.",
                "Set a smaller data.max_length, or choose a smaller model.",
            )
        state.splits += 1
        message = f"out of memory with {largest} rows in a forward pass; the update begins again with half as many"
        warnings.append(WarningRecord(state.step, "out_of_memory", message, []))


def _try_gradients(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    pieces: list[np.ndarray],
    idle: list[np.ndarray],
    parts: LoopParts,
    settings: LoopSettings,
    device: Device,
    state: TrainState,
) -> UpdateGradients | None:
    """Compute the gradients, or give None where memory ran out in this process or in another.

    Whoever has run out of memory still answers the others: they must not wait for it, nor go on without it.
    """
    processes, scaler = parts.processes, start_scaling(device, state)
    parameters = [parameter for parameter in parameters_of(model) if parameter.requires_grad]
    batches: list[Batch] = []
    losses: list[torch.Tensor] = []
    with MemoryWatch() as memory:
        batches = [parts.make_batch(rows) for rows in [*pieces, *idle]]
    own_targets = sum(parts.count(batch) for batch in batches[: len(pieces)]) if memory.suffices else 0
    num_targets, num_failed = processes.add([own_targets, not memory.suffices])
    if num_failed:
        return None
    with memory:
        for index, (rows, batch) in enumerate(zip([*pieces, *idle], batches, strict=True)):
            micro_batch = index * processes.count + processes.rank
            key = RandomKey(settings.seed, state.step, rows.tolist(), micro_batch)
            with keyed_randomness(key, device.torch_device, model), device.autocast():
                loss, _ = parts.micro_batch(model, batch, int(num_targets))
            loss = loss if index < len(pieces) else loss * 0.0
            # A sharded backward pass averages over the processes, but losses are sums.
            summed = loss * processes.count if processes.shards else loss
            (summed if scaler is None else scaler.scale(summed)).backward()
            losses.append(loss.detach())
            parts.hooks.micro_batch_ends(state.step)
    if processes.shards and not memory.suffices:
        raise TrainingError(
            f"Step {state.step}: out of memory; an update of a sharded model cannot begin again.",
            "memory for the rows of a forward pass.",
            "Set a smaller train.batch_size (with more train.accumulation the update stays the same), and start anew.",
        )
    total = torch.zeros((), device=device.torch_device)
    rows_only = [embedding.weight for embedding in optimizer.lazy] if isinstance(optimizer, FastAdamW) else []
    if not _add_over_processes(processes, parameters, rows_only, losses, total, memory):
        return None
    with memory:
        if scaler is not None:
            scaler.unscale_(optimizer)
        if isinstance(optimizer, FastAdamW):
            norm = optimizer.clip(settings.max_grad_norm, in_place=parts.hooks.see_gradients)
        else:
            norm = _clip(parameters, settings.max_grad_norm)
        # One transfer a step: loss and norm are read together, and they say whether the update is finite.
        value, gradient_norm = torch.stack([total, norm.float()]).tolist()
    if any(processes.any([not memory.suffices])):
        return None
    if scaler is not None:
        finish_scaling(scaler, state)
    return UpdateGradients(value, gradient_norm, pieces, losses[: len(pieces)])


def _clip(parameters: list[torch.nn.Parameter], max_norm: float | None) -> torch.Tensor:
    """Clip gradients in place, and give their norm before, on the device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    if max_norm is not None:
        # Gradients that are not finite stay as they are, so that it can be said where they come from.
        clipped = torch.where(torch.isfinite(norm), norm, 0.0)
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, clipped)
    return norm


def _add_over_processes(
    processes: Processes,
    parameters: list[torch.nn.Parameter],
    rows_only: list[torch.nn.Parameter],
    losses: list[torch.Tensor],
    total: torch.Tensor,
    memory: MemoryWatch,
) -> bool:
    """Sum losses and gradients over micro-batches and processes, in place; False where memory ran out in one of them.

    A process without rows adds zeros. A parameter that has a gradient in no process keeps none, so that the optimizer
    passes it over. The gradients of `rows_only` hold rows, those of any process.
    """
    has_gradient = [parameter.grad is not None for parameter in parameters]
    lazy = {id(parameter) for parameter in rows_only}
    with memory:
        for loss in losses:
            total += loss
        for parameter in parameters:
            if parameter.grad is None and processes.count > 1 and not processes.shards and id(parameter) not in lazy:
                parameter.grad = torch.zeros_like(parameter)
    failed, *somewhere = processes.any([not memory.suffices, *has_gradient])
    if failed:
        return False
    if processes.shards:
        processes.add_gradients([total])  # the backward pass has summed the gradients
        return True
    for parameter, is_there in zip(parameters, somewhere, strict=True):
        if not is_there:
            parameter.grad = None
        elif id(parameter) in lazy and processes.count > 1:
            share_rows(processes, parameter, memory)
    if lazy and any(processes.any([not memory.suffices])):
        return False
    processes.add_gradients([total, *(numbers_of(value.grad) for value in parameters if value.grad is not None)])
    return True


def make_update(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Let the optimizer change the parameters; where memory runs out before it has changed any, let it try again.

    Args:
        optimizer: the gradients stand on its parameters.
        step: for the message.

    Raises:
        TrainingError: memory runs out again, or where it cannot be known that nothing was changed.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = {parameter: _count_of(optimizer, parameter) for parameter in parameters}
    with MemoryWatch() as memory:
        optimizer.step()
    if not memory.suffices and _is_untouched(optimizer, before):
        free_memory()
        with MemoryWatch() as memory:
            optimizer.step()
    if not memory.suffices:
        raise TrainingError(
            f"Step {step}: out of memory while the optimizer made the update.",
            "memory for the parameters, their gradients and the optimizer's moments.",
            "Free some memory and go on from the last checkpoint (--resume), or choose a smaller model.",
        )


def _count_of(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> object:
    """Give what tells whether the optimizer has counted another update of a parameter; None where it has no count."""
    state = optimizer.state.get(parameter)  # asked once: a tensor's hash takes longer than all else here
    count = None if state is None else state.get("step")
    return count._version if isinstance(count, torch.Tensor) else count


def _is_untouched(optimizer: torch.optim.Optimizer, before: dict[torch.Tensor, object]) -> bool:
    """Say whether a step that failed has changed nothing, and take away state that it has made in part.

    An optimizer counts an update before it makes it; fused ones change parameters without a trace in their version.
    """
    if not isinstance(optimizer, torch.optim.Adam):  # AdamW is one, too; SGD keeps no count
        return False
    for parameter, count in before.items():
        if count is not None:
            if _count_of(optimizer, parameter) != count:
                return False
        elif parameter in optimizer.state:
            if float(optimizer.state[parameter]["step"]) != 0:
                return False
            del optimizer.state[parameter]
    return True
