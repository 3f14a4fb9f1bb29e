"""The predictions of an evaluation, batch after batch and process after process, each row once.

May import layers 0 to 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from headstart.parts.planned_loader import MicroBatch
from headstart.tasks import Task

__all__ = ["ScoredRows"]


class ScoredRows:
    """Collect predictions, targets and losses of rows.

    Example:
        >>> scored = ScoredRows()
        >>> scored.add(np.array([1]), np.array([[0.9, 0.1]]), np.array([0]), loss_sum=0.1)
        >>> scored.add(np.array([0]), np.array([[0.2, 0.8]]), np.array([1]), loss_sum=0.2)
        >>> predictions, targets, loss = scored.over_all_processes()
        >>> predictions.argmax(axis=1).tolist(), targets.tolist(), round(loss, 2)
        ([1, 0], [1, 0], 0.15)
    """

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._loss_sum = 0.0

    def predict(self, task: Task, model: torch.nn.Module, batch: Any) -> None:
        """Predict the rows of a batch, and take them.

        Args:
            task: of the model.
            model: in evaluation mode.
            batch: a `MicroBatch`, or the tensors of a loader of one's own, whose rows count in their order. Rows
                without labels have no targets, and no loss.
        """
        tensors = batch.tensors if isinstance(batch, MicroBatch) else batch
        outputs = task.run(model, tensors, "predict")
        predictions = task.decode(outputs, tensors)
        if isinstance(batch, MicroBatch):
            rows = batch.dealt.rows[: batch.dealt.num_counted]
        else:
            rows = self.num_rows + np.arange(len(predictions))
        targets, loss = task.no_targets(len(predictions)), 0.0
        if "labels" in tensors and len(rows):
            targets, loss = tensors["labels"].cpu().numpy(), float(task.loss(outputs, tensors))
        self.add(rows, predictions[: len(rows)], targets[: len(rows)], loss_sum=loss)

    @property
    def num_rows(self) -> int:
        """Rows of this process so far."""
        return sum(len(rows) for rows, _, _ in self._parts)

    def add(self, rows: np.ndarray, predictions: np.ndarray, targets: np.ndarray, *, loss_sum: float) -> None:
        """Take the rows of one batch.

        Args:
            rows: their numbers, shape (B,).
            predictions: shape (B, K).
            targets: shape (B,) or (B, K).
            loss_sum: sum of their losses.
        """
        self._parts.append((rows, predictions, targets))
        self._loss_sum += loss_sum

    def over_all_processes(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Give what all processes have, in the order of the rows: predictions (N, K), targets, the mean loss.

        All processes call this together, and get the same.
        """
        gathered: list[ScoredRows | None] = [self]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, self)
        everywhere: Sequence[ScoredRows] = [scored for scored in gathered if scored is not None]
        parts = [part for scored in everywhere for part in scored._parts]
        rows, predictions, targets = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
        order = np.argsort(rows, kind="stable")
        return predictions[order], targets[order], sum(scored._loss_sum for scored in everywhere) / len(rows)
