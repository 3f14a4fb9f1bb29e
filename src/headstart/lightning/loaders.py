"""Loaders that Lightning leaves as they are: they are no DataLoader, so it puts no sampler of its own in.

May import layers 0 to 4. Both give `MicroBatch` objects: tensors, the numbers of their rows, and their place.

    PlannedBatches, dealt to this process -> TrainLoader -> batches of one epoch, from any batch on
    rows to score or predict -> EvaluationLoader -> each row once over all processes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from headstart.data.planned_batches import DealtBatch, PlannedBatches
from headstart.errors import CheckpointError, join_faults
from headstart.parts.planned_loader import MicroBatch
from headstart.parts.rows import EncodedRows

__all__ = ["EvaluationLoader", "TrainLoader"]


class _WithSampler:
    """Where Lightning looks for somebody to tell the number of the epoch: `loader.batch_sampler.sampler.set_epoch`."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler


class TrainLoader:
    """The planned batches of one process, an epoch an iteration; it knows its place, and begins at any batch.

    Args:
        rows: tokenised.
        planned: dealt to this process with `splits_batches=True`.
        limit: the Trainer's `limit_train_batches`.
        num_workers: processes that put batches together.
        repeats: every epoch has the batches of the first, as `overfit_batches` wants it.
        identity: what the plan follows from; a place is good for the same only.
    """

    def __init__(
        self,
        rows: EncodedRows,
        planned: PlannedBatches,
        *,
        limit: int | float = 1.0,
        num_workers: int = 0,
        repeats: bool = False,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.rows = rows
        self.planned = planned
        self.num_workers = num_workers
        self.repeats = repeats
        self.identity = dict(identity or {})
        self.limit = limit
        self.batch_sampler = _WithSampler(self)
        self._epoch = self._batch = 0

    def __len__(self) -> int:
        """Count the batches of a whole epoch; Lightning cuts it by `limit_train_batches` itself."""
        return len(self.planned)

    def __iter__(self) -> Iterator[MicroBatch]:
        # The body begins with the first batch asked for: Lightning makes the iterator before it says which epoch.
        first = self._batch
        places = self._places(self._epoch, first)
        for index, batch in enumerate(_load(self.rows, places, self.planned.plan.seed, self.num_workers), first + 1):
            self._batch = index
            yield batch
        self._epoch, self._batch = self._epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this zero-based epoch; one that has begun goes on where it stands.

        Lightning counts an epoch that `max_steps` ended as done: what is left of it is said.
        """
        if epoch != self._epoch:
            num_left = len(self._places(self._epoch, self._batch)) if self._batch else 0
            if num_left and epoch > self._epoch:
                rank_zero_warn(
                    f"headstart: epoch {self._epoch} was left after {self._batch} batches, and Lightning goes on with "
                    f"epoch {epoch}: {num_left} batches of it are not trained on"
                )
            self._epoch, self._batch = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Give the place after the batch last given, as plain data."""
        return {"epoch": self._epoch, "batch": self._batch, "plan": self.identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Seek the place that `state_dict` gave.

        Raises:
            CheckpointError: it is one of other rows or batches.
        """
        before: Mapping[str, Any] = state["plan"]
        changed = [
            f"{name} was {before.get(name)}, is {self.identity.get(name)}"
            for name in sorted({*before, *self.identity})
            if before.get(name) != self.identity.get(name)
        ]
        if changed:
            raise CheckpointError(
                f"The checkpoint was saved in a training with other batches:\n{join_faults(changed)}",
                "the same rows in the same order.",
                "Give TaskDataModule what it was given then; or load the weights alone: "
                "TaskModule.load_from_checkpoint(PATH).",
            )
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])

    def _places(self, epoch: int, first: int) -> list[DealtBatch]:
        """Give the batches of an epoch that are still to come."""
        planned = self.planned
        planned.seek(planned.total_steps(0 if self.repeats else epoch))
        places = list(planned.dealt())
        limit = int(len(places) * self.limit) if isinstance(self.limit, float) else min(len(places), self.limit)
        cut = places[first:limit]
        if not cut or (not first and limit == len(places)):
            return cut
        # Of an update that is not whole, the batches that are left make one: Lightning steps after the last of them.
        updates = planned.plan.updates(planned.epoch)
        kept = []
        for step, group in groupby(cut, key=lambda place: place.step):
            batches = list(group)
            update = updates[step - places[0].step]
            taken = [(place.micro_batch - planned.rank) // planned.num_processes for place in batches]
            num_rows = sum(len(update[nth]) for nth in taken)
            kept += [place._replace(update_rows=num_rows, ends_update=False) for place in batches[:-1]]
            kept.append(batches[-1]._replace(update_rows=num_rows, ends_update=True))
        kept[-1] = kept[-1]._replace(ends_epoch=True)
        return kept


class EvaluationLoader:
    """Batches in which each row counts once over all processes; all processes have equally many batches.

    Args:
        rows: tokenised.
        chosen: numbers of the rows that are wanted, shape (M,).
        batch_size: rows of one forward pass.
        rank: zero-based number of the process.
        num_processes: that share the rows.
        seed: of the order.
        in_order: keep the order of the rows; else rows of like length share a batch, and any part is a fair sample.
        num_workers: processes that put batches together.
    """

    def __init__(
        self,
        rows: EncodedRows,
        chosen: np.ndarray,
        *,
        batch_size: int,
        rank: int = 0,
        num_processes: int = 1,
        seed: int = 0,
        in_order: bool = False,
        num_workers: int = 0,
    ) -> None:
        self.rows = rows
        self.num_workers = num_workers
        self.seed = seed
        planned = PlannedBatches(
            rows.lengths[chosen],
            batch_size=batch_size * num_processes,
            order="sequential" if in_order else "length",
            seed=seed,
        )
        planned.deal(rank, num_processes, evens_out=True)
        # A process without rows of its own computes one that does not count, so that no other waits for it.
        self.places = [
            place._replace(rows=chosen[place.rows[: max(1, place.num_counted)]]) for place in planned.dealt()
        ]

    def __len__(self) -> int:
        """Count the batches."""
        return len(self.places)

    def __iter__(self) -> Iterator[MicroBatch]:
        return _load(self.rows, self.places, self.seed, self.num_workers)


def _load(rows: EncodedRows, places: Sequence[DealtBatch], seed: int, num_workers: int) -> Iterator[MicroBatch]:
    loader: DataLoader[Any] = DataLoader(
        range(len(rows)),  # type: ignore[arg-type]  # row numbers: `collate` looks them up
        batch_sampler=[place.rows.tolist() for place in places],
        collate_fn=rows.collate,
        num_workers=num_workers,
        generator=torch.Generator(),  # of its own: it draws a number, which nobody uses
    )
    for tensors, place in zip(loader, places, strict=True):
        yield MicroBatch(tensors, place, seed)
