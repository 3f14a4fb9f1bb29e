"""The plan of a training on a dataset with a length: its rows are known an epoch ahead, so that resuming is a seek.

Part of the drop-in; may import layers 0 to 2. What a dataset or a collator draws at random is keyed by the batch, so
that a batch can be made again.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, SequentialSampler

from headstart.data.batches import group_updates
from headstart.data.dealing import deal_update
from headstart.errors import DataError
from headstart.models.dropout import keyed_streams, seed_streams

__all__ = ["RowPlan"]

Updates = list[list[np.ndarray]]


class RowPlan:
    """The plan of a training on a dataset with a length, and the reader of its batches.

    Args:
        dataloader: gives dataset, collator and workers.
        batch_sampler: gives the rows of each batch of an epoch.
        batches_of_update: over all processes.
        rank: number of this process.
        num_processes: of the training.
        total_steps: updates of the whole training.
        seed: keys what a dataset or a collator draws.
    """

    is_stream = False

    def __init__(
        self,
        dataloader: DataLoader[Any],
        batch_sampler: Any,
        batches_of_update: int,
        *,
        rank: int = 0,
        num_processes: int = 1,
        total_steps: int,
        seed: int = 0,
    ) -> None:
        self._batch_sampler = batch_sampler
        self._batches_of_update = batches_of_update
        self._rank, self._num_processes = rank, num_processes
        self._total_steps = total_steps
        self._seed = seed
        self._drawn: dict[int, Updates] = {}
        self._num_drawn = 0
        self._first_steps = [(0, 0)]  # (epoch, its first step), as far as known
        self._read = _Reader(dataloader, self._upcoming, seed)

    def locate(self, step: int) -> tuple[int, int]:
        """See `UpdatePlan`."""
        epoch, first_step = next(place for place in reversed(self._first_steps) if place[1] <= step)
        # Behind the last step no order is drawn.
        while first_step < self._total_steps and step >= first_step + len(self.updates(epoch)):
            first_step += len(self.updates(epoch))
            epoch += 1
            self._first_steps.append((epoch, first_step))
        return epoch, step - first_step

    def updates(self, epoch: int) -> Updates:
        """See `UpdatePlan`."""
        if epoch not in self._drawn:
            # An order may depend on those before it; one that is told the epoch does not.
            knows_epoch = bool(_told(self._batch_sampler)) or isinstance(
                getattr(self._batch_sampler, "sampler", None), SequentialSampler
            )
            for each in [epoch] if knows_epoch else range(min(self._num_drawn, epoch), epoch + 1):
                self._drawn[each] = self._draw(each)
            self._num_drawn = epoch + 1
            self._drawn = {each: rows for each, rows in self._drawn.items() if epoch - 1 <= each <= epoch}
        return self._drawn[epoch]

    def steps_in_epoch(self, epoch: int) -> int:
        """See `UpdatePlan`."""
        last_epoch, first_step = self._first_steps[-1]
        is_behind_the_end = epoch == last_epoch and first_step >= self._total_steps
        return len(self.updates(epoch - 1 if is_behind_the_end and epoch else epoch))

    def num_tokens(self, rows: np.ndarray) -> int:
        """See `UpdatePlan`."""
        return 0

    def end_epoch(self, step: int) -> None:
        """Let the epoch that runs end before the update after `step`."""
        epoch, _ = self.locate(step)
        self._first_steps.append((epoch + 1, step))

    def remember(self, epoch: int, first_step: int) -> None:
        """Take back where an epoch began; see `data.batches.BatchPlan.remember`."""
        self._first_steps = [(epoch, first_step)]

    def begin_step(self, step: int) -> None:
        """Let workers read from here on."""
        epoch, index = self.locate(step)
        self._read.begin(epoch, index)

    def make_batch(self, rows: np.ndarray) -> Any:
        """Give the collated batch of rows."""
        return self._read(rows)

    def close(self) -> None:
        """End the workers."""
        self._read.close()

    def _draw(self, epoch: int) -> Updates:
        for sampler in _told(self._batch_sampler):
            sampler.set_epoch(epoch)
        with keyed_streams(self._seed, epoch):
            batches = [np.asarray(batch, dtype=np.int64) for batch in self._batch_sampler]
        if not batches:
            raise DataError(
                "There is not a single batch to train on.",
                "at least one batch an epoch.",
                "Look at the training set, and at dataloader_drop_last where it is smaller than a batch.",
            )
        return group_updates(batches, self._batches_of_update)

    def _upcoming(self, epoch: int, index: int) -> Iterator[np.ndarray]:
        """Give what this process will read in an epoch, from an update on."""
        for update in self.updates(epoch)[index:]:
            for rows in deal_update(update, self._num_processes)[self._rank]:
                if len(rows):
                    yield rows


class _Batch(list[Any]):
    """The rows of a batch, with what their random numbers depend on."""

    key: tuple[int, ...]


class _KeyedRows:
    """A dataset that lets the global streams start anew for each batch; works inside a worker, too."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitems__(self, batch: _Batch) -> Any:
        seed_streams(*batch.key)
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(list(batch))
        return [self.dataset[row] for row in batch]


class _Reader:
    """Reads batches of rows: in workers, ahead of their turn, where the DataLoader has any."""

    def __init__(
        self, dataloader: DataLoader[Any], upcoming: Callable[[int, int], Iterator[np.ndarray]], seed: int
    ) -> None:
        self._dataset = _KeyedRows(dataloader.dataset)
        self._collate = dataloader.collate_fn
        self._upcoming = upcoming
        self._seed = seed
        self._place = (0, 0)
        self._batches: Iterator[Any] = iter(())
        self._ahead: collections.deque[np.ndarray] = collections.deque()  # of which the workers will give the batches
        self._loader: DataLoader[Any] | None = None
        if dataloader.num_workers:
            self._loader = DataLoader(
                self._dataset,  # type: ignore[arg-type]
                batch_sampler=_Deferred(self._rows_ahead),
                collate_fn=self._collate,
                num_workers=dataloader.num_workers,
                pin_memory=dataloader.pin_memory and torch.cuda.is_available(),
                timeout=dataloader.timeout,
                worker_init_fn=dataloader.worker_init_fn,
                multiprocessing_context=dataloader.multiprocessing_context,
                prefetch_factor=dataloader.prefetch_factor,
                persistent_workers=dataloader.persistent_workers,
                in_order=True,
            )

    def begin(self, epoch: int, index: int) -> None:
        if self._loader is None:
            self._place = (epoch, index)
            return
        rows = next(self._upcoming(epoch, index), None)
        if self._place[0] != epoch or not self._ahead or rows is None or not np.array_equal(self._ahead[0], rows):
            self._place = (epoch, index)
            self._ahead = collections.deque(self._upcoming(epoch, index))
            self._batches = iter(self._loader)

    def __call__(self, rows: np.ndarray) -> Any:
        if self._loader is not None and self._ahead and np.array_equal(self._ahead[0], rows):
            self._ahead.popleft()
            return next(self._batches)
        batch = self._keyed(rows)
        with keyed_streams(*batch.key):
            return self._collate(self._dataset.__getitems__(batch))

    def close(self) -> None:
        # Without a reference the iterator ends its workers at once; left to the garbage collector it waits for them.
        self._batches, self._loader = iter(()), None
        self._ahead.clear()

    def _rows_ahead(self) -> Iterator[_Batch]:
        return (self._keyed(rows) for rows in self._upcoming(*self._place))

    def _keyed(self, rows: np.ndarray) -> _Batch:
        batch = _Batch(rows.tolist())
        batch.key = (self._seed, self._place[0], batch[0], len(batch))
        return batch


class _Deferred:
    """Something to iterate whose content is settled when the iteration begins."""

    def __init__(self, make: Callable[[], Iterator[_Batch]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[_Batch]:
        return self._make()


def _told(batch_sampler: Any) -> Sequence[Any]:
    """List what wants to know the epoch."""
    parts = (batch_sampler, getattr(batch_sampler, "sampler", None))
    return [part for part in parts if hasattr(part, "set_epoch")]
