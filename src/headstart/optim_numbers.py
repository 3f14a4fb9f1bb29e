"""Which numbers each optimizer and each schedule of a recipe has, and what they are where nobody sets them.

Imports layer 0 only. The recipe fills in its `optim` section from these tables, and refuses a number that the chosen
optimizer or schedule does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = [
    "NUMBERS_OF_SCHEDULES",
    "OPTIMIZERS",
    "SCHEDULES",
    "OptimizerKind",
    "OptimizerName",
    "ScheduleKind",
    "ScheduleName",
    "fill_numbers",
]

OptimizerName = Literal["adamw", "sgd", "adafactor", "nadam", "radam", "lion", "adan", "prodigy"]
ScheduleName = Literal[
    "linear", "cosine", "constant", "polynomial", "inverse_sqrt", "cosine_with_restarts", "one_cycle", "plateau"
]


@dataclass(frozen=True)
class OptimizerKind:
    """What is known of an optimizer before it is built.

    Args:
        numbers: its own, by the names of the recipe's fields, with their defaults.
        learning_rate: its default; None follows from the width of the model, as AdamW's does.
        times_adamw: its default learning rate / that of AdamW, where that follows from the model.
        weight_decay: its default.
        by_group: it keeps what it learns of the step size, or counts its updates, for many parameters together.
    """

    numbers: Mapping[str, float]
    learning_rate: float | None = None
    times_adamw: float = 1.0
    weight_decay: float = 0.01
    by_group: bool = False


@dataclass(frozen=True)
class ScheduleKind:
    """What is known of a schedule.

    Args:
        numbers: its own, by the names of the recipe's fields, with their defaults.
        warmup: its default.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    warmup: int | str = 0


_ADAM: Final = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
OPTIMIZERS: Final[dict[str, OptimizerKind]] = {
    "adamw": OptimizerKind(_ADAM),
    "sgd": OptimizerKind({"momentum": 0.9}, learning_rate=1e-3),
    # float32's precision is what torch takes for null.
    "adafactor": OptimizerKind(
        {"beta2_decay": -0.8, "clip_threshold": 1.0, "epsilon": 2.0**-23, "epsilon2": 1e-3}, learning_rate=1e-3
    ),
    "nadam": OptimizerKind({**_ADAM, "momentum_decay": 0.004}, times_adamw=0.5),
    "radam": OptimizerKind(_ADAM, times_adamw=3.0),
    "lion": OptimizerKind({"beta1": 0.9, "beta2": 0.99}, times_adamw=1 / 3, weight_decay=0.03),
    "adan": OptimizerKind({"beta1": 0.98, "beta2": 0.92, "beta3": 0.99, "epsilon": 1e-8}, by_group=True),
    "prodigy": OptimizerKind({**_ADAM, "d_coef": 1.0}, learning_rate=1.0, by_group=True),
}
"""Every optimizer by its name in a recipe. Why these numbers: docs/recipe.md."""

SCHEDULES: Final[dict[str, ScheduleKind]] = {
    "linear": ScheduleKind({"end_factor": 0.0}),
    "cosine": ScheduleKind({"end_factor": 0.0}),
    "constant": ScheduleKind(),
    "polynomial": ScheduleKind({"power": 2.0, "end_factor": 0.0}),
    "inverse_sqrt": ScheduleKind(),
    "cosine_with_restarts": ScheduleKind({"cycles": 2}),
    "one_cycle": ScheduleKind(warmup="30%"),
    "plateau": ScheduleKind({"plateau_factor": 0.1, "plateau_patience": 1}),
}
"""Every schedule by its name in a recipe."""

_NUMBERS_OF_OPTIMIZERS: Final = tuple(dict.fromkeys(name for kind in OPTIMIZERS.values() for name in kind.numbers))
NUMBERS_OF_SCHEDULES: Final = tuple(dict.fromkeys(name for kind in SCHEDULES.values() for name in kind.numbers))
"""The fields of a recipe's `optim` section that belong to some schedules only."""


def fill_numbers(name: str, schedule: str, given: Mapping[str, float | None]) -> dict[str, float]:
    """Fill in the numbers that an optimizer and a schedule have.

    Args:
        name: of the optimizer.
        schedule: its name.
        given: numbers by name; None where nobody has set one.

    Returns:
        The numbers that were not given and that the two have.

    Raises:
        ValueError: a number was given that neither has.

    Example:
        >>> fill_numbers("lion", "polynomial", {"beta1": 0.95, "beta2": None, "power": None, "end_factor": 0.1})
        {'beta2': 0.99, 'power': 2.0}
    """
    filled: dict[str, float] = {}
    for number in (*_NUMBERS_OF_OPTIMIZERS, *NUMBERS_OF_SCHEDULES):
        is_of_schedule = number in NUMBERS_OF_SCHEDULES
        kinds: Mapping[str, OptimizerKind | ScheduleKind] = SCHEDULES if is_of_schedule else OPTIMIZERS
        chosen = schedule if is_of_schedule else name
        default, value = kinds[chosen].numbers.get(number), given.get(number)
        if value is not None and default is None:
            owners = [owner for owner, kind in kinds.items() if number in kind.numbers]
            what = f"the {chosen} schedule" if is_of_schedule else chosen
            raise ValueError(f"{number} has no effect with {what}; it belongs to {_listed(owners)}. Remove it")
        if value is None and default is not None and number in given:
            filled[number] = default
    return filled


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
