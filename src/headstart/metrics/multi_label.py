"""Scores of rows that may have several labels, with bootstrap intervals, and the thresholds that labels are given by.

Imports numpy and `intervals`. Shapes: `N` rows, `K` labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from headstart.metrics.classification import clip_probabilities
from headstart.metrics.intervals import NUM_RESAMPLES, Ranking, draw_weights, interval, ratio

__all__ = ["MULTI_LABEL_SCORES", "multi_label_intervals", "multi_label_scores", "tune_thresholds"]

MULTI_LABEL_SCORES: Final = (
    "f1_micro",
    "f1_macro",
    "f1_weighted",
    "f1_samples",
    "precision_micro",
    "precision_macro",
    "recall_micro",
    "recall_macro",
    "exact_match",
    "hamming_loss",
    "roc_auc",
    "average_precision",
    "log_loss",
)
_RANKED: Final = ("roc_auc", "average_precision")
_OF_ROWS: Final = ("f1_samples", "exact_match", "hamming_loss", "log_loss")
MIN_POSITIVES: Final = 5
"""Rows that must have a label for a threshold of its own."""

Floats = npt.NDArray[np.float64]
LabelMatrix = npt.NDArray[np.integer]
Probabilities = npt.NDArray[np.floating]


def multi_label_scores(
    names: Sequence[str], labels: LabelMatrix, probabilities: Probabilities, thresholds: npt.ArrayLike = 0.5
) -> dict[str, float]:
    """Compute scores of the labels that are predicted: those whose probability reaches their threshold.

    A division by nothing gives 0, as scikit-learn's `zero_division=0`; but `f1_samples` is 1 for a row that has no
    label and gets none, as with `zero_division=1`. `roc_auc` and `average_precision` are means over the labels that
    some rows have and others have not, NaN where there is none. What is not known (-1) counts nothing; a row counts in
    `exact_match` by what is known.

    Args:
        names: of scores, each in `MULTI_LABEL_SCORES`.
        labels: 1, 0 or -1 (not known), shape (N, K).
        probabilities: of each label, shape (N, K).
        thresholds: one number, or K of them.

    Example:
        >>> labels, probabilities = np.array([[1, 0], [0, 1]]), np.array([[0.9, 0.6], [0.2, 0.7]])
        >>> multi_label_scores(["f1_micro", "exact_match"], labels, probabilities)
        {'f1_micro': 0.8, 'exact_match': 0.5}

    Source: https://scikit-learn.org/stable/modules/model_evaluation.html
    """
    if len(labels) == 0 or not np.isfinite(probabilities).all():
        return dict.fromkeys(names, float("nan"))
    return _Rows(names, labels, probabilities, thresholds).scores(np.ones((1, len(labels))))[0]


def multi_label_intervals(
    names: Sequence[str],
    labels: LabelMatrix,
    probabilities: Probabilities,
    thresholds: npt.ArrayLike = 0.5,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    groups: npt.NDArray[np.integer] | None = None,
) -> dict[str, dict[str, float]]:
    """Compute the same scores with percentile bootstrap intervals over rows, or over groups of rows.

    The thresholds stay what they are.

    Args:
        names: of scores.
        labels: 1, 0 or -1 (not known), shape (N, K).
        probabilities: of each label, shape (N, K).
        thresholds: one number, or K of them.
        confidence: share of the resamples inside the interval, 0 to 1.
        seed: of the resampling.
        num_resamples: how many.
        groups: number of the group of each row, shape (N,), where rows of a group belong together.

    Returns:
        Name to `{"value", "low", "high"}`.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    values = multi_label_scores(names, labels, probabilities, thresholds)
    drawn: list[dict[str, float]] = []
    if len(labels) and np.isfinite(probabilities).all():
        rows = _Rows(names, labels, probabilities, thresholds)
        for weights in draw_weights(len(labels), num_resamples, np.random.default_rng([seed, 2]), groups):
            drawn += rows.scores(weights)
    return {name: interval(value, [scores[name] for scores in drawn], confidence) for name, value in values.items()}


class _Rows:
    """What is counted of each row, once for all resamples."""

    def __init__(
        self, names: Sequence[str], labels: LabelMatrix, probabilities: Probabilities, thresholds: npt.ArrayLike
    ) -> None:
        self._names = list(names)
        is_known = labels >= 0
        has, gets = (labels == 1), (probabilities >= np.asarray(thresholds)) & is_known
        self._num_labels = labels.shape[1]
        # One product with the weights counts all three for every label.
        self._counted = np.concatenate([has & gets, has, gets], axis=1).astype(np.float64)
        self._known = is_known.astype(np.float64)
        self._by_row = {name: self._of_each_row(name, has, gets, is_known, probabilities) for name in self._row_names}
        self._rankings = []
        if set(names) & set(_RANKED):
            for label in range(self._num_labels):
                known = is_known[:, label]
                if has[known, label].any() and not has[known, label].all():
                    self._rankings.append((known, Ranking(has[known, label], probabilities[known, label])))

    @property
    def _row_names(self) -> list[str]:
        return [name for name in self._names if name in _OF_ROWS]

    @staticmethod
    def _of_each_row(
        name: str,
        has: npt.NDArray[np.bool_],
        gets: npt.NDArray[np.bool_],
        is_known: npt.NDArray[np.bool_],
        probabilities: Probabilities,
    ) -> Floats:
        """Give what a score is the mean of: over rows, or (shape (N, K)) over what is known of rows."""
        if name == "exact_match":
            return np.asarray((has == gets).all(axis=1), dtype=np.float64)
        if name == "hamming_loss":
            return np.asarray(has != gets, dtype=np.float64)
        if name == "f1_samples":
            sizes = has.sum(axis=1) + gets.sum(axis=1)
            f1 = ratio(2.0 * (has & gets).sum(axis=1), sizes.astype(np.float64))
            return np.where(sizes == 0, 1.0, f1)
        clipped = clip_probabilities(np.stack([1 - probabilities, probabilities], axis=-1).reshape(-1, 2))
        shape = probabilities.shape
        losses = -np.log(np.where(has, clipped[:, 1].reshape(shape), clipped[:, 0].reshape(shape)))
        return np.where(is_known, losses, 0.0)

    def scores(self, weights: Floats) -> list[dict[str, float]]:
        """Score rows that count as often as each of the R rows of `weights` (R, N) says."""
        both, has, gets = np.split(weights @ self._counted, 3, axis=1)
        num_known = (weights @ self._known).sum(axis=1)
        found: dict[str, Floats] = {}
        for name in self._names:
            if name in _RANKED:
                found[name] = np.asarray([self._ranked(name, row) for row in weights])
            elif name in self._by_row:
                values = self._by_row[name]
                found[name] = (
                    weights @ values / weights.sum(axis=1)
                    if values.ndim == 1
                    else ratio((weights @ values).sum(axis=1), num_known)
                )
            else:
                found[name] = _counted_score(name, both, has, gets)
        return [{name: float(values[index]) for name, values in found.items()} for index in range(len(weights))]

    def _ranked(self, name: str, weights: Floats) -> float:
        scores = [
            ranking.roc_auc(weights[known]) if name == "roc_auc" else ranking.average_precision(weights[known])
            for known, ranking in self._rankings
        ]
        defined = [score for score in scores if score is not None]
        return float(np.mean(defined)) if defined else float("nan")


def _counted_score(name: str, both: Floats, has: Floats, gets: Floats) -> Floats:
    """Compute a score from counts of shape (R, K): labels that are given rightly, that are there, that are given."""
    measure, _, average = name.partition("_")
    if average == "micro":
        both, has, gets = (counts.sum(axis=1, keepdims=True) for counts in (both, has, gets))
    values = {
        "f1": lambda: ratio(2 * both, has + gets),
        "precision": lambda: ratio(both, gets),
        "recall": lambda: ratio(both, has),
    }[measure]()
    if average == "weighted":
        return ratio((values * has).sum(axis=1), has.sum(axis=1))
    means: Floats = values.mean(axis=1)
    return means


def tune_thresholds(labels: LabelMatrix, probabilities: Probabilities) -> Floats:
    """Choose for each label the threshold with the highest F1.

    A label that fewer than 5 rows have takes the threshold that is best for all labels together: of so few rows its own
    would be chance. A threshold lies in the middle between two probabilities that occur; of those that are equally
    good it is the one nearest to 0.5, and 0.5 itself where no row has any label.

    Args:
        labels: 1, 0 or -1 (not known), shape (N, K).
        probabilities: shape (N, K).

    Returns:
        float64 of shape (K,).

    Example:
        >>> labels, probabilities = np.array([[1]] * 5 + [[0]] * 2), np.array([[0.3]] * 5 + [[0.1]] * 2)
        >>> tune_thresholds(labels, probabilities).round(2).tolist()
        [0.2]

    Source: Lipton, Elkan & Naryanaswamy 2014, Optimal Thresholding of Classifiers to Maximize F1 Measure.
    """
    is_known = labels >= 0
    common = _best_threshold(labels[is_known] == 1, probabilities[is_known])
    thresholds = np.full(labels.shape[1], common)
    for label in range(labels.shape[1]):
        known = is_known[:, label]
        has = labels[known, label] == 1
        if has.sum() >= MIN_POSITIVES:
            thresholds[label] = _best_threshold(has, probabilities[known, label])
    return thresholds


def _best_threshold(has: npt.NDArray[np.bool_], probabilities: Probabilities) -> float:
    if not has.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order].astype(np.float64)
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    right = np.cumsum(has[order])[ends]
    f1 = 2 * right / (ends + 1 + has.sum())
    lower = np.append(ranked[ends[:-1] + 1], 0.0)  # the next probability below
    middles = (ranked[ends] + lower) / 2
    best = np.flatnonzero(f1 == f1.max())
    return float(middles[best[np.argmin(np.abs(middles[best] - 0.5))]])
