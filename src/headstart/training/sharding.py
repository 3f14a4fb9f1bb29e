"""Tensors of which each process holds a part (FSDP): putting them together, and taking them apart.

May import layers 0 and 1. Every function here is called by all processes, or with tensors that are whole anyway.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["give_up_whole_parameters", "like", "whole", "whole_tensors"]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Put the parts of a tensor together; one that is whole is given back as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put the parts of each tensor together."""
    return {name: whole(tensor) for name, tensor in tensors.items()}


def like(tensor: torch.Tensor, parameter: torch.Tensor | None) -> torch.Tensor:
    """Take a whole tensor apart as a parameter of its shape is; any other tensor is given back as it is."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


def give_up_whole_parameters(model: torch.nn.Module) -> None:
    """Keep the own part of each parameter alone; a forward pass without a backward pass leaves some whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
