"""What is done before the first step and after the last one: a line that changes, or plain lines.

Layer 4; imports rich.
"""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.status import Status as Spinner
from rich.text import Text

from headstart.display.layout import FAINT, make_console, plain

__all__ = ["Status"]


class Status:
    """Say what is being done now; on a terminal the line goes away at the end.

    Args:
        console: where to; None is the standard output.

    Example:
        >>> import io
        >>> file = io.StringIO()
        >>> with Status(Console(file=file, width=80)) as status:
        ...     status.say("scoring the saved model")
        >>> file.getvalue().strip()
        'scoring the saved model ...'
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = make_console(console)
        self._spinner: Spinner | None = None
        if self.console.is_interactive and not self.console.is_jupyter:
            name = "line" if self.console.options.ascii_only else "dots"
            self._spinner = Spinner("", console=self.console, spinner=name, spinner_style="cyan")
        self._shown: str | None = None

    def __enter__(self) -> Status:
        """Begin with nothing to say."""
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the line away."""
        if self._spinner is not None:
            self._spinner.stop()

    def say(self, text: str, done: int = 0, total: int = 0) -> None:
        """Say what is done now, such as "scoring the saved model"; plain lines say it once.

        Args:
            text: what is done.
            done: rows done so far.
            total: rows in all; 0 where nothing is counted.
        """
        if self._spinner is not None:
            self._spinner.update(plain(f"{text}: {done:,} of {total:,} rows" if total else text, FAINT))
            self._spinner.start()
        elif text != self._shown:
            self.console.print(Text.assemble(plain(text), " ..."), soft_wrap=True, style=FAINT, highlight=False)
        self._shown = text
