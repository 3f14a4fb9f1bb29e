"""A DataLoader of planned batches, iterated with what is known of each batch.

May import layers 0 to 2.

    DataLoader(rows, batch_sampler=PlannedBatches(...)) -> PlannedLoader -> MicroBatch, MicroBatch, ...
                                                        -> iterate_updates -> Update, Update, ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from headstart.data.planned_batches import DealtBatch, PlannedBatches
from headstart.errors import CheckpointError, RecipeError
from headstart.models.dropout import RandomKey, keyed_randomness

__all__ = ["MicroBatch", "PlannedLoader", "Update", "iterate_updates"]


@dataclass
class MicroBatch:
    """The tensors of one forward pass, and what is known of them.

    Args:
        tensors: what the `collate_fn` gave.
        dealt: rows, and place in the training.
        seed: of the plan.
    """

    tensors: Any
    dealt: DealtBatch
    seed: int

    @property
    def share(self) -> float:
        """Rows / rows of the update: what a mean over the batch's rows counts for in the mean of the update."""
        return self.dealt.share

    def randomness(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """Make the dropout of a forward pass a function of (seed, step, row, module, element).

        So a run that was stopped draws on as if it had not been, however its updates are split into batches.
        """
        dealt = self.dealt
        key = RandomKey(self.seed, dealt.step, dealt.rows.tolist(), dealt.micro_batch)
        return keyed_randomness(key, next(model.parameters()).device, model)


@dataclass(frozen=True)
class Update:
    """The micro-batches between two steps of the optimizer.

    Args:
        step: updates made once this one is.
        micro_batches: at least one.
    """

    step: int
    micro_batches: list[MicroBatch]

    @property
    def num_rows(self) -> int:
        """Rows of all of them."""
        return sum(batch.dealt.num_counted for batch in self.micro_batches)


class PlannedLoader:
    """Iterate over the epochs of a DataLoader of planned batches, and know the place of each batch.

    Args:
        loader: built with `batch_sampler=PlannedBatches(...)`.

    Raises:
        RecipeError: the loader's batches are not planned.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        planned = getattr(loader, "batch_sampler", None)
        if not isinstance(planned, PlannedBatches):
            raise RecipeError(
                f"The batches of this {type(loader).__name__} come from "
                f"{type(planned).__name__ if planned is not None else 'no batch sampler'}; they are not planned.",
                "batch_sampler=headstart.PlannedBatches(...).",
                "Write DataLoader(rows, batch_sampler=headstart.PlannedBatches(rows.lengths, batch_size=32, seed=42), "
                "collate_fn=rows.collate).",
            )
        self.loader = loader
        self.planned = planned
        self.step = planned.step
        """Updates made, once the optimizer has made that of the batch last given."""

    def __iter__(self) -> Iterator[MicroBatch]:
        place, places = self.planned.place, list(self.planned.dealt())
        dealt = None
        try:
            for tensors, dealt in zip(self.loader, places, strict=True):
                self.step = dealt.step + dealt.ends_update
                yield MicroBatch(tensors, dealt, self.planned.plan.seed)
        finally:
            if dealt is None or not dealt.ends_epoch:
                self.planned.take_back(place)

    def __len__(self) -> int:
        return len(self.planned)

    def seek(self, step: int) -> None:
        """Let the next iteration begin after `step` updates."""
        self.planned.seek(step)
        self.step = step

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this zero-based epoch; see `PlannedBatches.set_epoch`."""
        self.planned.set_epoch(epoch)

    def state_dict(self) -> dict[str, int | str]:
        """Give the place after the batch last given, for a checkpoint."""
        plan = self.planned.plan
        epoch, index = plan.locate(self.step)
        return {"epoch": epoch, "first_step": self.step - index, "step": self.step, "plan": plan.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Seek the place that `state_dict` gave.

        Raises:
            CheckpointError: it is one among other batches.
        """
        if state["plan"] != self.planned.plan.fingerprint:
            raise CheckpointError(
                "The place was saved in a training with other batches: of other rows, or with another size, order, "
                "seed, accumulation or, where each process counts for itself, number of processes.",
                "the same rows in the same batches.",
                "Give PlannedBatches what it was given then; or load the weights alone, and begin anew.",
            )
        # With a budget of tokens the steps before an epoch are known by planning each of them, or from here.
        self.planned.plan.remember(int(state["epoch"]), int(state["first_step"]))
        self.seek(int(state["step"]))


def iterate_updates(loader: DataLoader[Any]) -> Iterator[Update]:
    """Iterate over one epoch of a DataLoader of planned batches, from its step on, an update at a time.

    Args:
        loader: built with `batch_sampler=PlannedBatches(...)`, which says how many batches make an update.

    Yields:
        Each update with its micro-batches; the last one of an epoch may have fewer.

    Raises:
        RecipeError: the loader has batches of another kind.

    Example:
        >>> batches = PlannedBatches([1, 1, 1, 1, 1], batch_size=2, accumulation=2, order="sequential")
        >>> for update in iterate_updates(DataLoader(range(5), batch_sampler=batches)):
        ...     print(update.step, [(batch.tensors.tolist(), batch.share) for batch in update.micro_batches])
        1 [([0, 1], 0.5), ([2, 3], 0.5)]
        2 [([4], 1.0)]
    """
    waiting: list[MicroBatch] = []
    for batch in PlannedLoader(loader):
        waiting.append(batch)
        if batch.dealt.ends_update:
            yield Update(batch.dealt.step + 1, waiting)
            waiting = []
