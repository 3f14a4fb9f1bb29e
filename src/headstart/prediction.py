"""From a model and tokens to predictions in row order, in memory that grows with the stored predictions alone.

May import layers 0 to 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from headstart.data.batches import prediction_batches
from headstart.data.dealing import deal_in_turn
from headstart.errors import TrainingError
from headstart.training.allocator import keep_freed_memory
from headstart.training.device import Device
from headstart.training.memory import MemoryWatch, free_memory
from headstart.training.processes import Processes
from headstart.training.sharding import give_up_whole_parameters

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
    processes: Processes | None = None,
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
        progress: gets the number of rows done so far, by this process.
        processes: share the rows, each of which is predicted once; all of them get every prediction.

    Returns:
        float32 array of shape (N, K): the probabilities of each class.

    Raises:
        TrainingError: memory does not suffice for one row, or another process failed.
    """
    predictions = np.zeros((tokens.num_rows, len(task.label_names)), dtype=np.float32)
    processes = processes or Processes()
    device.apply_threads()
    model.eval()
    done = 0
    failure: Exception | None = None

    def predict(rows: np.ndarray) -> np.ndarray:
        batch = device.place(task.collate(tokens, rows, None, pad_token_id))
        # A sharded model puts its parameters together in the pass, which inference mode does not allow.
        with torch.no_grad() if processes.shards else torch.inference_mode(), device.autocast():
            outputs = task.run(model, batch, "predict")
        return task.decode(outputs, batch)

    with keep_freed_memory():
        batches = prediction_batches(tokens.lengths, batch_size=batch_size)
        try:
            for rows in deal_in_turn(batches, processes.rank, processes.count):
                predictions[rows] = _in_memory(predict, rows)
                done += len(rows)
                if progress is not None:
                    progress(done)
            is_idle = 0 < len(batches) % processes.count <= processes.rank
            if processes.shards and is_idle:
                predict(batches[0][:1])  # every pass is one of all processes
        except Exception as error:
            failure = error
    if processes.shards:
        give_up_whole_parameters(model)
    # Whoever failed says so before anybody waits for its predictions.
    if any(processes.any([failure is not None])):
        raise failure or TrainingError("Another process could not predict its rows.", "rows that can be predicted.")
    return processes.add_array(predictions)


def _in_memory(predict: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Predict rows, in halves where memory does not suffice for all of them at once."""
    with MemoryWatch() as memory:
        return predict(rows)
    assert not memory.suffices
    free_memory()
    if len(rows) == 1:
        raise TrainingError(
            f"Out of memory while predicting one row alone (row {rows[0]} of its split).",
            "memory for one row.",
            "Set a smaller data.max_length, or choose a smaller model.",
        )
    return np.concatenate([_in_memory(predict, half) for half in np.array_split(rows, 2)])
