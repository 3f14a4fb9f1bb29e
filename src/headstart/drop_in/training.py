"""One call of `Trainer.train`: headstart's loop, told in the events that transformers' callbacks know.

Layer 6. Nothing of training is decided here; records of the loop and words to it are translated:

    hooks of the loop    -> on_epoch_begin, on_step_begin, on_substep_end, on_pre_optimizer_step, on_optimizer_step
    StepRecord           -> on_step_end; what callbacks ask for then is asked of the loop, word by word:
        "evaluate"       -> EvaluationRecord (on_prediction_step, on_log, on_evaluate inside)
        "save"           -> CheckpointRecord -> on_save
                         -> after the last step of an epoch on_epoch_end, and what is asked for then
        "end"            -> StopRecord
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import torch
from rich.console import Console
from transformers.trainer_utils import SaveStrategy, TrainOutput, sort_checkpoints, speed_metrics

from headstart.drop_in.attributes import library_logger
from headstart.drop_in.extent import Extent
from headstart.drop_in.training_progress import TrainingProgress, discard_checkpoint
from headstart.errors import CheckpointError, NonFiniteError
from headstart.interruption import Interruption, Stopped, end_as_signalled
from headstart.run_writer import share_state
from headstart.runlog import CheckpointRecord, Record, RunLock, StepRecord, StopRecord, WarningRecord
from headstart.training.allocator import keep_freed_memory
from headstart.training.loop import train
from headstart.training.state import LoopParts, LoopSettings, StepHooks, TrainState

if TYPE_CHECKING:
    from headstart.drop_in.trainer import Trainer

__all__ = ["Training"]

logger = logging.getLogger(__name__)

Word = Literal["evaluate", "save"]


class Training(TrainingProgress):
    """Drives the loop for a Trainer.

    Args:
        trainer: gives everything; its state and control are kept up to date.
        extent: of the training.
        dataloader: of the training.
        trial: of a hyperparameter search.
        ignore_keys: outputs that are no predictions.
    """

    def __init__(
        self, trainer: Trainer, extent: Extent, dataloader: Any, trial: Any, ignore_keys: list[str] | None
    ) -> None:
        super().__init__(trainer, extent, dataloader, trial)
        self.ignore_keys = ignore_keys
        self.requests: set[str] = set()
        self.following: Iterator[Word] = iter(())
        self.started = time.time()
        self.is_in_epoch = False
        self.epoch = 0
        self.is_new_best = self.is_saved = False
        self._batches_done = 0  # of the epoch
        self._made: list[int] = []  # micro-batches of the update
        self._ran = 0

    def run(self) -> TrainOutput:
        """Train, and give what `Trainer.train` gives."""
        try:
            signal_at_end = self._run_loop()
        except Stopped as stopped:
            self._leave(stopped.number)
        output = self._finalize_training()
        if signal_at_end is not None:
            self._leave(signal_at_end)
        return output

    def _run_loop(self) -> int | None:
        """Make all steps, and give the number of a signal that came too late to stop them."""
        trainer, args = self.trainer, self.trainer.args
        with contextlib.ExitStack() as stack:
            stack.enter_context(keep_freed_memory())
            stack.callback(self.plan.close)
            stack.callback(trainer._end_evaluation_workers)
            saves = args.save_strategy != SaveStrategy.NO
            if saves and args.should_save:
                folder = Path(trainer._get_output_dir(self.trial))
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(RunLock(folder))
            self.train_state = share_state(self.processes, self.train_state, trainer.model, trainer.optimizer)
            trainer.model.zero_grad()
            self._say_how_much()
            handler = trainer.callback_handler
            trainer.control = handler.on_train_begin(args, trainer.state, trainer.control)
            if args.eval_on_start and not self.first_step:
                trainer._evaluate(self.trial, self.ignore_keys, skip_scheduler=True)
            if self.is_ended:
                logger.warning("early stopping ended this training at step %d: nothing is left to do", self.first_step)
                trainer.control.should_training_stop = True
            if self.epoch_end_is_due:
                self._end_epoch_directly()
            if (self.first_step or self.is_ended) and self._is_over:
                self.requests.add("end")
            interruption = Interruption(self.requests, Console(stderr=True, quiet=True), ends_process=False)
            if saves:
                stack.enter_context(interruption)
            for record in self._loop():
                self._handle(record)
            is_over = self._is_over or trainer.state.global_step >= self.extent.max_steps
            if not self.processes.any([is_over])[0]:
                interruption.saved(asked_elsewhere=True)
            if not is_over:  # a callback of another process has ended it
                trainer.control.should_training_stop = True
            if interruption.number is not None and not self._checkpoint_folder().exists():
                trainer._save_checkpoint(trainer.model, self.trial)
        return interruption.number

    def _say_how_much(self) -> None:
        """Say how long the training is, at the level of transformers' own lines of this kind."""
        trainer, args, extent = self.trainer, self.trainer.args, self.extent
        lines = {
            "Num examples": self._num_rows() or "unknown",
            "Num Epochs": extent.num_epochs,
            "Num update steps per epoch": extent.steps_in_epoch,
            "Instantaneous batch size per device": trainer._train_batch_size,
            "Total train batch size (w. parallel, distributed & accumulation)": trainer.get_total_train_batch_size(
                args
            ),
            "Gradient Accumulation steps": args.gradient_accumulation_steps,
            "Total optimization steps": extent.max_steps,
            "Number of trainable parameters": trainer.get_num_trainable_parameters(),
        }
        library_logger.info("***** Running training *****")
        for name, value in lines.items():
            library_logger.info(f"  {name} = {value:,}" if isinstance(value, int) else f"  {name} = {value}")
        if self.first_step:
            library_logger.info(f"  Resuming from step {self.first_step}")

    def _loop(self) -> Iterator[Record]:
        trainer, args = self.trainer, self.trainer.args
        return train(
            trainer.model,
            trainer.optimizer,
            self.plan,
            LoopParts(
                make_batch=self._make_batch,
                count=trainer.count_targets,
                micro_batch=self._micro_batch,
                evaluate=self._evaluate,
                save=self._save,
                processes=self.processes,
                hooks=StepHooks(
                    step_begins=self._step_begins,
                    micro_batch_ends=self._micro_batch_ends,
                    before_optimizer=self._before_optimizer,
                    after_optimizer=self._after_optimizer,
                ),
            ),
            LoopSettings(
                total_steps=self.extent.max_steps,
                seed=args.seed,
                max_grad_norm=args.max_grad_norm if args.max_grad_norm and args.max_grad_norm > 0 else None,
                on_evaluation_error="raise",
            ),
            device=trainer._device,
            state=self.train_state,
            requests=self.requests,
        )

    # Inside a step

    def _step_begins(self, step: int) -> None:
        trainer = self.trainer
        epoch, index = self.plan.locate(step)
        self.plan.begin_step(step)
        update = self.plan.updates(epoch)[index]
        trainer.current_gradient_accumulation_steps = len(update)
        self._made, self._ran = [], 0
        if not self.is_in_epoch:
            self.is_in_epoch = True
            self.epoch = epoch
            trainer.control = trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)
        self._batches_done = (index + 1) * trainer.args.gradient_accumulation_steps
        if callable(getattr(trainer.optimizer, "train", None)):
            trainer.optimizer.train()
        trainer.control = trainer.callback_handler.on_step_begin(trainer.args, trainer.state, trainer.control)

    def _make_batch(self, rows: np.ndarray) -> Any:
        if self._ran:  # the update begins again, because memory ran out
            self._made, self._ran = [], 0
        self._made.append(len(rows))
        return self.plan.make_batch(rows)

    def _micro_batch(self, model: torch.nn.Module, batch: Any, num_targets: int) -> tuple[torch.Tensor, int]:
        self.trainer.count_work(batch)
        return self.trainer.micro_batch(model, batch, num_targets)

    def _micro_batch_ends(self, step: int) -> None:
        self._ran += 1
        if self.processes.count == 1:  # processes may have different numbers of micro-batches
            self.trainer.add_work(self.processes)
        if self._ran < len(self._made):
            trainer = self.trainer
            trainer.control = trainer.callback_handler.on_substep_end(trainer.args, trainer.state, trainer.control)

    def _before_optimizer(self, step: int) -> None:
        trainer = self.trainer
        if self.processes.count > 1:
            trainer.add_work(self.processes)
        trainer.control = trainer.callback_handler.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)

    def _after_optimizer(self, step: int) -> None:
        trainer = self.trainer
        trainer.control = trainer.callback_handler.on_optimizer_step(trainer.args, trainer.state, trainer.control)
        self.learning_rate = trainer._get_learning_rate()
        if not trainer._steps_after_evaluation():
            trainer.lr_scheduler.step()
        # Also of parameters that the optimizer does not know.
        trainer.model.zero_grad()

    # After a step

    def _handle(self, record: Record) -> None:
        """Do what follows from a record, and ask the loop for the next thing."""
        if isinstance(record, StepRecord):
            self.following = self._after_step(record)
        elif isinstance(record, WarningRecord):
            (logger.warning if record.kind != "non_finite" else logger.error)(
                "step %d: %s", record.step, record.message
            )
            if record.kind != "checkpoint":
                return
            self.is_saved = False
        elif isinstance(record, CheckpointRecord):
            self.is_saved = True
        elif isinstance(record, StopRecord):
            if record.reason != "process_lost":
                self.processes.meet()
            if record.reason == "non_finite":
                raise NonFiniteError(
                    f"Step {record.step}: {record.message}.",
                    "finite losses and gradients.",
                    "Look at the rows that the line above names; try a smaller learning_rate, or bf16=False.",
                )
            return
        word = next(self.following, None)
        if word is not None:
            self.requests.add(word)
        elif self._is_over:
            self.requests.add("end")

    @property
    def _is_over(self) -> bool:
        if self.trainer.control.should_training_stop:
            return True
        epoch, _ = self.plan.locate(self.train_state.step)
        return not self.is_in_epoch and epoch >= self.extent.num_epochs

    def _after_step(self, record: StepRecord) -> Generator[Word, None, None]:
        trainer, args = self.trainer, self.trainer.args
        self.grad_norm = record.grad_norm
        self.loss += record.loss
        trainer.state.global_step = record.step
        batches = self.extent.batches_in_epoch
        trainer.state.epoch = self.epoch + min(self._batches_done, batches) / batches
        next_epoch, _ = self.plan.locate(record.step)
        ends = next_epoch > self.epoch
        self.epoch_end_is_due = ends or record.step >= self.extent.max_steps
        trainer.control = trainer.callback_handler.on_step_end(args, trainer.state, trainer.control)
        yield from self._act()
        if self.epoch_end_is_due or trainer.control.should_epoch_stop or trainer.control.should_training_stop:
            if not ends and trainer.control.should_epoch_stop:
                self.plan.end_epoch(record.step)
            yield from self._end_epoch()

    def _end_epoch(self) -> Generator[Word, None, None]:
        trainer = self.trainer
        self.epoch_end_is_due = self.is_in_epoch = False
        trainer.control = trainer.callback_handler.on_epoch_end(trainer.args, trainer.state, trainer.control)
        yield from self._act()

    def _act(self) -> Generator[Word, None, None]:
        """Do what the callbacks asked for: log, evaluate, save."""
        trainer, args = self.trainer, self.trainer.args
        if trainer.control.should_log and trainer.state.global_step > self.last_logged:
            self._log()
        if trainer.control.should_evaluate:
            yield "evaluate"
            if args.save_strategy == SaveStrategy.BEST:
                trainer.control.should_save = self.is_new_best
        if trainer.control.should_save:
            yield "save"
            if self.is_saved:
                trainer.control = trainer.callback_handler.on_save(args, trainer.state, trainer.control)

    def _end_epoch_directly(self) -> None:
        """Do what was due when the checkpoint was written that the training goes on from."""
        for word in self._end_epoch():
            if word == "evaluate":
                self._evaluate()
            else:
                try:
                    self.trainer._save_checkpoint(self.trainer.model, self.trial)
                    self.is_saved = True
                except (CheckpointError, OSError) as error:
                    logger.warning("the checkpoint was not written: %s", error)
                    self.is_saved = False

    def _evaluate(self) -> dict[str, float]:
        """Evaluate, and keep whether it is the best so far; see `LoopParts.evaluate`."""
        metrics = self.trainer._evaluate(self.trial, self.ignore_keys)
        self.is_new_best = self.trainer._determine_best_metric(metrics, self.trial)
        return metrics

    def _log(self) -> None:
        trainer = self.trainer
        step = trainer.state.global_step
        logs: dict[str, float] = {"loss": self.loss.item() / (step - self.last_logged)}
        logs |= {"grad_norm": self.grad_norm, "learning_rate": self.learning_rate}
        self.total_loss += self.loss.item()
        self.loss.zero_()
        self.last_logged = step
        trainer.store_flos()
        trainer.log(logs, self.started)

    def _save(self, state: TrainState, record: CheckpointRecord) -> list[str]:
        """Write a checkpoint; see `LoopParts.save`."""
        self.trainer._save_checkpoint(self.trainer.model, self.trial)
        return []

    # At the end

    def _finalize_training(self) -> TrainOutput:  # TrainerMemoryTracker knows its callers by name
        trainer, args, state = self.trainer, self.trainer.args, self.trainer.state
        num_steps = state.global_step - self.first_step
        self.total_loss += self.loss.item()
        train_loss = self.total_loss / max(num_steps, 0.001)
        num_samples = self.extent.num_samples * num_steps / max(state.max_steps, 1)
        metrics = speed_metrics("train", self.started, num_samples=num_samples, num_steps=num_steps)
        trainer.store_flos()
        metrics["total_flos"] = state.total_flos
        metrics["train_loss"] = train_loss
        trainer._memory_tracker.stop_and_update_metrics(metrics)
        trainer.log(metrics)
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            if os.path.isdir(state.best_model_checkpoint):
                trainer._load_weights(Path(state.best_model_checkpoint))
            else:
                logger.warning(
                    "%s, the best checkpoint, is not there: the last model stays", state.best_model_checkpoint
                )
                state.best_model_checkpoint = None
        if args.should_save and state.best_model_checkpoint is not None and args.save_total_limit == 1:
            for folder in sort_checkpoints(trainer._get_output_dir(self.trial)):
                if not os.path.samefile(folder, state.best_model_checkpoint):
                    discard_checkpoint(Path(folder))
        trainer.control = trainer.callback_handler.on_train_end(args, state, trainer.control)
        trainer._finish_current_push()
        trainer.is_in_train = False
        return TrainOutput(state.global_step, train_loss, metrics)

    def _leave(self, number: int) -> NoReturn:
        """Say how to go on, and end as the signal would have ended the script."""
        step = self.trainer.state.global_step
        message = f"Stopped after saving step {step}. Go on: trainer.train(resume_from_checkpoint=True)"
        end_as_signalled(number, message)
