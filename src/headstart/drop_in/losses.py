"""The loss of a Trainer, and how it enters the update.

headstart's loop sums the losses of an update over its targets and divides by their number. `compute_loss` gives a share
of that; one of the user's own gives a mean of its micro-batch, unless it uses the number of targets that it is handed.
"""

from __future__ import annotations

import contextlib
import dis
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_utils import unwrap_peft_model

from headstart.drop_in.dataloaders import DataLoaders
from headstart.errors import DataError, ModelError

__all__ = ["Losses", "takes_argument", "uses_argument"]

_COUNT = "num_items_in_batch"


class Losses(DataLoaders):
    """Computes losses; `compute_loss` and `training_step` are there to be overridden."""

    _num_targets: int | None = None  # of the update that is being computed; micro-batches, where means are added

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the loss of a batch.

        Args:
            model: called with the inputs.
            inputs: of the forward pass, on its device; with `labels`.
            return_outputs: give the outputs, too.
            num_items_in_batch: targets of the whole update. The result is then this batch's share of the update's
                loss: (sum over its targets) / (targets of the update). None gives the mean of the batch.

        Returns:
            The loss, or (loss, outputs).

        Raises:
            ModelError: the outputs hold no loss.
        """
        inputs = dict(inputs)
        own_targets = self._count_targets(inputs)
        is_divided = num_items_in_batch is None
        labels = None
        if self.label_smoother is not None or self.compute_loss_func is not None:
            labels = inputs.pop("labels", None)
        outputs = model(**inputs)
        if self.compute_loss_func is not None:
            loss = self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
            is_divided |= uses_argument(self.compute_loss_func, _COUNT)
        elif labels is not None:
            assert self.label_smoother is not None
            name = type(unwrap_peft_model(model)).__name__
            shifts = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
            loss = self.label_smoother(outputs, labels, shift_labels=shifts)
        elif isinstance(outputs, Mapping) and "loss" not in outputs:
            raise ModelError(
                f"{type(model).__name__} gave no loss, but {', '.join(outputs)}, for {', '.join(inputs)}.",
                f"a loss, which models compute when they are given {' or '.join(self.label_names) or 'labels'}.",
                "Look at the columns of the data set; or override compute_loss.",
            )
        else:
            loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]
        if not is_divided and num_items_in_batch is not None:
            # A mean over this batch's targets becomes its part of the mean over all of them. Over none it is NaN.
            loss = torch.where(torch.as_tensor(own_targets, device=loss.device) > 0, loss, 0.0)
            loss = loss * (own_targets / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Compute the loss of a micro-batch and add its gradients; for methods that override this one.

        Args:
            model: in training mode.
            inputs: of the forward pass.
            num_items_in_batch: targets of the whole update; see `compute_loss`.

        Returns:
            The share of the loss, without a graph.
        """
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self._own_loss(model, inputs, num_items_in_batch)
        with torch.autocast(self._device.torch_device.type, enabled=False):
            loss.backward()
        share: torch.Tensor = loss.detach()
        return share

    def compute_loss_context_manager(self) -> contextlib.AbstractContextManager[Any]:
        """Give the context of a forward pass: the precision of the arguments."""
        return self._device.autocast()

    def autocast_smart_context_manager(
        self, cache_enabled: bool | None = True
    ) -> contextlib.AbstractContextManager[Any]:
        """Give the same context under its older name."""
        return self._device.autocast()

    def micro_batch(
        self, model: torch.nn.Module, batch: Mapping[str, Any], num_targets: int
    ) -> tuple[torch.Tensor, int]:
        """Compute the share of a micro-batch in the update's loss, for headstart's loop; see `LoopParts.micro_batch`.

        Args:
            model: in training mode.
            batch: as collated.
            num_targets: of the whole update: targets; or micro-batches, where `compute_loss` was overridden by a mean.
        """
        own_targets = self.count_targets(batch)
        self._num_targets = num_targets
        try:
            if not self._is_overridden("training_step"):
                return self._own_loss(model, self._prepare_inputs(dict(batch)), None), own_targets
            # Its own backward pass adds the gradients: the loop's adds nothing.
            count = self._count_targets(batch) if self.takes_mean_of_means else num_targets
            given = {_COUNT: self._as_count(count)} if takes_argument(self.training_step, _COUNT) else {}
            loss = self.training_step(model, dict(batch), **given)
            return loss.detach().requires_grad_(), own_targets
        finally:
            self._num_targets = None

    def count_targets(self, batch: Mapping[str, Any]) -> int:
        """Count the targets of a batch; 1 where the loss is a mean of its micro-batch."""
        return 1 if self.takes_mean_of_means else int(self._count_targets(batch))

    @property
    def takes_mean_of_means(self) -> bool:
        """Whether each micro-batch of an update counts alike, as with Trainer: its own `compute_loss` gives a mean."""
        if self.loss_is_scaled_for_ga is not None:
            return not self.loss_is_scaled_for_ga
        return self._is_overridden("compute_loss") and not uses_argument(self.compute_loss, _COUNT)

    def _own_loss(self, model: torch.nn.Module, inputs: dict[str, Any], count: torch.Tensor | int | None) -> Any:
        """Compute the share of a batch in the update: by its targets, or as one of so many means.

        Outside of an update, and without a count, it is the mean of the batch.
        """
        takes_count = takes_argument(self.compute_loss, _COUNT)
        if self.takes_mean_of_means:
            # It may be handed the count without using it: then the batch is an update of its own.
            given: dict[str, Any] = {_COUNT: self._as_count(self._count_targets(inputs))} if takes_count else {}
            return self.compute_loss(model, inputs, **given) / (self._num_targets or 1)
        if count is None and self._num_targets is not None:
            count = self._as_count(self._num_targets)
        given = {_COUNT: count} if takes_count else {}
        return self.compute_loss(model, inputs, **given)

    def _is_overridden(self, name: str) -> bool:
        return getattr(getattr(self, name), "__func__", None) is not getattr(Losses, name)

    def _as_count(self, number: torch.Tensor | int) -> torch.Tensor:
        """Give a number of targets as something to divide by."""
        return torch.as_tensor(number, device=self._device.torch_device).clamp(min=1)

    def _count_targets(self, batch: Mapping[str, Any]) -> torch.Tensor | int:
        """Count the labels of a batch that are not -100; without labels of that kind, its rows."""
        labels = batch.get("shift_labels")
        if labels is None:
            labels = batch.get("labels")
            if isinstance(labels, torch.Tensor) and self._loss_shifts_labels and labels.ndim > 1:
                labels = labels[..., 1:]
        if isinstance(labels, torch.Tensor):
            return labels.ne(-100).sum()
        return next((len(value) for value in batch.values() if isinstance(value, torch.Tensor) and value.ndim), 1)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Put a batch on the device.

        Raises:
            DataError: the batch is empty.
        """
        if not len(inputs):
            raise DataError(
                "A batch is empty: no column of the data set is one that the model takes.",
                f"some of: {', '.join(self._signature_columns or [])}.",
                "Look at the columns of the data set and at remove_unused_columns.",
            )
        prepared: dict[str, Any] = self._prepare_input(inputs)
        return prepared

    def _prepare_input(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            return type(data)({name: self._prepare_input(value) for name, value in data.items()})  # type: ignore[call-arg]
        if isinstance(data, list | tuple):
            return type(data)(self._prepare_input(value) for value in data)
        return data.to(self.args.device) if isinstance(data, torch.Tensor) else data


def uses_argument(function: Callable[..., Any], name: str) -> bool:
    """Say whether a function does something with one of its arguments, or hands all its keywords on.

    Example:
        >>> def mean(outputs, labels, num_items_in_batch=None):
        ...     return outputs.mean()
        >>> uses_argument(mean, "num_items_in_batch")
        False
    """
    function = inspect.unwrap(getattr(function, "__func__", getattr(function, "func", function)))
    code = getattr(function, "__code__", None)
    if code is None:
        code = getattr(type(function).__call__, "__code__", None)
    if code is None:
        return True  # not written in Python: nothing is known
    names = {name}
    if code.co_flags & inspect.CO_VARKEYWORDS:
        index = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
        names.add(code.co_varnames[index])
    for instruction in dis.get_instructions(code):
        values = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        if (
            instruction.opname.startswith("LOAD")
            and "GLOBAL" not in instruction.opname
            and names & set(map(str, values))
        ):
            return True
    return False


def takes_argument(function: Callable[..., Any], name: str) -> bool:
    """Say whether a function can be given a keyword."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
