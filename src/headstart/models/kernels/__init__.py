"""Small native kernels: Python that numba compiles for the processor at hand, checked against PyTorch.

Nothing is compiled before it is used, and what is compiled is kept on disk. Where a kernel cannot run, `available` says
why, and everything that would use it computes in PyTorch.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util

__all__ = ["are_compiled", "available"]


@functools.cache
def available() -> str:
    """Say why the kernels cannot be used; empty where they can.

    Example:
        >>> available() in ("", "numba is not installed")
        True
    """
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    try:
        importlib.import_module("numba")
    except Exception as error:  # such as one for another NumPy; what needs it must not fail for that
        return f"numba cannot be imported ({error})"
    return ""


def are_compiled() -> bool:
    """Say whether kernels for this processor are on the disk, or are not to be had."""
    if available():
        return True
    from headstart.models.kernels.machine_code import folder

    return folder().is_dir() and any(folder().iterdir())
