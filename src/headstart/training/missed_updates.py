"""What rows of an embedding have missed while no batch looked them up, and how it is made up for.

May import layers 0 to 2. AdamW moves a weight also where its gradient is 0: by what is left of its moments, and by
weight decay. The numbers of every update are kept in a table, and each row knows how many of them it has had:

    table   update 0: rate, corrections ...   update 1 ...   update 2 ...
    row 17  has had 1                         misses these two; made up for one after the other when it is looked up

Making up for two updates, and later for three, gives the same bits as making up for five, and as having made each at
its time. So when rows are brought up to date (for a file, a look, an evaluation) changes nothing that follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch

from headstart.models.lazy_embedding import LazyEmbedding
from headstart.models.row_gradients import kernels_or_none

__all__ = ["MissedUpdates", "as_bits"]

# Updates after which all rows are brought up to date anyway; the table is then 4 MB.
_MOST_UPDATES: Final = 65_536
_ROWS_PER_CHUNK: Final = 16
_TINY_SQUARE: Final = 1e-36  # ten times what the kernel takes for 0
_EPSILON, _BETA1, _BETA2, _DECAY, _STEP_SIZE = 7, 0, 2, 4, 5


def as_bits(numbers: Sequence[float] | Sequence[Sequence[float]]) -> np.ndarray:
    """Give float32 numbers as the kernels' tables hold them: their bits, int64."""
    return np.asarray(numbers, dtype=np.float32).view(np.int32).astype(np.int64)


class MissedUpdates:
    """Keeps the rows of one embedding.

    Args:
        embedding: gets this as its keeper.
        tensors: gives both moments and the working copy (or None).
    """

    def __init__(
        self,
        embedding: LazyEmbedding,
        tensors: Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]],
    ) -> None:
        self.embedding = embedding
        self.tensors = tensors
        self._kernels = kernels_or_none()
        self._num_had = np.zeros(embedding.module.num_embeddings, dtype=np.int32)
        self._table = np.zeros((64, 8), dtype=np.int64)
        self._length = 0
        self._constants: tuple[float, ...] = ()
        self._most = self._shrunk = 0.0
        embedding.keeper = self

    def catch_up(self, ids: np.ndarray) -> None:
        """Bring these rows up to date; they may occur often."""
        if self._length:
            late = ids[self._num_had[ids] < self._length]
            if len(late):
                self._make_up(np.unique(late).astype(np.int64, copy=False), self._length, 1)

    def flush(self) -> None:
        """Bring all rows up to date and begin a new table."""
        if self._length:
            self._make_up(np.flatnonzero(self._num_had < self._length), self._length, _ROWS_PER_CHUNK)
            self._num_had[:] = 0
            self._length = 0

    def prepare(self, numbers: Sequence[float]) -> None:
        """Make room for the numbers of the next update, and put them there; it is made by `update`."""
        constants = tuple(numbers[place] for place in (_BETA1, _BETA2, _EPSILON))
        if self._length == _MOST_UPDATES or constants != self._constants:
            self.flush()  # what the kernel leaves out is known for one pair of betas only
        if self._length == 0:
            self._constants, self._most, self._shrunk = constants, 0.0, 1.0
        if self._length == len(self._table):
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
        self._table[self._length] = as_bits(numbers)
        self._most = max(self._most, abs(numbers[_STEP_SIZE]))
        self._shrunk *= min(1.0, abs(numbers[_DECAY]))

    def update(self, rows: np.ndarray, values: torch.Tensor, factor: float) -> None:
        """Make the prepared update of rows with a gradient; for the others it is one that they miss.

        Args:
            rows: their numbers, int64, each once.
            values: their gradient, float32.
            factor: gradients are multiplied with it.
        """
        self._make_up(rows, self._length, 1, values, factor)
        self._length += 1
        self._num_had[rows] = self._length

    def _make_up(
        self, rows: np.ndarray, end: int, rows_per_chunk: int, values: torch.Tensor | None = None, factor: float = 1.0
    ) -> None:
        assert self._kernels is not None
        weight = self.embedding.weight
        if weight.dtype != torch.float32 or weight.device.type != "cpu" or not weight.is_contiguous():
            raise RuntimeError(
                f"An embedding was converted or moved ({weight.dtype} on {weight.device.type}) while its rows were not "
                "up to date. Call optimizer.flush() before."
            )
        moment, square, copy = self.tensors()
        starts = self._num_had[rows].astype(np.int64)
        most, floor = self._bounds()
        self._kernels.adamw_rows(
            -(-len(rows) // rows_per_chunk),
            rows_per_chunk,
            len(rows),
            rows.ctypes.data,
            starts.ctypes.data,
            weight.shape[1],
            weight.data_ptr(),
            moment.data_ptr(),
            square.data_ptr(),
            copy.data_ptr() if copy is not None else 0,
            self._table.ctypes.data,
            end,
            *as_bits([most, floor]).tolist(),
            values.data_ptr() if values is not None else 0,
            *as_bits([factor]).tolist(),
        )
        self._num_had[rows] = end

    def _bounds(self) -> tuple[float, float]:
        """Give the largest step size, and from where on a second moment stays above what the kernel takes for 0.

        Infinite where the kernel's reasons for leaving something out do not hold.
        """
        beta1, beta2, _ = self._constants
        most = self._most * (1 + 1e-6) if self._shrunk > 0.75 else math.inf
        falls = beta1 < 0.9999 * math.sqrt(beta2)
        if not falls:
            return most, math.inf
        with np.errstate(over="ignore", under="ignore", divide="ignore"):
            return most, float(np.float32(_TINY_SQUARE / np.float64(beta2) ** self._length))
