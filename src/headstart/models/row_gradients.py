"""Gradients of which only a few rows are not zero: those of an embedding matrix.

May import layers 0 and 1. Such a gradient is a sparse tensor of PyTorch (indices of rows and their values), whose rows
are sorted and each there once, or, where several backward passes were added, one behind the other as they came.
"""

from __future__ import annotations

import functools
from types import ModuleType

import numpy as np
import torch

from headstart.models.kernels import available

__all__ = ["kernels_or_none", "row_gradient", "rows_and_values", "sum_by_row"]


@functools.cache
def kernels_or_none() -> ModuleType | None:
    """Give the kernels of the optimizer, or None where kernels cannot run."""
    if available():
        return None
    from headstart.models.kernels import adamw

    return adamw


def row_gradient(rows: np.ndarray, values: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Build a gradient from its rows.

    Args:
        rows: their numbers, int64, sorted, each once.
        values: shape (len(rows), width).
        num_rows: of the whole matrix.

    Example:
        >>> row_gradient(np.array([1, 3]), torch.ones(2, 2), 4).to_dense().tolist()
        [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    """
    indices = torch.tensor(rows).unsqueeze(0)  # a copy, because autograd may let it grow when it adds another one
    return torch.sparse_coo_tensor(
        indices, values, (num_rows, values.shape[1]), is_coalesced=True, check_invariants=False
    )


def rows_and_values(gradient: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """Give the rows of a gradient, sorted, and their float32 values; those of a row that is there twice are summed.

    The sum of a row begins with what came first, so that its bits are those of adding whole matrices.
    """
    rows, values = gradient._indices()[0].numpy(), gradient._values()
    if gradient.is_coalesced():
        return rows, values.contiguous()
    return sum_by_row(rows, values)


def sum_by_row(ids: np.ndarray, values: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """Sum the values that belong to one row, in their order.

    Args:
        ids: row of each value, shape (N,), int64.
        values: shape (N, width), on the CPU; summed in float32.

    Returns:
        The rows that occur, sorted, and the sums, shape (rows, width).

    Example:
        >>> rows, sums = sum_by_row(np.array([5, 2, 5]), torch.tensor([[1.0], [2.0], [3.0]]))
        >>> rows.tolist(), sums.tolist()
        ([2, 5], [[2.0], [4.0]])
    """
    values = values.float().contiguous()
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], [True])) if len(ids) else np.empty(0, dtype=np.int64)
    rows, ends = ordered[last], last + 1
    kernels = kernels_or_none()
    if kernels is None:
        sums = torch.zeros(len(rows), values.shape[1])
        places = np.searchsorted(rows, ids)
        return rows, sums.index_add_(0, torch.from_numpy(places), values)
    sums = torch.empty(len(rows), values.shape[1])
    kernels.sum_rows(
        len(rows), values.data_ptr(), values.shape[1], order.ctypes.data, ends.ctypes.data, sums.data_ptr()
    )
    return rows, sums
