"""The interface of a task: what differs between kinds of learning, and nothing else.

May import layers 0 to 2. A task is a final class; everything outside `tasks/` works with this interface alone:

    table -> learn_labels -> task;  rows -> encode -> features -> collate -> batch -> run -> outputs
    outputs -> loss (training);  outputs -> decode -> predictions -> score (evaluation)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from transformers import PreTrainedTokenizerFast

    from headstart.data.tokens import Tokens

__all__ = ["Batch", "Mode", "Task"]

Batch = Mapping[str, torch.Tensor]
Mode = Literal["train", "predict"]


class Task(Protocol):
    """What is learned from rows, and how it is measured.

    Shapes: `B` rows of a batch, `T` tokens of its longest row, `K` labels, `N` rows of a table.
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
    def label_names(self) -> Sequence[str]:
        """One name a class, in the order of the logits."""
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
        """Give the target of each row, shape (N,); -1 where a row has none."""
        ...

    def collate(self, tokens: Tokens, rows: np.ndarray, targets: np.ndarray | None, pad_token_id: int) -> Batch:
        """Put rows into padded tensors."""
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
        """Turn outputs into predictions, shape (B, K)."""
        ...

    def score(self, predictions: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        """Score predictions; "loss" and the names of `headstart.metrics`."""
        ...

    def schema(self) -> pa.Schema:
        """Give the Arrow columns of a stored prediction."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Give what `task.json` holds; its "task" is a versioned name."""
        ...
