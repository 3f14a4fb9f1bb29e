"""Bootstrap intervals: how far a score may move with other rows of the same kind.

Imports numpy only (and `classification`). Resampling a million times a Python call would take minutes, so each
resample is a weighting of the rows, and the scores are computed from weighted sums:

    rows -> confusion counts -> multinomial resamples of the cells   (accuracy, f1, matthews_correlation, ...)
    rows -> a weight for each row -> weighted ranks and means        (roc_auc, average_precision, log_loss)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from headstart.metrics.classification import Labels, Probabilities, clip_probabilities, compute_scores

__all__ = ["NUM_RESAMPLES", "score_intervals"]

NUM_RESAMPLES: Final = 1000
ROW_SCORES: Final = ("roc_auc", "average_precision", "log_loss")

Floats = npt.NDArray[np.float64]


def score_intervals(
    names: Sequence[str],
    labels: Labels,
    probabilities: Probabilities,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, dict[str, float]]:
    """Compute scores with percentile bootstrap intervals over the rows.

    Where every resample gives one value (all rows right), the interval is that point: the bootstrap knows no rows but
    these.

    Args:
        names: of scores.
        labels: class index of each row, shape (N,).
        probabilities: shape (N, K).
        confidence: share of the resamples inside the interval, 0 to 1.
        seed: of the resampling.
        num_resamples: how many.

    Returns:
        Name to `{"value", "low", "high"}`; NaN where a score is not defined (see `compute_scores`).

    Example:
        >>> labels, probabilities = np.array([0, 1] * 50), np.tile([[0.9, 0.1], [0.4, 0.6]], (50, 1))
        >>> score_intervals(["accuracy"], labels, probabilities)["accuracy"]
        {'value': 1.0, 'low': 1.0, 'high': 1.0}

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile intervals).
    """
    values = compute_scores(names, labels, probabilities)
    resampled: dict[str, Floats] = {}
    if len(labels) and np.isfinite(probabilities).all():
        counted = [name for name in names if name not in ROW_SCORES]
        if counted:
            resampled |= _resample_counts(
                counted, labels, probabilities, np.random.default_rng([seed, 0]), num_resamples
            )
        by_row = [name for name in names if name in ROW_SCORES]
        if by_row:
            resampled |= _resample_rows(by_row, labels, probabilities, np.random.default_rng([seed, 1]), num_resamples)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    scores = {}
    for name, value in values.items():
        drawn = resampled.get(name, np.zeros(0))
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.quantile(drawn, tails) if len(drawn) else (float("nan"), float("nan"))
        scores[name] = {"value": value, "low": float(low), "high": float(high)}
    return scores


def _resample_counts(
    names: Sequence[str], labels: Labels, probabilities: Probabilities, rng: np.random.Generator, num_resamples: int
) -> dict[str, Floats]:
    """Resample the cells of the confusion matrix, which is resampling rows for scores that depend on it alone."""
    from scipy.sparse import csr_array

    num_labels = probabilities.shape[1]
    cells = labels.astype(np.int64) * num_labels + probabilities.argmax(axis=1)
    kinds, counts = np.unique(cells, return_counts=True)
    places, ones = np.arange(len(kinds)), np.ones(len(kinds))
    # Sparse and a hundred resamples at a time: a thousand classes have up to a million cells.
    is_true = csr_array((ones, (places, kinds // num_labels)), shape=(len(kinds), num_labels))
    is_predicted = csr_array((ones, (places, kinds % num_labels)), shape=(len(kinds), num_labels))
    is_right = is_true.multiply(is_predicted).tocsr()
    resampled: dict[str, list[Floats]] = {name: [] for name in names}
    for start in range(0, num_resamples, 100):
        size = min(100, num_resamples - start)
        drawn = rng.multinomial(len(labels), counts / counts.sum(), size=size).astype(np.float64)
        right, actual, predicted = drawn @ is_right, drawn @ is_true, drawn @ is_predicted  # (resamples, K)
        for name in names:
            resampled[name].append(_count_score(name, right, actual, predicted))
    return {name: np.concatenate(parts) for name, parts in resampled.items()}


def _count_score(name: str, right: Floats, actual: Floats, predicted: Floats) -> Floats:
    """Compute one score for every resample; a division by nothing gives 0, as scikit-learn's `zero_division=0`."""
    total: Floats = actual.sum(axis=1)
    all_right: Floats = right.sum(axis=1)
    recall, precision = _ratio(right, actual), _ratio(right, predicted)
    f1 = _ratio(2 * right, actual + predicted)
    occurs = (actual + predicted) > 0
    if name in ("accuracy", "f1_micro"):
        return all_right / total
    if name == "balanced_accuracy":
        return _mean_over(recall, actual > 0)
    if name == "matthews_correlation":
        covariance = all_right * total - (actual * predicted).sum(axis=1)
        spread = (total**2 - (actual**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1))
        return _ratio(covariance, np.sqrt(spread))
    if name == "f1_weighted":
        weighted: Floats = (f1 * actual).sum(axis=1) / total
        return weighted
    by_class = {"f1": f1, "precision": precision, "recall": recall}[name.removesuffix("_macro")]
    return _mean_over(by_class, occurs) if name.endswith("_macro") else by_class[:, 1]


def _resample_rows(
    names: Sequence[str], labels: Labels, probabilities: Probabilities, rng: np.random.Generator, num_resamples: int
) -> dict[str, Floats]:
    """Resample rows as weights: how often each row was drawn."""
    num_rows, num_labels = probabilities.shape
    losses = -np.log(clip_probabilities(probabilities)[np.arange(num_rows), labels])
    classes = [1] if num_labels == 2 else list(range(num_labels))
    rankings = (
        [_Ranking(labels == label, probabilities[:, label]) for label in classes] if set(names) - {"log_loss"} else []
    )
    resampled = {name: np.full(num_resamples, np.nan) for name in names}
    for index in range(num_resamples):
        weights = np.bincount(rng.integers(0, num_rows, num_rows), minlength=num_rows)
        for name in names:
            if name == "log_loss":
                resampled[name][index] = weights @ losses / num_rows
                continue
            scores = [
                ranking.roc_auc(weights) if name == "roc_auc" else ranking.average_precision(weights)
                for ranking in rankings
            ]
            defined = [score for score in scores if score is not None]
            if defined:
                resampled[name][index] = float(np.mean(defined))
    return resampled


class _Ranking:
    """Rows in order of falling score, sorted once for all resamples; rows of one score form a group."""

    def __init__(self, is_positive: npt.NDArray[np.bool_], scores: Probabilities) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        self._is_positive = is_positive[self._order]
        self._group_ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))

    def _cumulated(self, weights: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Count positives and negatives down to the end of each group."""
        ranked = weights[self._order]
        positives = np.cumsum(np.where(self._is_positive, ranked, 0))[self._group_ends]
        total = np.cumsum(ranked)[self._group_ends]
        return positives.astype(np.float64), (total - positives).astype(np.float64)

    def roc_auc(self, weights: npt.NDArray[np.int64]) -> float | None:
        """Measure the area under the curve of both counts; None where one of them is nothing."""
        positives, negatives = self._cumulated(weights)
        if positives[-1] == 0 or negatives[-1] == 0:
            return None
        heights = (positives + np.concatenate([[0.0], positives[:-1]])) / 2
        return float((np.diff(negatives, prepend=0.0) * heights).sum() / (positives[-1] * negatives[-1]))

    def average_precision(self, weights: npt.NDArray[np.int64]) -> float | None:
        """Sum the precision at each group over the positives that it adds."""
        positives, negatives = self._cumulated(weights)
        if positives[-1] == 0 or negatives[-1] == 0:
            return None
        precision = _ratio(positives, positives + negatives)
        return float((np.diff(positives, prepend=0.0) * precision).sum() / positives[-1])


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _mean_over(values: Floats, counts: npt.NDArray[np.bool_]) -> Floats:
    means: Floats = (values * counts).sum(axis=1) / counts.sum(axis=1)
    return means
