"""Evaluation and prediction of a Trainer, on data sets of any kind and over several processes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import EvalPrediction
from transformers.trainer_pt_utils import EvalLoopContainer, IterableDatasetShard, find_batch_size, nested_detach
from transformers.trainer_utils import (
    EvalLoopOutput,
    PredictionOutput,
    denumpify_detensorize,
    has_length,
    speed_metrics,
)

from headstart.drop_in.attributes import library_logger
from headstart.drop_in.losses import Losses, takes_argument
from headstart.drop_in.stream_plan import num_rows_of, part_of_batch

__all__ = ["Evaluation"]

logger = logging.getLogger(__name__)

_PADDING = -100


class Evaluation(Losses):
    """Computes predictions, the mean loss, and the user's metrics."""

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate the model as it is.

        Args:
            eval_dataset: instead of the Trainer's own; several in a dict, each of which puts its name before its
                metrics.
            ignore_keys: outputs of the model that are no predictions.
            metric_key_prefix: stands before the name of each metric.

        Returns:
            The loss, what `compute_metrics` gave, the time it took, and the epoch.
        """
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(datasets, dict):
            all_metrics: dict[str, float] = {}
            for name, dataset in datasets.items():
                all_metrics |= self.evaluate(
                    dataset if eval_dataset is not None else name, ignore_keys, f"{metric_key_prefix}_{name}"
                )
            return all_metrics
        self._memory_tracker.start()
        started = time.time()
        output = self.evaluation_loop(
            self.get_eval_dataloader(eval_dataset),
            "Evaluation",
            # Without metrics nothing reads the predictions.
            prediction_loss_only=True if self.compute_metrics is None else None,
            ignore_keys=ignore_keys,
            metric_key_prefix=metric_key_prefix,
        )
        self._add_speed(output, started, metric_key_prefix)
        metrics = output.metrics or {}
        if not self.is_in_train:
            self._end_evaluation_workers()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Predict a data set.

        Args:
            test_dataset: with labels or without.
            ignore_keys: outputs of the model that are no predictions.
            metric_key_prefix: stands before the name of each metric.

        Returns:
            Predictions and labels as arrays, rows in the order of the data set; shorter rows are padded with -100.
            Metrics where there are labels.
        """
        self._memory_tracker.start()
        started = time.time()
        output = self.evaluation_loop(
            self.get_test_dataloader(test_dataset),
            "Prediction",
            ignore_keys=ignore_keys,
            metric_key_prefix=metric_key_prefix,
        )
        self._add_speed(output, started, metric_key_prefix)
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, output.metrics)
        self._memory_tracker.stop_and_update_metrics(output.metrics)
        return PredictionOutput(output.predictions, output.label_ids, output.metrics)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Go through a DataLoader; shared by `evaluate` and `predict`.

        Args:
            dataloader: of this process.
            description: "Evaluation" or "Prediction".
            prediction_loss_only: keep no predictions.
            ignore_keys: outputs of the model that are no predictions.
            metric_key_prefix: stands before the name of each metric.
        """
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        model = self._model_for_evaluation()
        self.callback_handler.eval_dataloader = dataloader
        library_logger.info(f"\n***** Running {description} *****")
        num_examples = self.num_examples(dataloader) if has_length(dataloader) else "unknown"
        library_logger.info(f"  Num examples = {num_examples}")
        library_logger.info(f"  Batch size = {self.args.eval_batch_size}")
        kept = _Kept(self, is_prediction=description == "Prediction")
        every = self.args.eval_accumulation_steps
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a number when it begins
            for index, inputs in enumerate(dataloader):
                losses, logits, labels = self.prediction_step(model, inputs, loss_only, ignore_keys=ignore_keys)
                if self.args.world_size > 1 and losses is not None:
                    losses = self._loss_of_own_rows(model, inputs, losses, dataloader)
                kept.add(inputs, losses, logits, labels)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
                if every is not None and (index + 1) % every == 0:
                    kept.to_numpy()
        self.gather_function = self.accelerator.gather_for_metrics
        num_samples = self._count_rows(dataloader, kept.num_rows)
        metrics = kept.metrics(metric_key_prefix)
        return EvalLoopOutput(kept.predictions, kept.label_ids, metrics, num_samples)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Compute the loss and the predictions of a batch.

        Args:
            model: in evaluation mode.
            inputs: as collated.
            prediction_loss_only: give no predictions.
            ignore_keys: outputs of the model that are no predictions; None takes its configuration's.

        Returns:
            Loss, logits and labels, each None where there is none.
        """
        has_labels = bool(self.label_names) and all(inputs.get(name) is not None for name in self.label_names)
        return_loss = inputs.get("return_loss")
        gives_loss = not self.label_names and (self.can_return_loss if return_loss is None else return_loss)
        inputs = self._prepare_inputs(inputs)
        ignored = ignore_keys
        if ignored is None:
            ignored = getattr(getattr(self.model, "config", None), "keys_to_ignore_at_inference", ["past_key_values"])
        loss = labels = None
        if has_labels or gives_loss:
            labels = nested_detach(tuple(inputs.get(name) for name in self.label_names))
            labels = labels[0] if len(labels) == 1 else labels
        with torch.no_grad(), self.compute_loss_context_manager():
            if has_labels or gives_loss:
                # A loss of the user's own may divide by it; that of a model is a mean without it.
                is_own = self._is_overridden("compute_loss") or self.compute_loss_func is not None
                takes_count = is_own and takes_argument(self.compute_loss, "num_items_in_batch")
                given = {"num_items_in_batch": self._as_count(self._count_targets(inputs))} if takes_count else {}
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True, **given)
                loss = loss.detach().mean().float()
                without_loss = [*ignored, "loss"]
            else:
                outputs, without_loss = model(**inputs), ignored
        if prediction_loss_only:
            return loss, None, None
        if isinstance(outputs, Mapping):
            logits: Any = tuple(value for name, value in outputs.items() if name not in without_loss)
        else:
            logits = outputs[1:] if loss is not None else outputs
        logits = _float32(nested_detach(logits))
        return loss, logits[0] if len(logits) == 1 else logits, labels

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write numbers to the history and hand them to the callbacks.

        Args:
            logs: by name; gets the epoch.
            start_time: of the training, for the tokens a second.
        """
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        if self.args.include_num_input_tokens_seen != "no":
            logs["num_input_tokens_seen"] = self.state.num_input_tokens_seen
            if start_time is not None:
                tokens = self.state.num_input_tokens_seen - self._tokens_before
                logs |= speed_metrics("train", start_time, num_tokens=tokens)
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    _tokens_before = 0  # seen before this call of train

    def _model_for_evaluation(self) -> Any:
        model = self.model
        if not self.is_in_train:
            if not self._is_prepared:
                started = time.time()
                if self._may_move_model:
                    model = model.to(self.args.device)
                self.model_preparation_time = round(time.time() - started, 4)
                self._is_prepared = True
            if self.args.bf16_full_eval:
                model = model.to(dtype=torch.bfloat16, device=self.args.device)
        model.eval()
        if callable(getattr(self.optimizer, "eval", None)):
            self.optimizer.eval()
        return model

    def _loss_of_own_rows(self, model: Any, inputs: Any, loss: torch.Tensor, dataloader: DataLoader[Any]) -> Any:
        """Give the mean loss of a batch without the rows that accelerate repeats to fill the last one.

        Repeated rows are the last ones of a batch, and fall away where predictions are gathered.
        """
        progress, size = self.accelerator.gradient_state, self.args.eval_batch_size
        is_stream = isinstance(dataloader.dataset, torch.utils.data.IterableDataset)
        if is_stream or not progress.end_of_dataloader or progress.remainder <= 0:
            return loss
        own = min(size, max(0, progress.remainder - self.args.process_index * size))
        num_rows = num_rows_of(inputs)
        if not 0 < own < num_rows:
            return loss
        return self.prediction_step(model, part_of_batch(inputs, 0, own, num_rows), prediction_loss_only=True)[0]

    def _add_speed(self, output: EvalLoopOutput, started: float, prefix: str) -> None:
        assert output.metrics is not None and output.num_samples is not None
        started += output.metrics.get(f"{prefix}_model_preparation_time", 0.0)
        rows_at_once = self.args.eval_batch_size * self.args.world_size
        num_steps = math.ceil(output.num_samples / rows_at_once)
        output.metrics.update(speed_metrics(prefix, started, num_samples=output.num_samples, num_steps=num_steps))

    def _count_rows(self, dataloader: DataLoader[Any], seen: int) -> int:
        dataset = getattr(dataloader, "dataset", None)
        if has_length(dataset):
            return len(dataset) or seen
        if isinstance(dataset, IterableDatasetShard) and getattr(dataset, "num_examples", 0) > 0:
            return dataset.num_examples
        return (self.num_examples(dataloader) if has_length(dataloader) else 0) or seen


class _Kept:
    """What is kept of an evaluation: losses, predictions, labels, and the inputs where metrics want them."""

    def __init__(self, trainer: Evaluation, *, is_prediction: bool) -> None:
        self._trainer = trainer
        self._args = trainer.args
        self._is_prediction = is_prediction
        concatenates = self._args.eval_do_concat_batches
        self._losses, self._predictions, self._labels, self._inputs = (
            EvalLoopContainer(concatenates, padding_index=_PADDING) for _ in range(4)
        )
        self._by_batch: dict[str, Any] | None = None  # what compute_metrics gave for batches
        self.num_rows = 0
        self.predictions: Any = None
        self.label_ids: Any = None

    def add(self, inputs: dict[str, Any], losses: Any, logits: Any, labels: Any) -> None:
        """Take in a batch; what all processes have is put together."""
        trainer, args = self._trainer, self._args
        num_rows = find_batch_size(inputs)
        self.num_rows += num_rows or 0
        keeps = self._is_prediction or not args.batch_eval_metrics
        if losses is not None:
            # Each row counts, so that the mean over batches is one over rows; surplus rows fall away in gathering.
            losses = trainer.gather_function(losses.repeat(args.eval_batch_size or num_rows or 1))
            self._losses.add(losses)
        if "inputs" in args.include_for_metrics:
            name = getattr(trainer.model, "main_input_name", "input_ids")
            decoded = trainer.gather_function(self._padded(trainer._prepare_input(inputs[name])))
            if keeps:
                self._inputs.add(decoded)
        labels = self._padded(labels) if labels is not None else None
        if logits is not None:
            logits = self._padded(logits)
            if trainer.preprocess_logits_for_metrics is not None:
                logits = trainer.preprocess_logits_for_metrics(logits, labels)
            logits = trainer.gather_function(logits)
            if keeps:
                self._predictions.add(logits)
        if labels is not None:
            labels = trainer.gather_function(labels)
            if keeps:
                self._labels.add(labels)
        if args.batch_eval_metrics and trainer.compute_metrics is not None and None not in (_is(logits), _is(labels)):
            self._by_batch = trainer.compute_metrics(
                EvalPrediction(
                    predictions=logits,
                    label_ids=labels,
                    losses=losses if "loss" in args.include_for_metrics else None,
                    inputs=inputs if "inputs" in args.include_for_metrics else None,  # type: ignore[arg-type]
                ),
                compute_result=trainer.accelerator.gradient_state.end_of_dataloader,
            )

    def to_numpy(self) -> None:
        """Move what has gathered on the device to arrays."""
        for container in (self._losses, self._predictions, self._labels, self._inputs):
            container.to_cpu_and_numpy()

    def metrics(self, prefix: str) -> dict[str, float]:
        """Compute the user's metrics and the mean loss; each name begins with the prefix."""
        trainer, args = self._trainer, self._args
        losses, inputs = self._losses.get_arrays(), self._inputs.get_arrays()
        self.predictions, self.label_ids = self._predictions.get_arrays(), self._labels.get_arrays()
        found = self._by_batch or {}
        if (
            trainer.compute_metrics is not None
            and self.predictions is not None
            and self.label_ids is not None
            and not args.batch_eval_metrics
        ):
            found = trainer.compute_metrics(
                EvalPrediction(
                    predictions=self.predictions,
                    label_ids=self.label_ids,
                    losses=losses if "loss" in args.include_for_metrics else None,
                    inputs=inputs if "inputs" in args.include_for_metrics else None,
                )
            )
        metrics: dict[str, float] = denumpify_detensorize(found)
        if isinstance(losses, list) and losses:
            losses = np.concatenate(losses)
        if isinstance(losses, np.ndarray):
            finite = np.isfinite(losses)
            if args.logging_nan_inf_filter and finite.any() and not finite.all():
                logger.warning("%s_loss leaves out %d of %d rows whose loss is not finite", prefix, *_counts(finite))
                losses = losses[finite]
            metrics[f"{prefix}_loss"] = losses.mean().item()
        if hasattr(trainer, "model_preparation_time"):
            metrics[f"{prefix}_model_preparation_time"] = trainer.model_preparation_time
        for name in list(metrics):
            if not name.startswith(f"{prefix}_"):
                metrics[f"{prefix}_{name}"] = metrics.pop(name)
        return metrics

    def _padded(self, tensors: Any) -> Any:
        return self._trainer.accelerator.pad_across_processes(tensors, dim=1, pad_index=_PADDING)


def _counts(finite: np.ndarray) -> tuple[int, int]:
    return int((~finite).sum()), len(finite)


def _is(value: Any) -> bool | None:
    return None if value is None else True


def _float32(tensors: Any) -> Any:
    """Give 16-bit numbers 32 bits: NumPy knows no bfloat16."""
    if isinstance(tensors, list | tuple):
        return type(tensors)(_float32(tensor) for tensor in tensors)
    if isinstance(tensors, Mapping):
        return type(tensors)({name: _float32(tensor) for name, tensor in tensors.items()})  # type: ignore[call-arg]
    is_short = isinstance(tensors, torch.Tensor) and tensors.dtype in (torch.float16, torch.bfloat16)
    return tensors.float() if is_short else tensors
