"""The batch plan as a `batch_sampler` of PyTorch's DataLoader.

Holds `PlannedBatches`; imports numpy and the batch plan only, so it pickles and goes to any worker.

    lengths -> BatchPlan -> updates, dealt to processes -> row numbers of one micro-batch after the other
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headstart.data.batches import WINDOW_BATCHES, BatchPlan, Order, Rows
from headstart.data.dealing import deal_update
from headstart.errors import RecipeError

__all__ = ["DealtBatch", "PlannedBatches"]


class DealtBatch(NamedTuple):
    """One micro-batch, and its place in the training.

    Args:
        step: zero-based number of its update.
        micro_batch: zero-based number inside the update, over all processes.
        rows: row numbers, shape (B,).
        num_counted: of these, how many count; the others repeat some that do, so that no process has none.
        update_rows: rows of the whole update, over all processes.
        ends_update: whether the optimizer's step comes after it.
        ends_epoch: whether it is the last one.
    """

    step: int
    micro_batch: int
    rows: Rows
    num_counted: int
    update_rows: int
    ends_update: bool
    ends_epoch: bool

    @property
    def share(self) -> float:
        """Rows that count / rows of the update: what a mean over these rows counts for in the mean of the update."""
        return self.num_counted / self.update_rows


class PlannedBatches:
    """Deal planned batches to a `DataLoader`, epoch after epoch, from any step on.

    Each iteration is one epoch in an order of its own; after one that came to its end, the next is the next epoch, and
    one that was left begins again. (A DataLoader with workers reads ahead: in `iterate_updates` and `prepare_loader`
    that is known, in an iteration of the DataLoader itself nobody tells what was read from what was used.) Give it as
    `DataLoader(rows, batch_sampler=PlannedBatches(...), collate_fn=...)`.

    Args:
        lengths: number of tokens of each row, shape (N,), at least one row.
        batch_size: rows of a batch at most.
        tokens_per_batch: tokens of a padded batch at most.
        order: "length", "random" or "sequential", see `plan_batches`.
        accumulation: batches of one update.
        seed: decides the order of every epoch.
        window: batches that are sorted together with order "length".

    Raises:
        DataError: there is no row.
        RecipeError: as `plan_batches`.

    Example:
        >>> batches = PlannedBatches(np.array([3, 4, 5, 6, 7]), batch_size=2, order="sequential")
        >>> list(batches), len(batches)
        ([[0, 1], [2, 3], [4]], 3)
        >>> batches.seek(4)  # four updates were made: one of the second epoch
        >>> list(batches)
        [[2, 3], [4]]

    Relations: `iterate_updates` gives the batches of one update together; `prepare_loader` deals them to processes.
    """

    def __init__(
        self,
        lengths: npt.NDArray[np.integer],
        *,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        order: Order = "length",
        accumulation: int = 1,
        seed: int = 0,
        window: int = WINDOW_BATCHES,
    ) -> None:
        self.plan = BatchPlan(
            lengths,
            batch_size=batch_size,
            tokens_per_batch=tokens_per_batch,
            order=order,
            accumulation=accumulation,
            seed=seed,
            window=window,
        )
        self.accumulation = accumulation
        self.rank, self.num_processes = 0, 1
        self.evens_out = self.splits_batches = False
        self._epoch = self._index = 0
        self._passed: tuple[int, int] | None = None  # where the iteration began that has moved on to the next epoch

    @property
    def epoch(self) -> int:
        """The zero-based epoch that the next iteration deals."""
        return self._epoch

    @property
    def step(self) -> int:
        """Updates made before the next iteration begins."""
        return self._first_step(self._epoch) + self._index

    def total_steps(self, epochs: float) -> int:
        """Count the updates of a training; see `BatchPlan.total_steps`."""
        return self.plan.total_steps(epochs)

    def seek(self, step: int) -> None:
        """Let the next iteration begin after `step` updates, without a look at any row.

        Raises:
            ValueError: `step` is negative.
        """
        self._epoch, self._index = self.plan.locate(step)
        self._passed = None

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this zero-based epoch, from its beginning; one begun at a later step stays there.

        Raises:
            ValueError: `epoch` is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; it is a number from 0 on")
        if epoch != self._epoch:
            self._epoch, self._index = epoch, 0
        self._passed = None

    @property
    def place(self) -> tuple[int, int]:
        """The zero-based epoch and the zero-based update in it that the next iteration begins with."""
        return self._epoch, self._index

    def take_back(self, place: tuple[int, int]) -> None:
        """Let an iteration that was left begin again, though a loader that reads ahead has asked for its last batch.

        Args:
            place: where it began. Nothing happens where somebody has said since where to go on.
        """
        if self._passed == place:
            self._epoch, self._index = place

    def deal(
        self,
        rank: int,
        num_processes: int,
        *,
        for_each: bool = False,
        evens_out: bool = False,
        splits_batches: bool = False,
    ) -> None:
        """Give out the share of one process from now on.

        Args:
            rank: zero-based number of the process.
            num_processes: that share each update.
            for_each: `batch_size` and `accumulation` are those of each process, so that an update has as many times
                the rows; else those of an update over all processes, which is then the same for any number of them.
            evens_out: all processes get equally many rows of each update, the last ones filled with repeated rows: for
                gathering what was predicted. Else no row is repeated, but where an update has fewer rows than there are
                processes, and that row does not count.
            splits_batches: each process gets a piece of every batch, so that an update has as many batches for it as
                for one process alone; else whole batches.

        Raises:
            RecipeError: `evens_out` with a budget of tokens, or with accumulation.
            ValueError: there is no such process.
        """
        if not 0 <= rank < num_processes:
            raise ValueError(f"rank is {rank} of {num_processes} processes; they count from 0")
        if evens_out and (self.plan.tokens_per_batch is not None or self.accumulation > 1):
            raise RecipeError(
                "A plan for prediction has accumulation or a budget of tokens, so that what is gathered cannot be told "
                "from what fills it up.",
                "batch_size alone, for prediction.",
                'Write PlannedBatches(lengths, batch_size=32, order="sequential").',
            )
        self.rank, self.num_processes = rank, num_processes
        self.evens_out, self.splits_batches = evens_out, splits_batches
        self.plan = self.plan.with_accumulation(self.accumulation * (num_processes if for_each else 1))

    def dealt(self) -> Iterator[DealtBatch]:
        """Give what this process computes in the epoch of the next iteration, from its beginning step on."""
        updates = self.plan.updates(self._epoch)
        first_step = self._first_step(self._epoch)
        for index in range(self._index, len(updates)):
            pieces = self._pieces(updates[index])
            for nth, (rows, num_counted) in enumerate(pieces):
                ends_update = nth + 1 == len(pieces)
                yield DealtBatch(
                    step=first_step + index,
                    micro_batch=nth * self.num_processes + self.rank,
                    rows=rows,
                    num_counted=num_counted,
                    update_rows=sum(map(len, updates[index])),
                    ends_update=ends_update,
                    ends_epoch=ends_update and index + 1 == len(updates),
                )

    def __iter__(self) -> Iterator[list[int]]:
        place = self.place
        for batch in self.dealt():
            # Not after the last one: who counts the batches, as Lightning does, never asks for one more.
            if batch.ends_epoch and self.place == place:
                self._epoch, self._index = self._epoch + 1, 0
                self._passed = place
            yield batch.rows.tolist()

    def __len__(self) -> int:
        """Count the batches of the whole epoch that this process gets."""
        return sum(self._num_pieces(len(update)) for update in self.plan.updates(self._epoch))

    @property
    def batches_per_update(self) -> int:
        """Batches of this process in an update at most."""
        return max(self._num_pieces(number) for number in range(1, self.plan.accumulation + 1))

    def _num_pieces(self, num_batches: int) -> int:
        if self.evens_out:
            return 1
        if self.splits_batches:
            return num_batches
        num_whole, num_left = divmod(num_batches, self.num_processes)
        return num_whole + (num_left if self.plan.tokens_per_batch is not None else min(num_left, 1))

    @property
    def batch_size(self) -> int | None:
        """Rows of a batch at most; None with a budget of tokens alone."""
        _refuse_accelerate()
        return self.plan.batch_size

    @property
    def sampler(self) -> PlannedBatches:
        """Itself, as there is no sampler of single rows underneath: Lightning looks here for `set_epoch`."""
        _refuse_accelerate()
        return self

    def _first_step(self, epoch: int) -> int:
        return self.plan.total_steps(epoch) if epoch else 0

    def _pieces(self, update: list[Rows]) -> list[tuple[Rows, int]]:
        """Give the rows of each batch of this process, and how many of them count."""
        if self.evens_out:
            rows = np.concatenate(update)
            size = -(-len(rows) // self.num_processes)
            places = np.arange(self.rank * size, (self.rank + 1) * size)
            return [(rows[np.minimum(places, len(rows) - 1)], int((places < len(rows)).sum()))]
        if self.splits_batches:
            pieces = [np.array_split(batch, self.num_processes)[self.rank] for batch in update]
            return [
                (piece if len(piece) else batch[:1], len(piece)) for piece, batch in zip(pieces, update, strict=True)
            ]
        if self.plan.tokens_per_batch is None:
            # What is left when every process has its whole batches is one piece for each; a budget would not hold it.
            num_whole = len(update) // self.num_processes * self.num_processes
            update = [*update[:num_whole], *([np.concatenate(update[num_whole:])] if update[num_whole:] else [])]
        own = deal_update(update, self.num_processes)[self.rank]
        return [(piece if len(piece) else update[0][:1], len(piece)) for piece in own]


def _refuse_accelerate() -> None:
    """Stop `accelerator.prepare`, which asks a batch sampler for these things, then fills its last batches up."""
    if str(sys._getframe(2).f_globals.get("__name__")).startswith("accelerate."):
        raise RecipeError(
            "accelerator.prepare() was given a DataLoader of PlannedBatches; with several processes it would repeat "
            "rows at the end of each epoch.",
            "a loader that deals the plan to the processes.",
            "Write loader = headstart.prepare_loader(accelerator, loader), and leave it out of accelerator.prepare().",
        )
