"""A task and its model as a `LightningModule`.

Layer 6; imports Lightning.

    configure_model: the pretrained model with a head for the task's labels -> training_step: the sum of the losses over
    the rows of the whole update -> validation_step: predictions, scored over all rows together at the end
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from headstart.errors import LabelError, RecipeError
from headstart.lightning.data_module import TaskDataModule
from headstart.lightning.given import Given, GivenRecipe, as_sections, collect, merge, of_the_model
from headstart.lightning.loaders import TrainLoader
from headstart.lightning.optimization import Optimization, clip_gradients, prepare_optimization
from headstart.lightning.scored_rows import ScoredRows
from headstart.lightning.trainer_settings import check_trainer, precision_of
from headstart.metrics import resolve_scores
from headstart.models import load
from headstart.optim_numbers import OptimizerName, ScheduleName
from headstart.parts.planned_loader import MicroBatch
from headstart.recipe import Recipe, build_recipe
from headstart.tasks import Task, task_from_dict
from headstart.training.allocator import keep_freed_memory
from headstart.training.frozen import freeze_parameters

if TYPE_CHECKING:
    from headstart.run import Run

__all__ = ["TaskModule"]

_EXTRA_STATE = "_extra_state"  # where torch puts what get_extra_state gives


class TaskModule(LightningModule):
    """What is learned, by which model, and how: everything but the rows and the loop.

    Logs `train_loss` and `learning_rate` of each update, and `val_loss`, `val_accuracy` and the other scores (with
    `trainer.test`, `test_...`) over all rows of a split together, for `EarlyStopping` and `ModelCheckpoint` to watch.

    Args:
        recipe: a YAML recipe, or one that was read; the other arguments win over it. What stands in that of the
            `TaskDataModule` holds here, too.
        settings: any other setting, as "section.key=value".
        task: what is learned, where no `TaskDataModule` says so.
        model: hub name or folder; None takes that of the `TaskDataModule`, or the embedded default.
        learning_rate: the highest of the schedule; None chooses by the width of the model and the rows of an update.
        optimizer: "adamw", "sgd" or another of a recipe's `optim.name`; their own numbers go into `settings`.
        momentum: of "sgd".
        weight_decay: of all of them.
        schedule: any of a recipe's `optim.schedule` but "plateau".
        warmup: updates over which the rate rises from 0: a number, "1 epoch" or "6%".
        dropout: every dropout probability of the model; None keeps its own.
        fast: False computes by the model's own operations.
        seed: of a new head, where no `TaskDataModule` says so.

    Attributes:
        task: what is learned; None until it is known.
        model: of transformers; None until `configure_model`.
        recipe: everything that was set, with the defaults of the rest.
        scores: names of the scores of an evaluation.

    Raises:
        RecipeError: a setting is unknown or out of range.

    Example:
        module = TaskModule(optimizer="sgd", momentum=0.9, learning_rate=1e-2)
        trainer.fit(module, TaskDataModule("imdb", batch_size=8))
        module.save_run("runs/imdb")
    """

    def __init__(
        self,
        recipe: GivenRecipe = None,
        *,
        settings: Sequence[str] = (),
        task: Task | Mapping[str, Any] | None = None,
        model: str | None = None,
        learning_rate: float | None = None,
        optimizer: OptimizerName | None = None,
        momentum: float | None = None,
        weight_decay: float | None = None,
        schedule: ScheduleName | None = None,
        warmup: int | str | None = None,
        dropout: float | None = None,
        fast: bool | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        values = {
            "model.checkpoint": model,
            "model.dropout": dropout,
            "optim.name": optimizer,
            "optim.learning_rate": learning_rate,
            "optim.momentum": momentum,
            "optim.weight_decay": weight_decay,
            "optim.schedule": schedule,
            "optim.warmup": warmup,
            "train.fast": fast,
            "train.seed": seed,
        }
        self.given: Given = collect(recipe, settings, values)
        self.recipe: Recipe = build_recipe(values=self.given)
        self.task: Task | None = task_from_dict(task) if isinstance(task, Mapping) else task
        self.model: torch.nn.Module | None = None
        self.scores: list[str] = []
        self.updates_made = 0
        """Updates of the training that the weights come from."""
        self.trained: Given = {}
        """What the Trainer decided in it, by the names of a recipe."""
        self.new_parameters: list[str] = []
        self._optimization: Optimization | None = None
        self._fast_parts: dict[str, str] = {}
        self._update_loss: torch.Tensor | None = None
        self._scored = ScoredRows()
        self._while_fitting: contextlib.ExitStack | None = None
        self._keep_hyperparameters()

    @property
    def leaves_padding_out(self) -> bool:
        """Whether padding costs the model next to nothing, so that rows of any length may share a batch."""
        return self._optimization is not None and self._optimization.fast.leaves_padding_out

    @property
    def fast_parts(self) -> dict[str, str]:
        """What of the fast path was in use in the last training, and why the rest was not."""
        return dict(self._fast_parts)

    def setup(self, stage: str) -> None:
        """Learn the task from the data module, and make sure that recipe and Trainer agree.

        Raises:
            RecipeError: settings contradict each other, or there is neither a task nor a data module.
            LabelError: the rows have other labels than the model.
        """
        self._undo()
        data = _data_module_of(self.trainer)
        given = self.given
        if data is not None:
            self.recipe = merge(data.given, self.given, data.recipe)
            given = {**self.given, **data.given}
            self._take_task(data.task)
            self.task = self.known_task.with_objective(self.recipe.optim, data.data.splits["train"].targets)
        precision_of(self.trainer)
        if stage == "fit":
            check_trainer(given, self.trainer)
        if self.recipe.train.threads is not None:
            torch.set_num_threads(self.recipe.train.threads)
        source = data.source if data is not None and isinstance(data.source, str) else None
        self.scores = resolve_scores(
            self.recipe.evaluate.scores, len(self.known_task.label_names), source, self.known_task.score_kind
        )
        self._keep_hyperparameters()

    def _take_task(self, task: Task) -> None:
        if self.task is not None and self.task.label_names != task.label_names:
            raise LabelError(
                f"The model tells apart {', '.join(self.task.label_names[:10])}; the rows have the labels "
                f"{', '.join(task.label_names[:10])}.",
                "rows with the labels that the model was made for.",
                "Make a new TaskModule for these rows, or map their labels.",
            )
        self.task = self.task or task

    @property
    def known_task(self) -> Task:
        """The task.

        Raises:
            RecipeError: nobody has said what is learned.
        """
        if self.task is None:
            raise RecipeError(
                "TaskModule does not know what is learned: there is neither a TaskDataModule nor a task.",
                "labels and columns.",
                "Write trainer.fit(module, TaskDataModule(...)), or TaskModule(task=rows.task).",
            )
        return self.task

    @property
    def known_model(self) -> torch.nn.Module:
        """The model.

        Raises:
            RecipeError: it is not there yet.
        """
        if self.model is None:
            raise RecipeError(
                "TaskModule has no model yet; Lightning makes it when a Trainer runs.",
                "a module that was fitted or loaded.",
                "Write trainer.fit(module, data), or TaskModule.load_from_checkpoint(PATH).",
            )
        return self.model

    def configure_model(self) -> None:
        """Load the pretrained model and put a new head on it, once; and freeze what the recipe names."""
        if self.model is None:
            # The head is drawn on the CPU, so that it is the same wherever it trains.
            with torch.device("cpu"):
                loaded = load.load_classifier(
                    load.resolve_checkpoint(self.recipe.model.checkpoint),
                    self.known_task.label_names,
                    seed=self.recipe.train.seed if self.recipe.model.seed is None else self.recipe.model.seed,
                    problem_type=self.known_task.problem_type,
                    revision=self.recipe.model.revision,
                    dropout=self.recipe.model.dropout,
                )
            self.model, self.new_parameters = loaded.model, loaded.new_parameters
        freeze_parameters(self.model, self.recipe.model.freeze)  # before a strategy wraps the model
        self.model.train()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build optimizer and schedule, and let the model compute by the parts of the fast path that fit it."""
        self._optimization = prepare_optimization(self.known_model, self.recipe, self.trainer)
        self._fast_parts = self._optimization.parts
        scheduler = self._optimization.build_schedule(self.recipe, self.trainer)
        return {
            "optimizer": self._optimization.fast.optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says, else as the recipe does (`optim.max_grad_norm`).

        Raises:
            NonFiniteError: the gradients are not finite; the update is not made.
        """
        max_norm = self.recipe.optim.max_grad_norm if gradient_clip_val is None else gradient_clip_val or None
        clip_gradients(self.known_model, optimizer, max_norm, step=self.trainer.global_step)

    def configure_callbacks(self) -> list[Callback]:
        """Leave the model as an ordinary one after an error, too; Lightning does not call `teardown` then."""
        return [_AfterError()]

    def on_train_start(self) -> None:
        """Make sure that a loader of a `TaskDataModule` was made for this Trainer.

        Raises:
            RecipeError: it was taken out of its data module, and counts other batches than the Trainer.
        """
        loader, trainer = self.trainer.train_dataloader, self.trainer
        if not isinstance(loader, TrainLoader):
            return
        planned = loader.planned
        made_for = planned.accumulation, planned.num_processes, loader.limit
        needed = trainer.accumulate_grad_batches, trainer.world_size, trainer.limit_train_batches
        if made_for != needed:
            raise RecipeError(
                "The training batches were planned for other numbers than the Trainer's (of accumulate_grad_batches, "
                f"processes, limit_train_batches): {made_for}, not {needed}.",
                "batches planned for this Trainer.",
                "Write trainer.fit(module, data), with the data module itself.",
            )

    def _warn_untrained(self) -> None:
        if self.new_parameters and not self.updates_made and self.trainer.state.fn != TrainerFn.FITTING:
            rank_zero_warn(
                "headstart: what this model predicts is chance: it has a new head that was never trained "
                f"({', '.join(self.new_parameters)})"
            )

    def on_validation_start(self) -> None:
        """Say where nothing was learned yet."""
        self._warn_untrained()

    def on_test_start(self) -> None:
        """Say where nothing was learned yet."""
        self._warn_untrained()

    def on_predict_start(self) -> None:
        """Say where nothing was learned yet."""
        self._warn_untrained()

    def on_fit_start(self) -> None:
        """Let freed memory stay for the next batch."""
        self._while_fitting = contextlib.ExitStack()
        self._while_fitting.enter_context(keep_freed_memory())

    def teardown(self, stage: str) -> None:
        """Leave the model as an ordinary one."""
        if self._optimization is not None:
            self._remember_training()
        self._undo()

    def _undo(self) -> None:
        """Undo what a training does to the model and to the process; it may have ended with an error."""
        if self._optimization is not None:
            self._optimization.fast.undo()
            self._optimization = None
        if self._while_fitting is not None:
            self._while_fitting.close()
            self._while_fitting = None

    def get_extra_state(self) -> dict[str, Any]:
        """Give what goes with the weights wherever they go: task, settings, and what the Trainer decided."""
        if self._optimization is not None:
            self._remember_training()
        return {
            "task": self.task.to_dict() if self.task is not None else None,
            "recipe": as_sections(of_the_model(self._everything_given())),
            "updates_made": self.updates_made,
            "settings": self.trained,
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `get_extra_state` gave."""
        self.updates_made, self.trained = int(state["updates_made"]), dict(state["settings"])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; where there is no model yet, as after a training in other processes, it is made first."""
        extra = state_dict.get(_EXTRA_STATE)
        if self.model is None and extra is not None and any(key.startswith("model.") for key in state_dict):
            self.recipe = build_recipe(values=collect(extra["recipe"], (), {}))
            self.task = task_from_dict(extra["task"])
            self.configure_model()
        return super().load_state_dict(state_dict, strict, assign)

    def _remember_training(self) -> None:
        trainer, data = self.trainer, _data_module_of(self.trainer)
        assert self._optimization is not None
        self.updates_made = trainer.global_step
        self.trained = {
            "train.max_steps": self._optimization.total_steps or self.updates_made,
            "train.accumulation": trainer.accumulate_grad_batches,
            "train.precision": precision_of(trainer),
            "optim.learning_rate": self._optimization.learning_rate,
            "optim.layer_decay": self._optimization.layer_decay,
        }
        if data is not None:
            self.trained["train.order"] = data.order
        if trainer.gradient_clip_val is not None:
            self.trained["optim.max_grad_norm"] = float(trainer.gradient_clip_val) or None

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Give the loss so that what Lightning makes of it is the mean over the rows of the whole update.

        Lightning divides by `accumulate_grad_batches`, also where the last update of an epoch has fewer batches, and
        averages over processes, also where they have different numbers of rows; both are taken back here.
        """
        task, model, trainer = self.known_task, self.known_model, self.trainer
        if isinstance(batch, MicroBatch):
            with batch.randomness(model):
                outputs = task.run(model, batch.tensors, "train")
            tensors, num_rows = batch.tensors, batch.dealt.update_rows
            loss = task.loss(outputs, tensors) / num_rows
            if not batch.dealt.num_counted:
                loss = loss * 0.0
            factor, ends_update = trainer.accumulate_grad_batches * trainer.world_size, batch.dealt.ends_update
        else:
            tensors = batch
            outputs = task.run(model, batch, "train")
            num_rows = task.count(batch)
            loss, factor, ends_update = task.loss(outputs, batch) / num_rows, 1, True
        before = self._update_loss
        self._update_loss = loss.detach() if before is None else before + loss.detach()
        if ends_update:
            log: dict[str, Any] = {"on_step": True, "on_epoch": False, "batch_size": num_rows}
            reduce_fx = "sum" if isinstance(batch, MicroBatch) else "mean"
            self.log("train_loss", self._update_loss, prog_bar=True, sync_dist=True, reduce_fx=reduce_fx, **log)
            self.log("learning_rate", float(trainer.optimizers[0].param_groups[0]["lr"]), **log)
            self._update_loss = None
        return loss * factor

    def on_train_epoch_start(self) -> None:
        """Begin an update anew."""
        self._update_loss = None

    def on_validation_epoch_start(self) -> None:
        """Begin an evaluation."""
        self._scored = ScoredRows()

    def on_test_epoch_start(self) -> None:
        """Begin an evaluation."""
        self._scored = ScoredRows()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Predict the rows of a batch."""
        self._scored.predict(self.known_task, self.known_model, batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Predict the rows of a batch."""
        self._scored.predict(self.known_task, self.known_model, batch)

    def on_validation_epoch_end(self) -> None:
        """Score all rows together; those of a sanity check are too few."""
        if not self.trainer.sanity_checking:
            self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Score all rows together."""
        self._log_scores("test")

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Give what the task predicts for the rows of a batch, probabilities or numbers, float32 of shape (B, K).

        Every process gets those of all: `torch.cat(trainer.predict(module, data))` has a line for each row, in order.
        """
        scored = ScoredRows()
        scored.predict(self.known_task, self.known_model, batch)
        return torch.from_numpy(scored.over_all_processes()[0])

    def _log_scores(self, prefix: str) -> None:
        predictions, targets, loss = self._scored.over_all_processes()
        scores = self.known_task.tune(predictions, targets).score(predictions, targets, self.scores)
        values = {f"{prefix}_loss": loss, **{f"{prefix}_{name}": value for name, value in scores.items()}}
        in_bar = (f"{prefix}_loss", *(f"{prefix}_{name}" for name in self.scores[:1]))
        for name, value in values.items():
            # All processes have the same number; a mean of them keeps Lightning from warning.
            self.log(name, float(value), prog_bar=name in in_bar, sync_dist=True)

    def _keep_hyperparameters(self) -> None:
        """Keep what a checkpoint needs to make this module again, as plain data."""
        values: dict[str, Any] = {"recipe": as_sections(of_the_model(self._everything_given()))}
        if self.task is not None:
            values["task"] = self.task.to_dict()
        self.save_hyperparameters(values)

    def _everything_given(self) -> Given:
        data = _data_module_of(self._trainer)
        return {**self.given, **data.given} if data is not None else self.given

    def save_run(self, run_dir: str | Path | None = None, datamodule: TaskDataModule | None = None) -> Run:
        """Write a run folder of headstart from this module: model, scores, predictions and everything to repeat it.

        Of several processes, all call it together, and one writes.

        Args:
            run_dir: a new folder; None takes `output.run` of the recipe, or makes `runs/NAME-N`.
            datamodule: whose rows it was trained on and is scored with; None takes that of the last Trainer.

        Returns:
            The run: `run.predict([...])`, `run.evaluate(source)`, `run.scores`.

        Raises:
            CheckpointError: the folder is not free, or the model was not trained.
        """
        from headstart.lightning.run_folder import write_run_once

        return write_run_once(self, run_dir, datamodule or _data_module_of(self._trainer), self._trainer)

    @classmethod
    def from_run(cls, run_dir: str | Path) -> Self:
        """Make a module from a run folder of headstart, with its model, task and settings.

        What a Trainer decides is left out of its recipe. Another training of it begins with a new optimizer.

        Raises:
            CheckpointError: the folder is no finished run.
        """
        from headstart.lightning.run_folder import read_run

        found = read_run(run_dir)
        module = cls(recipe=as_sections(found.given), task=found.task)
        module.model = found.model.train()
        module.updates_made = found.updates_made
        return module


class _AfterError(Callback):
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        pl_module.teardown("fit")


def _data_module_of(trainer: Trainer | None) -> TaskDataModule | None:
    found = getattr(trainer, "datamodule", None)
    return found if isinstance(found, TaskDataModule) else None
