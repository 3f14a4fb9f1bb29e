"""How a Trainer takes a model: on its device, looked at for what it takes and gives."""

from __future__ import annotations

import inspect
import logging
from typing import Any, Literal

import torch
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.trainer_pt_utils import LabelSmoother
from transformers.trainer_utils import unwrap_peft_model, validate_quantization_for_training
from transformers.utils.generic import can_return_loss, find_labels

from headstart.drop_in.attributes import library_logger
from headstart.drop_in.hub_and_search import HubAndSearch
from headstart.drop_in.orders import FastOrder
from headstart.errors import ModelError, RecipeError
from headstart.models.dropout import recompute_contexts
from headstart.models.hardware import has_fast_bfloat16
from headstart.training.device import Device, make_accelerator
from headstart.training.fast_path import FastPath, describe_parts, must_compile_kernels, take_over

__all__ = ["ModelIntake"]

logger = logging.getLogger(__name__)


class ModelIntake(HubAndSearch):
    """Takes models, and chooses where and how they compute."""

    _fast: FastPath | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """Make the Accelerator that scripts use, and choose device and precision."""
        args = self.args
        if args.n_gpu > 1:
            args._n_gpu = 1  # so that a batch is that of one GPU; check_arguments has said it
        self.accelerator = make_accelerator(args.mixed_precision)
        self.gather_function = self.accelerator.gather_for_metrics
        device = args.device
        fast = self._mode == "fast" and has_fast_bfloat16(device.type)
        chosen: Literal["bf16", "fp32"] = "bf16" if args.mixed_precision == "bf16" or fast else "fp32"
        self._device = Device(device, chosen, torch.get_num_threads())

    def _take_model(self, model: Any, *, anew: bool = False) -> None:
        if model is None:
            if self.model_init is None:
                raise ModelError("Trainer has no model.", "model or model_init.", "Give it one of them.")
            model = self.call_model_init()
        elif self.model_init is not None and not anew:
            raise ModelError("Trainer got model and model_init.", "one of them.", "Leave one out.")
        bare = [
            name for names in MODEL_MAPPING_NAMES.values() for name in ([names] if isinstance(names, str) else names)
        ]
        takes_labels = find_labels(type(model)) or can_return_loss(type(model))
        if type(model).__name__ in bare and not takes_labels:
            raise ModelError(
                f"{type(model).__name__} has no head: it gives hidden states, and takes no labels.",
                "a model with a head for the task.",
                "Load it with AutoModelForSequenceClassification, or another AutoModelFor... class.",
            )
        validate_quantization_for_training(model)
        self.model = self.model_wrapped = model
        # For evaluation in 16 bits it is moved and cast at once, later.
        self.place_model_on_device = self._may_move_model and not self.args.bf16_full_eval
        if self.place_model_on_device:
            model.to(self.args.device)

    def _look_at_model(self) -> None:
        model = unwrap_peft_model(self.model)
        if hasattr(model, "accepts_loss_kwargs"):
            self.model_accepts_loss_kwargs = bool(model.accepts_loss_kwargs)
        else:
            parameters = inspect.signature(model.forward).parameters.values()
            self.model_accepts_loss_kwargs = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
        names = self.args.label_names
        self.label_names = find_labels(type(model)) if names is None else names
        self.can_return_loss = can_return_loss(type(model))
        config = getattr(model, "config", None)
        kind = getattr(model, "loss_type", None)
        # A class whose name does not tell its loss has the one of language models by default.
        is_causal = LOSS_MAPPING.get(kind or "") is ForCausalLMLoss or (
            kind is None and type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        )
        self._loss_shifts_labels = is_causal and not getattr(config, "is_encoder_decoder", False)
        self.label_smoother = None
        if self.args.label_smoothing_factor != 0:
            if getattr(config, "problem_type", None) == "multi_label_classification":
                raise RecipeError(
                    "label_smoothing_factor is set, and the model has several labels a row.",
                    "one label a row.",
                    "Leave label_smoothing_factor out.",
                )
            self.label_smoother = LabelSmoother(epsilon=self.args.label_smoothing_factor)

    def _start_fast_path(self, dataloader: Any, *, keeps_optimizer: bool) -> None:
        """Let model and optimizer compute by the fast path's parts, where it is asked for.

        Args:
            dataloader: of the training; where padding costs nothing, the order of its rows is as Trainer's.
            keeps_optimizer: whether somebody else may hold it.
        """
        if self._mode != "fast":
            return
        args = self.args
        adds = args.gradient_accumulation_steps > 1 or args.world_size > 1
        if must_compile_kernels(self._device, lambda name: True):
            library_logger.info("headstart: making the kernels for this processor (once, up to half a minute)")
        why_not = "the optimizer was handed in" if keeps_optimizer else ""
        self._fast = take_over(self.model, self.optimizer, self._device, why_not=why_not, adds_gradients=adds)
        self.optimizer = self._fast.optimizer
        order = getattr(dataloader, "batch_sampler", None)
        if isinstance(order, FastOrder):
            tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
            pads_right = getattr(tokenizer, "padding_side", "right") == "right"
            order.is_shuffled = self._fast.leaves_padding_out and pads_right
        for part, words in describe_parts(self._fast.parts).items():
            library_logger.info("headstart, %s: %s", part, words)

    def _end_fast_path(self) -> None:
        """Leave the model as an ordinary one."""
        if self._fast is not None:
            self._fast.undo()
            self._fast = None

    def _checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass, with the same dropout."""
        if not self.args.activation_checkpointing:
            return
        given: Any = self.args.activation_checkpointing_kwargs or {}
        options = dict(given)
        if options.pop("use_reentrant", False):
            logger.warning("activation checkpointing: use_reentrant=False is used, which draws the same dropout again")
        own = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
        options |= {"use_reentrant": False, "context_fn": recompute_contexts}
        if hasattr(self.model, "activation_checkpointing_enable"):
            self.model.activation_checkpointing_enable(activation_checkpointing_kwargs=options, **own)
        elif hasattr(self.model, "gradient_checkpointing_enable"):
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options, **own)
        else:
            raise ModelError(
                f"activation_checkpointing: {type(self.model).__name__} does not have it.",
                "a method activation_checkpointing_enable, as models of transformers have.",
                "Leave activation_checkpointing out.",
            )
