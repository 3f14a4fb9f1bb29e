"""Several processes that train together, forked and joined as torchrun would have started them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from forked import Forked

__all__ = ["free_port", "join", "start_joined"]


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def start_joined(count: int, work: Callable[[int], int | None], folder: Path) -> list[Forked]:
    """Start `work(0)`, `work(1)`, ... in processes that find each other through their environment."""
    folder.mkdir(exist_ok=True)
    port = free_port()

    def as_rank(rank: int) -> int | None:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
        return work(rank)

    return [
        Forked(lambda rank=rank: as_rank(rank), folder / f"{rank}.txt")  # type: ignore[misc]
        for rank in range(count)
    ]


def join(processes: list[Forked]) -> list[int]:
    """Wait for all of them, and give how each ended."""
    try:
        return [process.wait() for process in processes]
    finally:
        for process in processes:
            process.__exit__(None, None, None)
