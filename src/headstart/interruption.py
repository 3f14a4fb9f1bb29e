"""What SIGINT and SIGTERM ask of a training: the first one to finish the step and save, the second to leave at once.

Layer 5; imports the standard library only. All doors handle signals here: the command, which then ends its process,
and `finetune()` and the drop-in, whose process is somebody else's.

    signal              -> "stop" in requests -> the loop finishes the step, saves and ends -> Stopped
    signal when saved   -> Stopped
    another signal      -> leave at once
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Interruption", "Stopped", "end_as_signalled"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal has stopped the training, and everything is saved.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Interruption:
    """Handles the signals of one training while it is entered, and gives the handlers back on leaving.

    Python handles signals in the main thread only: entered in another one, it leaves them alone.

    Args:
        requests: gets the word for the loop.
        console: where the progress is shown.
        ends_process: a second signal ends the process, with the exit code of its number. Else the handlers are given
            back and it is delivered again, so that Ctrl-C raises KeyboardInterrupt; signals that are ignored stay so.
    """

    def __init__(self, requests: set[str], console: Console, *, ends_process: bool) -> None:
        self._requests = requests
        self._console = console
        self._draws = console.is_interactive and not console.quiet
        self._ends_process = ends_process
        self._first: int | None = None
        self._is_saved = False
        self._before: dict[int, Any] = {}

    @property
    def number(self) -> int | None:
        """The signal that has come first; None where none has."""
        return self._first

    def __enter__(self) -> Interruption:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                # None is a handler that was not set from Python: it could not be given back.
                if self._ends_process or before not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Give the handlers back.

        Raises:
            Stopped: an error came after `saved` had raised it from the handler. It comes up wherever Python happens
                to be, also below a C++ function that makes an error of its own of it: torch, asking for a length,
                says that it cannot tell a shape.
        """
        self._give_back()
        if self._is_saved and self._first is not None and isinstance(error, Exception):
            raise Stopped(self._first) from error

    def saved(self, *, asked_elsewhere: bool = False) -> None:
        """Say that nothing is left to save: from here on a signal ends at once what is done.

        Args:
            asked_elsewhere: another process of the training was asked to stop.

        Raises:
            Stopped: a signal has come; later, when one comes.
        """
        self._is_saved = True
        if self._first is not None or asked_elsewhere:
            raise Stopped(self._first or signal.SIGTERM)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        # Written by the system call: rich or a buffer may be in the middle of a write of their own.
        if self._first == signal.SIGINT and number == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ:
            return  # torchrun passes Ctrl-C on once more, as this
        if self._first is not None:
            if self._draws:
                os.write(self._file, b"\x1b[?25h\n")  # the bar has hidden the cursor
            if self._ends_process:
                os._exit(128 + number)
            self._give_back()
            signal.raise_signal(number)
            return
        self._first = number
        if self._is_saved:
            raise Stopped(number)
        self._requests.add("stop")
        text = "Finishing the step and saving; once more to leave at once."
        if self._draws:
            # In the place of the last line of numbers, so that the bar finds its lines where it left them.
            os.write(self._file, f"\r\x1b[2K {text[: self._console.width - 2]}".encode())
        else:
            os.write(2, f"\n{text}\n".encode())

    def _give_back(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    @property
    def _file(self) -> int:
        return 2 if self._console.stderr else 1


def end_as_signalled(number: int, message: str) -> NoReturn:
    """Say how to go on, and end as the signal would have ended the caller.

    Args:
        number: of the signal, whose handler has been given back.
        message: how to go on.

    Raises:
        KeyboardInterrupt: with the message, where the signal was Ctrl-C, or is ignored by the caller.
    """
    if number != signal.SIGINT:
        print(message, file=sys.stderr, flush=True)
        signal.raise_signal(number)
    raise KeyboardInterrupt(message) from None
