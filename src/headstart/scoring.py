"""From predictions to scores with intervals, and the tables that keep both.

May import layers 0 to 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.metrics import score_intervals

if TYPE_CHECKING:
    import pyarrow as pa

    from headstart.tasks import SequenceClassification

__all__ = ["MAX_STORED_PROBABILITIES", "prediction_table", "score_with_intervals"]

# Past this number of classes only the most probable ones are stored.
ALL_CLASSES_UP_TO = 100
MAX_STORED_PROBABILITIES = 20


def score_with_intervals(
    predictions: np.ndarray, targets: np.ndarray, names: Sequence[str], *, confidence: float, seed: int
) -> dict[str, dict[str, float | None]]:
    """Score the rows that have a target, with a bootstrap interval for each score.

    Args:
        predictions: probabilities, shape (N, K).
        targets: class indices, shape (N,); rows with -1 are left out.
        names: of scores.
        confidence: share of the interval, 0 to 1.
        seed: of the resampling.

    Returns:
        Score name to `{"value", "low", "high"}`; a number that is not defined for these rows is None.
    """
    labelled = targets >= 0
    # One precision for the model and its baselines: it decides how much a sure mistake costs in log_loss.
    predictions = predictions.astype(np.float32)
    scores = score_intervals(list(names), targets[labelled], predictions[labelled], confidence=confidence, seed=seed)
    return {name: {part: _finite_or_none(value) for part, value in parts.items()} for name, parts in scores.items()}


def prediction_table(
    task: SequenceClassification, split: str, rows: np.ndarray, targets: np.ndarray, predictions: np.ndarray
) -> pa.Table:
    """Build the rows of `predictions.parquet` for one split.

    Args:
        task: gives the column types and the classes.
        split: "validation" or "test".
        rows: row numbers in the source, shape (N,).
        targets: class indices, shape (N,); -1 becomes null.
        predictions: probabilities, shape (N, K); past 100 classes the 20 largest are stored, largest first.
    """
    import pyarrow as pa

    values: list[Any] = [*task.values, None]
    stored = predictions
    if predictions.shape[1] > ALL_CLASSES_UP_TO:
        stored = -np.sort(-predictions, axis=1)[:, :MAX_STORED_PROBABILITIES]
    flat = pa.array(stored.astype(np.float32).ravel())
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * stored.shape[1])
    return pa.table(
        {
            "split": [split] * len(rows),
            "row": rows.astype(np.int64),
            "label": [values[target] for target in targets],
            "prediction": [values[index] for index in predictions.argmax(axis=1)],
            "probabilities": pa.ListArray.from_arrays(offsets, flat),
        },
        schema=task.schema(),
    )


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
