"""From predictions to scores with intervals, and the tables that keep both.

May import layers 0 to 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.data.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION
from headstart.errors import DataError, RecipeError, suggest
from headstart.metrics import multi_label_intervals, regression_intervals, resolve_scores, score_intervals

if TYPE_CHECKING:
    import pyarrow as pa

    from headstart.tasks import Task

__all__ = ["prediction_table", "score", "score_with_intervals"]

# Scores that a class alone does not give.
_OF_PROBABILITIES = ("roc_auc", "average_precision", "log_loss")


def score_with_intervals(
    task: Task,
    predictions: np.ndarray,
    targets: np.ndarray,
    names: Sequence[str],
    *,
    confidence: float,
    seed: int,
    groups: np.ndarray | None = None,
) -> dict[str, dict[str, float | None]]:
    """Score the rows that have a target, with a bootstrap interval for each score.

    Args:
        task: knows what predictions and targets mean.
        predictions: shape (N, K).
        targets: shape (N,) or (N, K); rows without one are left out.
        names: of scores.
        confidence: share of the interval, 0 to 1.
        seed: of the resampling.
        groups: number of the group of each row, where rows of a group belong together, shape (N,).

    Returns:
        Score name to `{"value", "low", "high"}`; a number that is not defined for these rows is None.
    """
    known = task.has_target(targets)
    if groups is not None:
        groups = np.unique(groups[known], return_inverse=True)[1]
    # One precision for the model and its baselines: it decides how much a sure mistake costs in log_loss.
    predictions = predictions.astype(np.float32)[known]
    scores = task.score_intervals(predictions, targets[known], names, confidence=confidence, seed=seed, groups=groups)
    return _without_undefined(scores)


def _without_undefined(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    return {name: {part: _finite_or_none(value) for part, value in parts.items()} for name, parts in scores.items()}


def score(
    predictions: Any,
    labels: Any,
    names: Sequence[str] | None = None,
    *,
    task: str = CLASSIFICATION,
    threshold: float | Sequence[float] = 0.5,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """Score what a model predicted, with a bootstrap interval for each score.

    Args:
        predictions: probabilities or logits of each class, shape (N, K), or predicted classes, shape (N,); arrays,
            tensors or lists. Rows of numbers from 0 to 1 that all sum to 1 (to the rounding of their type) are
            probabilities, any others logits. Of several labels a row: probabilities or logits of each label, shape
            (N, K). Of numbers: shape (N,) or (N, K).
        labels: class index of each row, shape (N,); rows with -1 are left out. Of several labels a row: 1, 0 and -1,
            shape (N, K). Of numbers: as the predictions, NaN where there is none.
        names: of scores, or "glue/mrpc" for a set; None takes those of a recipe without `evaluate.scores`, of
            predicted classes those that need no probabilities.
        task: "sequence_classification", "multi_label_classification" or "regression".
        threshold: of several labels a row: the probability from which a label is given, one for all or for each.
        confidence: share of the interval, between 0 and 1.
        seed: of the resampling.

    Returns:
        Score name to `{"value", "low", "high"}`, as `scores.json` has them; None where a number is not defined.

    Raises:
        DataError: the shapes do not fit, or a label is no class.
        RecipeError: a name or the task is unknown; `confidence` is no share; or a score of probabilities is asked for,
            and there are none.

    Example:
        >>> score([0, 1, 1, 0], [0, 1, 0, 0], ["accuracy"])["accuracy"]["value"]
        0.75
        >>> score([[2.0, -1.0], [0.5, 3.0]], [[1, 0], [0, 1]], ["f1_micro"], task="multi_label_classification")[
        ...     "f1_micro"
        ... ]["value"]
        0.8
        >>> score([1.5, 2.0], [1.0, 2.0], ["mae"], task="regression")["mae"]["value"]
        0.25

    Relations: `headstart.evaluate.load("accuracy")` gives the number alone, as the library evaluate does.
    """
    names = [names] if isinstance(names, str) else names
    if not 0 < confidence < 1:
        raise RecipeError(f"score: confidence is {confidence}.", "a share between 0 and 1.", "Write confidence=0.95.")
    if task not in (CLASSIFICATION, MULTI_LABEL, REGRESSION):
        raise RecipeError(
            f'score: the task "{task}" is unknown.', suggest(task, (CLASSIFICATION, MULTI_LABEL, REGRESSION))
        )
    if task != MULTI_LABEL and threshold != 0.5:
        raise RecipeError("score: threshold has no effect.", f'task="{MULTI_LABEL}".', "Leave it out.")
    rounding = _rounding(predictions)
    given, targets = _to_array(predictions), _to_array(labels)
    if task == MULTI_LABEL:
        return _score_label_sets(given, targets, names, threshold, confidence=confidence, seed=seed)
    if task == REGRESSION:
        return _score_numbers(given, targets, names, confidence=confidence, seed=seed)
    if given.ndim not in (1, 2) or targets.ndim != 1 or len(given) != len(targets) or not len(given):
        raise DataError(
            f"score: predictions of shape {given.shape} and labels of shape {targets.shape}.",
            "predictions of shape (N, K) or (N,), labels of shape (N,), and at least one row.",
            "Give one prediction a label.",
        )
    only_classes = given.ndim == 1
    num_classes = int(max(given.max(), targets.max(), 1)) + 1 if only_classes else given.shape[1]
    are_whole = all((values == values.round()).all() for values in ([given, targets] if only_classes else [targets]))
    if not are_whole or targets.max() >= num_classes or targets.min() < -1 or (only_classes and given.min() < 0):
        raise DataError(
            f"score: labels from {targets.min()} to {targets.max()}, and {num_classes} classes.",
            "class indices from 0 on; -1 where there is none.",
            "Turn names of classes into their indices.",
        )
    if only_classes:
        asked = list(names) if names is not None else resolve_scores(None, num_classes, None)
        chosen = resolve_scores([name for name in asked if name not in _OF_PROBABILITIES], num_classes, None)
        if names is not None and len(chosen) < len(resolve_scores(names, num_classes, None)):
            raise RecipeError(
                f"score: {', '.join(name for name in names if name in _OF_PROBABILITIES)} needs probabilities.",
                "predictions of shape (N, K).",
                "Give the logits instead of their argmax.",
            )
        probabilities = np.eye(num_classes)[given.astype(np.int64)]
    else:
        from scipy.special import softmax

        chosen = resolve_scores(names, num_classes, None)
        probabilities = given.astype(np.float64)
        sums = probabilities.sum(axis=1, keepdims=True)
        if (probabilities < 0).any() or not np.allclose(sums, 1.0, atol=max(1e-3, rounding)):
            probabilities = softmax(probabilities, axis=1)
        else:
            probabilities = probabilities / sums
    labelled = targets >= 0
    scores = score_intervals(
        chosen,
        targets[labelled].astype(np.int64),
        probabilities[labelled].astype(np.float32),
        confidence=confidence,
        seed=seed,
    )
    return _without_undefined(scores)


def _score_label_sets(
    given: np.ndarray,
    targets: np.ndarray,
    names: Sequence[str] | None,
    threshold: float | Sequence[float],
    *,
    confidence: float,
    seed: int,
) -> dict[str, dict[str, float | None]]:
    if given.ndim != 2 or given.shape != targets.shape or not given.size or not np.isin(targets, (-1, 0, 1)).all():
        raise DataError(
            f"score: predictions of shape {given.shape} and labels of shape {targets.shape}.",
            "both of shape (N, K), at least one row, and labels of 1, 0 and, where that is not known, -1.",
            "Give a column for each label.",
        )
    thresholds = np.broadcast_to(np.asarray(threshold, dtype=np.float64), given.shape[1:])
    chosen = resolve_scores(names, given.shape[1], None, "classes")
    is_probability = bool((given >= 0).all() and (given <= 1).all())
    probabilities = given if is_probability else 1 / (1 + np.exp(-given.astype(np.float64)))
    known = (targets >= 0).any(axis=1)
    scores = multi_label_intervals(
        chosen,
        targets[known].astype(np.int8),
        probabilities[known].astype(np.float32),
        thresholds,
        confidence=confidence,
        seed=seed,
    )
    return _without_undefined(scores)


def _score_numbers(
    given: np.ndarray, targets: np.ndarray, names: Sequence[str] | None, *, confidence: float, seed: int
) -> dict[str, dict[str, float | None]]:
    # A model with one output gives (N, 1) where labels are (N,).
    columns = [
        values.reshape(len(values), -1) if values.ndim in (1, 2) and len(values) else None
        for values in (given, targets)
    ]
    predicted, numbers = columns
    if predicted is None or numbers is None or predicted.shape != numbers.shape:
        raise DataError(
            f"score: predictions of shape {given.shape} and labels of shape {targets.shape}.",
            "numbers of one shape, (N,) or (N, K), and at least one row.",
            "Give one number a label.",
        )
    chosen = resolve_scores(names, numbers.shape[1], None, "number")
    numbers = numbers.astype(np.float64)
    known = ~np.isnan(numbers).all(axis=1)
    scores = regression_intervals(
        chosen, numbers[known], predicted[known].astype(np.float32), confidence=confidence, seed=seed
    )
    return _without_undefined(scores)


def _to_array(values: Any) -> np.ndarray:
    """Take an array, a list, or a tensor of any dtype, on any device, with a gradient or without.

    Raises:
        DataError: they are no numbers, or the rows have different lengths.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    try:
        found = np.asarray(values)
    except ValueError:
        found = np.asarray(None)
    if found.dtype.kind not in "biuf":
        raise DataError(
            f"score: {type(values).__name__} of something other than numbers, or of rows of different lengths.",
            "class indices, or a probability or logit for each class.",
            "Turn names of classes into their indices.",
        )
    return found


def _rounding(values: Any) -> float:
    """Give by how much a sum of probabilities can miss 1 because each was rounded to its type."""
    import torch

    dtype = getattr(values, "dtype", None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        return 0.0
    return float(torch.finfo(dtype).eps)


def prediction_table(
    task: Task,
    split: str,
    rows: np.ndarray,
    targets: np.ndarray,
    predictions: np.ndarray,
    groups: np.ndarray | None = None,
) -> pa.Table:
    """Build the rows of `predictions.parquet` for one split.

    Args:
        task: gives the columns.
        split: "validation" or "test".
        rows: row numbers in the source, shape (N,).
        targets: what the task learns from each row, shape (N,) or (N, K); missing ones become null.
        predictions: shape (N, K).
        groups: the group of each row as text, shape (N,); a column of its own where there are some.
    """
    import pyarrow as pa

    columns = {"split": pa.array([split] * len(rows)), "row": pa.array(rows.astype(np.int64))}
    table = pa.table({**columns, **task.stored(predictions, targets)}, schema=task.schema())
    return table if groups is None else table.append_column("group", pa.array(groups.tolist(), pa.string()))


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
