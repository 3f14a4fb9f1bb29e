"""What every display shares: the console, text that data cannot disturb, and the form of numbers.

Layer 4; imports rich. Everything that comes from data goes through `plain`, and reaches rich as `Text`, so that a label
called "[red]" is shown as it is and one that holds an escape sequence moves no cursor.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = [
    "FAINT",
    "HEADING",
    "KEY_WIDTH",
    "bar",
    "count",
    "escape",
    "format_seconds",
    "key_value_grid",
    "level_text",
    "make_console",
    "plain",
    "rows_grid",
    "shorten",
    "show_line",
    "sparkline",
]

HEADING = "bold"
FAINT = "dim"
KEY_WIDTH = 10

_LEVEL_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan", "note": "cyan"}
_JOINERS = "\u200c\u200d"  # parts of letters and emoji
_UNITS = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))
_SPARKS = "▁▂▃▄▅▆▇█"


def make_console(console: Console | None) -> Console:
    """Give the console, or one on the standard output; colours only on a terminal without NO_COLOR."""
    return console if console is not None else Console(highlight=False, emoji=False, markup=False)


def plain(text: object, style: str = "") -> Text:
    r"""Make text of anything: no markup, no line breaks, no control or direction characters.

    Example:
        >>> plain("[red]a\x1b[31m\nb").plain
        '[red]a\\x1b[31m\\nb'
    """
    return Text(escape(str(text)), style=style)


def escape(text: str) -> str:
    r"""Write out what a display would act on: control characters, line breaks, marks that turn the writing.

    Example:
        >>> escape("a\x1b[31m")
        'a\\x1b[31m'
    """
    # Categories: control, format (marks that turn the direction of writing), surrogate, line and paragraph separator.
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS
        else character
        for character in text
    )


def shorten(text: object, length: int) -> str:
    """Cut a text that is too long, marking the cut.

    Example:
        >>> shorten("a very long label", 9)
        'a very...'
    """
    words = escape(str(text))
    return words if len(words) <= length else words[: length - 3].rstrip() + "..."


def count(number: int, noun: str) -> str:
    """Write a number with its noun.

    Example:
        >>> count(1, "row"), count(3668, "row")
        ('1 row', '3,668 rows')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_seconds(seconds: float) -> str:
    """Write a duration with two units at most.

    Example:
        >>> [format_seconds(value) for value in (0.42, 51.6, 59.7, 252, 7500, 200000)]
        ['0.4 s', '52 s', '1 min', '4 min 12 s', '2 h 5 min', '2 d 7 h']
    """
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    # (unit, seconds in it, the unit below, seconds in that), of the first unit that the duration fills
    large, large_seconds, small, small_seconds = next(units for units in _UNITS if whole >= units[1])
    first, rest = divmod(whole, large_seconds)
    second = rest // small_seconds
    return f"{first} {large} {second} {small}" if second else f"{first} {large}"


def bar(value: float, largest: float, width: int, console: Console) -> str:
    """Draw a number as a line; whatever is not zero gets a mark."""
    if largest <= 0 or value <= 0:
        return ""
    mark = "-" if console.options.ascii_only else "━"
    return mark * max(1, round(width * value / largest))


def sparkline(values: Iterable[float], width: int) -> str:
    """Draw values as a line of blocks, each the mean of its share of the values.

    Args:
        values: in order; those that are not finite are left out.
        width: characters at most.

    Example:
        >>> sparkline([3.0, 2.0, 1.0, 1.0], 4)
        '█▅▁▁'
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    width = min(width, len(finite))
    edges = [len(finite) * index // width for index in range(width + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    span = high - low
    if not (0 < span < math.inf):
        return _SPARKS[0] * width
    return "".join(_SPARKS[math.floor((mean - low) / span * (len(_SPARKS) - 1) + 0.5)] for mean in means)


def key_value_grid(pairs: Iterable[tuple[str, RenderableType]]) -> Table:
    """Lay out names on the left and what they mean on the right."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style=FAINT, width=KEY_WIDTH, no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in pairs:
        grid.add_row(Text(f" {key}"), value)
    return grid


def rows_grid(rows: Iterable[tuple[Text | str, ...]], justify: str = "") -> Table:
    """Lay out rows without borders.

    Args:
        rows: cells of equal number.
        justify: a letter a column, "l" or "r"; columns past its end are "l".
    """
    table = Table.grid(padding=(0, 3, 0, 0))
    rows = list(rows)
    for index in range(len(rows[0]) if rows else 0):
        table.add_column(justify="right" if justify[index : index + 1] == "r" else "left", overflow="fold")
    for cells in rows:
        table.add_row(*(cell if isinstance(cell, Text) else plain(cell) for cell in cells))
    return table


def level_text(level: str) -> Text:
    """Write the level of a finding in its colour."""
    return plain(level, _LEVEL_STYLES.get(level, ""))


def show_line(console: Console, text: Text) -> None:
    """Print text that a person may copy or search: wrapped by words on a terminal, else one line."""
    console.print(text, soft_wrap=not console.is_terminal, highlight=False)
