"""What a model says of texts: the table on a terminal, and the examples at the end of the demo.

Layer 4; imports rich.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console
from rich.text import Text

from headstart.display.layout import FAINT, HEADING, make_console, plain, show_line

__all__ = ["Example", "show_examples", "show_predictions"]

_GAP = 3  # spaces between columns
_MIN_TEXT_WIDTH = 20
_MAX_OTHER_WIDTH = 24
_MAX_ADDED_WIDTH = 30
_LINES_AT_ONCE = 500  # a file may have many rows: printed in blocks, never laid out as a whole


@dataclass(frozen=True)
class Example:
    """One text, what the model says of it, and what it is.

    Args:
        text: as the model read it.
        prediction: name of the most probable class.
        probability: of that class, 0 to 1.
        label: name of the right class.
    """

    text: str
    prediction: str
    probability: float
    label: str


def show_examples(examples: Sequence[Example], console: Console | None = None) -> None:
    """Show how the model does on some test rows, and say what comes next.

    Args:
        examples: a few.
        console: where to; None is the standard output.
    """
    console = make_console(console)
    console.print(Text(f" {len(examples)} rows of the test split", style=HEADING))
    for example in examples:
        console.print()
        console.print(Text(f"   {_cut(_cell(example.text), console.width - 4, console)}"))
        is_right = example.prediction == example.label
        verdict = Text("right", "green") if is_right else Text.assemble(("wrong", "yellow"), f", it is {example.label}")
        said = plain(f"   {example.prediction}", HEADING)
        console.print(Text.assemble(said, (f" {example.probability:.0%}   ", FAINT), verdict))
    console.print()
    console.print(Text.assemble((f" {'now you':<11}", FAINT), ("headstart train YOUR_FILE.csv", "cyan")))
    console.print()


def show_predictions(
    columns: Mapping[str, Sequence[object]],
    *,
    texts: Sequence[str],
    added: Sequence[str],
    console: Console | None = None,
) -> None:
    """Show rows with their predictions, a line a row, as many columns as there is room for.

    Args:
        columns: name to cells, all of N rows, in the order to show.
        texts: names of the columns that the model read; they are always shown, cut to the line.
        added: names of the columns with what the model says; always shown, whole.
        console: where to; None is the standard output.
    """
    console = make_console(console)
    cells = {name: [_cell(value, is_added=name in added) for value in values] for name, values in columns.items()}
    if not texts:
        others = [name for name in columns if name not in added]
        texts = sorted(others, key=lambda name: max(map(cell_len, cells[name]), default=0))[-1:]
    widths = _column_widths(cells, texts, added, console.width - 1)
    is_number = {name: all(isinstance(value, int | float | None) for value in columns[name]) for name in widths}
    header = [_fit(_cell(name), width, is_number[name], console) for name, width in widths.items()]
    console.print()
    show_line(console, Text(f" {(' ' * _GAP).join(header)}".rstrip(), style=FAINT))
    lines = [
        " "
        + (" " * _GAP).join(_fit(cells[name][row], width, is_number[name], console) for name, width in widths.items())
        for row in range(len(next(iter(cells.values()), [])))
    ]
    for start in range(0, len(lines), _LINES_AT_ONCE):
        show_line(console, Text("\n".join(line.rstrip() for line in lines[start : start + _LINES_AT_ONCE])))
    hidden = [name for name in columns if name not in widths]
    if hidden:
        console.print()
        names = ", ".join(_cell(name) for name in hidden)
        console.print(plain(f" Not shown for lack of room: {names}. --output FILE writes every column.", FAINT))
    console.print()


def _cell(value: object, *, is_added: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if is_added and isinstance(value, float) else plain(value).plain


def _column_widths(
    cells: Mapping[str, Sequence[str]], texts: Sequence[str], added: Sequence[str], room: int
) -> dict[str, int]:
    """Choose the columns and their widths: what the model says, then what it read, then what else fits.

    Args:
        cells: name to what is shown.
        texts: columns that the model read.
        added: columns with what the model says.
        room: characters of a line.
    """
    natural = {name: max(map(cell_len, [_cell(name), *column])) for name, column in cells.items()}
    widths = {name: min(natural[name], _MAX_ADDED_WIDTH) for name in added}
    room -= sum(width + _GAP for width in widths.values())
    share = max(1, min(_MIN_TEXT_WIDTH, room // len(texts) - _GAP)) if texts else 0
    least = {name: min(natural[name], share) for name in texts}
    room -= sum(width + _GAP for width in least.values()) - _GAP
    for name in cells:
        if name not in widths and name not in least:
            width = min(natural[name], _MAX_OTHER_WIDTH)
            if width + _GAP <= room:
                widths[name] = width
                room -= width + _GAP
    for number, name in enumerate(sorted(least, key=lambda name: natural[name])):
        # The shorter ones first: what they do not need, the longer ones get.
        extra = min(max(room, 0) // (len(least) - number), natural[name] - least[name])
        widths[name] = least[name] + extra
        room -= extra
    return {name: widths[name] for name in cells if name in widths}


def _fit(text: str, width: int, is_number: bool, console: Console) -> str:
    text = _cut(text, width, console)
    return " " * (width - cell_len(text)) + text if is_number else set_cell_size(text, width)


def _cut(text: str, width: int, console: Console) -> str:
    """Cut a text to a width in terminal cells, marking the cut."""
    if cell_len(text) <= width:
        return text
    mark = "..." if console.options.ascii_only else "…"
    return (chop_cells(text, max(1, width - len(mark)))[0].rstrip() + mark)[:width]
