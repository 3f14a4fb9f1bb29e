"""Predict one number, or several, from a text or a pair of texts.

May import layers 0 to 2. Legend: `B` rows of a batch, `T` tokens, `K` numbers, `N` rows of a table.

The model learns numbers of mean 0 and deviation 1, whatever the units of the source are; `decode` gives them back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, final

import numpy as np
import torch

from headstart.data.labels import REGRESSION, find_labels, read_numbers
from headstart.errors import LabelError, RecipeError
from headstart.metrics import ScoreKind, regression_intervals, regression_scores
from headstart.models.head import outputs_in_full_precision
from headstart.tasks.interface import Batch, Mode
from headstart.tasks.losses import squared_error
from headstart.tasks.texts import (
    Columns,
    WholeTexts,
    check_version,
    columns_from_dict,
    columns_of,
    columns_to_dict,
)

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from headstart.recipe_sections import OptimSection

__all__ = ["Regression"]

VERSIONED_NAME: Final = "regression.v1"
_NUM_STRATA: Final = 10


@final
@dataclass(frozen=True)
class Regression(WholeTexts):
    """K numbers a row.

    Args:
        names: one for each number.
        text: column of the text.
        pair: column of the second text, or None.
        label: column of the number, or of lists of K numbers; or K columns.
        center: what an output of 0 means in the units of the source, K numbers.
        scale: what a difference of 1 in an output means, K numbers.

    Example:
        >>> import datasets
        >>> table = datasets.Dataset.from_dict({"text": ["a", "b"], "score": [1.0, 4.0]})
        >>> task = Regression.learn_labels(table, text="text", label="score")
        >>> task.center, task.scale
        ((2.5,), (1.5,))
    """

    names: tuple[str, ...]
    text: str
    pair: str | None
    label: Columns
    center: tuple[float, ...]
    scale: tuple[float, ...]

    name: ClassVar[str] = REGRESSION
    unit: ClassVar[Literal["row"]] = "row"
    problem_type: ClassVar[str] = "regression"
    score_kind: ClassVar[ScoreKind] = "number"

    @classmethod
    def learn_labels(cls, table: datasets.Dataset, *, text: str, label: Columns, pair: str | None = None) -> Regression:
        """Read mean and deviation of the numbers from the training table.

        Raises:
            LabelError: a number is infinite, or all rows have the same.
        """
        columns = columns_of(label)
        form, _ = find_labels(table, columns, task=REGRESSION)
        numbers = read_numbers(table, form)
        names = (
            columns if len(columns) == numbers.shape[1] else tuple(f"{columns[0]}_{i}" for i in range(numbers.shape[1]))
        )
        for index, name in enumerate(names):
            known = numbers[:, index][~np.isnan(numbers[:, index])]
            if not len(known) or not np.isfinite(known).all() or known.min() == known.max():
                what = "no number" if not len(known) else "one number in all rows"
                what = what if np.isfinite(known).all() else "numbers that are not finite"
                raise LabelError(
                    f'"{name}" holds {what}.', "different, finite numbers in the training rows.", "Name another column."
                )
        center, scale = np.nanmean(numbers, axis=0), np.nanstd(numbers, axis=0)
        return cls(names, text, pair, label, tuple(center.tolist()), tuple(scale.tolist()))

    @property
    def label_names(self) -> tuple[str, ...]:
        """One name for each number; the model's `id2label`."""
        return self.names

    def reading(self, *, text: str, label: Columns) -> Regression:
        """Give the same task for a table whose columns have other names."""
        return replace(self, text=text, label=label)

    def with_objective(self, optim: OptimSection, targets: np.ndarray) -> Regression:
        """Leave the loss as it is.

        Raises:
            RecipeError: the recipe sets what only classes have.
        """
        for setting in ("class_weights", "label_smoothing", "focal_gamma"):
            if getattr(optim, setting) is not None:
                raise RecipeError(
                    f"optim.{setting} has no effect: a number is learned, not a class.",
                    "a task with classes or labels.",
                    f"Remove optim.{setting}.",
                )
        return self

    def as_outputs(self) -> Regression:
        """Give the task of a model whose outputs are in the units of the source already."""
        return replace(self, center=(0.0,) * len(self.names), scale=(1.0,) * len(self.names))

    def targets(self, table: datasets.Dataset) -> np.ndarray:
        """Give the numbers of each row in the units of the source, float32 of shape (N, K); NaN where there is none.

        Raises:
            LabelError: they are no numbers, or not as many.
        """
        form, _ = find_labels(table, columns_of(self.label), task=REGRESSION)
        numbers = read_numbers(table, form)
        if numbers.shape[1] != len(self.names):
            raise LabelError(
                f"The rows have {numbers.shape[1]} numbers each.",
                f"{len(self.names)}: {', '.join(self.names[:20])}.",
                "Mend the rows.",
            )
        return numbers.astype(np.float32)

    def no_targets(self, num_rows: int) -> np.ndarray:
        """Give the targets of rows that have none."""
        return np.full((num_rows, len(self.names)), np.nan, dtype=np.float32)

    def has_target(self, targets: np.ndarray) -> np.ndarray:
        """Say which rows have a number."""
        known: np.ndarray = ~np.isnan(targets).all(axis=1)
        return known

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Give the tenth of the rows that a row belongs to by its number; of several by the mean of their ranks."""
        ranks = np.argsort(np.argsort(np.nan_to_num(targets), axis=0, kind="stable"), axis=0, kind="stable")
        order = np.argsort(np.argsort(ranks.mean(axis=1), kind="stable"), kind="stable")
        tenths: np.ndarray = order * _NUM_STRATA // max(1, len(order))
        return tenths

    def describe_targets(self, targets: np.ndarray) -> list[tuple[str, int | str]]:
        """Say for each number from where to where it goes."""
        described: list[tuple[str, int | str]] = []
        for name, values in zip(self.names, targets.T, strict=True):
            known = values[~np.isnan(values)].astype(np.float64)
            text = f"{known.min():.4g} to {known.max():.4g}, mean {known.mean():.4g}, deviation {known.std():.4g}"
            missing = len(values) - len(known)
            described.append((name, text + (f", missing in {missing:,} rows" if missing else "")))
        return described

    def run(self, model: torch.nn.Module, batch: Batch, mode: Mode) -> Any:
        """Run the forward pass without labels; to predict, its last layer computes in float32."""
        if mode == "train":
            return super().run(model, batch, mode)
        with outputs_in_full_precision(model, len(self.names)):
            return super().run(model, batch, mode)

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Sum over rows the mean squared error in units of the deviation, in float32."""
        labels = batch["labels"]
        center, scale = (labels.new_tensor(numbers) for numbers in (self.center, self.scale))
        return squared_error(outputs.logits, (labels - center) / scale, batch.get("row_weights"))

    def decode(self, outputs: Any, batch: Batch) -> np.ndarray:
        """Give the numbers in the units of the source, float32 of shape (B, K)."""
        outputs_BK = outputs.logits.float().cpu().numpy().astype(np.float64)
        numbers: np.ndarray = outputs_BK * np.asarray(self.scale) + np.asarray(self.center)
        return numbers.astype(np.float32)

    def tune(self, predictions: np.ndarray, targets: np.ndarray) -> Regression:
        """Leave the task as it is: there is nothing to choose."""
        return self

    def score(self, predictions: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        """Score numbers of shape (N, K), in the units of the source."""
        return regression_scores(names, targets, predictions)

    def score_intervals(
        self,
        predictions: np.ndarray,
        targets: np.ndarray,
        names: Sequence[str],
        *,
        confidence: float,
        seed: int,
        groups: np.ndarray | None = None,
    ) -> dict[str, dict[str, float]]:
        """Score them with bootstrap intervals, over rows or over groups of rows."""
        return regression_intervals(names, targets, predictions, confidence=confidence, seed=seed, groups=groups)

    def values_of(self, predictions: np.ndarray) -> list[Any]:
        """Give the number of each row; of several, name to number."""
        if len(self.names) == 1:
            return [float(value) for value in predictions[:, 0]]
        return [dict(zip(self.names, map(float, row), strict=True)) for row in predictions]

    def stored(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, pa.Array]:
        """Give labels and predictions; of several numbers, name to number."""
        import pyarrow as pa

        kind = self.schema().field("label").type

        def column(numbers: np.ndarray) -> pa.Array:
            parts = [pa.array(part.astype(np.float32), from_pandas=True) for part in numbers.T]
            return parts[0] if len(parts) == 1 else pa.StructArray.from_arrays(parts, fields=list(kind))

        return {"label": column(targets), "prediction": column(predictions)}

    def restored(self, columns: Mapping[str, list[Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Take predictions and numbers back."""

        def numbers(rows: list[Any]) -> np.ndarray:
            if len(self.names) > 1:
                rows = [[row[name] for name in self.names] for row in rows]
            found: np.ndarray = np.asarray(rows, dtype=np.float32).reshape(-1, len(self.names))
            return found

        return numbers(columns["prediction"]), numbers(columns["label"])

    def schema(self) -> pa.Schema:
        """Give the columns of `predictions.parquet`."""
        import pyarrow as pa

        one = pa.float32()
        kind = one if len(self.names) == 1 else pa.struct([(name, one) for name in self.names])
        return pa.schema({"split": pa.string(), "row": pa.int64(), "label": kind, "prediction": kind})

    def to_dict(self) -> dict[str, Any]:
        """Give what `task.json` holds."""
        return {
            "task": VERSIONED_NAME,
            "numbers": list(self.names),
            "columns": columns_to_dict(self.text, self.pair, self.label),
            "center": list(self.center),
            "scale": list(self.scale),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Regression:
        """Build the task from what `to_dict` gave.

        Raises:
            CheckpointError: it is another task, or another version.
        """
        check_version(values, VERSIONED_NAME)
        columns = columns_from_dict(values["columns"])
        return cls(tuple(values["numbers"]), *columns, center=tuple(values["center"]), scale=tuple(values["scale"]))
