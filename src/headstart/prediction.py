"""From a model and tokens to predictions in row order, in memory that grows with the stored predictions alone.

May import layers 0 to 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from headstart.data.batches import prediction_batches
from headstart.training.allocator import keep_freed_memory
from headstart.training.device import Device

if TYPE_CHECKING:
    from headstart.data.tokens import Tokens
    from headstart.tasks import Task

__all__ = ["predict_tokens"]


def predict_tokens(
    model: torch.nn.Module,
    task: Task,
    tokens: Tokens,
    *,
    pad_token_id: int,
    batch_size: int,
    device: Device,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Predict every row of a token table.

    Rows of similar length share a batch, so little is padded; predictions come back in row order. The model's state
    is left as it was, and no random number is drawn.

    Args:
        model: on the device; it is put into evaluation mode.
        task: knows how to run the model and to decode its outputs.
        tokens: N rows.
        pad_token_id: fills rows up to the longest of their batch.
        batch_size: rows of one forward pass.
        device: where to compute, and the precision.
        progress: gets the number of rows done so far.

    Returns:
        float32 array of shape (N, K): the probabilities of each class.
    """
    predictions = np.zeros((tokens.num_rows, len(task.label_names)), dtype=np.float32)
    device.apply_threads()
    model.eval()
    done = 0
    with keep_freed_memory():
        for rows in prediction_batches(tokens.lengths, batch_size=batch_size):
            batch = {
                name: tensor.to(device.torch_device)
                for name, tensor in task.collate(tokens, rows, None, pad_token_id).items()
            }
            with torch.inference_mode(), device.autocast():
                outputs = task.run(model, batch, "predict")
            predictions[rows] = task.decode(outputs, batch)
            done += len(rows)
            if progress is not None:
                progress(done)
    return predictions
