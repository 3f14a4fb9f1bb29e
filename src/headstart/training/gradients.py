"""The gradients of an update: their norm, their clipping, and rows of embeddings summed over processes.

May import layers 0 to 2. A gradient is dense, or holds some rows of an embedding (`models/row_gradients.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from headstart.models.kernels.tables import chunks_of
from headstart.models.row_gradients import kernels_or_none, row_gradient, rows_and_values
from headstart.training.memory import MemoryWatch
from headstart.training.processes import Processes
from headstart.training.sharding import whole

__all__ = ["gradient_norm", "merge_rows", "numbers_of", "scale_gradients", "share_rows"]

_KINDS = (torch.float32, torch.bfloat16)


def numbers_of(gradient: torch.Tensor) -> torch.Tensor:
    """Give the numbers of a gradient: all, or those of its rows."""
    return gradient._values() if gradient.is_sparse else gradient


def merge_rows(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Make each row occur once in the gradients that hold rows."""
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.is_sparse and not gradient.is_coalesced():
            parameter.grad = row_gradient(*rows_and_values(gradient), len(parameter))


def share_rows(processes: Processes, parameter: torch.nn.Parameter, memory: MemoryWatch) -> None:
    """Give a gradient that holds rows the same rows in every process, with zeros for those of others.

    All processes call this; one that has no gradient gets one. Where one of them has a dense gradient, all get that.

    Args:
        processes: all that train this model.
        parameter: its gradient is replaced.
        memory: remembers that memory ran out; the others are answered all the same.
    """
    gradient = parameter.grad
    if any(processes.any([gradient is not None and not gradient.is_sparse])):
        with memory:
            parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient.to_dense()
        return
    own, values = np.empty(0, dtype=np.int64), parameter.new_empty(0, parameter.shape[1])
    seen = np.zeros(len(parameter), dtype=np.int32)
    with memory:
        if gradient is not None:
            own, values = rows_and_values(gradient)
        seen[own] = 1
    rows = np.flatnonzero(processes.add_array(seen))
    with memory:
        shared = torch.zeros(len(rows), parameter.shape[1])
        shared[torch.from_numpy(np.searchsorted(rows, own))] = values
        parameter.grad = row_gradient(rows, shared, len(parameter))


def gradient_norm(gradients: Sequence[torch.Tensor], *, by_kernel: bool) -> torch.Tensor:
    """Give the 2-norm of all gradients together.

    Args:
        gradients: dense ones, or of rows that each occur once.
        by_kernel: sum the squares of all of them in one launch and in an order that follows from their sizes; for
            float32 and bfloat16 on the CPU, others take PyTorch's way.

    Returns:
        float32, without dimensions.

    Example:
        >>> gradient_norm([torch.tensor([3.0]), torch.tensor([4.0])], by_kernel=False)
        tensor(5.)
    """
    numbers = [numbers_of(gradient) for gradient in gradients]
    kernels = kernels_or_none()
    if not by_kernel or kernels is None or any(n.dtype not in _KINDS or n.device.type != "cpu" for n in numbers):
        return whole(torch.nn.utils.get_total_norm(numbers)).float()
    numbers = [n if n.is_contiguous() else n.contiguous() for n in numbers]
    # Rows apart: their number changes with every step, while the table of the others stays.
    of_rows = [gradient.is_sparse for gradient in gradients]
    total = 0.0
    for kind in (False, True):
        chosen = [n for n, is_rows in zip(numbers, of_rows, strict=True) if is_rows == kind]
        sizes = tuple(n.numel() for n in chosen)
        chunks = (chunks_of.__wrapped__ if kind else chunks_of)(sizes, kernels.CHUNK)
        entries = np.zeros((len(chosen), kernels.ENTRY), dtype=np.int64)
        entries[:, 0] = [n.data_ptr() for n in chosen]
        entries[:, 1] = [n.dtype == torch.bfloat16 for n in chosen]
        sums = np.empty((len(chunks), 16), dtype=np.float32)
        kernels.square_sums(len(chunks), chunks.ctypes.data, entries.ctypes.data, sums.ctypes.data)
        total += float(sums.sum(dtype=np.float64))
    return torch.tensor(total, dtype=torch.float64).sqrt_().float()


def scale_gradients(parameters: Iterable[torch.nn.Parameter], factor: float) -> None:
    """Multiply gradients in place."""
    numbers = [numbers_of(parameter.grad) for parameter in parameters if parameter.grad is not None]
    if factor != 1.0 and numbers:
        torch._foreach_mul_(numbers, factor)
