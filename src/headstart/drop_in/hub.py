"""Whether the Hugging Face hub can be asked at all, found out in a moment instead of after its client's retries.

    HF_HUB_OFFLINE is set               -> out of reach
    a proxy is set                      -> unknown: only the proxy can tell
    the hub's host cannot be resolved   -> out of reach (asked again where that may pass)
    else                                -> unknown: asking it will tell

Imports no other library before it is asked.
"""

from __future__ import annotations

import os
import socket
import time
import urllib.parse
import urllib.request
from pathlib import Path

from headstart.errors import nearest_name

__all__ = ["is_connection_error", "looks_like_path", "missing_folder", "why_out_of_reach"]

# What huggingface_hub and its HTTP client raise where there is no answer, by name: the client's package has changed
# with releases of huggingface_hub.
_NO_ANSWER = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ReadTimeout")
_PAUSE = 1.0


def why_out_of_reach() -> str | None:
    """Say why the hub certainly does not answer.

    Returns:
        The reason, or None where it may answer.

    Example:
        >>> reason = why_out_of_reach()
        >>> reason is None or isinstance(reason, str)
        True
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    if any(scheme in urllib.request.getproxies() for scheme in ("http", "https", "all")):
        return None
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    for attempt in range(2):
        try:
            socket.getaddrinfo(host, None)
            return None
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno != socket.EAI_AGAIN:
                break
        if not attempt:
            time.sleep(_PAUSE)
    return f"{host} cannot be found on the network ({reason})"


def is_connection_error(error: BaseException) -> bool:
    """Say whether an error, or one of its causes, is that the hub was asked in vain.

    Example:
        >>> is_connection_error(ConnectionError("refused")), is_connection_error(ValueError("no such config"))
        (True, False)
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        names = [base.__name__ for base in type(current).__mro__]
        if isinstance(current, ConnectionError) or any(name in _NO_ANSWER for name in names):
            return True
        current = current.__cause__ or current.__context__
    return False


def looks_like_path(name: str) -> bool:
    """Say whether a name can only be a path: names of the hub have one slash at most, and none at the beginning.

    Example:
        >>> looks_like_path("./glue"), looks_like_path("runs/7/model"), looks_like_path("nyu-mll/glue")
        (True, True, False)
    """
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep == "\\" and os.sep in name)


def missing_folder(name: str) -> str:
    """Write what to do about a path that leads nowhere: the nearest name beside it.

    Example:
        >>> missing_folder("./no such place/model")
        'Check the path: there is no folder "no such place".'
    """
    path = Path(name).expanduser()
    if not path.parent.is_dir():
        return f'Check the path: there is no folder "{path.parent}".'
    near = nearest_name(path.name, sorted(entry.name for entry in path.parent.iterdir()))
    return "Check the path." if near is None else f'Did you mean "{path.parent / near}"?'
