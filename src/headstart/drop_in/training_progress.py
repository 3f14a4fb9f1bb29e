"""Where a training of the drop-in is: its place in the data, and what a checkpoint keeps of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length, sort_checkpoints

from headstart.drop_in.checkpoints import Resumed
from headstart.drop_in.extent import Extent
from headstart.drop_in.orders import FastOrder
from headstart.drop_in.plans import plan_of
from headstart.drop_in.row_plan import RowPlan
from headstart.drop_in.stream_plan import StreamPlan
from headstart.training.device import join_processes
from headstart.training.processes import Processes
from headstart.training.state import TrainState
from headstart.training.whole_folder import discard_folder

if TYPE_CHECKING:
    from headstart.drop_in.trainer import Trainer

__all__ = ["TrainingProgress", "discard_checkpoint"]

logger = logging.getLogger(__name__)


class TrainingProgress:
    """Knows the place, saves it, and goes back to it.

    Args:
        trainer: gives arguments, model and history.
        extent: of the training.
        dataloader: of the training.
        trial: of a hyperparameter search.
    """

    def __init__(self, trainer: Trainer, extent: Extent, dataloader: Any, trial: Any) -> None:
        self.trainer = trainer
        self.extent = extent
        self.trial = trial
        args = trainer.args
        self.processes = (
            join_processes(trainer._device, timeout_seconds=args.ddp_timeout) if args.world_size > 1 else Processes()
        )
        self.plan: RowPlan | StreamPlan = plan_of(
            dataloader,
            accumulation=args.gradient_accumulation_steps,
            rank=self.processes.rank,
            num_processes=self.processes.count,
            total_steps=extent.max_steps,
            seed=trainer._data_seed,
        )
        order = getattr(dataloader, "batch_sampler", None)
        self._order = order if isinstance(order, FastOrder) else None
        self.train_state = TrainState()
        self.first_step = 0
        self.epoch_end_is_due = False  # what follows from the end of an epoch is still to be done
        self.is_ended = False  # by early stopping, before the last step
        self.loss = torch.tensor(0.0)  # since the last line of the history, in float32 as transformers adds it
        self.grad_norm = self.learning_rate = 0.0  # of the last step
        self.last_logged = 0
        self.total_loss = 0.0  # of this call

    def resume(self, resumed: Resumed, folder: Path) -> None:
        """Go on from a checkpoint whose model and history are loaded already."""
        trainer, plan = self.trainer, self.plan
        trainer._load_optimizer(folder)
        values = resumed.values
        self.train_state = TrainState.from_dict(values["train"]) if values else TrainState(step=resumed.step)
        if self._order is not None and values:  # the rest of its epoch, whatever another machine would choose
            self._order.is_shuffled = bool(values.get("is_shuffled", False))
        place = values.get("place")
        if place is None:
            epoch = resumed.step // self.extent.steps_in_epoch
            place = {"epoch": epoch, "first_step": epoch * self.extent.steps_in_epoch}
        plan.remember(**place)
        if isinstance(plan, StreamPlan) and resumed.step > place["first_step"]:
            if trainer.args.ignore_data_skip:
                plan.skip_to(resumed.step)
            else:
                logger.warning(
                    "the training set is a stream: the first %d updates of epoch %d are read again to find its place",
                    resumed.step - place["first_step"],
                    place["epoch"],
                )
        rows = values.get("rows")
        if rows is not None and rows != self._num_rows():
            logger.warning(
                "the training set had %s rows when this checkpoint was written, and has %s", rows, self._num_rows()
            )
        self.first_step = resumed.step
        self.grad_norm, self.learning_rate = values.get("grad_norm", 0.0), values.get("learning_rate", 0.0)
        self.last_logged = int(values.get("last_logged", resumed.step))
        self.loss += values.get("loss", 0.0)
        self.total_loss = -self.loss.item()  # what was lost before belongs to the call before
        self.epoch_end_is_due = bool(values.get("epoch_end_is_due", False))
        # Where its patience is larger now, the training goes on.
        self.is_ended = any(
            isinstance(callback, EarlyStoppingCallback)
            and callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in trainer.callback_handler.callbacks
        )

    def write_checkpoint(self) -> None:
        """Write a checkpoint, and remove those that are no longer wanted."""
        trainer, args, state = self.trainer, self.trainer.args, self.train_state
        if self.trial is None:
            trainer.store_flos()
        run_dir, folder = Path(trainer._get_output_dir(self.trial)), self._checkpoint_folder()
        epoch, index = self.plan.locate(state.step)
        values = {
            "train": state.to_dict(),
            "place": {"epoch": epoch, "first_step": state.step - index},
            "rows": self._num_rows(),
            "loss": self.loss.item(),
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            "last_logged": self.last_logged,
            "epoch_end_is_due": self.epoch_end_is_due,
            "is_shuffled": self._order is not None and self._order.is_shuffled,
        }
        best = trainer.state.best_global_step
        trainer._write_checkpoint(
            folder,
            values,
            run_dir / f"{PREFIX_CHECKPOINT_DIR}-{best}" if best else None,
        )
        if args.push_to_hub:
            trainer._push_from_checkpoint(str(folder))
        limit = args.save_total_limit
        if args.should_save and limit is not None and limit > 0:
            folders = sort_checkpoints(str(run_dir), use_mtime=True)
            kept = {folders[-1], trainer.state.best_model_checkpoint}
            surplus = [folder for folder in folders if folder not in kept]
            for old in surplus[: max(0, len(folders) - max(limit, len(kept & set(folders))))]:
                discard_checkpoint(Path(old))

    def _checkpoint_folder(self) -> Path:
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.trainer.state.global_step}"
        return Path(self.trainer._get_output_dir(self.trial)) / name

    def _num_rows(self) -> int | None:
        dataset = self.trainer.train_dataset
        return len(dataset) if has_length(dataset) else None


def discard_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; what cannot be removed costs space only, and is said."""
    try:
        discard_folder(folder)
    except OSError as error:
        logger.warning("%s could not be removed: %s", folder, error.strerror or error)
