"""The drop-in for transformers' Trainer: its interface, over headstart's loop.

Layer 6; its topics are modules of their own, each a class above the one before:

    arguments, data, callbacks  ->  `dataloaders`, `losses`, `evaluation`, `optimization`, `checkpoints`  ->  this class
    train()                     ->  `training.py`, which drives `headstart.training.loop`
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    SequenceFeatureExtractor,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.integrations.neftune import activate_neftune, deactivate_neftune
from transformers.trainer import DEFAULT_CALLBACKS, DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import CallbackHandler, ExportableState
from transformers.trainer_pt_utils import log_metrics, metrics_format, save_metrics, save_state
from transformers.trainer_utils import (
    SaveStrategy,
    TrainerMemoryTracker,
    TrainOutput,
    align_special_tokens,
    compare_trainer_and_checkpoint_args,
    enable_full_determinism,
    has_length,
    set_seed,
)

from headstart.drop_in.argument_tables import plain
from headstart.drop_in.arguments import check_arguments, chosen_mode, tensorboard_folder
from headstart.drop_in.attributes import library_logger
from headstart.drop_in.extent import extent_of
from headstart.drop_in.losses import takes_argument
from headstart.drop_in.model_intake import ModelIntake
from headstart.drop_in.training import Training
from headstart.errors import HeadstartWarning, RecipeError

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class Trainer(ModelIntake):
    """Trains, evaluates and saves a model, with the interface of transformers' Trainer and the loop of headstart.

    What differs from transformers' own stands in `docs/drop_in.md`: checkpoints are whole or not there, resuming goes
    on bit for bit, an update that is not finite is never made, and with accumulation each row counts alike.

    Args:
        model: to train; or `model_init`.
        args: transformers' `TrainingArguments` or headstart's; None takes the defaults.
        data_collator: makes a batch of rows; None pads with the tokenizer where there is one.
        train_dataset: a `datasets.Dataset`, a torch dataset, a list of dicts, or a stream of any of these kinds.
        eval_dataset: the same, or a dict of several.
        processing_class: the tokenizer; saved with the model.
        model_init: makes the model; each `train` begins with a new one.
        compute_loss_func: outputs, labels and `num_items_in_batch` to the loss.
        compute_metrics: an `EvalPrediction` to named numbers.
        callbacks: beside the usual ones.
        optimizers: optimizer and scheduler, taken as they are; (None, None) makes those that `args` name.
        optimizer_cls_and_kwargs: another class of optimizer.
        preprocess_logits_for_metrics: logits and labels to what `compute_metrics` gets.
        tokenizer: the older name of `processing_class`.

    Raises:
        RecipeError: fields of `args` ask for what headstart does not do (the message lists all of them), or arguments
            contradict each other.
        ModelError: there is no model, or one without a head.

    Example:
        >>> from headstart import Trainer, TrainingArguments
        >>> import tempfile, torch
        >>> class Doubles(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.factor = torch.nn.Parameter(torch.ones(1))
        ...     def forward(self, x, labels=None):
        ...         return {"loss": ((self.factor * x - labels) ** 2).mean(), "logits": self.factor * x}
        >>> rows = [{"x": float(number), "labels": 2.0 * number} for number in range(8)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     arguments = TrainingArguments(
        ...         folder, num_train_epochs=20, learning_rate=0.1, disable_tqdm=True, save_strategy="no"
        ...     )
        ...     trainer = Trainer(Doubles(), arguments, train_dataset=rows)
        ...     output = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> round(trainer.model.factor.item(), 1)
        2.0
    """

    log_metrics = log_metrics
    metrics_format = metrics_format
    save_metrics = save_metrics
    save_state = save_state

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        tokenizer: Any = None,
    ) -> None:
        if args is None:
            args = TrainingArguments("tmp_trainer")
        self.args = args
        notices = check_arguments(args)
        if tokenizer is not None:
            if processing_class is not None and processing_class is not tokenizer:
                raise RecipeError("Trainer got tokenizer and processing_class.", "one of them.", "Leave tokenizer out.")
            processing_class = tokenizer
            if self.is_world_process_zero():
                warnings.warn("Trainer: tokenizer is called processing_class now.", HeadstartWarning, stacklevel=2)
        self._mode = chosen_mode(args)
        enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
        self.create_accelerator_and_postprocess()
        self._memory_tracker = TrainerMemoryTracker(args.skip_memory_metrics)
        self._memory_tracker.start()
        transformers.logging.set_verbosity(args.get_process_log_level())
        if not self.is_world_process_zero():
            logging.getLogger("headstart.drop_in").setLevel(logging.ERROR)  # one process says it
        for notice in notices:
            logger.warning(notice)

        self.model_init = model_init
        self._take_model(model)
        self._look_at_model()

        pads = isinstance(processing_class, PreTrainedTokenizerBase | SequenceFeatureExtractor)
        default_collator = DataCollatorWithPadding(processing_class) if pads else default_data_collator
        self.data_collator = default_collator if data_collator is None else data_collator
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.processing_class = processing_class
        self.neftune_noise_alpha = args.neftune_noise_alpha
        self.compute_loss_func = compute_loss_func
        self.compute_metrics = compute_metrics
        self.preprocess_logits_for_metrics = preprocess_logits_for_metrics
        self.optimizer, self.lr_scheduler = optimizers
        self.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs
        self._check_together()
        self._say_what_is_not_called()

        usual = [*DEFAULT_CALLBACKS, *get_reporting_integration_callbacks(args.report_to)]
        with tensorboard_folder(args):
            self.callback_handler = CallbackHandler(
                [*usual, *(callbacks or [])], self.model, self.processing_class, self.optimizer, self.lr_scheduler
            )
        self.add_callback(PrinterCallback if args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)

        self.hub_model_id = None
        if args.push_to_hub:
            self.init_hf_repo()
        if args.should_save:
            os.makedirs(self._output_dir, exist_ok=True)
        self.control = TrainerControl()
        self.state = TrainerState(
            is_local_process_zero=self.is_local_process_zero(),
            is_world_process_zero=self.is_world_process_zero(),
            stateful_callbacks=self._exportable(),
        )
        self.is_in_train = False
        self.hp_name = None
        self.hp_search_backend = None
        self.current_flos = 0
        self.current_gradient_accumulation_steps = args.gradient_accumulation_steps
        self._signature_columns = None
        self._evaluation_loaders = {}
        self._train_batch_size = args.train_batch_size
        self._created_lr_scheduler = False
        self._trial = None
        self.control = self.callback_handler.on_init_end(args, self.state, self.control)
        if getattr(self.model, "config", None) is not None:
            self.model.config.use_cache = args.use_cache
        self._memory_tracker.stop_and_update_metrics()

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the newest whole one in `args.output_dir`. The
                training goes on as if it had not stopped.
            trial: of a hyperparameter search.
            ignore_keys_for_eval: outputs of the model that are no predictions.

        Returns:
            Steps made, mean loss, and numbers of the training.

        Raises:
            CheckpointError: the checkpoint is not there, broken, or of another model.
            NonFiniteError: a loss or gradient is NaN or infinite; the update was not made.
        """
        self._memory_tracker.start()
        self.is_in_train = True
        args = self.args
        if self.model_init is not None:
            enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
            self._take_model(self.call_model_init(trial), anew=True)
            self.optimizer, self.lr_scheduler = None, None
        if self._may_move_model:
            self.model.to(args.device)
        if isinstance(self.processing_class, PreTrainedTokenizerBase) and hasattr(self.model, "config"):
            align_special_tokens(self.model, self.processing_class)
        self._hp_search_setup(trial)
        self._checkpoint_activations()
        handle = None
        if self.neftune_noise_alpha is not None:
            handle = self.neftune_hook_handle = activate_neftune(self.model, self.neftune_noise_alpha, self.accelerator)
        try:
            return self._train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            self._end_fast_path()
            if handle is not None:
                deactivate_neftune(self.model, handle, self.accelerator)
            self.is_in_train = False

    def _train(
        self, resume_from_checkpoint: str | bool | None, trial: Any, ignore_keys: list[str] | None
    ) -> TrainOutput:
        args = self.args
        self._is_prepared = True
        folder = None
        if resume_from_checkpoint is not None and resume_from_checkpoint is not False:
            newest = resume_from_checkpoint is True
            folder = self._newest_checkpoint(self._output_dir) if newest else Path(str(resume_from_checkpoint))
        dataloader = self.get_train_dataloader()
        extent = extent_of(self, dataloader)
        self.state = TrainerState(stateful_callbacks=self._exportable())
        self.state.is_hyper_param_search = trial is not None
        self.state.train_batch_size = self._train_batch_size
        self.state.compute_steps(args, extent.max_steps)
        resumed = None
        if folder is not None:
            resumed = self._load_checkpoint(folder, is_verified=resume_from_checkpoint is True)
            best = self.state.best_model_checkpoint
            if best is not None and not os.path.isdir(best):
                logger.warning("%s, the best checkpoint so far, is not there any more", best)
                self.state.best_model_checkpoint = None
            compare_trainer_and_checkpoint_args(args, self.state)
            self._restore_callbacks()
        self.state.init_training_references(self, extent.max_steps, extent.num_epochs, trial)

        if self._created_lr_scheduler:
            self.lr_scheduler, self._created_lr_scheduler = None, False
        was_handed_in = self.optimizer is not None
        if type(self).create_optimizer_and_scheduler is not Trainer.create_optimizer_and_scheduler:
            self.create_optimizer_and_scheduler(extent.max_steps)
        self.create_optimizer()
        self._start_fast_path(dataloader, keeps_optimizer=was_handed_in)
        self.create_scheduler(num_training_steps=extent.max_steps)
        self._groups_at_start = self._numbers_of_groups()
        self.model_wrapped = self.model
        handler = self.callback_handler
        handler.model, handler.optimizer, handler.lr_scheduler = self.model, self.optimizer, self.lr_scheduler
        handler.train_dataloader = dataloader

        training = self._training = Training(self, extent, dataloader, trial, ignore_keys)
        if resumed is not None and folder is not None:
            training.resume(resumed, folder)
        self._tokens_before = self.state.num_input_tokens_seen
        self._own_tokens = 0
        self._say_how_losses_enter()
        return training.run()

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
    ) -> dict[str, float]:
        """Evaluate during training, and tell the search and the scheduler that wait for it."""
        metrics = self.evaluate(ignore_keys=ignore_keys_for_eval)
        self._report_to_hp_search(trial, self.state.global_step, metrics)
        if self._steps_after_evaluation() and not skip_scheduler:
            name = self._check_best_metric(metrics)
            self.lr_scheduler.step(metrics[name])
        return metrics

    def count_work(self, batch: Any) -> None:
        """Count the operations and tokens of a micro-batch."""
        self.current_flos += float(self.floating_point_ops(batch))
        kind = self.args.include_num_input_tokens_seen
        if kind == "no":
            return
        name = getattr(self.model, "main_input_name", "input_ids")
        ids = batch.get(name) if hasattr(batch, "get") else None
        if ids is None:
            library_logger.warning_once(f'include_num_input_tokens_seen: the batches have no "{name}" to count')
            return
        tokens = ids.numel()
        if kind == "non_padding":
            pad = getattr(self.processing_class, "pad_token_id", None)
            if "attention_mask" in batch:
                tokens = int(batch["attention_mask"].sum())
            elif pad is not None:
                tokens = int((ids != pad).sum())
            else:
                library_logger.warning_once("include_num_input_tokens_seen: padding is not known, and is counted")
        self._own_tokens += tokens

    def add_work(self, processes: Any) -> None:
        """Add up the tokens of a step over all processes."""
        if self.args.include_num_input_tokens_seen != "no":
            self.state.num_input_tokens_seen += int(processes.add([self._own_tokens])[0])
            self._own_tokens = 0

    def add_callback(self, callback: type[TrainerCallback] | TrainerCallback) -> None:
        """Add a callback, or one of a class."""
        self.callback_handler.add_callback(callback)

    def pop_callback(self, callback: type[TrainerCallback] | TrainerCallback) -> TrainerCallback | None:
        """Remove a callback, or the first one of a class, and give it back; None where there is none."""
        popped: TrainerCallback | None = self.callback_handler.pop_callback(callback)
        return popped

    def remove_callback(self, callback: type[TrainerCallback] | TrainerCallback) -> None:
        """Remove a callback, or the first one of a class."""
        self.callback_handler.remove_callback(callback)

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        """Count the rows of an update over all processes."""
        return int(self._train_batch_size * args.gradient_accumulation_steps * args.world_size)

    def end(self) -> None:
        """Close the trackers and leave the other processes; the last call of a script."""
        self.accelerator.end_training()

    def _check_together(self) -> None:
        """Raise for what contradicts each other, before any work."""
        args, faults = self.args, []
        takes_result = self.compute_metrics is None or takes_argument(self.compute_metrics, "compute_result")
        if args.batch_eval_metrics and not takes_result:
            faults.append("batch_eval_metrics: compute_metrics has no argument compute_result")
        if args.eval_strategy != "no" and self.eval_dataset is None:
            faults.append(f"eval_strategy is {plain(args.eval_strategy)}, but there is no eval_dataset")
        wants_best = args.save_strategy == SaveStrategy.BEST or args.load_best_model_at_end
        if wants_best and args.metric_for_best_model is None:
            faults.append("the best checkpoint is wanted, but metric_for_best_model is not set")
        if self.optimizer_cls_and_kwargs is not None and self.optimizer is not None:
            faults.append("optimizers and optimizer_cls_and_kwargs are given")
        if self.model_init is not None and (self.optimizer is not None or self.lr_scheduler is not None):
            faults.append("model_init makes a new model, whose parameters the given optimizers do not know")
        if self.train_dataset is not None and not has_length(self.train_dataset) and args.max_steps <= 0:
            faults.append("the training set has no length, so max_steps must be set")
        if not callable(self.data_collator):
            faults.append(f"data_collator is a {type(self.data_collator).__name__}, which cannot be called")
        if faults:
            raise RecipeError("Trainer: " + "; ".join(faults) + ".", "arguments that fit together.", "Mend these.")

    def _say_what_is_not_called(self) -> None:
        """Say which methods of a subclass override some of transformers' that this class does not have."""
        theirs = set(dir(transformers.Trainer)) - set(dir(Trainer))
        own = [each for each in type(self).__mro__ if not each.__module__.startswith("headstart.")]
        lost = sorted({name for each in own for name in vars(each) if name in theirs})
        if lost:
            logger.warning(
                "%s overrides %s, which headstart's Trainer never calls: see docs/drop_in.md for what to override",
                type(self).__name__,
                ", ".join(lost),
            )

    def _exportable(self) -> list[Any]:
        return [each for each in [*self.callback_handler.callbacks, self.control] if isinstance(each, ExportableState)]

    def _restore_callbacks(self) -> None:
        """Put callbacks where the checkpoint left them: how far they are; what they were set to, only if asked."""
        if self.args.restore_callback_states_from_checkpoint:
            transformers.Trainer._load_callback_state(self)  # type: ignore[arg-type]
            return
        saved = self.state.stateful_callbacks
        left = {name: list(each) if isinstance(each, list) else [each] for name, each in saved.items()}
        for callback in self._exportable():
            states = left.get(type(callback).__name__)
            if states and callback is not self.control:
                for name, value in states.pop(0).get("attributes", {}).items():
                    setattr(callback, name, value)

    def _say_how_losses_enter(self) -> None:
        """Say in a line where an update's loss is not, or not as in transformers, a mean over its targets."""
        accumulation = self.args.gradient_accumulation_steps
        if self._is_overridden("training_step"):
            logger.warning("training_step is overridden: its own backward pass makes the gradients, as it adds them")
        elif self.takes_mean_of_means:
            logger.warning("compute_loss is overridden: an update's loss is the mean of its micro-batches' means")
        elif accumulation > 1 and self.model_accepts_loss_kwargs:
            logger.warning(
                "the loss of an update is the mean over all its targets; transformers %s adds up the means of %d "
                "micro-batches where a model takes the number of targets and ignores it",
                transformers.__version__,
                accumulation,
            )
