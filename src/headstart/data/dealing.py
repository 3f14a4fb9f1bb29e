"""Which process computes which rows of an update.

Pure functions in numpy. The rows of an update are the same for any number of processes; only who computes them differs:

    update: batches of B rows  ->  process 0: its share of each batch, process 1: its share, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from headstart.data.batches import Rows

__all__ = ["deal_in_turn", "deal_update"]

T = TypeVar("T")


def deal_update(update: Sequence[Rows], num_processes: int) -> list[list[Rows]]:
    """Deal the batches of one update to processes.

    Whole batches are dealt as long as there is one for each process; what is left is cut by rows, so that no process
    waits for another's whole batch. Order inside a batch is kept: rows of like length stay together.

    Args:
        update: row numbers of each batch.
        num_processes: at least 1.

    Returns:
        For each process its batches. All have equally many; where there are fewer rows than processes, some are empty.

    Example:
        >>> [[batch.tolist() for batch in own] for own in deal_update([np.arange(5)], 2)]
        [[[0, 1, 2]], [[3, 4]]]
    """
    num_whole = len(update) // num_processes * num_processes
    dealt = [list(update[process:num_whole:num_processes]) for process in range(num_processes)]
    for batch in update[num_whole:]:
        for own, piece in zip(dealt, np.array_split(batch, num_processes), strict=True):
            own.append(piece)
    return dealt


def deal_in_turn(items: Sequence[T], process: int, num_processes: int) -> list[T]:
    """Give a process every item whose turn is its own; each item goes to exactly one process.

    Example:
        >>> [deal_in_turn("abcde", process, 2) for process in range(2)]
        [['a', 'c', 'e'], ['b', 'd']]
    """
    return list(items[process::num_processes])
