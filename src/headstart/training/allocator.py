"""Keep freed memory in the process while it computes.

Imports the standard library only. On Linux, glibc gives a large block back to the kernel as soon as it is freed, and
the kernel clears its pages when the next operation asks for them again. Each step of a training allocates and frees the
same large blocks, so with long rows more than half of the time goes into clearing pages (docs/log.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
from collections.abc import Iterator

__all__ = ["give_back_freed_memory", "keep_freed_memory"]

# The parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_WHILE_COMPUTING = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
# glibc's own numbers, the thresholds as high as it raises them by itself.
_OTHERWISE = {_M_MMAP_MAX: 65_536, _M_MMAP_THRESHOLD: 32 * 2**20, _M_TRIM_THRESHOLD: 64 * 2**20}

_lock = threading.Lock()
_num_inside = 0


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let freed memory stay in the process for its next allocation; give it back to the system at the end.

    Numbers are not changed. May be nested and used from several threads: the outermost one counts. Without glibc
    (macOS, Windows, Alpine Linux) it does nothing.

    Source: mallopt(3) and malloc_trim(3) of the Linux manual pages.

    Example:
        >>> with keep_freed_memory():
        ...     sum(bytearray(2**20))
        0
    """
    global _num_inside
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _num_inside += 1
        if _num_inside == 1:
            _set(libc, _WHILE_COMPUTING)
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            if _num_inside == 0:
                _set(libc, _OTHERWISE)
                libc.malloc_trim(0)


def give_back_freed_memory() -> None:
    """Give freed memory back to the system now, also inside `keep_freed_memory`."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _set(libc: ctypes.CDLL, values: dict[int, int]) -> None:
    for parameter, value in values.items():
        libc.mallopt(parameter, value)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
