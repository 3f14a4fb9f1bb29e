"""The weights of a checkpoint, put into a model.

May import layers 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from headstart.errors import CheckpointError

__all__ = ["load_weights"]


def load_weights(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    """Put tensors into a model.

    Args:
        model: changed in place.
        tensors: parameters and buffers by name; tied ones once or under each of their names.
        origin: for the message.

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
    lost = [name for name in result.missing_keys if own[name].data_ptr() not in present]
    if lost or result.unexpected_keys:
        name = (lost or result.unexpected_keys)[0]
        raise CheckpointError(
            f"{origin}: it does not fit this model (for example {name}).",
            "a checkpoint of the same model.",
            "Resume with the model that the run was started with.",
        )
