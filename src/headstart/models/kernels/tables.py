"""The tables by which one launch of a kernel works on many tensors.

May import layers 0 and 1. Chunks have a fixed size and do not cross tensors, so that what is summed together follows
from the sizes alone.
"""

from __future__ import annotations

import functools

import numpy as np

__all__ = ["chunks_of"]


@functools.lru_cache(maxsize=16)
def chunks_of(sizes: tuple[int, ...], chunk: int) -> np.ndarray:
    """Cut tensors into chunks.

    Args:
        sizes: elements of each tensor.
        chunk: elements of a chunk, at most.

    Returns:
        Number of the tensor, first element and elements of each chunk, shape (chunks, 3), int64; read only.

    Example:
        >>> chunks_of((5, 0, 2), 4).tolist()
        [[0, 0, 4], [0, 4, 1], [2, 0, 2]]
    """
    parts = [np.empty((0, 3), dtype=np.int64)]
    for tensor, size in enumerate(sizes):
        first = np.arange(0, size, chunk, dtype=np.int64)
        parts.append(np.stack([np.full_like(first, tensor), first, np.minimum(chunk, size - first)], axis=1))
    chunks = np.concatenate(parts)
    chunks.setflags(write=False)
    return chunks
