"""What a Trainer knows of itself: the attributes that scripts, callbacks and transformers' own functions read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerControl, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_pt_utils import LabelSmoother
from transformers.trainer_utils import TrainerMemoryTracker
from transformers.utils import logging as transformers_logging

from headstart.training.device import Device

__all__ = ["TrainerAttributes", "library_logger"]

library_logger = transformers_logging.get_logger("transformers.headstart")
"""For lines that `log_level` of the arguments shows or hides, as it does those of transformers."""


class TrainerAttributes:
    """Names and types of the attributes; `Trainer.__init__` sets them.

    The names are transformers', because scripts and callbacks use them.
    """

    args: TrainingArguments
    model: Any
    model_wrapped: Any
    model_init: Callable[..., PreTrainedModel] | None
    data_collator: Any
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any
    compute_loss_func: Callable[..., Any] | None
    compute_metrics: Callable[..., dict[str, Any]] | None
    preprocess_logits_for_metrics: Callable[..., Any] | None
    optimizer: Any
    lr_scheduler: Any
    optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None
    callback_handler: CallbackHandler
    state: Any  # a TrainerState, most of whose fields become something else than they are declared to be
    control: TrainerControl
    accelerator: Any
    label_names: list[str]
    label_smoother: LabelSmoother | None
    can_return_loss: bool
    model_accepts_loss_kwargs: bool
    is_in_train: bool
    current_flos: float
    current_gradient_accumulation_steps: int
    place_model_on_device: bool = True
    hub_model_id: str | None
    hp_name: Callable[..., str] | None
    hp_search_backend: Any
    objective: Any
    model_preparation_time: float
    gather_function: Callable[..., Any]

    loss_is_scaled_for_ga: bool | None = None
    """Set in a subclass: whether its own `compute_loss` has divided by the targets of the whole update."""

    # What transformers' functions ask for, and headstart's Trainer never is.
    deepspeed = None
    is_deepspeed_enabled = False
    is_fsdp_enabled = False
    is_fsdp_xla_enabled = False
    is_model_parallel = False

    _device: Device
    _mode: str | None
    _memory_tracker: TrainerMemoryTracker
    _signature_columns: list[str] | None
    _train_batch_size: int
    _created_lr_scheduler: bool
    _loss_shifts_labels: bool
    _trial: Any
    _training: Any  # the one that runs, or ran last
    _evaluation_loaders: dict[str, tuple[Any, Any]]
    _groups_at_start: list[dict[str, bool | int | float]]
    _is_prepared: bool = False  # whether the first training or evaluation has begun

    @property
    def _may_move_model(self) -> bool:
        """Whether the model is not spread over devices already, and no subclass keeps it where it is."""
        return getattr(self.model, "hf_device_map", None) is None and type(self).place_model_on_device

    @property
    def _output_dir(self) -> str:
        return str(self.args.output_dir)

    def is_local_process_zero(self) -> bool:
        """Say whether this is the first process of its machine."""
        return bool(self.args.local_process_index == 0)

    def is_world_process_zero(self) -> bool:
        """Say whether this is the first process of all."""
        return bool(self.args.process_index == 0)
