"""From a DataLoader to the plan of a training, and from the plan back to batches.

Part of the drop-in; may import layers 0 to 2.

    DataLoader over a dataset with a length -> which rows make up which update, known without reading them (a seek)
    DataLoader over a stream                -> its batches in its own order, read when their turn comes (a replay)

What a dataset or a collator draws at random is keyed by the batch, so that a batch can be made again.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from headstart.data.batches import group_updates, plan_batches
from headstart.data.dealing import deal_update
from headstart.errors import DataError
from headstart.models.dropout import keyed_streams, seed_streams

__all__ = ["LengthOrder", "RowPlan", "SeededRandomSampler", "StreamPlan", "plan_of"]

Updates = list[list[np.ndarray]]


class SeededRandomSampler(RandomSampler):
    """Shuffles as transformers' Trainer does: the order of an epoch is a function of seed and epoch.

    Args:
        data_source: something with a length.
        seed: `data_seed` of the arguments, else `seed`.

    Example:
        >>> sampler = SeededRandomSampler(range(4), seed=42)
        >>> sampler.set_epoch(1)
        >>> sorted(sampler) == [0, 1, 2, 3], list(sampler) == list(sampler)
        (True, True)
    """

    def __init__(self, data_source: Any, seed: int) -> None:
        super().__init__(data_source)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is given next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Give the rows of the epoch."""
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


class LengthOrder(BatchSampler):
    """Deals rows of like length together, as headstart's own batches are; see `data.batches.plan_batches`.

    Args:
        lengths: number of tokens of each row, shape (N,).
        batch_size: rows of a batch.
        drop_last: leave out a last short batch.
        seed: as for the shuffled order.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, drop_last: bool, seed: int) -> None:
        super().__init__(SequentialSampler(lengths), batch_size, drop_last)
        self.lengths = lengths
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches are given next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Give the batches of the epoch."""
        batches = plan_batches(self.lengths, batch_size=self.batch_size, seed=self.seed, epoch=self.epoch)
        return (batch.tolist() for batch in batches if not self.drop_last or len(batch) == self.batch_size)


def plan_of(
    dataloader: Iterable[Any], *, accumulation: int, rank: int, num_processes: int, total_steps: int, seed: int
) -> RowPlan | StreamPlan:
    """Make the plan that belongs to a DataLoader.

    Args:
        dataloader: what `get_train_dataloader` gave; anything else that can be iterated is a stream, too.
        accumulation: batches of one update and process.
        rank: number of this process.
        num_processes: of the training.
        total_steps: updates of the whole training.
        seed: keys what a dataset or a collator draws.
    """
    batch_sampler = getattr(dataloader, "batch_sampler", None)
    # One that was prepared for several processes gives each a share; the plan deals the whole.
    while (inner := getattr(batch_sampler, "batch_sampler", None)) is not None:
        batch_sampler = inner
    batches_of_update = accumulation * num_processes
    is_stream = isinstance(getattr(dataloader, "dataset", None), IterableDataset) or batch_sampler is None
    if isinstance(dataloader, DataLoader) and not is_stream:
        return RowPlan(dataloader, batch_sampler, batches_of_update, rank=rank, num_processes=num_processes, seed=seed)
    return StreamPlan(dataloader, batches_of_update, total_steps=total_steps, seed=seed)


class RowPlan:
    """The plan of a training on a dataset with a length, and the reader of its batches.

    Args:
        dataloader: gives dataset, collator and workers.
        batch_sampler: gives the rows of each batch of an epoch.
        batches_of_update: over all processes.
        rank: number of this process.
        num_processes: of the training.
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
        seed: int = 0,
    ) -> None:
        self._batch_sampler = batch_sampler
        self._batches_of_update = batches_of_update
        self._rank, self._num_processes = rank, num_processes
        self._seed = seed
        self._drawn: dict[int, Updates] = {}
        self._num_drawn = 0
        self._first_steps = [(0, 0)]  # (epoch, its first step), as far as known
        self._read = _Reader(dataloader, self._upcoming, seed)

    def locate(self, step: int) -> tuple[int, int]:
        """See `UpdatePlan`."""
        epoch, first_step = next(place for place in reversed(self._first_steps) if place[1] <= step)
        while step >= first_step + len(self.updates(epoch)):
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
        return len(self.updates(epoch))

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
                return batch if len(rows) == len(held) else _part_of(batch, start, start + len(rows), len(held))
        raise LookupError(f"rows {rows.tolist()} are not held")

    def close(self) -> None:
        """End the workers."""
        self._iterator, self._held = None, []

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
            size = _num_rows(batch)
            update.append((np.arange(self._next_row, self._next_row + size), batch))
            self._next_row += size
        return update


def _told(batch_sampler: Any) -> Sequence[Any]:
    """List what wants to know the epoch."""
    parts = (batch_sampler, getattr(batch_sampler, "sampler", None))
    return [part for part in parts if hasattr(part, "set_epoch")]


def _num_rows(batch: Any) -> int:
    """Count the rows of a batch: the first dimension of the first tensor in it."""
    values = list(batch.values()) if isinstance(batch, Mapping) else batch
    if isinstance(values, torch.Tensor):
        return max(1, len(values)) if values.ndim else 1
    if isinstance(values, list | tuple):
        return next((_num_rows(value) for value in values if isinstance(value, torch.Tensor | list | tuple)), 1)
    return 1


def _part_of(batch: Any, start: int, end: int, size: int) -> Any:
    """Cut rows out of a batch; what does not have a value for each row stays whole."""
    if isinstance(batch, Mapping):
        return {name: _part_of(value, start, end, size) for name, value in batch.items()}
    if isinstance(batch, torch.Tensor):
        return batch[start:end] if batch.ndim and len(batch) == size else batch
    if isinstance(batch, list | tuple):
        if len(batch) == size and not any(isinstance(value, torch.Tensor) for value in batch):
            return batch[start:end]
        return type(batch)(_part_of(value, start, end, size) for value in batch)
    return batch
