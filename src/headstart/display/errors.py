"""An error as a person reads it.

Layer 4; imports layer 0 and rich.
"""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from headstart.display.layout import make_console, plain, show_line
from headstart.errors import HeadstartError

__all__ = ["show_error"]


def show_error(error: HeadstartError, console: Console | None = None) -> None:
    """Show what was found, what was expected and what to do; the words are those of `str(error)`.

    Args:
        error: with its three parts.
        console: where to; None is the standard output.
    """
    console = make_console(console)
    for key, part, style in (
        ("Error: ", error.found, "bold red"),
        ("Expected: ", error.expected, "bold"),
        ("To do: ", error.fix, "bold green"),
    ):
        if part:
            # Several faults come a line each; within a line nothing may move the cursor.
            for number, line in enumerate(part.split("\n")):
                show_line(console, Text.assemble((key if number == 0 else "", style), plain(line)))
