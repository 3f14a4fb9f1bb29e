"""Classify a text, or a pair of texts, into one of K classes.

May import layers 0 to 2. Legend: `B` rows of a batch, `T` tokens, `K` classes, `N` rows of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, final

import numpy as np
import torch

from headstart.data.labels import CLASSIFICATION, LabelValue, find_labels, label_name, order_labels, read_probabilities
from headstart.errors import LabelError, RecipeError
from headstart.metrics import ScoreKind, compute_scores, score_intervals
from headstart.tasks.interface import Batch
from headstart.tasks.losses import PLAIN, Objective, cross_entropy, ordinal_targets
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

__all__ = ["SequenceClassification"]

VERSIONED_NAME: Final = "sequence_classification.v1"
# Past this number of classes only the most probable ones are stored.
ALL_CLASSES_UP_TO: Final = 100
MAX_STORED_PROBABILITIES: Final = 20


@final
@dataclass(frozen=True)
class SequenceClassification(WholeTexts):
    """One label a row, out of K classes.

    Args:
        values: the classes as the source writes them (str, int or bool), in the order of the logits.
        text: column of the text.
        pair: column of the second text, or None.
        label: column of the label, or of a list with a probability for each class; or K columns of probabilities.
        ordinal: whether the classes have an order, so that a class next to the right one is half right.
        objective: how mistakes count in training.

    Example:
        >>> import datasets
        >>> table = datasets.Dataset.from_dict({"text": ["a", "b"], "stars": [5, 1]})
        >>> SequenceClassification.learn_labels(table, text="text", label="stars").values
        (1, 5)
    """

    values: tuple[LabelValue, ...]
    text: str
    pair: str | None
    label: Columns
    ordinal: bool = False
    objective: Objective = PLAIN

    name: ClassVar[str] = CLASSIFICATION
    unit: ClassVar[Literal["row"]] = "row"
    problem_type: ClassVar[str] = "single_label_classification"

    @classmethod
    def learn_labels(
        cls,
        table: datasets.Dataset,
        *,
        text: str,
        label: Columns,
        pair: str | None = None,
        labels: Sequence[LabelValue] | None = None,
        ordinal: bool = False,
    ) -> SequenceClassification:
        """Read the classes from the training table.

        Their order does not depend on the order of the rows: as a `ClassLabel` names them, else False before True,
        numbers by size, texts by alphabet (by size where all of them are whole numbers).

        Args:
            table: the training rows.
            text: column of the text.
            label: column of the label, or columns of probabilities.
            pair: column of the second text.
            labels: the classes in an order of one's own; of probabilities in a list, their names.
            ordinal: whether the order of the classes means something.

        Raises:
            LabelError: there are fewer than two classes, or others than `labels` names.
        """
        columns = columns_of(label)
        form, _ = find_labels(table, columns, task=CLASSIFICATION)
        if form.kind == "probabilities":
            width = read_probabilities(table.select(range(1)), form).shape[1]
            names = columns if len(columns) > 1 else getattr(table.features[columns[0]], "names", None)
            found: tuple[LabelValue, ...] = tuple(names or range(width))
            if labels is not None and len(labels) != len(found):
                raise LabelError(
                    f"task.labels names {len(labels)} classes, but the rows have {len(found)} probabilities each.",
                    "a name for each of them, in their order.",
                    "Mend task.labels.",
                )
            return cls(tuple(labels or found), text, pair, label, ordinal)
        feature = table.features[columns[0]]
        names = getattr(feature, "names", None)
        if names is not None and len(names) > 1:
            found = tuple(names)
        else:
            found = order_labels(_plain(value) for value in names or table.unique(columns[0]) if value is not None)
        if len(found) < 2:
            raise LabelError(
                f'The column "{columns[0]}" holds {len(found)} class '
                f"({', '.join(map(label_name, found)) or 'nothing'}).",
                "at least two classes in the training rows.",
                "Name another column with --label, or add rows of another class.",
            )
        if labels is not None:
            found = _in_order(found, labels, columns[0])
        elif ordinal and all(isinstance(value, str) and not _is_whole(value) for value in found):
            raise RecipeError(
                f'task.ordinal is set, but the order of the texts in "{columns[0]}" is not known.',
                "task.labels: the classes from the lowest to the highest.",
                f"Set for example task.labels=[{', '.join(map(label_name, found[:5]))}], in the right order.",
            )
        return cls(found, text, pair, label, ordinal)

    @property
    def label_names(self) -> tuple[str, ...]:
        """One name a class, in the order of the logits; the model's `id2label`."""
        return tuple(label_name(value) for value in self.values)

    @property
    def score_kind(self) -> ScoreKind:
        """Scores of classes, with those of their distance where they have an order."""
        return "ordinal" if self.ordinal else "class"

    def reading(self, *, text: str, label: Columns) -> SequenceClassification:
        """Give the same task for a table whose columns have other names."""
        return replace(self, text=text, label=label)

    def with_objective(self, optim: OptimSection, targets: np.ndarray) -> SequenceClassification:
        """Give the same task with a loss as the recipe wants it.

        `balanced` weights a class by N / (K x its rows), as scikit-learn's `class_weight="balanced"`.

        Raises:
            RecipeError: the weights name an unknown class.
        """
        weights: tuple[float, ...] | None = None
        if optim.class_weights == "balanced":
            labelled = targets[self.has_target(targets)]
            size = len(self.values)
            counts = labelled.sum(axis=0) if labelled.ndim == 2 else np.bincount(labelled, minlength=size)
            # A class without rows has no targets, so its weight is never used.
            weights = tuple((len(labelled) / (size * np.maximum(counts, 1e-12))).tolist())
            weights = tuple(weight if count else 1.0 for weight, count in zip(weights, counts, strict=True))
        elif optim.class_weights is not None:
            weights = weights_by_name(optim.class_weights, self.label_names)
        if self.ordinal and optim.label_smoothing:
            raise RecipeError(
                "optim.label_smoothing has no effect with task.ordinal, which spreads targets by distance.",
                "one of them.",
                "Remove optim.label_smoothing.",
            )
        return replace(self, objective=Objective(weights, **objective_numbers(optim)))

    def targets(self, table: datasets.Dataset) -> np.ndarray:
        """Give the class of each row, or the probabilities of all classes.

        Returns:
            Class indices, int64 of shape (N,), -1 for null and for -1 in a `ClassLabel` column; or probabilities,
            float32 of shape (N, K), NaN where there are none.

        Raises:
            LabelError: a label is no class of this task.
        """
        columns = columns_of(self.label)
        if len(columns) > 1 or _holds_lists(table, columns[0]):
            form, _ = find_labels(table, columns, task=CLASSIFICATION)
            probabilities = read_probabilities(table, form)
            if probabilities.shape[1] != len(self.values):
                raise LabelError(
                    f"The rows have {probabilities.shape[1]} probabilities each.",
                    f"one for each of {len(self.values)} classes: {', '.join(self.label_names[:20])}.",
                    "Mend the rows.",
                )
            return probabilities
        return self._class_indices(table, columns[0])

    def _class_indices(self, table: datasets.Dataset, label: str) -> np.ndarray:
        names = getattr(table.features[label], "names", None)
        index_of = {name: index for index, name in enumerate(self.label_names)}
        column = table.select_columns([label]).with_format("arrow")[:][label]
        encoded = column.combine_chunks().dictionary_encode()
        ids, unknown = [], []
        for value in encoded.dictionary.to_pylist():
            if names is not None and isinstance(value, int):
                is_known = value < len(names)  # a cast to a ClassLabel lets larger numbers through
                value = None if value < 0 else names[value] if is_known else f"{value} (of {len(names)} names)"
            name = None if value is None else label_name(_plain(value))
            # GLUE writes -1 where a split has no labels.
            missing = name is None or (name == "-1" and name not in index_of)
            ids.append(-1 if missing else index_of.get(str(name), -2))
            if ids[-1] == -2:
                unknown.append(str(name))
        if unknown:
            raise LabelError(
                f'The column "{label}" holds labels that were not in training: {", ".join(sorted(unknown)[:5])}.',
                f"one of: {', '.join(self.label_names[:20])}.",
                "Map these labels to the known ones, or leave their rows out.",
            )
        indices = encoded.indices.fill_null(len(ids)).to_numpy(zero_copy_only=False)
        targets: np.ndarray = np.asarray([*ids, -1], dtype=np.int64)[indices]
        return targets

    def no_targets(self, num_rows: int) -> np.ndarray:
        """Give the targets of rows that have none."""
        return np.full(num_rows, -1, dtype=np.int64)

    def has_target(self, targets: np.ndarray) -> np.ndarray:
        """Say which rows have a class, or probabilities."""
        return targets >= 0 if targets.ndim == 1 else ~np.isnan(targets).any(axis=1)

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Give the class of each row, of probabilities the most probable one."""
        return _classes_of(targets)

    def describe_targets(self, targets: np.ndarray) -> list[tuple[str, int | str]]:
        """Count the rows of each class."""
        classes = _classes_of(targets)
        counts = np.bincount(classes[classes >= 0], minlength=len(self.values))
        return [(name, int(count)) for name, count in zip(self.label_names, counts, strict=True)]

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Sum the cross-entropy over the rows, in float32."""
        targets = batch["labels"]
        if self.ordinal and targets.ndim == 1:
            targets = ordinal_targets(targets, len(self.values))
        return cross_entropy(outputs.logits, targets, self.objective, batch.get("row_weights"))

    def decode(self, outputs: Any, batch: Batch) -> np.ndarray:
        """Turn logits into probabilities, float32 of shape (B, K)."""
        probabilities: np.ndarray = torch.softmax(outputs.logits.float(), dim=-1).cpu().numpy()
        return probabilities

    def tune(self, predictions: np.ndarray, targets: np.ndarray) -> SequenceClassification:
        """Leave the task as it is: the most probable class is the prediction."""
        return self

    def score(self, predictions: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        """Score probabilities of shape (N, K) against classes; of probabilities the most probable one is right."""
        return compute_scores(list(names), _classes_of(targets), predictions)

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
        classes = _classes_of(targets)
        return score_intervals(list(names), classes, predictions, confidence=confidence, seed=seed, groups=groups)

    def values_of(self, predictions: np.ndarray) -> list[LabelValue]:
        """Give the most probable class of each row, in the type that the source's labels have."""
        return [self.values[index] for index in predictions.argmax(axis=1).tolist()]

    def stored(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, pa.Array]:
        """Give label, prediction and probabilities; past 100 classes the 20 largest, largest first."""
        import pyarrow as pa

        values: list[Any] = [*self.values, None]
        probabilities = predictions
        if predictions.shape[1] > ALL_CLASSES_UP_TO:
            probabilities = -np.sort(-predictions, axis=1)[:, :MAX_STORED_PROBABILITIES]
        kind = self.schema().field("label").type
        return {
            "label": pa.array([values[index] for index in _classes_of(targets).tolist()], kind),
            "prediction": pa.array(self.values_of(predictions), kind),
            "probabilities": array_of_lists(probabilities),
        }

    def restored(self, columns: Mapping[str, list[Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Take probabilities and class indices back; past 100 classes the predicted class has all probability."""
        place: dict[Any, int] = {value: index for index, value in enumerate(self.values)} | {None: -1}
        targets = np.asarray([place[value] for value in columns["label"]], dtype=np.int64)
        if len(self.values) > ALL_CLASSES_UP_TO:
            predicted = [place[value] for value in columns["prediction"]]
            return np.eye(len(self.values), dtype=np.float32)[predicted], targets
        return np.asarray(columns["probabilities"], dtype=np.float32).reshape(-1, len(self.values)), targets

    def schema(self) -> pa.Schema:
        """Give the columns of `predictions.parquet`; labels have the source's type."""
        import pyarrow as pa

        kind = {bool: pa.bool_(), int: pa.int64(), str: pa.string()}[type(self.values[0])]
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
            **({"ordinal": True} if self.ordinal else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SequenceClassification:
        """Build the task from what `to_dict` gave.

        Raises:
            CheckpointError: it is another task, or another version.
        """
        check_version(values, VERSIONED_NAME)
        columns = columns_from_dict(values["columns"])
        return cls(tuple(values["labels"]), *columns, ordinal=bool(values.get("ordinal")))


def _classes_of(targets: np.ndarray) -> np.ndarray:
    """Give class indices, of probabilities the most probable class; -1 where there is none."""
    if targets.ndim == 1:
        return targets
    missing = np.isnan(targets).any(axis=1)
    return np.where(missing, -1, np.nan_to_num(targets).argmax(axis=1))


def _holds_lists(table: datasets.Dataset, column: str) -> bool:
    return getattr(table.features[column], "feature", None) is not None


def _in_order(found: Sequence[LabelValue], labels: Sequence[LabelValue], column: str) -> tuple[LabelValue, ...]:
    """Give the classes that were found, in the order that the user names them by."""
    by_name = {label_name(value): value for value in found}
    names = [label_name(value) for value in labels]
    missing = [name for name in by_name if name not in names]
    if missing or len(set(names)) < len(names):
        what = f"does not name {', '.join(missing[:5])}" if missing else "names a class twice"
        raise LabelError(
            f'task.labels {what}; the column "{column}" holds {", ".join(list(by_name)[:20])}.',
            "each class once.",
            "Mend task.labels.",
        )
    kind = type(found[0])
    return tuple(by_name.get(name, kind(value)) for name, value in zip(names, labels, strict=True))


def _is_whole(value: str) -> bool:
    try:
        int(value)
    except ValueError:
        return False
    return True


def _plain(value: Any) -> LabelValue:
    """Make whole-number floats integers: a column of 0, 1 and an empty cell is read as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
