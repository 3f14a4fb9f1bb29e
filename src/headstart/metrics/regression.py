"""Scores of predicted numbers, with bootstrap intervals.

Imports numpy and `intervals`. Shapes: `N` rows, `K` targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from headstart.metrics.intervals import NUM_RESAMPLES, draw_weights, interval

__all__ = ["REGRESSION_SCORES", "regression_intervals", "regression_scores"]

REGRESSION_SCORES: Final = ("rmse", "mae", "mse", "r2", "pearson", "spearman")

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating]


def regression_scores(names: Sequence[str], targets: Numbers, predictions: Numbers) -> dict[str, float]:
    """Compute scores of numbers, in the units of the targets; with several targets the mean over them.

    A score that is not defined is NaN: every one of no rows or of predictions that are not finite, `r2` of targets that
    are all alike, and a correlation where targets or predictions are.

    Args:
        names: of scores, each in `REGRESSION_SCORES`.
        targets: shape (N, K); NaN where there is none.
        predictions: shape (N, K).

    Example:
        >>> targets, predictions = np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [5.0]])
        >>> regression_scores(["mae", "spearman"], targets, predictions)
        {'mae': 0.6666666666666666, 'spearman': 1.0}

    Source: https://scikit-learn.org/stable/modules/model_evaluation.html and scipy.stats (`pearsonr`, `spearmanr`).
    """
    if len(targets) == 0 or not np.isfinite(predictions).all():
        return dict.fromkeys(names, float("nan"))
    return _Targets(names, targets, predictions).scores(np.ones((1, len(targets))))[0]


def regression_intervals(
    names: Sequence[str],
    targets: Numbers,
    predictions: Numbers,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    groups: npt.NDArray[np.integer] | None = None,
) -> dict[str, dict[str, float]]:
    """Compute the same scores with percentile bootstrap intervals over rows, or over groups of rows.

    Args:
        names: of scores.
        targets: shape (N, K); NaN where there is none.
        predictions: shape (N, K).
        confidence: share of the resamples inside the interval, 0 to 1.
        seed: of the resampling.
        num_resamples: how many.
        groups: number of the group of each row, shape (N,), where rows of a group belong together.

    Returns:
        Name to `{"value", "low", "high"}`.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    values = regression_scores(names, targets, predictions)
    drawn: list[dict[str, float]] = []
    if len(targets) and np.isfinite(predictions).all():
        rows = _Targets(names, targets, predictions)
        for weights in draw_weights(len(targets), num_resamples, np.random.default_rng([seed, 3]), groups):
            drawn += rows.scores(weights)
    return {name: interval(value, [scores[name] for scores in drawn], confidence) for name, value in values.items()}


class _Targets:
    """Each target's rows, prepared once for all resamples."""

    def __init__(self, names: Sequence[str], targets: Numbers, predictions: Numbers) -> None:
        self._names = list(names)
        self._targets: list[_Target] = []
        for column in range(targets.shape[1]):
            known = ~np.isnan(targets[:, column])
            if known.any():
                y, p = (values[known, column].astype(np.float64) for values in (targets, predictions))
                self._targets.append(_Target(known, y, p, wants_ranks="spearman" in names))

    def scores(self, weights: Floats) -> list[dict[str, float]]:
        """Score rows that count as often as each of the R rows of `weights` (R, N) says."""
        by_target = [target.scores(self._names, weights) for target in self._targets]
        found = {name: np.mean([scores[name] for scores in by_target], axis=0) for name in self._names}
        if not by_target:
            found = dict.fromkeys(self._names, np.full(len(weights), np.nan))
        return [{name: float(values[index]) for name, values in found.items()} for index in range(len(weights))]


class _Target:
    def __init__(self, known: npt.NDArray[np.bool_], y: Floats, p: Floats, *, wants_ranks: bool) -> None:
        self._known = known
        # Correlations and r2 do not change with a shift, and small numbers keep their digits.
        shift = y.mean()
        y, p = y - shift, p - shift
        difference = y - p
        self._columns = np.stack([np.ones_like(y), y, p, y * y, p * p, y * p, difference**2, np.abs(difference)], 1)
        self._ranks = [_Ranks(y), _Ranks(p)] if wants_ranks else []

    def scores(self, names: Sequence[str], weights: Floats) -> dict[str, Floats]:
        weights = weights[:, self._known]
        sums = weights @ self._columns
        with np.errstate(divide="ignore", invalid="ignore"):
            _, y, p, yy, pp, yp, squared, absolute = (sums / sums[:, :1]).T
            variance_y, variance_p = _variance(yy, y), _variance(pp, p)
            scores = {
                "mse": squared,
                "rmse": np.sqrt(squared),
                "mae": absolute,
                "r2": np.where(variance_y > 0, 1 - squared / variance_y, np.nan),
                "pearson": np.where(
                    (variance_y > 0) & (variance_p > 0),
                    np.clip((yp - y * p) / np.sqrt(variance_y * variance_p), -1, 1),
                    np.nan,
                ),
            }
        if "spearman" in names:
            scores["spearman"] = np.asarray([self._spearman(row) for row in weights])
        return {name: scores[name] for name in names}

    def _spearman(self, weights: Floats) -> float:
        total = weights.sum()
        if not total:
            return float("nan")
        first, second = (ranks.of(weights) for ranks in self._ranks)
        first, second = first - weights @ first / total, second - weights @ second / total
        spread = (weights @ first**2) * (weights @ second**2)
        return float(np.clip(weights @ (first * second) / np.sqrt(spread), -1, 1)) if spread > 0 else float("nan")


def _variance(mean_of_squares: Floats, mean: Floats) -> Floats:
    """Give the variance; what is no more than rounding is none."""
    variance = mean_of_squares - mean**2
    return np.where(variance > 1e-12 * mean_of_squares, variance, 0.0)


class _Ranks:
    """Values in order, sorted once for all resamples; equal ones share the middle of their ranks."""

    def __init__(self, values: Floats) -> None:
        order = np.argsort(values, kind="stable")
        ranked = values[order]
        new = np.concatenate([[True], ranked[1:] != ranked[:-1]])
        self._group_of_row = np.empty(len(values), dtype=np.int64)
        self._group_of_row[order] = np.cumsum(new) - 1
        self._num_groups = int(new.sum())

    def of(self, weights: Floats) -> Floats:
        """Give the rank of each row among rows that count as often as `weights` says; shape (N,)."""
        sizes = np.bincount(self._group_of_row, weights=weights, minlength=self._num_groups)
        middles: Floats = np.cumsum(sizes) - (sizes - 1) / 2
        return middles[self._group_of_row]
