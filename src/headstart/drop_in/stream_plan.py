"""The plan of a training on a stream: its batches in its own order, read when their turn comes, and again on resuming.

Part of the drop-in; may import layers 0 to 2. What the stream or a collator draws at random is keyed by the batch's
place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from headstart.errors import DataError
from headstart.models.dropout import keyed_streams

__all__ = ["StreamPlan", "num_rows_of", "part_of_batch"]


class StreamPlan:
    """The plan of a training on a stream: its batches in its own order, an update ahead.

    Args:
        dataloader: gives batches; iterated anew for each epoch.
        batches_of_update: over all processes; each process reads all of them.
        total_steps: updates of the whole training, which nothing is read behind.
        seed: keys what the stream and the collator draw.
    """

    is_stream = True

    def __init__(self, dataloader: Iterable[Any], batches_of_update: int, *, total_steps: int, seed: int = 0) -> None:
        self._dataloader = dataloader
        self._batches_of_update = batches_of_update
        self._total_steps = total_steps
        self._seed = seed
        self._epoch, self._first_step = 0, 0
        self._iterator: Iterator[Any] | None = None
        self._num_read = 0
        self._next_row = 0
        self._step = -1  # whose update is held
        self._held: list[tuple[np.ndarray, Any]] = []

    def locate(self, step: int) -> tuple[int, int]:
        """See `UpdatePlan`; reads up to this step, but nothing behind the last one."""
        while self._step < step < self._total_steps:
            if self._iterator is None:
                self._open()
            self._held = self._read_update()
            if self._held:
                self._step += 1
                continue
            if self._step < self._first_step:
                raise DataError(
                    f"The training set gives no batch in epoch {self._epoch}.",
                    "at least one batch an epoch.",
                    "A generator can be read once only: give a dataset that can be iterated again.",
                )
            self._turn_over(self._step + 1)
        return self._epoch, step - self._first_step

    def updates(self, epoch: int) -> Mapping[int, list[np.ndarray]]:
        """See `UpdatePlan`; the update that is held only."""
        return {self._step - self._first_step: [rows for rows, _ in self._held]}

    def steps_in_epoch(self, epoch: int) -> int:
        """See `UpdatePlan`; the length of a stream is not known, and taken for that of the training."""
        return self._total_steps

    def num_tokens(self, rows: np.ndarray) -> int:
        """See `UpdatePlan`."""
        return 0

    def end_epoch(self, step: int) -> None:
        """Let the epoch that runs end before the update after `step`."""
        self._turn_over(step)
        self._step = step - 1

    def remember(self, epoch: int, first_step: int) -> None:
        """Take back where an epoch began."""
        self._epoch, self._first_step, self._step = epoch, first_step, first_step - 1

    def skip_to(self, step: int) -> None:
        """Go on with the update after `step` without reading what comes before it."""
        self._step = step - 1

    def begin_step(self, step: int) -> None:
        """Do nothing: the update is held already."""

    def make_batch(self, rows: np.ndarray) -> Any:
        """Give the batch of rows, or the part of one."""
        for held, batch in self._held:
            start = int(rows[0] - held[0])
            if 0 <= start < len(held):
                return batch if len(rows) == len(held) else part_of_batch(batch, start, start + len(rows), len(held))
        raise LookupError(f"rows {rows.tolist()} are not held")

    def close(self) -> None:
        """End the workers."""
        self._iterator, self._held = None, []
        if isinstance(self._dataloader, DataLoader) and self._dataloader.persistent_workers:
            self._dataloader._iterator = None  # it keeps them, too

    def _turn_over(self, step: int) -> None:
        self._epoch, self._first_step = self._epoch + 1, step
        self._iterator, self._held = None, []

    def _open(self) -> None:
        self._num_read = self._next_row = 0
        dataset: Any = getattr(self._dataloader, "dataset", None)
        told: list[Any] = [each for each in (self._dataloader, dataset) if hasattr(each, "set_epoch")]
        for each in told:
            each.set_epoch(self._epoch)
        generator = getattr(dataset, "generator", None)
        if not hasattr(dataset, "set_epoch") and isinstance(generator, torch.Generator):
            generator.manual_seed(self._seed + self._epoch)
        with keyed_streams(self._seed, self._epoch):
            self._iterator = iter(self._dataloader)

    def _read_update(self) -> list[tuple[np.ndarray, Any]]:
        assert self._iterator is not None
        update: list[tuple[np.ndarray, Any]] = []
        while len(update) < self._batches_of_update:
            with keyed_streams(self._seed, self._epoch, self._num_read):
                batch = next(self._iterator, None)
            if batch is None:
                break
            self._num_read += 1
            size = num_rows_of(batch)
            update.append((np.arange(self._next_row, self._next_row + size), batch))
            self._next_row += size
        return update


def num_rows_of(batch: Any) -> int:
    """Count the rows of a batch: the first dimension of the first tensor in it."""
    values = list(batch.values()) if isinstance(batch, Mapping) else batch
    if isinstance(values, torch.Tensor):
        return max(1, len(values)) if values.ndim else 1
    if isinstance(values, list | tuple):
        return next((num_rows_of(value) for value in values if isinstance(value, torch.Tensor | list | tuple)), 1)
    return 1


def part_of_batch(batch: Any, start: int, end: int, size: int) -> Any:
    """Cut rows out of a batch; what does not have a value for each row stays whole."""
    if isinstance(batch, Mapping):
        return {name: part_of_batch(value, start, end, size) for name, value in batch.items()}
    if isinstance(batch, torch.Tensor):
        return batch[start:end] if batch.ndim and len(batch) == size else batch
    if isinstance(batch, list | tuple):
        if len(batch) == size and not any(isinstance(value, torch.Tensor) for value in batch):
            return batch[start:end]
        return type(batch)(part_of_batch(value, start, end, size) for value in batch)
    return batch
