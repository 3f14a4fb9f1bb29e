"""How a source is read where its content alone cannot say: encoding, delimiter, header, sheet, query.

Imports the standard library and `errors`. The recipe (`data.encoding` and its kin) and `read_source` check the same
values here.
"""

from __future__ import annotations

import codecs
import encodings.aliases
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from headstart.errors import RecipeError, nearest_name

__all__ = ["READ_OPTIONS", "ReadOptions", "check_delimiter", "check_encoding", "refuse_without_effect"]

_NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}


@dataclass(frozen=True)
class ReadOptions:
    """What a user says about a source.

    Args:
        encoding: of text that is not UTF-8, such as "cp1252"; None looks at the bytes.
        delimiter: between the cells of a CSV or TSV file; None looks at the header line.
        header: whether the first line holds the names of the columns; None looks at the lines.
        sheet: name or number (from 1) of a spreadsheet's sheet.
        query: SELECT statement for a database that is named without a table.

    Raises:
        ValueError: a value is none.
    """

    encoding: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    sheet: str | int | None = None
    query: str | None = None

    def __post_init__(self) -> None:
        if self.encoding is not None:
            object.__setattr__(self, "encoding", check_encoding(self.encoding))
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", check_delimiter(self.delimiter))

    def given(self) -> dict[str, Any]:
        """Give the options that are set, by name.

        Example:
            >>> ReadOptions(header=False).given()
            {'header': False}
        """
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


READ_OPTIONS = tuple(field.name for field in fields(ReadOptions))
_BELONGS_TO = {
    "encoding": "a text file (CSV, TSV, JSON, JSONL, plain text) that is not valid UTF-8",
    "delimiter": "a CSV or TSV file",
    "header": "a CSV or TSV file, or a spreadsheet",
    "sheet": "a spreadsheet (.xlsx, .xls, .ods)",
    "query": "a database that is named without a table",
}


def check_encoding(name: str) -> str:
    """Give the name by which Python knows an encoding.

    Raises:
        ValueError: there is no such encoding; with the nearest name.

    Example:
        >>> check_encoding("Windows-1252"), check_encoding("latin1")
        ('cp1252', 'iso8859-1')
    """
    try:
        found = codecs.lookup(name)
        if not found._is_text_encoding:
            raise LookupError(name)
        "".encode(found.name)
    except (LookupError, UnicodeError, ValueError):
        known = {*encodings.aliases.aliases, *encodings.aliases.aliases.values()}
        near = nearest_name(name.lower().replace("-", "_"), sorted(known))
        hint = f'Did you mean "{near}"? ' if near else ""
        raise ValueError(
            f'{name!r} is no encoding. {hint}Usual ones: "utf-8", "cp1252" (Windows, Western Europe), "utf-16", '
            '"shift_jis"'
        ) from None
    return found.name


def check_delimiter(text: str) -> str:
    r"""Give the one character that separates cells; "tab" and "\t" mean a tab.

    Raises:
        ValueError: it is not one character, or one that cannot separate cells.

    Example:
        >>> check_delimiter("tab")
        '\t'
    """
    character = _NAMED_DELIMITERS.get(text.lower(), text)
    if len(character) != 1 or character in '"\r\n\0' or ord(character) > 127:
        raise ValueError(f'{text!r} is no delimiter; write one ASCII character such as ";" or "|", or "tab"')
    return character


def refuse_without_effect(options: ReadOptions, applied: Iterable[str], sources: Iterable[str]) -> None:
    """Raise where an option that is set changed how no source was read.

    Args:
        options: what was said.
        applied: names of the options that some source took.
        sources: what messages call the sources.

    Raises:
        RecipeError: with every such option.
    """
    idle = [name for name in options.given() if name not in set(applied)]
    if idle:
        named = ", ".join(dict.fromkeys(sources))
        raise RecipeError(
            "\n".join(f"data.{name} has no effect on {named}." for name in idle),
            "; ".join(f"for data.{name} {_BELONGS_TO[name]}" for name in idle) + ".",
            f"Remove {' and '.join(f'data.{name}' for name in idle)}, or check the source.",
        )


def options_of(values: Mapping[str, Any]) -> ReadOptions:
    """Build options from names and values, and say a wrong one as an error of the recipe.

    Raises:
        RecipeError: a value is none.
    """
    try:
        return ReadOptions(**values)
    except ValueError as error:
        raise RecipeError(f"{error}.", "a value of docs/recipe.md, section data.", "Mend it.") from None
