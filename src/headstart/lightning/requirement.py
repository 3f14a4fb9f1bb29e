"""The one sentence for whoever has not installed Lightning. Imports layer 0 only."""

from __future__ import annotations

import importlib.util

from headstart.errors import HeadstartError

__all__ = ["MissingLightningError", "require_lightning"]


class MissingLightningError(HeadstartError, ImportError):
    """Raised when Lightning is not installed."""


def require_lightning() -> None:
    """Stop here where Lightning is not installed.

    Raises:
        MissingLightningError: it is not.

    Example:
        >>> require_lightning()
    """
    if importlib.util.find_spec("lightning") is None:
        raise MissingLightningError(
            "headstart.lightning needs the package lightning, which is not installed.",
            "lightning 2.6 or newer.",
            "Run: pip install 'headstart[lightning]'",
        )
