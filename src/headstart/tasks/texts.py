"""What the tasks of whole texts share: tokens, batches, the forward pass, weights of classes.

May import layers 0 to 2. Legend: `B` rows of a batch, `T` tokens, `K` classes, labels or numbers, `N` rows of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart.data.collate import collate_tokens
from headstart.data.tokens import Tokens, tokenize_table
from headstart.errors import CheckpointError, RecipeError, suggest
from headstart.tasks.interface import Batch, Mode

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from transformers import PreTrainedTokenizerFast

    from headstart.recipe_sections import OptimSection

__all__ = [
    "Columns",
    "WholeTexts",
    "array_of_lists",
    "check_version",
    "columns_from_dict",
    "columns_of",
    "columns_to_dict",
    "objective_numbers",
    "weights_by_name",
]

Columns = str | tuple[str, ...]
_NO_INPUTS = ("labels", "row_weights")


def columns_of(label: Columns) -> tuple[str, ...]:
    """Give the columns of labels as a tuple."""
    return (label,) if isinstance(label, str) else label


def columns_to_dict(text: str, pair: str | None, label: Columns) -> dict[str, Any]:
    """Give the columns as `task.json` holds them."""
    return {"text": text, "pair": pair, "label": label if isinstance(label, str) else list(label)}


def columns_from_dict(columns: Mapping[str, Any]) -> tuple[str, str | None, Columns]:
    """Take back what `columns_to_dict` gave: text, pair, label."""
    label = columns["label"]
    return columns["text"], columns["pair"], label if isinstance(label, str) else tuple(label)


class WholeTexts:
    """What every task has that answers once for a text or a pair of texts: one feature a row, one target a row.

    Args:
        text: column of the text.
        pair: column of the second text, or None.
    """

    text: str
    pair: str | None

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

    def collate(
        self,
        tokens: Tokens,
        rows: np.ndarray,
        targets: np.ndarray | None,
        pad_token_id: int,
        weights: np.ndarray | None = None,
    ) -> Batch:
        """Put rows into tensors padded to the longest of them.

        Returns:
            `input_ids`, `attention_mask` (and `token_type_ids` where the tokenizer gives them), int64 of shape (B, T);
            `labels` of shape (B,) or (B, K) where `targets` is given; `row_weights`, float32 of shape (B,), where
            `weights` is.
        """
        arrays = collate_tokens(tokens, rows, pad_token_id=pad_token_id)
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if targets is not None:
            batch["labels"] = torch.from_numpy(targets[rows])
        if weights is not None:
            batch["row_weights"] = torch.from_numpy(weights[rows])
        return batch

    def count(self, batch: Batch) -> int:
        """Count the targets: one a row."""
        return int(batch["labels"].shape[0])

    def run(self, model: torch.nn.Module, batch: Batch, mode: Mode) -> Any:
        """Run the forward pass without labels; the same for training and prediction."""
        return model(**{name: tensor for name, tensor in batch.items() if name not in _NO_INPUTS})


def objective_numbers(optim: OptimSection) -> dict[str, float]:
    """Give what a recipe says of the loss beside the weights of classes."""
    return {"label_smoothing": optim.label_smoothing or 0.0, "focal_gamma": optim.focal_gamma or 0.0}


def weights_by_name(given: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    """Give the weights of all classes; those that are not named count 1.

    Raises:
        RecipeError: there is no class of a name.
    """
    for name in given:
        if name not in names:
            raise RecipeError(
                f'optim.class_weights names "{name}", which is no label of the training rows.',
                "labels as the plan shows them.",
                suggest(name, list(names)[:20]),
            )
    return tuple(float(given.get(name, 1.0)) for name in names)


def array_of_lists(values: np.ndarray) -> pa.Array:
    """Make an Arrow array of float32 lists of an array of shape (N, K)."""
    import pyarrow as pa

    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(values.astype(np.float32).ravel()))


def check_version(values: Mapping[str, Any], expected: str) -> None:
    """Refuse what another task, or another version of it, has written.

    Raises:
        CheckpointError: it is one.
    """
    if values.get("task") != expected:
        raise CheckpointError(
            f"task.json holds {values.get('task')!r}.",
            f"{expected!r}.",
            "Open the run with the version of headstart that wrote it.",
        )
