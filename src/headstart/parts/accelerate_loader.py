"""Planned batches in a loop of Accelerate.

May import layers 0 to 2; Accelerate itself comes in as the `Accelerator` that the loop has made.

    DataLoader of PlannedBatches -> dealt to this process, on its device -> accelerator.accumulate, gather_for_metrics
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import DataLoader

from headstart.errors import RecipeError, TrainingError
from headstart.parts.planned_loader import MicroBatch, PlannedLoader
from headstart.training.device import send_to_device

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["PreparedLoader", "prepare_loader"]


class PreparedLoader:
    """What `prepare_loader` gives: this process's batches, on its device.

    Attributes:
        end_of_dataloader: read by `accelerator.accumulate`: gradients are whole after this batch. Read by
            `accelerator.gather_for_metrics`: the rows after `remainder` do not count.
        remainder: read by `accelerator.gather_for_metrics`: how many of the gathered rows count, 0 for all.
    """

    # What accelerator.prepare and GradientState ask of a loader.
    _is_accelerate_prepared = True
    end_of_dataloader = False
    remainder = -1

    def __init__(self, accelerator: Accelerator, loader: DataLoader[Any], mode: Literal["train", "predict"]) -> None:
        self._accelerator = accelerator
        self._places = PlannedLoader(loader)
        self._mode = mode
        self.weight = 1.0
        """Factor on the mean loss of the batch last given. Accelerate averages over micro-batches and processes as if
        all had equally many rows; `accelerator.backward(loss * loader.weight)` makes it the mean over the rows."""
        self._batch: MicroBatch | None = None

    @property
    def dataset(self) -> Any:
        """The rows."""
        return self._places.loader.dataset

    @property
    def batch_sampler(self) -> Any:
        """The planned batches."""
        return self._places.planned

    @property
    def step(self) -> int:
        """Updates made, once the optimizer has made that of the batch last given."""
        return self._places.step

    def __iter__(self) -> Iterator[Any]:
        state = self._accelerator.gradient_state
        num_processes = self._accelerator.num_processes
        state._add_dataloader(self)
        try:
            for batch in self._places:
                self._batch, dealt = batch, batch.dealt
                if self._mode == "train":
                    self.end_of_dataloader, self.remainder = dealt.ends_update, 0
                    self.weight = dealt.share * num_processes * self._accelerator.gradient_accumulation_steps
                else:
                    # What is gathered is cut where the loader ends; here wherever rows fill it up.
                    self.remainder = dealt.update_rows % (len(dealt.rows) * num_processes)
                    self.end_of_dataloader = dealt.ends_epoch or self.remainder > 0
                yield send_to_device(batch.tensors, self._accelerator.device)
        finally:
            self.end_of_dataloader, self.remainder = False, -1
            state._remove_dataloader(self)

    def __len__(self) -> int:
        return len(self._places)

    def randomness(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """Make the dropout of a forward pass of the batch last given a function of (seed, step, row, module, element).

        So it is the same for any number of processes, and a run that was stopped draws on as if it had not been.

        Args:
            model: as `accelerator.prepare` gave it.

        Raises:
            RecipeError: no batch was given yet.
        """
        if self._batch is None:
            raise RecipeError(
                "loader.randomness() before the first batch.", "a batch to draw for.", "Call it inside the loop."
            )
        return self._batch.randomness(self._accelerator.unwrap_model(model))

    def seek(self, step: int) -> None:
        """Let the next iteration begin after `step` updates, without a look at the rows before."""
        self._places.seek(step)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this zero-based epoch; see `PlannedBatches.set_epoch`."""
        self._places.set_epoch(epoch)

    def state_dict(self) -> dict[str, int | str]:
        """Give the place; `accelerator.save_state` keeps it."""
        return self._places.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Seek a place; `accelerator.load_state` does.

        Raises:
            CheckpointError: it is one among other batches.
        """
        self._places.load_state_dict(state)

    @property
    def sampler(self) -> Any:
        """Nothing; `accelerate.skip_first_batches`, which asks for it, is told what to call."""
        if str(sys._getframe(1).f_globals.get("__name__")).startswith("accelerate."):
            raise RecipeError(
                "accelerate.skip_first_batches() was given a loader of prepare_loader().",
                "a seek.",
                "Write loader.seek(step), with the number of updates made.",
            )
        raise AttributeError("a PreparedLoader has no sampler")


def prepare_loader(
    accelerator: Accelerator, loader: DataLoader[Any], *, mode: Literal["train", "predict"] = "train"
) -> PreparedLoader:
    """Deal the planned batches of a DataLoader to the processes of an `Accelerator`.

    Model, optimizer and scheduler go through `accelerator.prepare` as ever; this loader takes the place of the one that
    it would give. No row is repeated in training, and every update ends where the plan says: `with
    accelerator.accumulate(model)` synchronises gradients there. `accelerator.save_state()` keeps its place, and
    `load_state()` seeks it.

    What `batch_size` and `accumulation` of the plan count is said by Accelerate's own setting: with
    `DataLoaderConfiguration(split_batches=True)` the rows of an update over all processes, so that any number of
    processes makes the same updates; else those of each process.

    Args:
        accelerator: with one process or several.
        loader: built with `batch_sampler=PlannedBatches(...)`; the batches it gives are this process's from now on.
        mode: "train"; or "predict", where all processes get equally many rows and `accelerator.gather_for_metrics`
            counts each row once, in the order of the plan.

    Raises:
        RecipeError: the loader's batches are not planned; or the Accelerator accumulates otherwise than the plan.
        TrainingError: several processes were started, and Accelerate takes each for the only one.

    Example:
        loader = DataLoader(rows, batch_sampler=PlannedBatches(rows.lengths, batch_size=8), collate_fn=rows.collate)
        loader = headstart.prepare_loader(accelerator, loader)
        for batch in loader:
            with accelerator.accumulate(model):
                with loader.randomness(model):
                    loss = model(**batch).loss
                accelerator.backward(loss * loader.weight)
                optimizer.step()
                optimizer.zero_grad()
    """
    if mode not in ("train", "predict"):
        raise RecipeError(f'prepare_loader: mode "{mode}".', '"train" or "predict".', 'Write mode="predict".')
    _check_joined(accelerator)
    prepared = PreparedLoader(accelerator, loader, mode)
    planned = prepared.batch_sampler
    step = prepared.step
    planned.deal(
        accelerator.process_index,
        accelerator.num_processes,
        for_each=not accelerator.split_batches,
        evens_out=mode == "predict",
    )
    if mode == "train":
        _agree_on_accumulation(accelerator, planned.accumulation, planned.batches_per_update)
        accelerator.register_for_checkpointing(prepared)
    prepared.seek(step)
    return prepared


def _check_joined(accelerator: Accelerator) -> None:
    """Raise where several processes were started, and Accelerate, which looks for GPUs, takes each for the only one."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > accelerator.num_processes:
        raise TrainingError(
            f"{started} processes were started (WORLD_SIZE), but Accelerate knows of {accelerator.num_processes} here; "
            "the others would train models of their own.",
            "processes that know of each other.",
            "Without GPUs, set ACCELERATE_USE_CPU=1, or write Accelerator(cpu=True).",
        )


def _agree_on_accumulation(accelerator: Accelerator, accumulation: int, batches_per_update: int) -> None:
    asked = accelerator.gradient_accumulation_steps
    if asked not in (1, accumulation, batches_per_update):
        raise RecipeError(
            f"The Accelerator accumulates {asked} batches (gradient_accumulation_steps), the plan {accumulation}.",
            "one number.",
            f"Write PlannedBatches(..., accumulation={asked}), and leave it out of Accelerator(...).",
        )
    if batches_per_update > 1 and not accelerator.gradient_state.sync_with_dataloader:
        raise RecipeError(
            "The Accelerator does not end an update where the loader does (sync_with_dataloader=False).",
            "updates that end where the plan says.",
            "Leave sync_with_dataloader out of GradientAccumulationPlugin(...).",
        )
    accelerator.gradient_accumulation_steps = batches_per_update
