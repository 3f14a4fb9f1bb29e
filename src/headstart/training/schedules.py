"""Schedules of the learning rate: pure functions of the step, and one that follows a score.

May import layers 0 to 2. A schedule gives the factor on the highest learning rate:

    warm-up from 0 to 1 -> what the schedule's name says        times, for "plateau", what `PlateauRule` has made of it
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from headstart.errors import RecipeError, suggest
from headstart.optim_numbers import NUMBERS_OF_SCHEDULES, SCHEDULES, ScheduleName, fill_numbers

if TYPE_CHECKING:
    from headstart.recipe_sections import OptimSection

__all__ = [
    "PlateauRule",
    "build_schedule",
    "learning_rate_factor",
    "schedule_numbers",
    "set_learning_rate",
]

# PyTorch's OneCycleLR: the first rate is the highest / 25, the last one the first / 10,000.
_FIRST, _LAST = 1 / 25, 1 / 25 / 1e4
# Where there is no warm-up to measure with, transformers' get_inverse_sqrt_schedule takes so many steps.
_TIMESCALE = 10_000


def learning_rate_factor(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    schedule: ScheduleName,
    power: float = 2.0,
    end_factor: float = 0.0,
    cycles: int = 2,
) -> float:
    """Give the factor (0 to 1) on the highest learning rate that update `step` uses.

    Args:
        step: zero-based number of the update.
        total_steps: updates of the whole training.
        warmup_steps: updates over which the factor rises from 0 to 1; 0 starts at 1. With "one_cycle" the rising part.
        schedule: what follows the warm-up: "linear" or half a "cosine" to `end_factor`; "polynomial", a power of the
            share that is left, to `end_factor`; "inverse_sqrt", the root of the warm-up's length / the step;
            "cosine_with_restarts", several halves of a cosine to 0; "one_cycle", one cosine up from 1/25 and one down
            to 1/250,000; or "constant" and "plateau", whose changes follow the scores (`PlateauRule`).
        power: of "polynomial".
        end_factor: of "linear", "cosine" and "polynomial".
        cycles: of "cosine_with_restarts".

    Example:
        >>> [learning_rate_factor(s, total_steps=4, warmup_steps=2, schedule="linear") for s in range(4)]
        [0.0, 0.5, 1.0, 0.5]

    Source: the same numbers as transformers' `get_linear_schedule_with_warmup` and its cosine, constant, polynomial,
    inverse-root and restarting kin, and as `torch.optim.lr_scheduler.OneCycleLR` without its cycle of momentum. One
    cycle: Smith & Topin 2018, Super-Convergence; restarts: Loshchilov & Hutter 2017, SGDR; the inverse root: Vaswani et
    al. 2017, Attention Is All You Need.
    """
    if schedule == "one_cycle":
        return _one_cycle(step, total_steps, warmup_steps)
    if step < warmup_steps:
        return step / warmup_steps
    if schedule in ("constant", "plateau"):
        return 1.0
    if schedule == "inverse_sqrt":
        timescale = warmup_steps or _TIMESCALE
        return 1.0 / math.sqrt((step - warmup_steps + timescale) / timescale)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "cosine_with_restarts":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (cycles * progress % 1.0)))) if progress < 1.0 else 0.0
    if schedule == "cosine":
        share = max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    else:
        share = max(0.0, 1.0 - progress) ** (power if schedule == "polynomial" else 1.0)
    return end_factor + (1.0 - end_factor) * share


def _one_cycle(step: int, total_steps: int, warmup_steps: int) -> float:
    peak = warmup_steps - 1  # the step that has the highest rate
    if step <= peak:
        start, end, share = _FIRST, 1.0, step / peak if peak else 1.0
    else:
        start, end, share = 1.0, _LAST, (step - peak) / max(1, total_steps - 1 - peak)
    return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1.0)


def schedule_numbers(optim: OptimSection) -> dict[str, float]:
    """Give the numbers of a recipe's schedule as `learning_rate_factor` takes them.

    Example:
        >>> from headstart.recipe_sections import OptimSection
        >>> schedule_numbers(OptimSection(schedule="polynomial"))
        {'power': 2.0, 'end_factor': 0.0}
    """
    names = SCHEDULES[optim.schedule].numbers
    return {name: getattr(optim, name) for name in names if not name.startswith("plateau_")}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of an optimizer its learning rate: `rate` times the group's "lr_factor", where it has one.

    Example:
        >>> weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
        >>> optimizer = torch.optim.SGD([{"params": weights[0]}, {"params": weights[1], "lr_factor": 0.5}], lr=0.1)
        >>> set_learning_rate(optimizer, 0.2)
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.2, 0.1]
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)


@dataclass(frozen=True)
class PlateauRule:
    """When the learning rate falls because a score gets no better.

    Args:
        score: the score that is watched.
        higher_is_better: its direction.
        factor: the learning rate is multiplied with it.
        patience: evaluations in a row without a better score that are waited for; the next one lets the rate fall.
        threshold: a score counts as better where it is so by this share of the best one.

    Source: the rule of `torch.optim.lr_scheduler.ReduceLROnPlateau`, which, besides, makes no step below 1e-8.
    """

    score: str
    higher_is_better: bool
    factor: float = 0.1
    patience: int = 1
    threshold: float = 1e-4

    def is_better(self, score: float, best: float | None) -> bool:
        """Say whether a score is better than the best one so far; NaN never is.

        Example:
            >>> rule = PlateauRule("accuracy", higher_is_better=True)
            >>> rule.is_better(0.9, None), rule.is_better(0.9, 0.9), rule.is_better(float("nan"), None)
            (True, False, False)
        """
        if best is None:
            return not math.isnan(score)
        if self.higher_is_better:
            return score > best * (1.0 + self.threshold)
        return score < best * (1.0 - self.threshold)


def build_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    total_steps: int,
    warmup: int | str | None = None,
    schedule: ScheduleName = "linear",
    power: float | None = None,
    end_factor: float | None = None,
    cycles: int | None = None,
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build a scheduler of PyTorch that goes the way of a recipe's `optim.schedule` and `optim.warmup`.

    Args:
        optimizer: its learning rates are the highest; call `step()` of the scheduler after each of the optimizer's.
        total_steps: updates of the whole training, `PlannedBatches.total_steps(epochs)`.
        warmup: updates over which the rate rises from 0; a number, or a share such as "5%". None is 0, and "30%" with
            "one_cycle".
        schedule: see `learning_rate_factor`; "plateau" follows scores, which PyTorch's `ReduceLROnPlateau` is given.
        power: of "polynomial", 2 where nothing is said.
        end_factor: of "linear", "cosine" and "polynomial", 0 where nothing is said.
        cycles: of "cosine_with_restarts", 2 where nothing is said.

    Raises:
        RecipeError: the warm-up cannot be counted, there is no update, the schedule is unknown or needs scores, or a
            number has no effect with it.

    Example:
        >>> optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=1.0)
        >>> scheduler = build_schedule(optimizer, total_steps=4, warmup="50%")
        >>> rates = []
        >>> for _ in range(4):
        ...     rates += scheduler.get_last_lr()
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.0, 0.5, 1.0, 0.5]

    Relations: `learning_rate_factor` is the function behind it; transformers' `get_scheduler` gives the same numbers.
    """
    if total_steps < 1:
        raise RecipeError(f"total_steps: {total_steps}.", "At least one update.", "Count the updates of all epochs.")
    names = [name for name in SCHEDULES if name != "plateau"]
    if schedule == "plateau":
        raise RecipeError(
            'schedule: "plateau" follows the score of each evaluation, and a schedule over steps knows none.',
            f"one of: {', '.join(names)}.",
            "Give the scores to torch.optim.lr_scheduler.ReduceLROnPlateau yourself.",
        )
    if schedule not in names:
        raise RecipeError(f'schedule: "{schedule}".', suggest(schedule, names))
    given: dict[str, float | None] = dict.fromkeys(NUMBERS_OF_SCHEDULES)
    given |= {"power": power, "end_factor": end_factor, "cycles": cycles}
    try:
        filled = fill_numbers("adamw", schedule, given)
    except ValueError as error:
        raise RecipeError(f"build_schedule: {error}.") from error
    warmup_steps = _count_warmup(SCHEDULES[schedule].warmup if warmup is None else warmup, total_steps)
    if schedule == "inverse_sqrt" and not warmup_steps:
        raise RecipeError(
            'schedule: "inverse_sqrt" falls with the length of the warm-up, and there is none.',
            "a warm-up.",
            'Write warmup="10%".',
        )
    numbers = {**filled, **{name: value for name, value in given.items() if value is not None}}

    def factor(step: int) -> float:
        return learning_rate_factor(
            step, total_steps=total_steps, warmup_steps=warmup_steps, schedule=schedule, **numbers  # type: ignore[arg-type]
        )  # fmt: skip

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _count_warmup(warmup: int | str, total_steps: int) -> int:
    from headstart.durations import parse_duration

    try:
        duration = parse_duration(warmup)
    except ValueError:
        duration = None
    if duration is None or duration.unit not in ("steps", "%"):
        raise RecipeError(
            f"warmup: {warmup}.", 'A number of updates, or a share of them such as "5%".', "Write warmup=100."
        )
    return duration.in_steps(total_steps=total_steps, steps_per_epoch=total_steps)
