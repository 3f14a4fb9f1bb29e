"""The interface of a task: what differs between kinds of learning, and nothing else.

May import layers 0 to 2. A task is a final class; everything outside `tasks/` works with this interface alone:

    table -> learn -> task;  rows -> encode -> features -> collate -> batch -> run -> outputs
    outputs -> loss (training);  outputs -> decode -> predictions -> tune, score (evaluation) -> values (prediction)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
import torch

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from transformers import PreTrainedTokenizerFast

    from headstart.data.tokens import Tokens
    from headstart.metrics import ScoreKind
    from headstart.recipe_sections import OptimSection

__all__ = ["Batch", "Mode", "Task"]

Batch = Mapping[str, torch.Tensor]
Mode = Literal["train", "predict"]


class Task(Protocol):
    """What is learned from rows, and how it is measured.

    Shapes: `B` rows of a batch, `T` tokens of its longest row, `K` classes, labels or numbers, `N` rows of a table.
    """

    @property
    def name(self) -> str:
        """The name in a recipe, for example "sequence_classification"."""
        ...

    @property
    def unit(self) -> Literal["row", "feature"]:
        """What the batch plan deals."""
        ...

    @property
    def problem_type(self) -> str:
        """What transformers calls it in a model's configuration."""
        ...

    @property
    def label_names(self) -> Sequence[str]:
        """One name for each of the K outputs, in their order."""
        ...

    @property
    def text(self) -> str:
        """Column of the text."""
        ...

    @property
    def pair(self) -> str | None:
        """Column of the second text."""
        ...

    @property
    def label(self) -> str | tuple[str, ...]:
        """Column of the label, or columns, one for each output."""
        ...

    @property
    def score_kind(self) -> ScoreKind:
        """Which scores there are."""
        ...

    def reading(self, *, text: str, label: str | tuple[str, ...]) -> Self:
        """Give the same task for a table whose columns have other names."""
        ...

    def with_objective(self, optim: OptimSection, targets: np.ndarray) -> Self:
        """Give the same task with a loss as the recipe wants it.

        Args:
            optim: class weights, smoothing, focus.
            targets: of the training rows.

        Raises:
            RecipeError: one of them has no effect with this task, or names an unknown class.
        """
        ...

    def encode(
        self,
        table: datasets.Dataset,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_length: int,
        progress: Callable[[int], None] | None = None,
    ) -> Tokens:
        """Tokenise a table's rows."""
        ...

    def targets(self, table: datasets.Dataset) -> np.ndarray:
        """Give the target of each row, shape (N,) or (N, K); what stands for a missing one is the task's own."""
        ...

    def no_targets(self, num_rows: int) -> np.ndarray:
        """Give the targets of rows that have none."""
        ...

    def has_target(self, targets: np.ndarray) -> np.ndarray:
        """Say which rows have a target; bool of shape (N,)."""
        ...

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Give the number of the group, shape (N,), whose share is to be the same in parts of the rows."""
        ...

    def describe_targets(self, targets: np.ndarray) -> list[tuple[str, int | str]]:
        """Give for each class or label the number of its rows, for each number what values it has."""
        ...

    def collate(
        self,
        tokens: Tokens,
        rows: np.ndarray,
        targets: np.ndarray | None,
        pad_token_id: int,
        weights: np.ndarray | None = None,
    ) -> Batch:
        """Put rows into padded tensors; `weights` says what each row of the table counts in the loss."""
        ...

    def count(self, batch: Batch) -> int:
        """Count the targets of a batch, known before the forward pass."""
        ...

    def run(self, model: torch.nn.Module, batch: Batch, mode: Mode) -> Any:
        """Run the forward pass."""
        ...

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Sum the loss over the targets of a batch."""
        ...

    def decode(self, outputs: Any, batch: Batch) -> np.ndarray:
        """Turn outputs into predictions, float32 of shape (B, K)."""
        ...

    def tune(self, predictions: np.ndarray, targets: np.ndarray) -> Self:
        """Choose on validation rows what is left to choose, such as thresholds."""
        ...

    def score(self, predictions: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        """Score predictions of rows that have a target; the names are those of `headstart.metrics`."""
        ...

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
        ...

    def values_of(self, predictions: np.ndarray) -> list[Any]:
        """Say what is predicted for each row, in the type that the source's labels have."""
        ...

    def stored(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, pa.Array]:
        """Give the columns of `predictions.parquet` that hold labels and predictions."""
        ...

    def restored(self, columns: Mapping[str, list[Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Take predictions and targets back from what `stored` gave, as lists by column name."""
        ...

    def schema(self) -> pa.Schema:
        """Give all columns of `predictions.parquet`."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Give what `task.json` holds; its "task" is a versioned name."""
        ...
