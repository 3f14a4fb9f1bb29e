"""The weights of a checkpoint, put into a model.

May import layers 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from headstart.errors import CheckpointError

__all__ = ["load_weights", "trained_state"]


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Give the entries of the `state_dict()` of a model but for parameters that are not trained.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.BatchNorm1d(2, affine=False))
        >>> list(trained_state(model))
        ['1.running_mean', '1.running_var', '1.num_batches_tracked']
    """
    frozen = {name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_weights(
    model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], origin: str, *, trained_only: bool = False
) -> None:
    """Put tensors into a model.

    Args:
        model: changed in place.
        tensors: parameters and buffers by name; tied ones once or under each of their names.
        origin: for the message.
        trained_only: they are what `trained_state` gave; the other parameters stay as they are.

    Raises:
        CheckpointError: they do not fit the model.
    """
    try:
        result = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f"{origin}: it does not fit this model ({str(error).splitlines()[-1].strip()})",
            "a checkpoint of the same model.",
            "Resume with the model that the run was started with.",
        ) from error
    # Tied weights are stored once; a name that is missing must share its storage with one that is there.
    own = model.state_dict()
    present = {own[name].data_ptr() for name in tensors if name in own}
    if trained_only:
        present |= {own[name].data_ptr() for name in own.keys() - trained_state(model).keys()}
    lost = [name for name in result.missing_keys if own[name].data_ptr() not in present]
    if lost or result.unexpected_keys:
        name = (lost or result.unexpected_keys)[0]
        raise CheckpointError(
            f"{origin}: it does not fit this model (for example {name}).",
            "a checkpoint of the same model.",
            "Resume with the model that the run was started with.",
        )
