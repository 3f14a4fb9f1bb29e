"""Scores of a classifier: class indices and probabilities in, floats out. scikit-learn does the arithmetic.

Imports numpy and `errors` only; scikit-learn inside functions. Shapes: `N` rows, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["BINARY_SCORES", "CLASSIFICATION_SCORES", "ORDINAL_SCORES", "clip_probabilities", "compute_scores"]

Labels = npt.NDArray[np.integer]
Probabilities = npt.NDArray[np.floating]

BINARY_SCORES: Final = ("f1", "precision", "recall")
"""Scores of the positive class, which is class 1, as in GLUE and scikit-learn; defined for two classes only."""

ORDINAL_SCORES: Final = ("quadratic_weighted_kappa", "mae")
"""Scores of classes that have an order; a class counts as far from the next as that from the one after."""

CLASSIFICATION_SCORES: Final = (
    "accuracy",
    "balanced_accuracy",
    "f1",
    "f1_macro",
    "f1_micro",
    "f1_weighted",
    "precision",
    "precision_macro",
    "recall",
    "recall_macro",
    "matthews_correlation",
    "roc_auc",
    "average_precision",
    "log_loss",
)


def compute_scores(names: Sequence[str], labels: Labels, probabilities: Probabilities) -> dict[str, float]:
    """Compute scores of predicted probabilities; the prediction is the most probable class.

    A class that is never predicted has precision 0. A score that is not defined for these rows is NaN: every score of
    no rows or of probabilities that are not finite, and `roc_auc` and `average_precision` of rows that are all of one
    class.

    Args:
        names: of scores, each in `CLASSIFICATION_SCORES` or, where the classes have an order, `ORDINAL_SCORES`.
        labels: class index of each row, shape (N,).
        probabilities: shape (N, K); each row sums to 1.

    Returns:
        Name to value. With more than two classes `roc_auc` and `average_precision` are means over the classes, each
        against the rest.

    Raises:
        KeyError: a name is unknown.

    Example:
        >>> probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
        >>> compute_scores(["accuracy", "f1"], np.array([0, 1, 1, 1]), probabilities)
        {'accuracy': 0.75, 'f1': 0.8}

    Source: https://scikit-learn.org/stable/modules/model_evaluation.html
    """
    if len(labels) == 0 or not np.isfinite(probabilities).all():
        return dict.fromkeys(names, float("nan"))
    predictions = probabilities.argmax(axis=1)
    return {name: float(_SCORERS[name](labels, predictions, probabilities)) for name in names}


def _balanced_accuracy(labels: Labels, predictions: Labels, probabilities: Probabilities) -> float:
    from sklearn.metrics import recall_score

    # scikit-learn's own warns where a class is predicted that no row has; the mean over the rows' classes is the same.
    return float(recall_score(labels, predictions, average="macro", labels=np.unique(labels), zero_division=0))


def _averaged(score: str, average: str) -> Callable[[Labels, Labels, Probabilities], float]:
    def compute(labels: Labels, predictions: Labels, probabilities: Probabilities) -> float:
        import sklearn.metrics

        scorer = getattr(sklearn.metrics, f"{score}_score")
        return float(scorer(labels, predictions, average=average, zero_division=0))

    return compute


def _accuracy(labels: Labels, predictions: Labels, probabilities: Probabilities) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def _matthews(labels: Labels, predictions: Labels, probabilities: Probabilities) -> float:
    from sklearn.metrics import matthews_corrcoef

    if len(np.unique(labels)) == 1 and len(np.unique(predictions)) == 1:
        return 0.0  # scikit-learn's value, without its warning about one class
    return float(matthews_corrcoef(labels, predictions))


def _ranked(name: str) -> Callable[[Labels, Labels, Probabilities], float]:
    """Score the ranking of each class against the rest; the mean over the classes that have both."""

    def compute(labels: Labels, predictions: Labels, probabilities: Probabilities) -> float:
        import sklearn.metrics

        scorer = getattr(sklearn.metrics, f"{name}_score")
        num_labels = probabilities.shape[1]
        classes = [1] if num_labels == 2 else range(num_labels)
        values = []
        for label in classes:
            is_label = labels == label
            if is_label.any() and not is_label.all():
                values.append(float(scorer(is_label, probabilities[:, label])))
        return float(np.mean(values)) if values else float("nan")

    return compute


def _quadratic_weighted_kappa(labels: Labels, predictions: Labels, probabilities: Probabilities) -> float:
    from sklearn.metrics import cohen_kappa_score

    if len(np.unique(np.concatenate([labels, predictions]))) == 1:
        return float("nan")  # scikit-learn's value, without its warning
    return float(cohen_kappa_score(labels, predictions, weights="quadratic", labels=np.arange(probabilities.shape[1])))


def _mean_class_distance(labels: Labels, predictions: Labels, probabilities: Probabilities) -> float:
    return float(np.abs(labels - predictions).mean())


def _log_loss(labels: Labels, predictions: Labels, probabilities: Probabilities) -> float:
    from sklearn.metrics import log_loss

    return float(log_loss(labels, clip_probabilities(probabilities), labels=np.arange(probabilities.shape[1])))


def clip_probabilities(probabilities: Probabilities) -> npt.NDArray[np.float64]:
    """Keep probabilities away from 0 and 1, so that one sure mistake does not make a mean loss infinite.

    Args:
        probabilities: shape (N, K); the precision of its type is the least probability, as in scikit-learn.

    Returns:
        float64 of the same shape, each row sums to 1.
    """
    floor = float(np.finfo(probabilities.dtype).eps)
    clipped: npt.NDArray[np.float64] = np.clip(probabilities.astype(np.float64), floor, 1 - floor)
    clipped /= clipped.sum(axis=1, keepdims=True)
    return clipped


_SCORERS: Final[dict[str, Callable[[Labels, Labels, Probabilities], float]]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "f1": _averaged("f1", "binary"),
    "f1_macro": _averaged("f1", "macro"),
    "f1_micro": _averaged("f1", "micro"),
    "f1_weighted": _averaged("f1", "weighted"),
    "precision": _averaged("precision", "binary"),
    "precision_macro": _averaged("precision", "macro"),
    "recall": _averaged("recall", "binary"),
    "recall_macro": _averaged("recall", "macro"),
    "matthews_correlation": _matthews,
    "roc_auc": _ranked("roc_auc"),
    "average_precision": _ranked("average_precision"),
    "log_loss": _log_loss,
    "quadratic_weighted_kappa": _quadratic_weighted_kappa,
    "mae": _mean_class_distance,
}
