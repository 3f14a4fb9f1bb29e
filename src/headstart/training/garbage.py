"""Keeping Python's garbage collector away from what was there before the training.

May import layers 0 to 2. Half a million objects of the libraries are no garbage, but each full collection looks at all
of them: a third of a second, once or twice in an epoch of a small data set.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["old_objects_kept"]


@contextlib.contextmanager
def old_objects_kept() -> Iterator[None]:
    """Let collections pass over all objects that there are now, until it ends; what comes after is collected.

    Where somebody else has put objects aside already (`gc.freeze`), it is left to them.

    Example:
        >>> with old_objects_kept():
        ...     gc.get_freeze_count() > 0
        True
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
