"""The recipe: everything that decides a run, in six small typed sections and the task's own.

Imports the standard library, pydantic, yaml and layer 0. The same names hold in YAML, on the command line
(`--set train.epochs=5`), in Python and in the `recipe.yaml` of a run:

    task      what is learned                     model    what training starts from
    data      rows, columns, limits               optim    how an update is made
    train     how long, in which batches, where   evaluate what is measured
    output    where the run goes

`null` means "does not apply" and is always allowed; a value that the user sets and that has no effect is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headstart.addresses import mask
from headstart.errors import RecipeError, join_faults, nearest_name, suggest
from headstart.optim_numbers import OPTIMIZERS, SCHEDULES, OptimizerName, ScheduleName, fill_numbers
from headstart.read_options import READ_OPTIONS, check_delimiter, check_encoding

__all__ = [
    "SOURCES",
    "DataSection",
    "Duration",
    "EvaluateSection",
    "LoraSection",
    "ModelSection",
    "OptimSection",
    "OutputSection",
    "Recipe",
    "TaskSection",
    "TrainSection",
    "build_recipe",
    "parse_duration",
    "parse_fold",
    "parse_limit",
    "read_recipe_file",
]

SOURCES = ("train", "validation", "test")
# Taken as they stand on the command line: YAML reads "|" and "~" as something else.
_VERBATIM = ("data.delimiter", "data.query")
ROLES = ("text", "pair", "label")

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|%|minutes?|min|hours?|h)?\s*$")
_UNITS = {"": "steps", "step": "steps", "epoch": "epochs", "%": "%", "minute": "minutes", "min": "minutes"}


@dataclass(frozen=True)
class Duration:
    """A length of training: a number and its unit.

    Args:
        number: how many; at least 0.
        unit: "steps" (optimizer updates), "epochs", "%" (of all steps) or "minutes" (wall time).
    """

    number: float
    unit: Literal["steps", "epochs", "%", "minutes"]

    def in_steps(self, *, total_steps: int, steps_per_epoch: float) -> int:
        """Count the steps that this duration lasts; minutes have no step count.

        Args:
            total_steps: steps of the whole training.
            steps_per_epoch: steps of one pass over the rows.

        Returns:
            Steps, rounded to the nearest; a part of an epoch or of the whole that is not zero gives at least 1.

        Raises:
            ValueError: the unit is minutes.

        Example:
            >>> Duration(5, "%").in_steps(total_steps=300, steps_per_epoch=100)
            15
        """
        if self.unit == "minutes":
            raise ValueError("minutes have no step count")
        if self.unit == "steps":
            return int(self.number)
        whole = total_steps / 100 if self.unit == "%" else steps_per_epoch
        return max(round(self.number * whole), 1 if self.number > 0 else 0)


FAST_PARTS = (
    "bf16_weights",
    "packed_weights",
    "onednn_float32",
    "joined_qkv",
    "attention",
    "norms",
    "gelu",
    "dropout",
    "whole_layers",
    "first_token",
    "padding_free",
    "optimizer_pass",
    "lazy_rows",
)
"""The parts of the fast path that `train.fast` can switch, one by one."""


def parse_duration(value: int | float | str) -> Duration:
    """Read a duration: steps (`500`), `"2 epochs"`, `"5%"`, `"10 minutes"`, `"2 hours"`.

    Raises:
        ValueError: the text is no duration, or steps are not a whole number.

    Example:
        >>> parse_duration("2 epochs")
        Duration(number=2.0, unit='epochs')
    """
    match = _DURATION.match(str(value)) if not isinstance(value, bool) else None
    if match is None:
        raise ValueError(f'{value!r} is no duration; write steps (500), "2 epochs", "5%" or "10 minutes"')
    number, unit = float(match[1]), match[2] or ""
    if unit in ("hour", "hours", "h"):
        return Duration(number * 60, "minutes")
    name: Any = _UNITS[unit.rstrip("s")]
    if name == "steps" and number != int(number):
        raise ValueError(f"{value!r} steps is not a whole number")
    if name == "%" and number > 100:
        raise ValueError(f"{value!r} is more than 100%")
    return Duration(number, name)


def parse_limit(value: int | str, num_rows: int) -> int:
    """Count the rows that a limit (`500` or `"10%"`) keeps of `num_rows`, at least one.

    Example:
        >>> parse_limit("10%", 3668)
        367
    """
    if isinstance(value, str) and value.endswith("%"):
        return max(1, round(num_rows * float(value[:-1]) / 100))
    return min(int(value), num_rows)


def parse_fold(value: str) -> tuple[int, int]:
    """Read which fold validates, counted from 1, and how many there are.

    Raises:
        ValueError: the text names no fold.

    Example:
        >>> parse_fold("2/5")
        (2, 5)
    """
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", value)
    if match is None or not 1 <= int(match[1]) <= int(match[2]) or int(match[2]) < 2:
        raise ValueError(f'{value!r} is no fold; write "2/5" for the second of five')
    return int(match[1]), int(match[2])


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True, validate_default=False, frozen=True
    )


class TaskSection(_Section):
    """What is learned. `name` null: found by looking at the labels; the others belong to some tasks alone."""

    name: Literal["sequence_classification", "multi_label_classification", "regression"] | None = None
    labels: list[str | int] | None = None
    ordinal: Literal[True] | None = None
    delimiter: Annotated[str, Field(min_length=1)] | None = None
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None


FROZEN_PARTS = ("embeddings", "encoder")
"""The parts of a model that `model.freeze` knows by name."""


class DataSection(_Section):
    """Where the rows come from and which of them are used."""

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    sheet: int | str | None = None
    query: str | None = None
    columns: dict[str, str | list[str] | None] = Field(default_factory=dict)
    weight: str | None = None
    group: str | None = None
    time: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    fold: str | None = None
    limit: int | str | None = None
    max_length: Annotated[int, Field(ge=4)] | None = None
    strict: bool = False

    @field_validator("encoding")
    @classmethod
    def _encoding(cls, value: str | None) -> str | None:
        return check_encoding(value) if value is not None else None

    @field_validator("delimiter")
    @classmethod
    def _delimiter(cls, value: str | None) -> str | None:
        return check_delimiter(value) if value is not None else None

    @property
    def read_options(self) -> dict[str, Any]:
        """The options of reading that are set, as `read_source` takes them."""
        return {name: value for name in READ_OPTIONS if (value := getattr(self, name)) is not None}

    @field_validator("columns")
    @classmethod
    def _known_roles(cls, columns: dict[str, str | list[str] | None]) -> dict[str, str | list[str] | None]:
        for role, name in columns.items():
            if role not in ROLES:
                raise ValueError(f"unknown role {role!r}. {suggest(role, ROLES)}")
            if isinstance(name, list) and role != "label":
                raise ValueError(f"{role} is one column, not {len(name)}; several are for labels")
        return columns

    @field_validator("fold")
    @classmethod
    def _fold(cls, value: str | None) -> str | None:
        if value is not None:
            parse_fold(value)
        return value

    @model_validator(mode="after")
    def _one_way_to_cut(self) -> DataSection:
        if self.group is not None and self.time is not None:
            raise ValueError("group and time both say how validation rows are cut. Set one of them")
        for other in ("validation", "validation_fraction"):
            if self.fold is not None and getattr(self, other) is not None:
                raise ValueError(f"fold and {other} both say which rows validate. Set one of them")
        return self

    @field_validator("limit", mode="before")
    @classmethod
    def _limit(cls, value: object) -> object:
        if value is None:
            return None
        text = str(value).strip().replace(" ", "")
        if re.fullmatch(r"\d+", text) and int(text) > 0:
            return int(text)
        if re.fullmatch(r"\d+(\.\d+)?%", text) and 0 < float(text[:-1]) <= 100:
            return text
        raise ValueError(f'{value!r} is no limit; write a number of rows (500) or a share ("10%")')


class LoraSection(_Section):
    """Low-rank adapters beside frozen weights. `targets` null: every linear layer below the head."""

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[int, Field(ge=1)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: list[str] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    rslora: bool = False
    dora: bool = False

    @field_validator("targets")
    @classmethod
    def _some_targets(cls, targets: list[str] | None) -> list[str] | None:
        if targets is not None and not targets:
            raise ValueError("[] adapts nothing; name modules, or write null for every linear layer")
        return targets


class ModelSection(_Section):
    """What training starts from. `checkpoint`: a hub name or a folder; null: the embedded default."""

    checkpoint: str | None = None
    revision: str | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    freeze: int | str | list[str] | None = None
    unfreeze_every: int | str | None = None

    @field_validator("freeze", mode="before")
    @classmethod
    def _freeze(cls, value: object) -> object:
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if isinstance(value, list) and value and all(isinstance(pattern, str) and pattern for pattern in value):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        if value is None or value in FROZEN_PARTS:
            return value
        hint = f" {suggest(value, FROZEN_PARTS)}" if isinstance(value, str) else ""
        raise ValueError(
            f"{value!r} is nothing to freeze; write embeddings, encoder, a number of layers from below (at least 1), "
            f'or a list of patterns of parameter names (["*.bias"]).{hint}'
        )

    @field_validator("unfreeze_every")
    @classmethod
    def _unfreeze_every(cls, value: int | str | None) -> int | str | None:
        if value is not None:
            duration = parse_duration(value)
            if duration.unit == "minutes":
                raise ValueError('unfreezing changes the result, so it is steps, "1 epoch" or "10%", not minutes')
            if duration.number == 0:
                raise ValueError("0 is no interval; null trains all layers from the first step")
        return value

    @model_validator(mode="after")
    def _agree(self) -> ModelSection:
        if self.unfreeze_every is not None and self.freeze == "encoder":
            raise ValueError(
                "unfreeze_every has no effect with freeze = encoder, which keeps all layers frozen. Remove one of them"
            )
        return self

    lora: LoraSection | None = None

    @field_validator("lora", mode="before")
    @classmethod
    def _lora(cls, value: object) -> object:
        if value is not None and not isinstance(value, Mapping | LoraSection):
            raise ValueError(f"{value!r} are no adapters; write {{}} for the defaults, or {{rank: 16, alpha: 32}}")
        return value


class OptimSection(_Section):
    """How an update is made. `learning_rate` null: chosen by the width of the model and the rows of an update.

    Which optimizer and which schedule have which numbers, and their defaults: `optim_numbers`.
    """

    name: OptimizerName = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    beta1: Annotated[float, Field(ge=0, lt=1)] | None = None
    beta2: Annotated[float, Field(ge=0, lt=1)] | None = None
    beta3: Annotated[float, Field(ge=0, lt=1)] | None = None
    epsilon: Annotated[float, Field(gt=0)] | None = None
    epsilon2: Annotated[float, Field(gt=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    momentum_decay: Annotated[float, Field(ge=0)] | None = None
    beta2_decay: Annotated[float, Field(lt=0)] | None = None
    clip_threshold: Annotated[float, Field(ge=1)] | None = None
    d_coef: Annotated[float, Field(gt=0)] | None = None
    schedule: ScheduleName = "linear"
    warmup: int | str | None = None
    power: Annotated[float, Field(gt=0)] | None = None
    end_factor: Annotated[float, Field(ge=0, lt=1)] | None = None
    cycles: Annotated[int, Field(ge=1)] | None = None
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] | None = None
    plateau_patience: Annotated[int, Field(ge=0)] | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(ge=0)]] | None = None
    label_smoothing: Annotated[float, Field(gt=0, lt=1)] | None = None
    focal_gamma: Annotated[float, Field(gt=0)] | None = None

    @field_validator("warmup")
    @classmethod
    def _warmup(cls, value: int | str | None) -> int | str | None:
        if value is not None and parse_duration(value).unit == "minutes":
            raise ValueError('warm-up changes the result, so it is steps, "1 epoch" or "6%", not minutes')
        return value

    @model_validator(mode="after")
    def _fill(self) -> OptimSection:
        optimizer = OPTIMIZERS[self.name]
        filled: dict[str, object] = {**fill_numbers(self.name, self.schedule, dict(self))}
        defaults = {
            "learning_rate": optimizer.learning_rate,
            "weight_decay": optimizer.weight_decay,
            "warmup": SCHEDULES[self.schedule].warmup,
        }
        filled |= {field: default for field, default in defaults.items() if getattr(self, field) is None}
        for field, value in filled.items():
            object.__setattr__(self, field, value)
        if self.schedule == "inverse_sqrt" and parse_duration(self.warmup or 0).number == 0:
            raise ValueError(
                'the inverse_sqrt schedule falls with the length of the warm-up, and there is none. Set warmup to "10%"'
            )
        if self.layer_decay is not None and self.name == "prodigy":
            raise ValueError("layer_decay has no effect with prodigy, which has one step size for all. Remove it")
        return self

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate, in the recipe of a run: there the model's width has filled it in."""
        if self.learning_rate is None:
            raise TypeError("the model of a run decides the learning rate")
        return self.learning_rate


class TrainSection(_Section):
    """How long, in which batches, where, and what is kept."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    tokens_per_batch: Annotated[int, Field(ge=1)] | None = None
    accumulation: Annotated[int, Field(ge=1)] = 1
    order: Literal["auto", "length", "random", "sequential"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    device: str = "auto"
    fast: bool | dict[str, bool] = True
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    evaluate_every: int | str | None = "1 epoch"
    save_every: int | str | None = "1 epoch"
    keep: Annotated[int, Field(ge=1)] = 1
    best: str | None = None
    patience: Annotated[int, Field(ge=1)] | None = None
    on_non_finite: Literal["stop", "skip", "rollback"] = "stop"
    processes: Annotated[int, Field(ge=1)] | None = None
    process_timeout: str | int | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    time_limit: str | int | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None

    @field_validator("fast", mode="before")
    @classmethod
    def _fast(cls, value: object) -> object:
        if not isinstance(value, dict):
            if not isinstance(value, bool):
                raise ValueError(f"{value!r} is no switch; write true, false, or {{PART: false}}")
            return value
        for name, is_on in value.items():
            if name not in FAST_PARTS:
                raise ValueError(f'there is no part "{name}". {suggest(str(name), FAST_PARTS)}')
            if not isinstance(is_on, bool):
                raise ValueError(f"{name} is {is_on!r}; write true or false")
        return value

    def wants_part(self, name: str) -> bool:
        """Say whether a part of the fast path is asked for."""
        return self.fast if isinstance(self.fast, bool) else self.fast.get(name, True)

    @field_validator("evaluate_every", "save_every")
    @classmethod
    def _duration(cls, value: int | str | None) -> int | str | None:
        if value is not None and parse_duration(value).number == 0:
            raise ValueError("0 is no interval; null switches it off")
        return value

    @field_validator("time_limit", "process_timeout")
    @classmethod
    def _time_limit(cls, value: str | int | None) -> str | int | None:
        if value is not None and parse_duration(value).unit != "minutes":
            raise ValueError(f'{value!r} is no time; write "30 minutes" or "2 hours"')
        return value

    @model_validator(mode="after")
    def _fill(self) -> TrainSection:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps both say how long to train. Set one of them")
        if self.batch_size is not None and self.tokens_per_batch is not None:
            raise ValueError("batch_size and tokens_per_batch both say how large a batch is. Set one of them")
        if self.evaluate_every is None:
            for field in ("best", "patience"):
                if getattr(self, field) not in (None, "last"):
                    raise ValueError(f"{field} has no effect without evaluations (evaluate_every is null)")
        if self.patience is not None and self.best == "last":
            raise ValueError('patience has no effect with best = "last": no score is watched')
        if self.epochs is None and self.max_steps is None:
            object.__setattr__(self, "epochs", 3.0)
        if self.batch_size is None and self.tokens_per_batch is None:
            object.__setattr__(self, "batch_size", 32)
        return self


class EvaluateSection(_Section):
    """What is measured, and how sure the numbers are said to be."""

    scores: list[str] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64
    baselines: bool = True
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95


class OutputSection(_Section):
    """Where the run folder goes (null: `runs/NAME-N`) and which trackers get the numbers."""

    run: str | None = None
    log_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio", "comet_ml"]] = Field(default_factory=list)


class Recipe(BaseModel):
    """Everything that decides a run.

    Example:
        >>> recipe = build_recipe(values={"train.epochs": 2, "optim.name": "sgd"})
        >>> recipe.train.epochs, recipe.optim.momentum
        (2.0, 0.9)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: TaskSection = Field(default_factory=TaskSection)
    data: DataSection = Field(default_factory=DataSection)
    model: ModelSection = Field(default_factory=ModelSection)
    optim: OptimSection = Field(default_factory=OptimSection)
    train: TrainSection = Field(default_factory=TrainSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    output: OutputSection = Field(default_factory=OutputSection)

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        if self.data.validation is not None and self.data.validation_fraction is not None:
            raise ValueError(
                "data.validation_fraction has no effect, because data.validation names the rows. Remove one of them"
            )
        self._agree_on_plateau()
        if self.model.freeze == "encoder" and self.optim.layer_decay is not None:
            raise ValueError("optim.layer_decay has no effect with model.freeze = encoder: the head alone is trained")
        if self.model.lora is not None and (self.model.freeze is not None or self.model.unfreeze_every is not None):
            name = "freeze" if self.model.freeze is not None else "unfreeze_every"
            raise ValueError(
                f"model.{name} has no effect with model.lora, which trains adapters and head alone. Remove one of them"
            )
        if self.model.unfreeze_every is not None and OPTIMIZERS[self.optim.name].by_group:
            raise ValueError(
                f"model.unfreeze_every does not go with {self.optim.name}, which counts its updates for all parameters "
                "together. Choose another optim.name, such as adamw"
            )
        return self

    def _agree_on_plateau(self) -> None:
        if self.optim.schedule != "plateau":
            return
        if self.train.evaluate_every is None:
            raise ValueError(
                "the plateau schedule follows the evaluations, and there are none (train.evaluate_every is null)"
            )
        if self.train.best == "last":
            raise ValueError(
                'the plateau schedule follows the score of train.best, which is "last". Name a score, such as log_loss'
            )
        waits = (self.optim.plateau_patience or 0) + 1
        if self.train.patience is not None and self.train.patience <= waits:
            raise ValueError(
                f"the plateau schedule has no effect: training stops after {self.train.patience} evaluations without a "
                f"better score (train.patience), and the learning rate falls after {waits}. Set train.patience to "
                f"{waits + 1} or more, or a smaller optim.plateau_patience"
            )

    def replace(self, values: Mapping[str, object]) -> Recipe:
        """Make a recipe with other values ("section.key" to value), checked anew."""
        data = self.model_dump()
        for key, value in values.items():
            section, _, field = key.partition(".")
            data[section][field] = value
        return _validate(data)

    def to_yaml(self, derived: Mapping[str, object] | None = None) -> str:
        """Write the recipe with every default filled in, without secrets, and what followed from it under `derived`."""
        data = self.model_dump(mode="json")
        data["data"] |= {name: mask(data["data"][name]) for name in SOURCES if data["data"][name] is not None}
        if derived is not None:
            data["derived"] = dict(derived)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def read_recipe_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a recipe file.

    Returns:
        Its sections, and the `derived` section (empty where there is none).

    Raises:
        RecipeError: the file is missing, is not YAML, or does not hold sections.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path}: the recipe cannot be read ({getattr(error, 'strerror', None) or error}).",
            "a YAML file in UTF-8.",
            "Check the path given with --recipe.",
        ) from error
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise RecipeError(
            f"{path}: not valid YAML{where}.", "sections such as `train:`, with keys below them."
        ) from error
    if not isinstance(data, dict) or not all(isinstance(value, dict | None) for value in data.values()):
        raise RecipeError(
            f"{path}: a recipe holds sections, but this file holds something else.",
            f"sections ({', '.join(Recipe.model_fields)}) with keys below them.",
            "Write for example:\ntrain:\n  epochs: 3",
        )
    derived = data.pop("derived", None) or {}
    return {section: dict(values or {}) for section, values in data.items()}, derived


def build_recipe(
    file: Path | None = None, settings: Sequence[str] = (), values: Mapping[str, object] | None = None
) -> Recipe:
    """Build a recipe from a file, `section.key=value` settings, and single values; later ones win over the file.

    Args:
        file: a YAML file with sections.
        settings: texts such as `"train.epochs=5"`; the value is read as YAML.
        values: "section.key" to value, as the command's flags and `finetune()` give them.

    Raises:
        RecipeError: with all faults: unknown sections and keys (nearest name), wrong types, values out of range,
            contradictions, options without effect, and one key set to two values.

    Example:
        >>> build_recipe(settings=["optim.learning_rate=2e-5"]).optim.learning_rate
        2e-05
    """
    data: dict[str, Any] = read_recipe_file(file)[0] if file is not None else {}
    faults: list[str] = []
    given: dict[str, object] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals or key.count(".") < 1:
            faults.append(f'--set {setting}: expected section.key=value, for example "train.epochs=5"')
            continue
        if key in _VERBATIM and text != "null" and text[:1] not in ("'", '"'):
            given[key] = text
            continue
        try:
            given[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            given[key] = text
    for key, value in (values or {}).items():
        if key in given and str(given[key]) != str(value):
            both = [mask(str(one)) if isinstance(one, str) else one for one in (given[key], value)]
            faults.append(f"{key}: set to {both[0]!r} with --set and to {both[1]!r} by its own option. Keep one")
        given[key] = value
    for key, value in given.items():
        _put(data, key.split("."), value, faults)
    return _validate(data, faults)


def _put(data: dict[str, Any], path: list[str], value: object, faults: list[str]) -> None:
    for part in path[:-1]:
        if data.get(part) is None:
            data[part] = {}
        nested = data[part]
        if not isinstance(nested, dict):
            faults.append(f"{'.'.join(path)}: {part} has no keys below it")
            return
        data = nested
    data[path[-1]] = value


def _validate(data: dict[str, Any], faults: Sequence[str] = ()) -> Recipe:
    faults = list(faults)
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        faults += [_explain(dict(fault)) for fault in error.errors()]
    if faults or recipe is None:
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise RecipeError(
            f"The recipe has {count}:\n{join_faults(faults)}",
            "the sections and keys of docs/recipe.md.",
            "Mend the lines above; nothing was started.",
        )
    return recipe


def _explain(fault: dict[str, Any]) -> str:
    """Say one fault that pydantic found in the words of the recipe."""
    path = [str(part) for part in fault["loc"] if not str(part).startswith(("function-", "constrained-"))]
    kind, value, context = fault["type"], fault.get("input"), fault.get("ctx", {})
    section = Recipe.model_fields.get(path[0]) if path else None
    fields: list[str] = []
    if section is not None and section.annotation is not None:
        fields = list(section.annotation.model_fields)
        inner = path[1:] if path[:2] == ["model", "lora"] else path[:0]
        if len(inner) > 1:  # a section inside a section
            fields = list(LoraSection.model_fields)
        # A union's branch (int, str) is no part of the name that the user wrote.
        path = ["model.lora", inner[1]] if len(inner) > 1 else [path[0], *[part for part in path[1:2]]]
    name = ".".join(path)
    if kind == "extra_forbidden":
        if section is None:
            return f"{name}: no such section. {suggest(name, list(Recipe.model_fields))}"
        elsewhere = _section_with(path[1]) if nearest_name(path[1], fields) is None else None
        hint = f"It is in section {elsewhere}: {elsewhere}.{path[1]}." if elsewhere else suggest(path[1], fields)
        return f"{name}: no such key. {hint}"
    if kind == "value_error":
        reason = f"{str(context['error']).rstrip('.')}."
        return f"{name}: {reason}" if name else reason
    if kind == "literal_error":
        field = section.annotation.model_fields.get(path[1]) if section and section.annotation and path[1:] else None
        # pydantic leaves the middle out of many choices.
        choices = _literals(field.annotation) if field is not None else []
        choices = choices or [choice.strip(" '") for choice in re.split(r",| or ", context["expected"])]
        return f"{name}: {value!r} is unknown. {suggest(str(value), choices)}"
    bounds = {
        "greater_than": "more than {gt:g}",
        "greater_than_equal": "at least {ge:g}",
        "less_than": "less than {lt:g}",
        "less_than_equal": "at most {le:g}",
    }
    if kind in bounds:
        return f"{name}: {value!r} is out of range. Expected {bounds[kind].format(**context)}."
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name}: {value!r} is no usable number."
    message = str(fault["msg"]).removeprefix("Input should be ").rstrip(".")
    return f"{name}: {value!r} does not fit. Expected {message}."


def _literals(annotation: object) -> list[str]:
    """Give the texts that a field takes, where it takes some only."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _literals(part)]


def _section_with(field: str) -> str | None:
    for name, section in Recipe.model_fields.items():
        if section.annotation is not None and field in section.annotation.model_fields:
            return name
    return None
