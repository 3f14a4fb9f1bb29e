"""A table with text and labels as a Dataset that PyTorch's DataLoader takes.

May import layers 0 to 4.

    table, tokenizer -> encode_rows -> EncodedRows: rows[i], rows.lengths, rows.collate
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from headstart.data.columns import TOKENISED
from headstart.data.tokens import Tokens
from headstart.errors import ColumnError, DataError, HeadstartWarning, RecipeError, format_rows, suggest
from headstart.tasks import SequenceClassification, Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerFast

__all__ = ["EncodedRow", "EncodedRows", "encode_rows"]

# transformers writes a number like this where a tokenizer has no limit.
_NO_LIMIT = 1_000_000


class EncodedRow(dict[str, Any]):
    """One row as a collator of transformers takes it: `input_ids`, `attention_mask`, `labels`.

    Attributes:
        index: row number in its `EncodedRows`.
        owner: tells one `EncodedRows` from another.
        is_changed: somebody has put other values in.
    """

    index: int
    owner: int
    is_changed = False

    def __setitem__(self, name: str, value: Any) -> None:
        self.is_changed = True
        super().__setitem__(name, value)

    def update(self, *values: Any, **named: Any) -> None:
        """Put other values in; see `dict.update`."""
        self.is_changed = True
        super().update(*values, **named)


# A number and not the object itself: a worker gets a copy of it, and of its bound `collate`.
_owners = itertools.count()


class EncodedRows(Dataset[EncodedRow]):
    """The rows of a table, tokenised: a map-style Dataset.

    Args:
        task: what is learned.
        tokens: of N rows.
        targets: what is learned of each row, shape (N,); None where there is nothing.
        pad_token_id: fills a row up to the longest of its batch.
        weights: what each row counts in the loss of its task, shape (N,); None where all count alike.

    Example:
        >>> from headstart.tasks import SequenceClassification
        >>> task = SequenceClassification(("no", "yes"), text="text", pair=None, label="label")
        >>> rows = EncodedRows(task, Tokens.from_rows([[5, 6, 7], [8]]), np.array([1, 0]), pad_token_id=0)
        >>> rows.collate([rows[1], rows[0]])["input_ids"].tolist()
        [[8, 0, 0], [5, 6, 7]]
    """

    def __init__(
        self,
        task: Task,
        tokens: Tokens,
        targets: np.ndarray | None,
        *,
        pad_token_id: int,
        weights: np.ndarray | None = None,
    ) -> None:
        self.task = task
        self.tokens = tokens
        self.targets = targets
        self.pad_token_id = pad_token_id
        self.weights = weights
        self._number = next(_owners)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, shape (N,): what the batch plan goes by."""
        return self.tokens.lengths

    def __len__(self) -> int:
        return self.tokens.num_rows

    def __getitem__(self, index: int) -> EncodedRow:
        index = range(len(self))[index]  # as a list: negative ones count from the end, and there is one
        start, end = self.tokens.offsets[index : index + 2]
        row = EncodedRow(input_ids=self.tokens.input_ids[start:end].tolist(), attention_mask=[1] * int(end - start))
        if self.tokens.token_type_ids is not None:
            row["token_type_ids"] = self.tokens.token_type_ids[start:end].tolist()
        if self.targets is not None:
            row["labels"] = self.targets[index].tolist()
        row.index, row.owner, row.is_changed = index, self._number, False
        return row

    def collate(self, rows: Sequence[EncodedRow | int]) -> dict[str, torch.Tensor]:
        """Put rows into tensors, padded to the longest of them: the `collate_fn` of a DataLoader.

        It reads the rows by their numbers, which is why it is fast, and why they must be as this object gave them.

        Args:
            rows: of this object, or their numbers.

        Raises:
            DataError: a row is of another object, or was changed.

        Returns:
            `input_ids`, `attention_mask` (and `token_type_ids`), int64 of shape (B, T); `labels` of shape (B,).
        """
        numbers = [self._number_of(row) for row in rows]
        return dict(self.task.collate(self.tokens, np.asarray(numbers), self.targets, self.pad_token_id, self.weights))

    def _number_of(self, row: Any) -> int:
        if isinstance(row, EncodedRow) and row.owner == self._number and not row.is_changed:
            return row.index
        if isinstance(row, Mapping):
            raise DataError(
                "collate() of EncodedRows was given a row of another data set, or one that was changed.",
                "its own rows as they are, which it reads by their numbers.",
                "For other rows write collate_fn=DataCollatorWithPadding(tokenizer).",
            )
        return range(len(self))[int(row)]


def encode_rows(
    table: datasets.Dataset,
    tokenizer: PreTrainedTokenizerFast,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    max_length: int | None = None,
    task: Task | None = None,
) -> EncodedRows:
    """Tokenise the rows of a table, once for all runs, and learn its labels.

    Args:
        table: with a column of texts.
        tokenizer: of the model.
        text: column of the text; None is "text", or that of the task.
        pair: column of the second text of a pair; None is none, or that of the task.
        label: column of the label; None is "label", or that of the task.
        max_length: tokens of a row at most; longer rows are cut, and said. None takes the tokenizer's own limit.
        task: of the training rows (`train.task`), for rows to evaluate or predict: columns and labels are its own.

    Returns:
        The rows; `targets` is None where the table has no column of labels.

    Raises:
        ColumnError: a column is not there.
        DataError: it is no table; or a text or a label is missing in some rows, which are named.
        LabelError: there are fewer than two classes, or one that the task does not know.
        RecipeError: neither `max_length` nor the tokenizer says how long a row may be; the tokenizer cannot pad; or a
            column is named that is not the task's.

    Warns:
        HeadstartWarning: rows are cut.

    Example:
        train = headstart.encode_rows(tables["train"], tokenizer, text="sentence1", pair="sentence2")
        validation = headstart.encode_rows(tables["validation"], tokenizer, task=train.task)
    """
    _check_table(table)
    if task is None:
        text, label = text or "text", label or "label"
        _check_columns(table, {"text": text, "pair": pair, "label": label})
        task = SequenceClassification.learn_labels(table, text=text, pair=pair, label=label)
    else:
        _check_agrees(task, {"text": text, "pair": pair, "label": label})
    if tokenizer.pad_token_id is None:
        raise RecipeError(
            "encode_rows: the tokenizer has no token to pad with.",
            "one, so that rows of several lengths make a batch.",
            "Write tokenizer.pad_token = tokenizer.eos_token, and model.config.pad_token_id = tokenizer.pad_token_id.",
        )
    if max_length is None:
        max_length = int(tokenizer.model_max_length)
        if max_length >= _NO_LIMIT:
            raise RecipeError(
                "encode_rows: the tokenizer has no limit of its own.",
                "the number of tokens that the model can read.",
                "Write max_length=model.config.max_position_embeddings, or a smaller number.",
            )
    columns = (task.label,) if isinstance(task.label, str) else task.label
    targets = task.targets(table) if all(name in table.column_names for name in columns) else None
    if targets is not None and not task.has_target(targets).all():
        missing = np.flatnonzero(~task.has_target(targets))
        if len(missing) < len(targets):
            empty = "is not None" if "-1" in task.label_names else "not in (None, -1)"
            raise DataError(
                f'The column "{columns[0]}" is empty in {len(missing):,} row(s): {format_rows(missing.tolist())}.',
                "a label in every row, or in none.",
                f'Leave these rows out: table.filter(lambda row: row["{columns[0]}"] {empty}).',
            )
        targets = None
    if not isinstance(max_length, int):
        raise RecipeError(
            f"encode_rows: max_length is {max_length!r}.", "a whole number of tokens.", "Write max_length=128."
        )
    tokens = task.encode(table, tokenizer, max_length=max_length)
    if tokens.num_truncated:
        warnings.warn(
            f"{tokens.num_truncated:,} of {tokens.num_rows:,} rows are longer than {max_length:,} tokens and are cut, "
            f"losing {tokens.num_lost_tokens:,} tokens",
            HeadstartWarning,
            stacklevel=2,
        )
    return EncodedRows(task, tokens, targets, pad_token_id=int(tokenizer.pad_token_id))


def _check_table(table: Any) -> None:
    import datasets

    if isinstance(table, datasets.Dataset):
        return
    names = list(getattr(table, "splits", table) if not isinstance(table, str) else ())
    raise DataError(
        f"encode_rows was given a {type(table).__name__}, not a table.",
        "a datasets.Dataset.",
        f'Take one split: table["{names[0]}"].'
        if isinstance(table, datasets.DatasetDict) and names
        else 'Read it first: headstart.read_source(source).splits["train"].',
    )


def _check_agrees(task: Task, named: Mapping[str, str | None]) -> None:
    """Raise where a column is named that the task does not read: it would have no effect."""
    for role, name in named.items():
        learned = getattr(task, role)
        if name not in (None, learned):
            raise RecipeError(
                f'encode_rows: {role}="{name}" beside a task whose column is {learned!r}.',
                "the columns that the task has learned from.",
                f'Leave {role} out, and rename the column: table.rename_column("{name}", "{learned}").'
                if learned
                else f"Leave {role} out: the task reads none.",
            )


def _check_columns(table: datasets.Dataset, named: Mapping[str, str | None]) -> None:
    for role, name in named.items():
        if name is not None and name not in table.column_names:
            holds_text = any(
                getattr(kind, "dtype", "") in ("string", "large_string") for kind in table.features.values()
            )
            raise ColumnError(
                f'The table has no column "{name}".',
                "a column of the table.",
                TOKENISED
                if "input_ids" in table.features and not holds_text
                else f"{suggest(name, table.column_names)} Name it: encode_rows(..., {role}=...).",
            )
