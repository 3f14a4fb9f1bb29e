"""From a DataLoader to the plan of a training, and from the plan back to batches.

Part of the drop-in; may import layers 0 to 2.

    DataLoader over a dataset with a length -> `RowPlan`: which rows make up which update, without reading them
    DataLoader over a stream                -> `StreamPlan`: its batches in its own order
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from headstart.drop_in.row_plan import RowPlan
from headstart.drop_in.stream_plan import StreamPlan

__all__ = ["plan_of"]


def plan_of(
    dataloader: Iterable[Any], *, accumulation: int, rank: int, num_processes: int, total_steps: int, seed: int
) -> RowPlan | StreamPlan:
    """Make the plan that belongs to a DataLoader.

    Args:
        dataloader: what `get_train_dataloader` gave; anything else that can be iterated is a stream, too.
        accumulation: batches of one update and process.
        rank: number of this process.
        num_processes: of the training.
        total_steps: updates of the whole training.
        seed: keys what a dataset or a collator draws.
    """
    batch_sampler = getattr(dataloader, "batch_sampler", None)
    # One that was prepared for several processes gives each a share; the plan deals the whole.
    while (inner := getattr(batch_sampler, "batch_sampler", None)) is not None:
        batch_sampler = inner
    batches_of_update = accumulation * num_processes
    is_stream = isinstance(getattr(dataloader, "dataset", None), IterableDataset) or batch_sampler is None
    if isinstance(dataloader, DataLoader) and not is_stream:
        return RowPlan(
            dataloader,
            batch_sampler,
            batches_of_update,
            rank=rank,
            num_processes=num_processes,
            total_steps=total_steps,
            seed=seed,
        )
    return StreamPlan(dataloader, batches_of_update, total_steps=total_steps, seed=seed)
