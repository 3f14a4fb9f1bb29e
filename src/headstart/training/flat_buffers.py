"""Where an optimizer keeps its numbers: one buffer for all weights, one for each kind of moment.

May import layers 0 to 2.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from headstart.training.missed_updates import MissedUpdates

__all__ = ["Slot", "why_not_fast"]


def why_not_fast(parameters: Iterable[torch.Tensor], others: Iterable[torch.Tensor] = ()) -> str:
    """Say why `FastAdamW` cannot train these parameters; empty where it can.

    Args:
        parameters: to be trained.
        others: tensors that must not share their memory with them, as it moves; the same ones may be among them.

    Example:
        >>> why_not_fast([torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))])
        'a parameter is torch.bfloat16, not torch.float32'
    """
    trained = {id(parameter): parameter for parameter in parameters}
    for parameter in trained.values():
        if isinstance(parameter, DTensor):
            return "each process holds a part of the parameters"
        if parameter.device.type != "cpu":
            return f"a parameter is on {parameter.device.type}, not on the CPU"
        if parameter.dtype != torch.float32:
            return f"a parameter is {parameter.dtype}, not torch.float32"
        if parameter.layout != torch.strided:
            return f"a parameter is {parameter.layout}, not torch.strided"
    spans = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)
        for tensor in {**trained, **{id(other): other for other in others}}.values()
        if tensor.layout == torch.strided and tensor.numel()
    )
    if any(former[1] > latter[0] for former, latter in itertools.pairwise(spans)):
        return "two tensors of the model share their memory"
    return ""


@dataclass(eq=False, slots=True)
class Slot:
    """A parameter's place in the flat buffers.

    Args:
        parameter: its data is one of them.
        group: its group's numbers.
        count: updates so far.
        moment: first moments.
        square: second moments.
        size: numbers.
        copy: bfloat16 working copy.
        missed: keeps the rows of a lazy embedding.
        state: what the optimizer's `state` held for the parameter when it was last attached.
        address: of the parameter when it was last checked.
    """

    parameter: torch.nn.Parameter
    group: dict[str, Any]
    count: torch.Tensor
    moment: torch.Tensor
    square: torch.Tensor
    size: int
    copy: torch.Tensor | None = None
    missed: MissedUpdates | None = None
    state: dict[str, Any] | None = None
    address: int = 0

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Give both moments and the working copy."""
        return self.moment, self.square, self.copy

    def stop_lazy(self) -> None:
        """Update the whole matrix from now on."""
        if self.missed is not None:
            self.missed.embedding.undo()
            self.missed = None

    def check(self) -> int:
        """Give the parameter's address; somebody may have put other memory in its place."""
        address = self.parameter.data_ptr()
        if address != self.address:
            reason = why_not_fast([self.parameter])
            if reason:
                raise RuntimeError(f"FastAdamW: {reason} any more. Build the optimizer after moving the model.")
            if not self.parameter.is_contiguous():
                self.parameter.data = self.parameter.data.contiguous()
            self.address = address = self.parameter.data_ptr()
        return address
