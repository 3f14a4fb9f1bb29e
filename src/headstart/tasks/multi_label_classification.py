"""Give a text, or a pair of texts, any number of K labels.

May import layers 0 to 2. Legend: `B` rows of a batch, `T` tokens, `K` labels, `N` rows of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, final

import numpy as np
import torch

from headstart.data.labels import (
    MULTI_LABEL,
    LabelSets,
    LabelValue,
    find_labels,
    find_same_labels,
    label_name,
    read_label_sets,
)
from headstart.errors import LabelError, RecipeError
from headstart.metrics import ScoreKind, multi_label_intervals, multi_label_scores, tune_thresholds
from headstart.tasks.interface import Batch
from headstart.tasks.losses import PLAIN, Objective, binary_cross_entropy
from headstart.tasks.texts import (
    Columns,
    WholeTexts,
    array_of_lists,
    check_version,
    columns_from_dict,
    columns_of,
    columns_to_dict,
    objective_numbers,
    weights_by_name,
)

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from headstart.recipe_sections import OptimSection

__all__ = ["MultiLabelClassification"]

VERSIONED_NAME: Final = "multi_label_classification.v1"
DEFAULT_THRESHOLD: Final = 0.5


@final
@dataclass(frozen=True)
class MultiLabelClassification(WholeTexts):
    """Any number of labels a row, out of K.

    Args:
        values: the labels as the source writes them (str or int), in the order of the logits.
        text: column of the text.
        pair: column of the second text, or None.
        label: column of the labels (lists, or texts with a delimiter), or a column of 0 and 1 for each of them.
        delimiter: between the labels of a text.
        thresholds: probability from which a label is given, one for each; None before they are chosen, and 0.5 then
            stands for all.
        fixed_threshold: what the user wants in place of chosen ones.
        objective: how mistakes count in training.

    Example:
        >>> import datasets
        >>> table = datasets.Dataset.from_dict({"text": ["a", "b"], "tags": [["x", "y"], []]})
        >>> MultiLabelClassification.learn_labels(table, text="text", label="tags").values
        ('x', 'y')
    """

    values: tuple[LabelValue, ...]
    text: str
    pair: str | None
    label: Columns
    delimiter: str | None = None
    thresholds: tuple[float, ...] | None = None
    fixed_threshold: float | None = None
    objective: Objective = PLAIN

    name: ClassVar[str] = MULTI_LABEL
    unit: ClassVar[Literal["row"]] = "row"
    problem_type: ClassVar[str] = "multi_label_classification"
    score_kind: ClassVar[ScoreKind] = "classes"

    @classmethod
    def learn_labels(
        cls,
        table: datasets.Dataset,
        *,
        text: str,
        label: Columns,
        pair: str | None = None,
        labels: Sequence[LabelValue] | None = None,
        delimiter: str | None = None,
        threshold: float | None = None,
    ) -> MultiLabelClassification:
        """Read the labels from the training table.

        Args:
            table: the training rows.
            text: column of the text.
            label: column of the labels, or columns of 0 and 1.
            pair: column of the second text.
            labels: names for the places of lists of 0 and 1.
            delimiter: between the labels of a text; None guesses.
            threshold: probability from which every label is given; None chooses one for each on validation rows.

        Raises:
            LabelError: there is no label in any row, or they do not fit `labels`.
            RecipeError: `labels` has no effect.
        """
        form, reason = find_labels(table, columns_of(label), task=MULTI_LABEL, delimiter=delimiter)
        values = read_label_sets(table, form).values
        if labels is not None:
            if form.writing != "numbers":
                raise RecipeError(
                    f"task.labels has no effect: {reason}, which have names.",
                    "lists of 0 and 1.",
                    "Remove task.labels.",
                )
            if len(labels) != len(values):
                raise LabelError(
                    f"task.labels has {len(labels)} names, but {reason}.", "a name for each place.", "Mend task.labels."
                )
            values = tuple(labels)
        if not values:
            raise LabelError(
                f'The column "{form.columns[0]}" holds no label in any row.', "labels in some rows.", "Name another."
            )
        return cls(values, text, pair, label, form.delimiter, fixed_threshold=threshold)

    @property
    def label_names(self) -> tuple[str, ...]:
        """One name a label, in the order of the logits; the model's `id2label`."""
        return tuple(label_name(value) for value in self.values)

    def reading(self, *, text: str, label: Columns) -> MultiLabelClassification:
        """Give the same task for a table whose columns have other names."""
        return replace(self, text=text, label=label)

    def with_objective(self, optim: OptimSection, targets: np.ndarray) -> MultiLabelClassification:
        """Give the same task with a loss as the recipe wants it.

        A weight is what a label that is there counts, beside one that is not there; `balanced` is the number of rows
        without the label by that with it.

        Raises:
            RecipeError: the weights name an unknown label.
        """
        weights: tuple[float, ...] | None = None
        if optim.class_weights == "balanced":
            with_label, without = (targets == 1).sum(axis=0), (targets == 0).sum(axis=0)
            weights = tuple((np.maximum(without, 1) / np.maximum(with_label, 1)).tolist())
        elif optim.class_weights is not None:
            weights = weights_by_name(optim.class_weights, self.label_names)
        return replace(self, objective=Objective(weights, **objective_numbers(optim)))

    def targets(self, table: datasets.Dataset) -> np.ndarray:
        """Say which labels each row has: int8 of shape (N, K), 1, 0, or -1 where that is not known.

        Raises:
            LabelError: a label is none of this task.
        """
        form = find_same_labels(table, columns_of(self.label), MULTI_LABEL, self.delimiter)
        sets = read_label_sets(table, form)
        if form.writing in ("columns", "numbers"):
            if len(sets.values) != len(self.values):
                raise LabelError(
                    f"The rows say 0 or 1 for each of {len(sets.values)} labels.",
                    f"{len(self.values)} labels: {', '.join(self.label_names[:20])}.",
                    "Mend the rows.",
                )
            return sets.matrix
        return self._by_name(sets)

    def _by_name(self, sets: LabelSets) -> np.ndarray:
        place = {name: index for index, name in enumerate(self.label_names)}
        names = [label_name(value) for value in sets.values]
        unknown = [name for name in names if name not in place]
        if unknown:
            raise LabelError(
                f'The column "{columns_of(self.label)[0]}" holds labels that were not in training: '
                f"{', '.join(unknown[:5])}.",
                f"some of: {', '.join(self.label_names[:20])}.",
                "Map these labels to the known ones, or take them out.",
            )
        targets = np.zeros((len(sets.matrix), len(self.values)), dtype=np.int8)
        targets[:, [place[name] for name in names]] = sets.matrix
        targets[(sets.matrix < 0).all(axis=1) if names else np.zeros(len(targets), dtype=bool)] = -1
        return targets

    def no_targets(self, num_rows: int) -> np.ndarray:
        """Give the targets of rows that have none."""
        return np.full((num_rows, len(self.values)), -1, dtype=np.int8)

    def has_target(self, targets: np.ndarray) -> np.ndarray:
        """Say of which rows something is known."""
        known: np.ndarray = np.asarray((targets >= 0).any(axis=1))
        return known

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Give the rarest label that each row has, so that a cut has some of it; K where a row has none."""
        has = targets == 1
        rarity = np.argsort(np.argsort(has.sum(axis=0), kind="stable"), kind="stable")
        by_rarity = np.where(has, rarity, len(self.values))
        smallest: np.ndarray = by_rarity.min(axis=1, initial=len(self.values))
        return smallest

    def describe_targets(self, targets: np.ndarray) -> list[tuple[str, int | str]]:
        """Count the rows that have each label."""
        counts = (targets == 1).sum(axis=0)
        return [(name, int(count)) for name, count in zip(self.label_names, counts, strict=True)]

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Sum over rows the mean cross-entropy of their labels, in float32."""
        return binary_cross_entropy(outputs.logits, batch["labels"], self.objective, batch.get("row_weights"))

    def decode(self, outputs: Any, batch: Batch) -> np.ndarray:
        """Turn logits into the probability of each label, float32 of shape (B, K)."""
        probabilities: np.ndarray = torch.sigmoid(outputs.logits.float()).cpu().numpy()
        return probabilities

    def tune(self, predictions: np.ndarray, targets: np.ndarray) -> MultiLabelClassification:
        """Choose the threshold of each label; see `headstart.metrics.tune_thresholds`."""
        if self.fixed_threshold is not None:
            return replace(self, thresholds=(self.fixed_threshold,) * len(self.values))
        known = self.has_target(targets)
        return replace(self, thresholds=tuple(tune_thresholds(targets[known], predictions[known]).tolist()))

    def _thresholds(self) -> np.ndarray:
        fallback = DEFAULT_THRESHOLD if self.fixed_threshold is None else self.fixed_threshold
        return np.asarray(self.thresholds or (fallback,) * len(self.values))

    def score(self, predictions: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        """Score probabilities of shape (N, K) with the thresholds of this task."""
        return multi_label_scores(names, targets, predictions, self._thresholds())

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
        return multi_label_intervals(
            names, targets, predictions, self._thresholds(), confidence=confidence, seed=seed, groups=groups
        )

    def values_of(self, predictions: np.ndarray) -> list[list[LabelValue]]:
        """Give the labels of each row whose probability reaches their threshold, in the order of the labels."""
        given = predictions >= self._thresholds()
        return [[self.values[index] for index in np.flatnonzero(row)] for row in given]

    def stored(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, pa.Array]:
        """Give labels, predictions and the probability of each label."""
        import pyarrow as pa

        kind = self.schema().field("label").type
        known = self.has_target(targets)
        labels = [
            [self.values[index] for index in np.flatnonzero(row == 1)] if is_known else None
            for row, is_known in zip(targets, known, strict=True)
        ]
        return {
            "label": pa.array(labels, kind),
            "prediction": pa.array(self.values_of(predictions), kind),
            "probabilities": array_of_lists(predictions),
        }

    def restored(self, columns: Mapping[str, list[Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Take probabilities and labels back; a label that was not known counts as one that is not there."""
        targets = self.no_targets(len(columns["label"]))
        place = {value: index for index, value in enumerate(self.values)}
        for row, labels in enumerate(columns["label"]):
            if labels is not None:
                targets[row] = 0
                targets[row, [place[value] for value in labels]] = 1
        return np.asarray(columns["probabilities"], dtype=np.float32).reshape(-1, len(self.values)), targets

    def schema(self) -> pa.Schema:
        """Give the columns of `predictions.parquet`; labels have the source's type."""
        import pyarrow as pa

        kind = pa.list_({bool: pa.bool_(), int: pa.int64(), str: pa.string()}[type(self.values[0])])
        return pa.schema(
            {
                "split": pa.string(),
                "row": pa.int64(),
                "label": kind,
                "prediction": kind,
                "probabilities": pa.list_(pa.float32()),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Give what `task.json` holds."""
        return {
            "task": VERSIONED_NAME,
            "labels": list(self.values),
            "columns": columns_to_dict(self.text, self.pair, self.label),
            "delimiter": self.delimiter,
            "thresholds": list(self.thresholds) if self.thresholds is not None else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MultiLabelClassification:
        """Build the task from what `to_dict` gave.

        Raises:
            CheckpointError: it is another task, or another version.
        """
        check_version(values, VERSIONED_NAME)
        thresholds = tuple(values["thresholds"]) if values["thresholds"] is not None else None
        columns = columns_from_dict(values["columns"])
        return cls(tuple(values["labels"]), *columns, delimiter=values["delimiter"], thresholds=thresholds)
