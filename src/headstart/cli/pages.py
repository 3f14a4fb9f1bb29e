"""Help pages: an example first, options in groups, defaults shown.

Layer 6; imports the standard library only.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap

from headstart.cli.commands import COMMANDS, Command, Option

__all__ = ["command_page", "main_page"]

_BOLD, _FAINT, _CYAN, _END = "\033[1m", "\033[2m", "\033[36m", "\033[0m"


def main_page() -> str:
    """Write the page of `headstart --help`."""
    lines = [
        f"{_paint('headstart', _BOLD)}: from your own text data to a fine-tuned, honestly measured Transformer",
        "",
        *_examples(
            (
                ("headstart demo", "see it all in about a minute, without data of your own"),
                ("headstart train reviews.csv", "a file with texts and labels"),
            )
        ),
        _title("Commands"),
        *_table([(name, command.summary) for name, command in COMMANDS.items()]),
        "",
        _title("Options"),
        *_table([("--help", "this page; headstart COMMAND --help has more"), ("--version", "print the version")]),
        "",
        'In Python: run = headstart.finetune("reviews.csv"); run.predict(["loved it"])',
    ]
    return "\n".join(lines) + "\n"


def command_page(command: Command) -> str:
    """Write the page of `headstart COMMAND --help`."""
    words = [f"[{argument.name}]{'...' if argument.count == '*' else ''}" if argument.count else argument.name
             for argument in command.arguments]  # fmt: skip
    lines = [
        f"{_paint(f'headstart {command.name}', _BOLD)}: {command.summary}",
        "",
        *_examples(command.examples),
        _title("Usage"),
        f"  {' '.join(['headstart', command.name, *words, '[OPTIONS]'])}",
        "",
    ]
    if command.arguments:
        lines += [*_table([(argument.name, argument.help) for argument in command.arguments]), ""]
    for title, options in command.groups.items():
        lines += [_title(title), *_table([_row(option) for option in options]), ""]
    for note in command.notes:
        lines += [*textwrap.wrap(note, _width()), ""]
    return "\n".join(lines).rstrip() + "\n"


def _row(option: Option) -> tuple[str, str]:
    left = f"{option.name} {option.metavar}".rstrip()
    return left, option.help + (f" (default: {option.default})" if option.default else "")


def _examples(examples: tuple[tuple[str, str], ...]) -> list[str]:
    lines = []
    for command, meaning in examples:
        lines += [f"  {_paint('$', _FAINT)} {_paint(command, _CYAN)}", f"    {_paint(meaning, _FAINT)}"]
    return [*lines, ""]


def _table(rows: list[tuple[str, str]]) -> list[str]:
    """Align the second column; a first cell that is too long gets a line of its own."""
    column = min(30, max(len(left) for left, _ in rows) + 4)
    lines = []
    for left, right in rows:
        wrapped = textwrap.wrap(right, max(20, _width() - column))
        if len(left) + 4 > column:
            lines.append(f"  {left}")
            left = ""
        lines.append(f"  {left}".ljust(column) + (wrapped[0] if wrapped else ""))
        lines += [" " * column + line for line in wrapped[1:]]
    return lines


def _title(text: str) -> str:
    return _paint(text, _BOLD)


def _width() -> int:
    return min(100, shutil.get_terminal_size((80, 24)).columns)


def _paint(text: str, style: str) -> str:
    """Colour a text on a terminal, unless NO_COLOR is set."""
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return text
    return f"{style}{text}{_END}"
