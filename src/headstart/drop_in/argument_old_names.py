"""The names that `TrainingArguments` had in transformers 3 and 4 and has no more.

Imports the standard library and `argument_tables`. Each old name is still taken, as a keyword and as a flag of
`transformers.HfArgumentParser`, and said in one line: what it is read as, or that it has no effect. Where leaving it
out would change the result, it is refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headstart.drop_in.argument_tables import plain

__all__ = ["OLD_NAMES", "OLD_VALUES", "Mirror", "OldArguments", "OldName", "mirror", "show"]


def _old(*, flag: bool = False) -> Any:
    """Make a field of an old name: hidden in a parser's help; a flag may stand alone."""
    metadata: dict[str, Any] = {"help": argparse.SUPPRESS}
    if flag:
        metadata |= {"nargs": "?", "const": True}
    return field(default=None, metadata=metadata)


@dataclass(repr=False)
class OldArguments:
    """The old names as fields, so that parsers and `dataclasses.replace` know them; None was not given."""

    evaluation_strategy: str | None = _old()
    evaluate_during_training: bool | None = _old(flag=True)
    per_gpu_train_batch_size: int | None = _old()
    per_gpu_eval_batch_size: int | None = _old()
    warmup_ratio: float | None = _old()
    group_by_length: bool | None = _old(flag=True)
    adafactor: bool | None = _old(flag=True)
    no_cuda: bool | None = _old(flag=True)
    xpu_backend: str | None = _old()
    include_inputs_for_metrics: bool | None = _old(flag=True)
    include_tokens_per_second: bool | None = _old(flag=True)
    dispatch_batches: bool | None = _old(flag=True)
    split_batches: bool | None = _old(flag=True)
    push_to_hub_token: str | None = _old()
    push_to_hub_model_id: str | None = _old()
    push_to_hub_organization: str | None = _old()
    torchdynamo: str | None = _old()
    overwrite_output_dir: bool | None = _old(flag=True)
    use_legacy_prediction_loop: bool | None = _old(flag=True)
    jit_mode_eval: bool | None = _old(flag=True)
    use_ipex: bool | None = _old(flag=True)
    use_mps_device: bool | None = _old(flag=True)
    fp16_backend: str | None = _old()
    half_precision_backend: str | None = _old()
    fp16_opt_level: str | None = _old()
    fsdp_min_num_params: int | None = _old()
    fsdp_transformer_layer_cls_to_wrap: str | None = _old()
    mp_parameters: str | None = _old()
    ray_scope: str | None = _old()
    tpu_num_cores: int | None = _old()
    tpu_metrics_debug: bool | None = _old(flag=True)
    past_index: int | None = _old()
    save_safetensors: bool | None = _old(flag=True)
    sharded_ddp: str | None = _old(flag=True)
    tp_size: int | None = _old()


class Mirror:
    """Marks a value that only lets a script read an old name, so that a copy of the arguments is not told it anew."""


class _TextMirror(str, Mirror):
    pass


class _IntMirror(int, Mirror):
    pass


class _FloatMirror(float, Mirror):
    pass


def mirror(value: Any) -> Any:
    """Give a value that reads like this one and is a `Mirror`; None and what is no text or number stay.

    Example:
        >>> mirror("epoch") == "epoch", isinstance(mirror(True), Mirror)
        (True, True)
    """
    value = plain(value)
    for kind, marked in ((str, _TextMirror), (int, _IntMirror), (float, _FloatMirror)):
        if isinstance(value, kind):
            return marked(value)
    return value


def show(name: str, value: Any) -> str:
    """Write a field as a user writes it, short, and without its value where that is a secret.

    Example:
        >>> show("hub_token", "hf_abc"), show("bf16", True)
        ('hub_token=...', 'bf16=True')
    """
    shown = [plain(part) for part in value] if isinstance(value, list) else plain(value)
    text = "..." if name.endswith("_token") else repr(shown)
    return f"{name}={text if len(text) <= 60 else text[:57] + '...'}"


@dataclass(frozen=True)
class OldName:
    """What becomes of one old name.

    Args:
        default: what reading it gives where it was not given.
        translate: its value and the arguments to the fields that say the same today; none where it asks for nothing.
        merges: it adds to what the new field says, and so cannot contradict it.
        idle: why it has no effect.
        is_refused: says of a value whether leaving it out would change the result.
        instead: what to use in place of a refused value.
        read: the arguments to what reading the name gives, where the new field tells.
    """

    default: Any = None
    translate: Callable[[Any, Any], dict[str, Any]] | None = None
    merges: bool = False
    idle: str = ""
    is_refused: Callable[[Any], bool] | None = None
    instead: str = ""
    read: Callable[[Any], Any] | None = None


def _renamed(new: str, read: Callable[[Any], Any] | None = None) -> OldName:
    return OldName(translate=lambda value, _: {new: value}, read=read)


def _flag(new: str, value: Any, read: Callable[[Any], Any] | None = None) -> OldName:
    """A switch that is one value of another field today."""
    return OldName(default=False, translate=lambda on, _: {new: value} if on else {}, read=read)


def _warmup(ratio: float, arguments: Any) -> dict[str, Any]:
    if not 0 <= ratio <= 1:
        raise ValueError("a share of the steps lies between 0 and 1")
    if arguments.warmup_steps or not ratio:
        return {}  # steps count before a ratio, as they always did
    # Today a number below 1 is the share; the one just below it, rounded up, is every step.
    return {"warmup_steps": min(float(ratio), 1 - 2**-53)}


def _hub_model_id(_: str, arguments: Any) -> dict[str, Any]:
    organization = arguments.push_to_hub_organization
    name = arguments.push_to_hub_model_id or Path(arguments.output_dir or "trainer_output").name
    return {"hub_model_id": f"{organization}/{name}" if organization else str(name)}


def _into_accelerator_config(name: str) -> OldName:
    def translate(value: Any, arguments: Any) -> dict[str, Any]:
        config = arguments.accelerator_config
        if config is not None and not isinstance(config, dict):
            raise ValueError(f"set {name} in accelerator_config")
        if config is not None and config.get(name, value) != value:
            raise ValueError(f"accelerator_config says {name}={config[name]!r}. Keep one")
        return {"accelerator_config": {**(config or {}), name: value}}

    return OldName(translate=translate, merges=True)


def _refused(default: Any, is_refused: Callable[[Any], bool], instead: str) -> OldName:
    return OldName(default=default, is_refused=is_refused, instead=instead)


def _idle(default: Any, reason: str) -> OldName:
    return OldName(default=default, idle=reason)


_APEX = "the half precision is PyTorch's own"
_FSDP = "it belongs to fsdp"

OLD_NAMES: dict[str, OldName] = {
    "evaluation_strategy": _renamed("eval_strategy", lambda arguments: arguments.eval_strategy),
    "evaluate_during_training": _flag("eval_strategy", "steps"),
    "per_gpu_train_batch_size": _renamed("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": _renamed("per_device_eval_batch_size"),
    "warmup_ratio": OldName(
        translate=_warmup,
        merges=True,
        read=lambda arguments: arguments.warmup_steps if arguments.warmup_steps < 1 else 0.0,
    ),
    "group_by_length": _flag(
        "train_sampling_strategy",
        "group_by_length",
        lambda arguments: arguments.train_sampling_strategy == "group_by_length",
    ),
    "adafactor": _flag("optim", "adafactor", lambda arguments: plain(arguments.optim) == "adafactor"),
    "no_cuda": _flag("use_cpu", True, lambda arguments: arguments.use_cpu),
    "xpu_backend": _renamed("ddp_backend"),
    "include_inputs_for_metrics": OldName(
        default=False,
        merges=True,
        translate=lambda on, arguments: (
            {"include_for_metrics": list(dict.fromkeys([*arguments.include_for_metrics, "inputs"]))} if on else {}
        ),
    ),
    "include_tokens_per_second": _flag("include_num_input_tokens_seen", "all"),
    "dispatch_batches": _into_accelerator_config("dispatch_batches"),
    "split_batches": _into_accelerator_config("split_batches"),
    "push_to_hub_token": _renamed("hub_token"),
    "push_to_hub_model_id": OldName(translate=_hub_model_id),
    "push_to_hub_organization": OldName(translate=_hub_model_id),
    "torchdynamo": _renamed("torch_compile_backend"),
    "overwrite_output_dir": _idle(False, "the Trainer does not read it, and never empties the folder"),
    "use_legacy_prediction_loop": _idle(False, "there is one loop for predictions"),
    "jit_mode_eval": _idle(False, "models are evaluated as they are"),
    "use_ipex": _idle(False, "Intel's extension of PyTorch is not used"),
    "use_mps_device": _idle(False, "MPS is used where there is one, unless use_cpu is set"),
    "fp16_backend": _idle("auto", _APEX),
    "half_precision_backend": _idle("auto", _APEX),
    "fp16_opt_level": _idle("O1", _APEX),
    "fsdp_min_num_params": _idle(0, _FSDP),
    "fsdp_transformer_layer_cls_to_wrap": _idle(None, _FSDP),
    "mp_parameters": _idle("", "only the launcher of SageMaker read it"),
    "ray_scope": _idle("last", "only the search with Ray read it; give scope to hyperparameter_search"),
    "tpu_num_cores": _idle(None, "only the launcher for TPUs read it"),
    "tpu_metrics_debug": _refused(False, bool, "there is nothing for TPUs. Leave it out"),
    "past_index": _refused(
        -1, lambda value: value >= 0, "no state is carried from one batch to the next. Leave it out"
    ),
    "save_safetensors": _refused(
        True, lambda value: not value, "weights are always written as safetensors. Leave it out"
    ),
    "sharded_ddp": _refused("", bool, "each process holds the whole model. Leave it out"),
    "tp_size": _refused(0, lambda value: value > 1, "each process holds the whole model. Leave it out"),
}

# Values that a field had once: field, old value, the value today, and what there is to know.
OLD_VALUES: list[tuple[str, Any, Any, str]] = [
    ("optim", "adamw_hf", "adamw_torch", "the same method in PyTorch's own code; last digits may differ"),
    ("optim", "adamw_apex_fused", "adamw_torch_fused", "the same method in PyTorch's own code; last digits may differ"),
    ("report_to", None, "none", 'before transformers 5 it meant every tracker installed, which is "all" today'),
]
