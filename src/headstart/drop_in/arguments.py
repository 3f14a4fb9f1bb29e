"""The `TrainingArguments` of the drop-in: those of transformers, the names of its older releases, and two fields more.

May import layers 0 and 1, and transformers. `argument_tables.py` says which field does what, `argument_old_names.py`
what the old names mean.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import transformers
from transformers.trainer_pt_utils import AcceleratorConfig

from headstart.drop_in.argument_old_names import OLD_NAMES, OLD_VALUES, Mirror, OldArguments, mirror, show
from headstart.drop_in.argument_tables import (
    ACCELERATOR_HARMLESS,
    ACCELERATOR_REFUSED,
    HARMLESS,
    HONOURED,
    REFUSED,
    SEQ2SEQ_REFUSED,
    plain,
)
from headstart.errors import HeadstartWarning, RecipeError, nearest_name

__all__ = ["TrainingArguments", "UnknownArgumentError", "check_arguments", "chosen_mode", "tensorboard_folder"]

_MODES = ("fast",)
# Frames of these places are never the user's own line.
_NOT_THE_USERS = (
    str(Path(__file__).parent.parent) + os.sep,
    str(Path(transformers.__file__).parent) + os.sep,
    "<string>",
)


class UnknownArgumentError(RecipeError, TypeError):
    """Raised when `TrainingArguments` gets a keyword that it does not have."""


@dataclass(repr=False)
class TrainingArguments(OldArguments, transformers.TrainingArguments):
    """The training arguments of transformers, as headstart's Trainer takes them.

    It is a `transformers.TrainingArguments` with the same fields, defaults and methods. Names that transformers 3 and 4
    had are read as what they are called today, and each is said in a `HeadstartWarning`. What headstart's Trainer
    cannot do is refused here, before anything starts.

    Args:
        headstart: "fast" for batch order, precision and fast path of headstart itself; None takes the environment
            variable HEADSTART, and "" neither.
        logging_dir: folder of the files for TensorBoard, as in transformers 4; None takes the environment variable
            TENSORBOARD_LOGGING_DIR, else a folder `runs` in `output_dir`.

    Raises:
        RecipeError: with everything that cannot be done, and what to use instead; or an old and a new name contradict
            each other.
        UnknownArgumentError: a keyword does not exist; with the nearest one. It is a `TypeError`, too.

    Example:
        >>> args = TrainingArguments("out", learning_rate=1e-4, num_train_epochs=2)
        >>> isinstance(args, transformers.TrainingArguments), args.output_dir
        (True, 'out')
    """

    headstart: str | None = field(
        default=None,
        metadata={
            "help": 'Batch order, precision and fast path of headstart itself ("fast") for those of transformers.'
        },
    )
    logging_dir: str | None = field(default=None, metadata={"help": "Folder of the files for TensorBoard."})

    def __new__(cls, *args: Any, **kwargs: Any) -> TrainingArguments:
        """Refuse keywords that do not exist, with the nearest ones."""
        _check_names(cls, list(kwargs))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Read the old names, refuse what cannot be done, and go on as transformers does."""
        faults = _read_old_names(self)
        # Before transformers itself looks for the packages of DeepSpeed and the like.
        _raise_for([*faults, *_find_faults(self)])
        chosen_mode(self)
        super().__post_init__()  # type: ignore[no-untyped-call]
        _raise_for(_find_faults(self))
        for name, old in OLD_NAMES.items():
            given = getattr(self, name)
            setattr(self, name, mirror(old.read(self) if old.read else old.default if given is None else given))

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON takes them, secrets blanked out; the old names are no part of it."""
        fields: dict[str, Any] = super().to_dict()  # type: ignore[no-untyped-call]
        return {name: value for name, value in fields.items() if name not in OLD_NAMES}

    def __str__(self) -> str:
        names = sorted(entry.name for entry in dataclasses.fields(self) if entry.name not in OLD_NAMES)
        lines = [f"{n}={f'<{n.upper()}>' if n.endswith('_token') else getattr(self, n)},\n" for n in names]
        return f"{type(self).__name__}(\n{''.join(lines)})"

    __repr__ = __str__


def check_arguments(args: transformers.TrainingArguments) -> list[str]:
    """Refuse what headstart's Trainer cannot do, and tell what has no effect.

    Args:
        args: of transformers itself or of headstart.

    Returns:
        One line for each field that is set and has no effect.

    Raises:
        RecipeError: with every field that asks for something that cannot be done, and what to use instead.

    Example:
        >>> check_arguments(transformers.TrainingArguments("out", auto_find_batch_size=True, use_cpu=True))
        ['auto_find_batch_size=True has no effect: where a batch does not fit into memory, it is split and the update \
stays the same.']
    """
    faults = _find_faults(args)
    for name in OLD_NAMES if isinstance(args, OldArguments) else ():
        value = getattr(args, name)
        if value is not None and not isinstance(value, Mirror):
            faults.append(f"{show(name, value)} was set too late: old names are read when the arguments are made")
    precision = getattr(args, "mixed_precision", "no")
    if precision not in ("no", "bf16"):
        faults.append(
            f'mixed precision "{precision}" (the environment variable ACCELERATE_MIXED_PRECISION): choose bf16 or no '
            "in accelerate's configuration"
        )
    _raise_for(faults)
    lines = [f"{show(name, value)} has no effect: {HARMLESS[name]}." for name, value in _set(args, HARMLESS)]
    config = args.accelerator_config
    lines += [
        f"accelerator_config: {show(name, value)} has no effect: {ACCELERATOR_HARMLESS[name]}."
        for name, value in _set(config, ACCELERATOR_HARMLESS)
    ]
    if args.n_gpu > 1:
        lines.append(
            f"{args.n_gpu} GPUs are here, and one process trains on one of them. Start the script with "
            f"torchrun --nproc_per_node {args.n_gpu} to use all."
        )
    return lines


def chosen_mode(args: transformers.TrainingArguments) -> Literal["fast"] | None:
    """Give the mode that the field `headstart` chooses, or else the environment variable HEADSTART.

    Args:
        args: of headstart, or of transformers itself, which have no such field.

    Raises:
        RecipeError: there is no such mode.

    Example:
        >>> chosen_mode(TrainingArguments("out", headstart="fast"))
        'fast'
    """
    chosen, where = getattr(args, "headstart", None), "headstart"
    if chosen is None:
        chosen, where = os.environ.get("HEADSTART"), "The environment variable HEADSTART"
    if not chosen:
        return None
    if chosen not in _MODES:
        raise RecipeError(
            f"{where} is {chosen!r}, which is no mode.",
            'nothing, or "fast" (batch order, precision and fast path of headstart itself).',
            f'Write "{nearest_name(str(chosen), _MODES) or _MODES[0]}", or leave it out.',
        )
    return "fast"


@contextlib.contextmanager
def tensorboard_folder(args: transformers.TrainingArguments) -> Iterator[None]:
    """Let a TensorBoard callback that is made within this context write to `args.logging_dir`.

    Example:
        >>> with tensorboard_folder(TrainingArguments("out", logging_dir="curves")):
        ...     os.environ["TENSORBOARD_LOGGING_DIR"]
        'curves'
    """
    folder: str | None = getattr(args, "logging_dir", None)
    before = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if folder:
        os.environ["TENSORBOARD_LOGGING_DIR"] = folder
    try:
        yield
    finally:
        if folder and before is None:
            os.environ.pop("TENSORBOARD_LOGGING_DIR", None)
        elif folder and before is not None:
            os.environ["TENSORBOARD_LOGGING_DIR"] = before


def _check_names(cls: type, given: list[str]) -> None:
    """Raise for keywords that the constructor of the class, or of a user's subclass, does not take."""
    taken = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    offered = [name for name in taken if name not in OLD_NAMES and name != "self"]
    lines = []
    for name in given:
        if name in taken:
            continue
        nearest = nearest_name(name, offered)
        if name in SEQ2SEQ_REFUSED:
            hint = f" It belongs to Seq2SeqTrainingArguments: {SEQ2SEQ_REFUSED[name]}."
        else:
            hint = f' Did you mean "{nearest}"?' if nearest else ""
        lines.append(f'{cls.__name__} has no argument "{name}".{hint}')
    if lines:
        raise UnknownArgumentError(
            "\n".join(lines), "the arguments of transformers.TrainingArguments.", "Correct the name, or leave it out."
        )


def _read_old_names(args: TrainingArguments) -> list[str]:
    """Set the fields that the given old names and values mean today, saying each; give the faults."""
    faults, lines = [], []
    for name, before, now, note in OLD_VALUES:
        if plain(getattr(args, name)) == before:
            setattr(args, name, now)
            lines.append(f"{show(name, before)} is read as {show(name, now)}: {note}.")
    for name, old in OLD_NAMES.items():
        value = getattr(args, name)
        if value is None or isinstance(value, Mirror):
            continue
        shown = show(name, value)
        if old.is_refused is not None and old.is_refused(value):
            faults.append(f"{shown}: {old.instead}")
            continue
        try:
            fields = old.translate(value, args) if old.translate else {}
        except ValueError as error:
            faults.append(f"{shown}: {error}")
            continue
        for new, wanted in fields.items():
            current = getattr(args, new)
            if not old.merges and current not in (_default(new), wanted):
                faults.append(f"{shown} contradicts {show(new, current)}, which is what it is today. Keep {new}")
                continue
            setattr(args, new, wanted)
            lines.append(f"{shown} is read as {show(new, wanted)}, as transformers 5 calls it.")
        if fields:
            continue
        if name == "warmup_ratio" and value:
            lines.append(f"{shown} has no effect: {show('warmup_steps', args.warmup_steps)} counts.")
        else:
            lines.append(f"{shown} has no effect: {old.idle or 'it asks for what happens without it'}. Leave it out.")
    for line in lines if int(os.environ.get("RANK", "0")) == 0 else ():
        warnings.warn(line, HeadstartWarning, stacklevel=_users_level())
    return faults


def _users_level() -> int:
    """Count the frames from the caller to the first one that is neither headstart's nor of transformers."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame, level = frame.f_back, level + 1
    return level


def _find_faults(args: transformers.TrainingArguments) -> list[str]:
    """Say of each field that cannot be done what to use instead; before or after transformers has converted them."""
    faults = []
    for name, instead in REFUSED.items():
        value = getattr(args, name)
        # transformers sets the switch where one of its details is set, and one detail where the switch is.
        if value and not (name.startswith("torch_compile_") and args.torch_compile):
            faults.append(f"{show(name, value)}: {instead}")
    for name, limit in HONOURED.items():
        value = getattr(args, name)
        if limit is not None and not limit.accepts(value):
            nearest = nearest_name(str(plain(value)), limit.choices)
            question = f' Did you mean "{nearest}"?' if nearest else ""
            faults.append(f"{show(name, value)}: {limit.instead}.{question}".removesuffix("."))
    faults += [
        f"accelerator_config: {show(name, value)}: {ACCELERATOR_REFUSED[name]}"
        for name, value in _set(args.accelerator_config, ACCELERATOR_REFUSED)
        # How often gradients travel changes no number.
        if name != "gradient_accumulation_kwargs" or not set(value) <= {"sync_each_batch"}
    ]
    if isinstance(args, transformers.Seq2SeqTrainingArguments):
        faults += [f"{show(name, value)}: {SEQ2SEQ_REFUSED[name]}" for name, value in _set(args, SEQ2SEQ_REFUSED)]
    for entry in dataclasses.fields(transformers.TrainingArguments):
        value = getattr(args, entry.name)
        is_known = entry.name in HONOURED or entry.name in HARMLESS or entry.name in REFUSED
        if not is_known and value and plain(value) != plain(_default(entry.name)):
            faults.append(
                f"{show(entry.name, value)}: transformers {transformers.__version__} has this field, and this release "
                "of headstart does not know it. Leave it out"
            )
    return faults


def _set(owner: Any, table: dict[str, str]) -> list[tuple[str, Any]]:
    """Give the fields of a table that are away from their defaults in an object, or in a dict of its fields."""
    if owner is None or isinstance(owner, str | os.PathLike):
        return []  # accelerator_config before transformers has read it
    if isinstance(owner, dict):
        defaults = {entry.name: entry.default for entry in dataclasses.fields(AcceleratorConfig)}
        return [(name, owner[name]) for name in table if name in owner and owner[name] != defaults[name]]
    defaults = {entry.name: entry.default for entry in dataclasses.fields(owner)}
    return [(name, getattr(owner, name)) for name in table if getattr(owner, name) != defaults[name]]


def _default(name: str) -> Any:
    """Give the default of a field of transformers, as it is written there."""
    entry = next(entry for entry in dataclasses.fields(transformers.TrainingArguments) if entry.name == name)
    return entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()


def _raise_for(faults: list[str]) -> None:
    if faults:
        lines = "\n".join(f"- {fault}" if fault.endswith("?") else f"- {fault}." for fault in faults)
        raise RecipeError(
            f"headstart's Trainer cannot go by these training arguments:\n{lines}",
            fix="Change the lines above; nothing was started.",
        )
