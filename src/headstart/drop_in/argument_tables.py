"""What headstart's Trainer does with each field of `transformers.TrainingArguments`.

Imports the standard library only. A field stands in exactly one table:

    HONOURED    does what it does in transformers; a `Limit` where some values are refused
    HARMLESS    has no effect here, and why; set away from its default, it is said in one line
    REFUSED     set to anything but nothing, it stops the training before it starts; what to use instead

The fields of `accelerator_config` and of `Seq2SeqTrainingArguments` have tables of their own. Tests compare all of them
with the installed transformers, so that a field that a new release adds is decided before a user meets it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "ACCELERATOR_HARMLESS",
    "ACCELERATOR_REFUSED",
    "HARMLESS",
    "HONOURED",
    "REFUSED",
    "SEQ2SEQ_REFUSED",
    "Limit",
    "plain",
]


@dataclass(frozen=True)
class Limit:
    """Which values of a field are honoured.

    Args:
        accepts: says so of a value.
        instead: what to use in place of the others.
        choices: the names that exist, where the nearest one can be offered.
    """

    accepts: Callable[[Any], bool]
    instead: str
    choices: Sequence[str] = ()


def plain(value: Any) -> Any:
    """Give the value of an enumeration's member, and everything else as it is.

    Example:
        >>> plain("steps")
        'steps'
    """
    return getattr(value, "value", value)


def _is_one_machine() -> bool:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return int(os.environ.get("LOCAL_WORLD_SIZE", processes)) == processes


# They make the update inside the backward pass, one parameter at a time.
_FUSED_WITH_BACKWARD = (
    "lomo",
    "adalomo",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "apollo_adamw_layerwise",
)
_SAMPLING = ("random", "sequential", "group_by_length")
_BACKENDS = ("gloo", "nccl")
_FOR_METRICS = ("inputs", "loss")

HONOURED: dict[str, Limit | None] = {
    # How long, and how large an update is
    "output_dir": None,
    "per_device_train_batch_size": None,
    "gradient_accumulation_steps": None,
    "num_train_epochs": None,
    "max_steps": None,
    # Learning rate and optimizer
    "learning_rate": None,
    "lr_scheduler_type": None,
    "lr_scheduler_kwargs": None,
    "warmup_steps": None,
    "optim": Limit(
        lambda value: plain(value) not in _FUSED_WITH_BACKWARD,
        "this optimizer makes the update inside the backward pass, before the gradients are whole. Take the same "
        "method without the layers (galore_adamw, apollo_adamw), adafactor, or adamw_torch",
    ),
    "optim_args": None,
    "optim_target_modules": None,
    "weight_decay": None,
    "adam_beta1": None,
    "adam_beta2": None,
    "adam_epsilon": None,
    "max_grad_norm": None,
    "label_smoothing_factor": None,
    "neftune_noise_alpha": None,
    # Precision and memory
    "bf16": None,
    "bf16_full_eval": None,
    "tf32": None,
    "activation_checkpointing": None,
    "activation_checkpointing_kwargs": None,
    "gradient_checkpointing": None,
    "gradient_checkpointing_kwargs": None,
    "use_cache": None,
    # Logs and trackers
    "logging_strategy": None,
    "logging_steps": None,
    "logging_first_step": None,
    # In training a loss that is not finite stops before it is logged; in evaluation the field decides.
    "logging_nan_inf_filter": None,
    "log_on_each_node": None,
    "include_num_input_tokens_seen": None,
    "log_level": None,
    "log_level_replica": None,
    "disable_tqdm": None,
    "report_to": None,
    "run_name": None,
    "project": None,
    "trackio_space_id": None,
    "trackio_bucket_id": None,
    "trackio_static_space_id": None,
    "skip_memory_metrics": None,
    # Evaluation
    "eval_strategy": None,
    "eval_steps": None,
    "eval_delay": None,
    "eval_on_start": None,
    "per_device_eval_batch_size": None,
    "prediction_loss_only": None,
    "eval_do_concat_batches": None,
    "eval_use_gather_object": None,
    "eval_accumulation_steps": None,
    "include_for_metrics": Limit(
        lambda value: all(name in _FOR_METRICS for name in value),
        'name what the metrics get besides predictions and labels: "inputs", "loss" or both',
    ),
    "batch_eval_metrics": None,
    "label_names": None,
    # Checkpoints
    "save_strategy": None,
    "save_steps": None,
    "save_total_limit": None,
    "save_only_model": None,
    "save_on_each_node": Limit(
        lambda value: not value or _is_one_machine(),
        "process 0 writes every checkpoint. Give all machines one shared folder as output_dir",
    ),
    "load_best_model_at_end": None,
    "metric_for_best_model": None,
    "greater_is_better": None,
    "restore_callback_states_from_checkpoint": None,
    # A resumed training finds its place without reading the rows before it; a stream is replayed unless this says no.
    "ignore_data_skip": None,
    # The hub
    "push_to_hub": None,
    "hub_token": None,
    "hub_private_repo": None,
    "hub_model_id": None,
    "hub_strategy": None,
    "hub_always_push": None,
    "hub_revision": None,
    # Randomness and data
    "seed": None,
    "data_seed": None,
    "full_determinism": None,
    "train_sampling_strategy": Limit(
        lambda value: value in _SAMPLING,
        'take "group_by_length" for batches of rows of like length, "random", or "sequential"',
        _SAMPLING,
    ),
    "length_column_name": None,
    "remove_unused_columns": None,
    "dataloader_drop_last": None,
    "dataloader_num_workers": None,
    "dataloader_pin_memory": None,
    "dataloader_persistent_workers": None,
    "dataloader_prefetch_factor": None,
    "dataloader_multiprocessing_context": None,
    "dataloader_in_order": None,
    # Devices and processes: TrainingArguments joins the processes itself.
    "use_cpu": None,
    "accelerator_config": None,  # its fields have tables of their own, below
    "ddp_backend": Limit(
        lambda value: value is None or value in _BACKENDS,
        "take gloo (CPU) or nccl (GPU), or leave it out",
        _BACKENDS,
    ),
    "ddp_timeout": None,
    # As in transformers, the Trainer reads none of these; scripts do.
    "do_train": None,
    "do_eval": None,
    "do_predict": None,
    "resume_from_checkpoint": None,
    "local_rank": None,
}

_NO_WRAPPER = "gradients are summed over the processes after the backward pass, without DistributedDataParallel"

HARMLESS: dict[str, str] = {
    "auto_find_batch_size": "where a batch does not fit into memory, it is split and the update stays the same",
    "torch_empty_cache_steps": "where memory runs out, the batch is split instead",
    "average_tokens_across_devices": "the loss of an update is always divided by the targets of all processes together",
    "enable_jit_checkpoint": "SIGTERM always finishes the step, saves and ends the training",
    "ddp_find_unused_parameters": _NO_WRAPPER,
    "ddp_bucket_cap_mb": _NO_WRAPPER,
    "ddp_static_graph": _NO_WRAPPER,
    "ddp_broadcast_buffers": "each process keeps its own buffers, and those of process 0 are saved",
    "fsdp_config": "it belongs to fsdp, which is not set",
    "liger_kernel_config": "it belongs to use_liger_kernel, which is not set",
}

_NO_COMPILING = "models are not compiled. Leave it out"
_NO_SHARDING = "each process holds the whole model. Leave it out and start the script with torchrun"

REFUSED: dict[str, str] = {
    "fp16": "float16 would need its loss scaled. Set bf16=True, or leave both out for float32",
    "fp16_full_eval": "set bf16_full_eval=True, or leave both out",
    "torch_compile": _NO_COMPILING,
    "torch_compile_backend": _NO_COMPILING,
    "torch_compile_mode": _NO_COMPILING,
    "use_liger_kernel": "the kernels of Liger are not used. Leave it out",
    "parallelism_config": _NO_SHARDING,
    "fsdp": _NO_SHARDING,
    "deepspeed": _NO_SHARDING,
    "debug": "leave it out. A loss or gradient that is not finite stops the training and names its rows",
}

ACCELERATOR_HARMLESS: dict[str, str] = {
    "dispatch_batches": "each process makes its own part of an update",
    "even_batches": "an epoch has each row once, and no row is repeated to fill the last batch",
    "use_seedable_sampler": "the order of the rows is always a function of the seed",
    "non_blocking": "it changes how tensors travel to the GPU, and no number",
    "use_configured_state": "TrainingArguments has read it already",
}

ACCELERATOR_REFUSED: dict[str, str] = {
    "split_batches": "set per_device_train_batch_size to the rows that one process gets",
    "gradient_accumulation_kwargs": "set gradient_accumulation_steps",
}

SEQ2SEQ_REFUSED: dict[str, str] = {
    "sortish_sampler": 'set train_sampling_strategy="group_by_length"',
    "predict_with_generate": "generate with model.generate after the training",
    "generation_max_length": "give max_length to model.generate",
    "generation_num_beams": "give num_beams to model.generate",
    "generation_config": "give it to model.generate",
}
