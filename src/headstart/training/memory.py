"""Knowing that memory ran out, and making room again.

May import layers 0 and 1. PyTorch has one exception for a GPU whose memory is full, and several for a CPU's.
"""

from __future__ import annotations

import gc

import torch

from headstart.training.allocator import give_back_freed_memory

__all__ = ["MemoryWatch", "free_memory", "is_out_of_memory"]

# What PyTorch, oneDNN and the C++ library write into a RuntimeError when an allocation fails.
_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "out of memory",
)
# The whole of what oneDNN says then; longer messages that begin so speak of what it cannot do at all.
_ONEDNN = ("could not create a primitive", "could not execute a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."))
        True
        >>> is_out_of_memory(RuntimeError("shapes do not match"))
        False
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (any(sign in text for sign in _SIGNS) or text in _ONEDNN)


def free_memory() -> None:
    """Give back what is held for later: unreachable tensors, freed blocks, the cache of the GPU."""
    gc.collect()
    give_back_freed_memory()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class MemoryWatch:
    """Remembers that memory ran out inside it, and goes on behind it; other errors go through.

    Attributes:
        suffices: False once memory ran out.

    Example:
        >>> with MemoryWatch() as memory:
        ...     raise MemoryError
        >>> memory.suffices
        False
    """

    def __init__(self) -> None:
        self.suffices = True

    def __enter__(self) -> MemoryWatch:
        """Begin to watch; may be entered again."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Stop an error that means lack of memory, and let go of the tensors that its traceback holds."""
        if error is None or not is_out_of_memory(error):
            return False
        self.suffices = False
        error.__traceback__ = None
        return True
