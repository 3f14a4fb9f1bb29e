"""The sections of a recipe: their fields, what a field may hold, and how the fields of one section agree.

Imports the standard library, pydantic and layer 0. What a field means to a user is told in docs/recipe.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from headstart.durations import parse_duration, parse_fold
from headstart.errors import suggest
from headstart.optim_numbers import OPTIMIZERS, SCHEDULES, OptimizerName, ScheduleName, fill_numbers
from headstart.read_options import READ_OPTIONS, check_delimiter, check_encoding

__all__ = [
    "FAST_PARTS",
    "DataSection",
    "EvaluateSection",
    "LoraSection",
    "ModelSection",
    "OptimSection",
    "OutputSection",
    "TaskSection",
    "TrainSection",
]

ROLES = ("text", "pair", "label")

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
