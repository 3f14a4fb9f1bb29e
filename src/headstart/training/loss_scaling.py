"""Loss scaling for float16, whose smallest gradients would become zero: PyTorch's `GradScaler`, its state in ours.

May import layers 0 to 2. The state of training holds the scale; a scaler is made from it for each update, so that a
resume, going back to a checkpoint and an update that begins again need nothing of their own:

    loss * scale -> backward -> gradients / scale -> clipped -> update         scale x 2 after 2,000 of these in a row
                                     not finite -> no update, said in a record       scale / 2
"""

from __future__ import annotations

import torch

from headstart.training.device import Device
from headstart.training.state import TrainState, UpdateGradients

__all__ = ["finish_scaling", "is_scale_too_large", "start_scaling"]


def start_scaling(device: Device, state: TrainState) -> torch.amp.GradScaler | None:
    """Give the scaler of the next update; None where no loss is scaled.

    Args:
        device: only losses of "fp16" are scaled.
        state: what the scale is by now; PyTorch's first scale, 65,536, where none was needed yet.

    Source: Micikevicius et al. 2018, Mixed Precision Training; the numbers are those of `torch.amp.GradScaler`.
    """
    if device.precision != "fp16":
        return None
    scaler = torch.amp.GradScaler(device.torch_device.type)
    if state.loss_scale is not None:
        scaler.load_state_dict(dict(state.loss_scale))
    # It makes its tensors when it first scales something, which a process without rows does not.
    scaler.scale(torch.zeros((), device=device.torch_device))
    return scaler


def finish_scaling(scaler: torch.amp.GradScaler, state: TrainState) -> None:
    """Let the scale follow from whether the gradients, which were unscaled, are finite.

    Args:
        scaler: of this update.
        state: gets the scale of the next.
    """
    scaler.update()
    state.loss_scale = scaler.state_dict()


def is_scale_too_large(gradients: UpdateGradients, state: TrainState) -> bool:
    """Say whether gradients that are not finite are so because the loss was scaled too far.

    Where the loss itself is not finite, or was hardly scaled any more, the scale is not to blame.

    Args:
        gradients: of an update that is not finite.
        state: after `finish_scaling`, which has made the scale smaller already.
    """
    if state.loss_scale is None or gradients.is_finite:
        return False
    return gradients.loss_is_finite and state.loss_scale["scale"] >= 1.0
