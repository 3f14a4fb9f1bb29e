"""What Lightning's Trainer decides, compared with what a recipe says of it.

Imports layers 0 to 2, torch and Lightning.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint, Timer

from headstart.durations import parse_duration
from headstart.errors import RecipeError, join_faults
from headstart.lightning.given import Given
from headstart.models.hardware import has_fast_bfloat16
from headstart.recipe import Recipe

__all__ = ["check_own_module", "check_trainer", "fast_precision", "precision_of"]

_OF_THE_TASK_MODULE = (
    "optim.",
    "model.dropout",
    "model.freeze",
    "model.unfreeze_every",
    "train.fast",
    "train.threads",
    "evaluate.scores",
)
_REFUSED = ("model.lora", "train.gradient_checkpointing", "train.compile")
_PRECISIONS: dict[str, Literal["fp32", "bf16"]] = {"32-true": "fp32", "bf16-mixed": "bf16"}
# A tracker's name to Lightning's class; Lightning has none for Trackio.
_LOGGERS = {
    "tensorboard": "TensorBoardLogger",
    "wandb": "WandbLogger",
    "mlflow": "MLFlowLogger",
    "comet_ml": "CometLogger",
    "trackio": "",
}


def fast_precision() -> Literal["32-true", "bf16-mixed"]:
    """Give the precision that headstart's own loop would choose here: `Trainer(precision=fast_precision())`.

    Lightning's default is float32.

    Returns:
        "bf16-mixed" where the GPU, or without one the processor, multiplies bfloat16 itself; else "32-true".

    Example:
        >>> fast_precision() in ("32-true", "bf16-mixed")
        True
    """
    return "bf16-mixed" if has_fast_bfloat16("cuda" if torch.cuda.is_available() else "cpu") else "32-true"


def precision_of(trainer: Trainer) -> Literal["fp32", "bf16"]:
    """Say in headstart's word in which precision a Trainer computes.

    Raises:
        RecipeError: in one that headstart does not compute in.

    Example:
        >>> precision_of(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))
        'fp32'
    """
    found = str(trainer.precision)
    if found not in _PRECISIONS:
        raise RecipeError(
            f'Trainer(precision="{found}") is no precision that headstart trains in.',
            f"one of: {', '.join(_PRECISIONS)}.",
            'Write Trainer(precision="bf16-mixed"): it has the range of float32, so that no loss needs scaling.',
        )
    return _PRECISIONS[found]


def check_trainer(given: Given, trainer: Trainer) -> None:
    """Make sure that what a recipe says of a Trainer's matters is what this Trainer does.

    Defaults of a recipe say nothing here: the Trainer decides. `fast_dev_run` changes lengths on purpose.

    Args:
        given: what the user has set.
        trainer: that is about to fit.

    Raises:
        RecipeError: something differs; the message names all of it, with the argument that makes it so.
    """
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in _callbacks(trainer)):
        raise RecipeError(
            "The Trainer has a GradientAccumulationScheduler, which changes the rows of an update on the way.",
            "one number of batches an update.",
            "Write Trainer(accumulate_grad_batches=4).",
        )
    if trainer.gradient_clip_val is not None and trainer.gradient_clip_algorithm == "value":
        raise RecipeError(
            "The Trainer clips each number of the gradients by itself (gradient_clip_algorithm), which no recipe says.",
            "clipping by the norm of all gradients.",
            'Leave gradient_clip_algorithm="value" out.',
        )
    is_quick = getattr(trainer, "fast_dev_run", False)
    defaults = Recipe()
    faults = []
    for key, (is_so, argument) in _MATTERS.items():
        section, _, name = key.partition(".")
        if key not in given or (is_quick and key in _LENGTHS):
            continue
        value = given[key]
        field = type(getattr(defaults, section)).model_fields[name]
        is_default = value == field.get_default(call_default_factory=True)
        if not is_default and not is_so(value, trainer):
            faults.append(f"{key} is {_shown(value)}: {argument(value)}")
    for key in _REFUSED:
        if given.get(key):
            faults.append(f"{key}: only headstart's own loop does it; leave it out")
    if given.get("train.tokens_per_batch") is not None:
        faults.append("train.tokens_per_batch: Lightning counts the batches of an epoch once; set train.batch_size")
    if isinstance(given.get("train.fast"), dict) and given["train.fast"].get("lazy_rows"):
        faults.append("train.fast.lazy_rows: its gradients are sparse, which no callback expects; leave it out")
    if given.get("optim.schedule") == "plateau":
        faults.append(
            "optim.schedule is plateau, which follows headstart's own evaluations: choose another, or return a "
            "ReduceLROnPlateau from configure_optimizers in a class that inherits from TaskModule"
        )
    if faults:
        raise RecipeError(
            "Lightning's Trainer decides these settings of the recipe, and does something else:\n"
            + join_faults(faults),
            "the same in both, or nothing in the recipe.",
            "Give the Trainer the arguments above, or take the settings out of the recipe.",
        )


def check_own_module(given: Given, trainer: Trainer) -> None:
    """Make sure that beside a module of one's own a data module was given what is its own, or what the Trainer does.

    Raises:
        RecipeError: a setting has no effect; the message names all such.
    """
    idle = [key for key in given if key.startswith(_OF_THE_TASK_MODULE)]
    if idle:
        raise RecipeError(
            f"TaskDataModule was given {', '.join(sorted(idle))}; the module is no TaskModule, and nobody reads it.",
            "settings of the rows and their batches.",
            "Leave it out, and do it in the module.",
        )
    check_trainer(given, trainer)


def _callbacks(trainer: Any) -> list[Callback]:
    # Set from outside of the class, so no type checker knows of it.
    return list(trainer.callbacks)


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _precision_argument(value: str) -> str:
    if value not in _PRECISIONS.values():
        return "float16 is for headstart's own loop; write bf16, or leave it out"
    return f'Trainer(precision="{next(name for name, word in _PRECISIONS.items() if word == value)}")'


def _device_argument(value: str) -> str:
    device = torch.device(value)
    which = f", devices=[{device.index}]" if device.index is not None else ""
    return f'Trainer(accelerator="{ {"cuda": "gpu"}.get(device.type, device.type) }"{which})'


def _same_device(value: str, trainer: Trainer) -> bool:
    wanted, root = torch.device(value), trainer.strategy.root_device
    return wanted.type == root.type and wanted.index in (None, root.index)


_NO_SHARES = "the Trainer knows no share of a training; leave it out, or say it in epochs or steps"


def _evaluates_every(value: int | str | None, trainer: Trainer) -> bool:
    if value is None:
        return trainer.limit_val_batches == 0
    every = parse_duration(value)
    if every.unit == "minutes":
        return _seconds(getattr(trainer, "_val_check_time_interval", None)) == every.number * 60
    # With an interval of time there is none of batches.
    interval, epochs = getattr(trainer, "val_check_interval", None), trainer.check_val_every_n_epoch
    if every.unit == "epochs":
        return interval == 1.0 and epochs == every.number if every.number >= 1 else interval == every.number
    return every.unit == "steps" and epochs is None and interval == every.number * trainer.accumulate_grad_batches


def _evaluates_argument(value: int | str | None) -> str:
    if value is None:
        return "Trainer(limit_val_batches=0)"
    every = parse_duration(value)
    if every.unit == "epochs" and every.number >= 1:
        return f"Trainer(check_val_every_n_epoch={every.number:g})"
    if every.unit == "epochs":
        return f"Trainer(val_check_interval={every.number:g})"
    if every.unit == "minutes":
        return f"Trainer(val_check_interval=timedelta(minutes={every.number:g}), check_val_every_n_epoch=None)"
    if every.unit == "%":
        return _NO_SHARES
    return "Trainer(val_check_interval=BATCHES, check_val_every_n_epoch=None)"


def _checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in _callbacks(trainer) if isinstance(callback, ModelCheckpoint)]


def _saves_every(value: int | str | None, trainer: Trainer) -> bool:
    if value is None:
        return not _checkpoints(trainer)
    every = parse_duration(value)
    if every.unit == "minutes":
        intervals = [getattr(callback, "_train_time_interval", None) for callback in _checkpoints(trainer)]
        return every.number * 60 in map(_seconds, intervals)
    name = {"epochs": "_every_n_epochs", "steps": "_every_n_train_steps"}.get(every.unit, "")
    return any(getattr(callback, name, None) == every.number for callback in _checkpoints(trainer))


def _saves_argument(value: int | str | None) -> str:
    if value is None:
        return "Trainer(enable_checkpointing=False)"
    every = parse_duration(value)
    if every.unit == "minutes":
        interval = f"timedelta(minutes={every.number:g})"
        return f"Trainer(callbacks=[ModelCheckpoint(train_time_interval={interval})])"
    if every.unit == "%":
        return _NO_SHARES
    name = "every_n_epochs" if every.unit == "epochs" else "every_n_train_steps"
    return f"Trainer(callbacks=[ModelCheckpoint({name}={every.number:g})])"


def _seconds(interval: Any) -> float | None:
    return interval.total_seconds() if isinstance(interval, timedelta) else interval


def _logger_names(trainer: Trainer) -> set[str]:
    """Name the classes of the loggers, and those that they are made from."""
    return {each.__name__ for logger in trainer.loggers for each in type(logger).__mro__}


def _logger_argument(value: list[str]) -> str:
    if "trackio" in value:
        return "Lightning has no logger for trackio: leave it out"
    named = [f"{_LOGGERS[name]}(...)" for name in value]
    return f"Trainer(logger={named[0] if len(named) == 1 else '[' + ', '.join(named) + ']'})"


def _stops_after(value: str, trainer: Trainer) -> bool:
    wanted = timedelta(minutes=parse_duration(value).number).total_seconds()
    return any(isinstance(callback, Timer) and callback._duration == wanted for callback in _callbacks(trainer))


_Matter = tuple[Callable[[Any, Trainer], bool], Callable[[Any], str]]
# Setting -> whether this Trainer does so, and the argument that makes it do so.
_MATTERS: dict[str, _Matter] = {
    "train.epochs": (
        lambda value, trainer: value is None or value == trainer.max_epochs,
        lambda value: f"Trainer(max_epochs={value:g})",
    ),
    "train.max_steps": (
        lambda value, trainer: value == trainer.max_steps,
        lambda value: f"Trainer(max_steps={value}, max_epochs=-1)",
    ),
    "train.accumulation": (
        lambda value, trainer: value == trainer.accumulate_grad_batches,
        lambda value: f"Trainer(accumulate_grad_batches={value})",
    ),
    "train.precision": (lambda value, trainer: value == precision_of(trainer), _precision_argument),
    "train.device": (_same_device, _device_argument),
    "train.processes": (
        lambda value, trainer: value == trainer.world_size,
        lambda value: f'Trainer(devices={value}, strategy="ddp")',
    ),
    "train.process_timeout": (
        lambda value, trainer: False,
        lambda value: "Trainer(strategy=DDPStrategy(timeout=timedelta(minutes=...)))",
    ),
    "train.evaluate_every": (_evaluates_every, _evaluates_argument),
    "train.save_every": (_saves_every, _saves_argument),
    "train.keep": (
        lambda value, trainer: any(callback.save_top_k == value for callback in _checkpoints(trainer)),
        lambda value: f"Trainer(callbacks=[ModelCheckpoint(save_top_k={value})])",
    ),
    "train.best": (
        lambda value, trainer: (
            value == "last" or any(callback.monitor == f"val_{value}" for callback in _checkpoints(trainer))
        ),
        lambda value: f'Trainer(callbacks=[ModelCheckpoint(monitor="val_{value}")])',
    ),
    "train.patience": (
        lambda value, trainer: any(
            isinstance(callback, EarlyStopping) and callback.patience == value for callback in _callbacks(trainer)
        ),
        lambda value: f'Trainer(callbacks=[EarlyStopping(monitor="val_loss", patience={value})])',
    ),
    "train.time_limit": (_stops_after, lambda value: 'Trainer(max_time={"minutes": ...})'),
    "train.on_non_finite": (
        lambda value, trainer: False,
        lambda value: "the training stops at an update that is not finite; leave it out",
    ),
    "train.ema": (
        lambda value, trainer: False,
        lambda value: f"Trainer(callbacks=[EMAWeightAveraging(decay={value})]) in its place, whose decay does not grow",
    ),
    "model.unfreeze_every": (
        lambda value, trainer: False,
        lambda value: "a callback that inherits from Lightning's BaseFinetuning in its place",
    ),
    "optim.max_grad_norm": (
        lambda value, trainer: trainer.gradient_clip_val is None or trainer.gradient_clip_val == value,
        lambda value: f"Trainer(gradient_clip_val={value}), or leave gradient_clip_val out",
    ),
    "output.log_to": (
        lambda value, trainer: {_LOGGERS[name] for name in value} <= _logger_names(trainer),
        _logger_argument,
    ),
}
_LENGTHS = ("train.epochs", "train.max_steps", "train.evaluate_every", "train.save_every", "train.keep", "train.best",
            "train.patience", "train.time_limit", "output.log_to")  # fmt: skip
