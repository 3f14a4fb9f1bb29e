"""Work done in forked processes, which begin with everything imported: a start costs no time, and a kill no test."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["LIMIT_SECONDS", "Forked", "side_by_side"]

# No test takes this long; a process that does hangs.
LIMIT_SECONDS = 600


class Forked:
    """A forked process that does some work and ends: with 0, with the code that the work returns, or with 1 on error.

    Args:
        work: done there.
        output: gets what it prints, and the traceback of an error.

    Attributes:
        id: of the process.
        code: how it has ended, a signal as a negative number; None while it runs.
    """

    def __init__(self, work: Callable[[], int | None], output: Path) -> None:
        self.output = output
        self.code: int | None = None
        with warnings.catch_warnings():
            # From Python 3.12 on, a fork beside threads is warned of. They only wait here, holding nothing.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.id = os.fork()
        if self.id == 0:
            _work_and_end(work, output)

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave no process behind where a test fails."""
        if self.has_ended():
            return
        self.send(signal.SIGKILL)
        self.wait()

    def has_ended(self) -> bool:
        if self.code is None:
            done, status = os.waitpid(self.id, os.WNOHANG)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def send(self, number: signal.Signals) -> None:
        """Send a signal; none is sent to a process that has ended and was waited for."""
        if self.code is None:
            os.kill(self.id, number)

    def wait(self) -> int:
        """Wait for the end, and say how it was."""
        self.wait_until(self.has_ended)
        assert self.code is not None
        return self.code

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds; it is an error if the process ends before."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition():
            # What the process did last may be seen only after its end.
            assert not self.has_ended() or condition(), f"ended with {self.code}:\n{self.printed()}"
            assert time.monotonic() < deadline, f"waited too long:\n{self.printed()}"
            time.sleep(0.001)

    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""


def _work_and_end(work: Callable[[], int | None], output: Path) -> None:
    """Do the work of a forked process; nothing of the test run may happen in it, so this does not return."""
    code: int | None = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(source, target)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def side_by_side(work: Callable[[int], Any], number: int, folder: Path) -> list[Any]:
    """Do `work(0)`, `work(1)`, ... each in a forked process of its own, and give their results, which are JSON."""

    def keep_result(index: int) -> None:
        (folder / f"{index}.json").write_text(json.dumps(work(index)), encoding="utf-8")

    processes = [
        Forked(lambda index=index: keep_result(index), folder / f"{index}.txt")  # type: ignore[misc]
        for index in range(number)
    ]
    try:
        for process in processes:
            assert process.wait() == 0, process.printed()
    finally:
        for process in processes:
            process.__exit__(None, None, None)
    return [json.loads((folder / f"{index}.json").read_text(encoding="utf-8")) for index in range(number)]
