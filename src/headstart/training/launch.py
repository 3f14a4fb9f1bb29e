"""Start the other processes of a training on this machine, and know how they ended.

May import layers 0 and 1. The process that starts them is number 0 and trains too; the others run the same command on
the recipe of the run folder. They find each other by the same environment variables as torchrun sets:

    MASTER_ADDR, MASTER_PORT   where process 0 keeps the store
    WORLD_SIZE, RANK           how many there are, and which one this is
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["Workers", "environment_of", "in_environment", "is_worker", "start_workers"]

# Environment variable of a process that another one has started for its training.
_IS_WORKER: Final = "HEADSTART_WORKER"
_ENDING_SECONDS = 20.0


class Workers:
    """The processes that this one has started.

    Args:
        processes: number of each to its process.
    """

    def __init__(self, processes: Mapping[int, subprocess.Popen[bytes]]) -> None:
        self._processes = dict(processes)

    def describe_ended(self, ranks: Sequence[int]) -> str:
        """Say how processes ended, for those of `ranks` that this one has started; "" where nothing is known."""
        sentences = []
        for rank in ranks:
            process = self._processes.get(rank)
            if process is None:
                continue
            code = process.poll()
            if code is None:
                ending = "still runs, but does not answer"
            elif code < 0:
                ending = f"was killed by {signal.Signals(-code).name}"
            else:
                ending = f"ended with code {code}"
            sentences.append(f"Process {rank} (PID {process.pid}) {ending}.")
        return " ".join(sentences)

    def end(self, *, at_once: bool) -> None:
        """Wait for all of them to end, for a while; those that have not ended then are killed.

        Args:
            at_once: do not wait.
        """
        deadline = time.monotonic() + (0 if at_once else _ENDING_SECONDS)
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            if process.poll() is None:
                process.kill()
                process.wait()


def start_workers(recipe_file: Path, count: int, port: int, *, debug: bool = False) -> Workers:
    """Start processes 1 to `count` - 1.

    Args:
        recipe_file: what they train; it names the run folder.
        count: how many there are with this one.
        port: of this machine, where process 0 keeps the store.
        debug: the run was started with --debug.
    """
    command = [sys.executable, "-m", "headstart", "train", "--recipe", str(recipe_file), "--quiet"]
    if debug:
        command.append("--debug")
    return Workers(
        {
            rank: subprocess.Popen(
                command,
                env={**os.environ, **environment_of(rank, count, port), _IS_WORKER: "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C is for process 0 alone, which tells the others.
                start_new_session=True,
            )
            for rank in range(1, count)
        }
    )


def is_worker() -> bool:
    """Say whether this process was started by `start_workers`."""
    return _IS_WORKER in os.environ


def environment_of(rank: int, count: int, port: int) -> dict[str, str]:
    """Give the variables by which a process finds the others."""
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        # The store is there before the group, as with torchrun.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


@contextlib.contextmanager
def in_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
