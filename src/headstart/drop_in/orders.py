"""In which order a DataLoader of the drop-in gives its rows: as transformers' samplers do, or in headstart's batches.

Part of the drop-in; may import layers 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from headstart.data.batches import plan_batches

__all__ = ["FastOrder", "SeededRandomSampler"]


class SeededRandomSampler(RandomSampler):
    """Shuffles as transformers' Trainer does: the order of an epoch is a function of seed and epoch.

    Args:
        data_source: something with a length.
        seed: `data_seed` of the arguments, else `seed`.
        num_samples: of an epoch; None takes the length.

    Example:
        >>> sampler = SeededRandomSampler(range(4), seed=42)
        >>> sampler.set_epoch(1)
        >>> sorted(sampler) == [0, 1, 2, 3], list(sampler) == list(sampler)
        (True, True)
    """

    def __init__(self, data_source: Any, seed: int, num_samples: int | None = None) -> None:
        super().__init__(data_source, num_samples=num_samples)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is given next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Give the rows of the epoch."""
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


class FastOrder(BatchSampler):
    """Deals rows as headstart's own batches are.

    Where padding costs nothing that is the order of transformers' Trainer, else rows of like length together (see
    `data.batches.plan_batches`).

    Args:
        lengths: number of tokens of each row, shape (N,).
        batch_size: rows of a batch.
        drop_last: leave out a last short batch.
        seed: as for the shuffled order.

    Attributes:
        is_shuffled: padding costs nothing. To be set before the first epoch, when it is known.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, drop_last: bool, seed: int) -> None:
        super().__init__(SequentialSampler(lengths), batch_size, drop_last)
        self.lengths = lengths
        self.seed = seed
        self.epoch = 0
        self.is_shuffled = False

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches are given next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Give the batches of the epoch."""
        if self.is_shuffled:
            rows = SeededRandomSampler(self.lengths, self.seed)
            rows.set_epoch(self.epoch)
            return iter(BatchSampler(rows, self.batch_size, self.drop_last))
        batches = plan_batches(self.lengths, batch_size=self.batch_size, seed=self.seed, epoch=self.epoch)
        return (batch.tolist() for batch in batches if not self.drop_last or len(batch) == self.batch_size)
