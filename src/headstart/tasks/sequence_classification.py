"""Classify a text, or a pair of texts, into one of K classes.

May import layers 0 to 2. Legend: `B` rows of a batch, `T` tokens, `K` labels, `N` rows of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, final

import numpy as np
import torch

from headstart.data.collate import collate_tokens
from headstart.data.tokens import Tokens, tokenize_table
from headstart.errors import CheckpointError, LabelError
from headstart.metrics import compute_scores
from headstart.tasks.interface import Batch, Mode

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from transformers import PreTrainedTokenizerFast

__all__ = ["LabelValue", "SequenceClassification"]

LabelValue = str | int | bool
VERSIONED_NAME: Final = "sequence_classification.v1"


@final
@dataclass(frozen=True)
class SequenceClassification:
    """One label a row, out of K classes.

    Args:
        values: the classes as the source writes them (str, int or bool), in the order of the logits.
        text: column of the text.
        pair: column of the second text, or None.
        label: column of the label.

    Example:
        >>> import datasets
        >>> table = datasets.Dataset.from_dict({"text": ["a", "b"], "stars": [5, 1]})
        >>> SequenceClassification.learn_labels(table, text="text", label="stars").values
        (1, 5)
    """

    values: tuple[LabelValue, ...]
    text: str
    pair: str | None
    label: str

    name: ClassVar[str] = "sequence_classification"
    unit: ClassVar[Literal["row"]] = "row"

    @classmethod
    def learn_labels(
        cls, table: datasets.Dataset, *, text: str, label: str, pair: str | None = None
    ) -> SequenceClassification:
        """Read the classes from the training table.

        Their order does not depend on the order of the rows: as a `ClassLabel` names them, else False before True,
        numbers by size, texts by alphabet (by size where all of them are whole numbers).

        Raises:
            LabelError: there are fewer than two classes.
        """
        feature = table.features[label]
        names = getattr(feature, "names", None)
        if names is not None and len(names) > 1:
            return cls(tuple(names), text, pair, label)
        found = {_plain(value) for value in names or table.unique(label) if value is not None}
        if len(found) < 2:
            raise LabelError(
                f'The column "{label}" holds {len(found)} class ({", ".join(map(_label_name, found)) or "nothing"}).',
                "at least two classes in the training rows.",
                "Name another column with --label, or add rows of another class.",
            )
        return cls(tuple(sorted(found, key=_order(found))), text, pair, label)

    @property
    def label_names(self) -> tuple[str, ...]:
        """One name a class, in the order of the logits; the model's `id2label`."""
        return tuple(_label_name(value) for value in self.values)

    def encode(
        self,
        table: datasets.Dataset,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_length: int,
        progress: Callable[[int], None] | None = None,
    ) -> Tokens:
        """Tokenise a table's texts; one feature a row."""
        return tokenize_table(table, (self.text, self.pair), tokenizer, max_length=max_length, progress=progress)

    def targets(self, table: datasets.Dataset) -> np.ndarray:
        """Give the class index of each row, int64 of shape (N,); -1 for null and for -1 in a `ClassLabel` column.

        Raises:
            LabelError: a label is no class of this task.
        """
        feature = table.features[self.label]
        names = getattr(feature, "names", None)
        index_of = {name: index for index, name in enumerate(self.label_names)}
        column = table.select_columns([self.label]).with_format("arrow")[:][self.label]
        encoded = column.combine_chunks().dictionary_encode()
        ids, unknown = [], []
        for value in encoded.dictionary.to_pylist():
            if names is not None and isinstance(value, int):
                is_known = value < len(names)  # a cast to a ClassLabel lets larger numbers through
                value = None if value < 0 else names[value] if is_known else f"{value} (of {len(names)} names)"
            name = None if value is None else _label_name(_plain(value))
            # GLUE writes -1 where a split has no labels.
            missing = name is None or (name == "-1" and name not in index_of)
            ids.append(-1 if missing else index_of.get(str(name), -2))
            if ids[-1] == -2:
                unknown.append(str(name))
        if unknown:
            raise LabelError(
                f'The column "{self.label}" holds labels that were not in training: {", ".join(sorted(unknown)[:5])}.',
                f"one of: {', '.join(self.label_names[:20])}.",
                "Map these labels to the known ones, or leave their rows out.",
            )
        indices = encoded.indices.fill_null(len(ids)).to_numpy(zero_copy_only=False)
        targets: np.ndarray = np.asarray([*ids, -1], dtype=np.int64)[indices]
        return targets

    def collate(self, tokens: Tokens, rows: np.ndarray, targets: np.ndarray | None, pad_token_id: int) -> Batch:
        """Put rows into tensors padded to the longest of them.

        Returns:
            `input_ids`, `attention_mask` (and `token_type_ids` where the tokenizer gives them), int64 of shape (B, T);
            `labels`, int64 of shape (B,), where `targets` is given.
        """
        arrays = collate_tokens(tokens, rows, pad_token_id=pad_token_id)
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if targets is not None:
            batch["labels"] = torch.from_numpy(targets[rows])
        return batch

    def count(self, batch: Batch) -> int:
        """Count the targets: one a row."""
        return int(batch["labels"].shape[0])

    def run(self, model: torch.nn.Module, batch: Batch, mode: Mode) -> Any:
        """Run the forward pass without labels; the same for training and prediction."""
        return model(**{name: tensor for name, tensor in batch.items() if name != "labels"})

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Sum the cross-entropy over the rows, in float32."""
        logits_BK = outputs.logits.float()
        return torch.nn.functional.cross_entropy(logits_BK, batch["labels"], reduction="sum")

    def decode(self, outputs: Any, batch: Batch) -> np.ndarray:
        """Turn logits into probabilities, float32 of shape (B, K)."""
        probabilities: np.ndarray = torch.softmax(outputs.logits.float(), dim=-1).cpu().numpy()
        return probabilities

    def score(self, predictions: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        """Score probabilities of shape (N, K) against class indices of shape (N,)."""
        return compute_scores(list(names), targets, predictions)

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
            "columns": {"text": self.text, "pair": self.pair, "label": self.label},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SequenceClassification:
        """Build the task from what `to_dict` gave.

        Raises:
            CheckpointError: it is another task, or another version.
        """
        if values.get("task") != VERSIONED_NAME:
            raise CheckpointError(
                f"task.json holds {values.get('task')!r}.",
                f"{VERSIONED_NAME!r}.",
                "Open the run with the version of headstart that wrote it.",
            )
        columns = values["columns"]
        return cls(tuple(values["labels"]), columns["text"], columns["pair"], columns["label"])


def _plain(value: Any) -> LabelValue:
    """Make whole-number floats integers: a column of 0, 1 and an empty cell is read as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _label_name(value: LabelValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _order(values: set[LabelValue]) -> Callable[[LabelValue], Any]:
    try:
        return {value: int(value) for value in values}.__getitem__
    except ValueError:
        return _label_name
