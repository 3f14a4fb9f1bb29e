"""How far a training is, and whether something that happens at intervals is due.

May import layers 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from headstart.durations import Duration
from headstart.training.state import LoopSettings, TrainState, UpdatePlan

__all__ = ["Progress", "epochs_of", "is_due", "is_evaluation_due", "progress_of"]

Progress = Mapping[str, float | Fraction]
"""How far a training is, in each unit of a duration."""


def is_due(every: Duration | None, before: Progress, now: Progress) -> bool:
    """Say whether a multiple of the interval lies after `before` and not after `now`.

    Args:
        every: the interval; None is never due.
        before: progress in each unit ("steps", "epochs", "%", "minutes") after the step before.
        now: progress after this step.

    Example:
        >>> is_due(Duration(2, "epochs"), {"epochs": Fraction(19, 10)}, {"epochs": Fraction(2)})
        True
    """
    if every is None:
        return False
    length = Fraction(every.number).limit_denominator(10**6)
    return math.floor(Fraction(now[every.unit]) / length) > math.floor(Fraction(before[every.unit]) / length)


def epochs_of(state: TrainState, plan: UpdatePlan) -> float:
    """Give the passes over the rows so far, as records have them."""
    epoch, index = plan.locate(state.step)
    return round(float(epoch + Fraction(index, plan.steps_in_epoch(epoch))), 6)


def progress_of(state: TrainState, plan: UpdatePlan, settings: LoopSettings) -> Progress:
    """Give how far a training is, in each unit of a duration."""
    epoch, index = plan.locate(state.step)
    return {
        "steps": state.step,
        "epochs": epoch + Fraction(index, plan.steps_in_epoch(epoch)),
        "%": Fraction(100 * state.step, settings.total_steps),
        "minutes": state.seconds / 60,
    }


def is_evaluation_due(state: TrainState, plan: UpdatePlan, settings: LoopSettings, before: Progress) -> bool:
    """Say whether an evaluation is due: at its interval, and after the last step where there are any."""
    is_last = state.step == settings.total_steps and settings.evaluate_every is not None
    return is_last or is_due(settings.evaluate_every, before, progress_of(state, plan, settings))
