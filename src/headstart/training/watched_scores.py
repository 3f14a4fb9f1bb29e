"""What follows from the scores of an evaluation: which step is the best so far, and when the learning rate falls.

May import layers 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from headstart.training.schedules import PlateauRule
from headstart.training.state import LoopSettings, TrainState

__all__ = ["note_scores"]


def note_scores(state: TrainState, settings: LoopSettings, scores: Mapping[str, float]) -> bool:
    """Remember what the scores of an evaluation decide.

    Args:
        state: changed in place.
        settings: which scores are watched.
        scores: of the evaluation, by name.

    Returns:
        Whether this step is the best so far.

    Example:
        >>> state, settings = TrainState(step=7), LoopSettings(total_steps=9, seed=0, best="accuracy")
        >>> note_scores(state, settings, {"accuracy": 0.8}), state.best_step
        (True, 7)
        >>> note_scores(state, settings, {"accuracy": 0.7}), state.evaluations_without_better
        (False, 1)
    """
    if settings.plateau is not None:
        _follow_plateau(state, settings.plateau, scores[settings.plateau.score])
    if settings.best is None:
        return False
    score, former = scores[settings.best], state.best_score
    # A score that is not a number is never better, and never stays the one to beat.
    is_best = not math.isnan(score) and (
        former is None or (score > former if settings.higher_is_better else score < former)
    )
    state.evaluations_without_better = 0 if is_best else state.evaluations_without_better + 1
    if is_best:
        state.best_step, state.best_score = state.step, score
    return is_best


def _follow_plateau(state: TrainState, rule: PlateauRule, score: float) -> None:
    if rule.is_better(score, state.plateau_best):
        state.plateau_best, state.plateau_waited = score, 0
        return
    state.plateau_waited += 1
    if state.plateau_waited > rule.patience:
        state.rate_factor, state.plateau_waited = state.rate_factor * rule.factor, 0
