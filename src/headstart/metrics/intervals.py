"""Bootstrap intervals: how far a score may move with other rows of the same kind.

Imports numpy only (and `classification`); what classes, labels and numbers share stands at the end. Resampling a
million times a Python call would take minutes, so each resample is a weighting of the rows, and the scores are computed
from weighted sums:

    rows -> confusion counts -> multinomial resamples of the cells   (accuracy, f1, matthews_correlation, ...)
    rows -> a weight for each row -> weighted ranks and means        (roc_auc, average_precision, log_loss)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from headstart.metrics.classification import (
    ORDINAL_SCORES,
    Labels,
    Probabilities,
    clip_probabilities,
    compute_scores,
)

__all__ = ["NUM_RESAMPLES", "Ranking", "draw_weights", "interval", "ratio", "score_intervals"]

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
    groups: npt.NDArray[np.integer] | None = None,
) -> dict[str, dict[str, float]]:
    """Compute scores of one class a row with percentile bootstrap intervals over rows, or over groups of rows.

    Where every resample gives one value (all rows right), the interval is that point: the bootstrap knows no rows but
    these.

    Args:
        names: of scores.
        labels: class index of each row, shape (N,).
        probabilities: shape (N, K).
        confidence: share of the resamples inside the interval, 0 to 1.
        seed: of the resampling.
        num_resamples: how many.
        groups: number of the group of each row, shape (N,), where rows of a group belong together (texts of one
            author): groups are then drawn, not rows, because rows that are alike say less than as many others.

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
            rng = np.random.default_rng([seed, 0])
            resampled |= _resample_counts(counted, labels, probabilities, rng, num_resamples, groups)
        by_row = [name for name in names if name in ROW_SCORES]
        if by_row:
            rng = np.random.default_rng([seed, 1])
            resampled |= _resample_rows(by_row, labels, probabilities, rng, num_resamples, groups)
    return {name: interval(value, resampled.get(name, []), confidence) for name, value in values.items()}


def _resample_counts(
    names: Sequence[str],
    labels: Labels,
    probabilities: Probabilities,
    rng: np.random.Generator,
    num_resamples: int,
    groups: npt.NDArray[np.integer] | None,
) -> dict[str, Floats]:
    """Resample the cells of the confusion matrix, which is resampling rows for scores that depend on it alone."""
    from scipy.sparse import csr_array

    num_labels = probabilities.shape[1]
    cells = labels.astype(np.int64) * num_labels + probabilities.argmax(axis=1)
    kinds, cell_of_row, counts = np.unique(cells, return_inverse=True, return_counts=True)
    places, ones = np.arange(len(kinds)), np.ones(len(kinds))
    # Sparse and a hundred resamples at a time: a thousand classes have up to a million cells.
    is_true = csr_array((ones, (places, kinds // num_labels)), shape=(len(kinds), num_labels))
    is_predicted = csr_array((ones, (places, kinds % num_labels)), shape=(len(kinds), num_labels))
    is_right = is_true.multiply(is_predicted).tocsr()
    distances = np.abs(kinds // num_labels - kinds % num_labels).astype(np.float64)  # in classes, of each cell
    resampled: dict[str, list[Floats]] = {name: [] for name in names}

    def draw() -> Iterator[Floats]:
        if groups is not None:
            for weights in draw_weights(len(labels), num_resamples, rng, groups):
                yield np.stack([np.bincount(cell_of_row, weights=row, minlength=len(kinds)) for row in weights])
            return
        for start in range(0, num_resamples, 100):
            size = min(100, num_resamples - start)
            yield rng.multinomial(len(labels), counts / counts.sum(), size=size).astype(np.float64)

    for drawn in draw():
        right, actual, predicted = drawn @ is_right, drawn @ is_true, drawn @ is_predicted  # (resamples, K)
        for name in names:
            if name in ORDINAL_SCORES:
                score = _ordinal_score(name, drawn, distances, actual, predicted)
            else:
                score = _count_score(name, right, actual, predicted)
            resampled[name].append(score)
    return {name: np.concatenate(parts) for name, parts in resampled.items()}


def _ordinal_score(name: str, drawn: Floats, distances: Floats, actual: Floats, predicted: Floats) -> Floats:
    """Compute a score of the distances between classes for every resample."""
    total = drawn.sum(axis=1)
    if name == "mae":
        return np.asarray(drawn @ distances / total)
    ranks = np.arange(actual.shape[1], dtype=np.float64)
    by_chance = (actual @ ranks**2 + predicted @ ranks**2) / total - 2 * (actual @ ranks) * (
        predicted @ ranks
    ) / total**2
    observed = drawn @ distances**2 / total
    return np.where(by_chance > 0, 1 - ratio(observed, by_chance), np.nan)


def _count_score(name: str, right: Floats, actual: Floats, predicted: Floats) -> Floats:
    """Compute one score for every resample; a division by nothing gives 0, as scikit-learn's `zero_division=0`."""
    total: Floats = actual.sum(axis=1)
    all_right: Floats = right.sum(axis=1)
    recall, precision = ratio(right, actual), ratio(right, predicted)
    f1 = ratio(2 * right, actual + predicted)
    occurs = (actual + predicted) > 0
    if name in ("accuracy", "f1_micro"):
        return all_right / total
    if name == "balanced_accuracy":
        return _mean_over(recall, actual > 0)
    if name == "matthews_correlation":
        covariance = all_right * total - (actual * predicted).sum(axis=1)
        spread = (total**2 - (actual**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1))
        return ratio(covariance, np.sqrt(spread))
    if name == "f1_weighted":
        weighted: Floats = (f1 * actual).sum(axis=1) / total
        return weighted
    by_class = {"f1": f1, "precision": precision, "recall": recall}[name.removesuffix("_macro")]
    return _mean_over(by_class, occurs) if name.endswith("_macro") else by_class[:, 1]


def _resample_rows(
    names: Sequence[str],
    labels: Labels,
    probabilities: Probabilities,
    rng: np.random.Generator,
    num_resamples: int,
    groups: npt.NDArray[np.integer] | None,
) -> dict[str, Floats]:
    """Resample rows as weights: how often each row was drawn."""
    num_rows, num_labels = probabilities.shape
    losses = -np.log(clip_probabilities(probabilities)[np.arange(num_rows), labels])
    classes = [1] if num_labels == 2 else list(range(num_labels))
    rankings = (
        [Ranking(labels == label, probabilities[:, label]) for label in classes] if set(names) - {"log_loss"} else []
    )
    resampled = {name: np.full(num_resamples, np.nan) for name in names}
    drawn = (row for chunk in draw_weights(num_rows, num_resamples, rng, groups) for row in chunk)
    for index, weights in enumerate(drawn):
        for name in names:
            if name == "log_loss":
                resampled[name][index] = weights @ losses / weights.sum()
                continue
            scores = [
                ranking.roc_auc(weights) if name == "roc_auc" else ranking.average_precision(weights)
                for ranking in rankings
            ]
            defined = [score for score in scores if score is not None]
            if defined:
                resampled[name][index] = float(np.mean(defined))
    return resampled


class Ranking:
    """Rows in order of falling score, sorted once for all resamples; rows of one score form a group.

    Args:
        is_positive: which rows are to come first, shape (N,).
        scores: by which they are ranked, shape (N,).
    """

    def __init__(self, is_positive: npt.NDArray[np.bool_], scores: Probabilities) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        self._is_positive = is_positive[self._order]
        self._group_ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))

    def _cumulated(self, weights: Floats) -> tuple[Floats, Floats]:
        """Count positives and negatives down to the end of each group."""
        ranked = weights[self._order]
        positives = np.cumsum(np.where(self._is_positive, ranked, 0))[self._group_ends]
        total = np.cumsum(ranked)[self._group_ends]
        return positives.astype(np.float64), (total - positives).astype(np.float64)

    def roc_auc(self, weights: Floats) -> float | None:
        """Measure the area under the curve of both counts; None where one of them is nothing."""
        positives, negatives = self._cumulated(weights)
        if positives[-1] == 0 or negatives[-1] == 0:
            return None
        heights = (positives + np.concatenate([[0.0], positives[:-1]])) / 2
        return float((np.diff(negatives, prepend=0.0) * heights).sum() / (positives[-1] * negatives[-1]))

    def average_precision(self, weights: Floats) -> float | None:
        """Sum the precision at each group over the positives that it adds."""
        positives, negatives = self._cumulated(weights)
        if positives[-1] == 0 or negatives[-1] == 0:
            return None
        precision = ratio(positives, positives + negatives)
        return float((np.diff(positives, prepend=0.0) * precision).sum() / positives[-1])


def draw_weights(
    num_rows: int, num_resamples: int, rng: np.random.Generator, groups: npt.NDArray[np.integer] | None = None
) -> Iterator[Floats]:
    """Draw rows with replacement, or whole groups of rows, a block of resamples at a time.

    Args:
        num_rows: rows N.
        num_resamples: how many times.
        rng: decides what is drawn.
        groups: number of the group of each row, from 0, shape (N,).

    Yields:
        How often each row counts in each resample, shape (R, N); memory stays below 100 MB a block.
    """
    num_units = num_rows if groups is None else int(groups.max()) + 1
    block = max(1, min(100, 10_000_000 // num_rows))
    for start in range(0, num_resamples, block):
        counts = np.stack(
            [
                np.bincount(rng.integers(0, num_units, num_units), minlength=num_units)
                for _ in range(min(block, num_resamples - start))
            ]
        ).astype(np.float64)
        yield counts if groups is None else counts[:, groups]


def interval(value: float, drawn: Sequence[float] | Floats, confidence: float) -> dict[str, float]:
    """Put a score and the middle share of its resampled values together; those that are not defined are left out."""
    values = np.asarray(drawn, dtype=np.float64)
    values = values[~np.isnan(values)]
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(values, tails) if len(values) else (float("nan"), float("nan"))
    return {"value": value, "low": float(low), "high": float(high)}


def ratio(above: Floats, below: Floats) -> Floats:
    """Divide; by nothing it gives 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _mean_over(values: Floats, counts: npt.NDArray[np.bool_]) -> Floats:
    means: Floats = (values * counts).sum(axis=1) / counts.sum(axis=1)
    return means
