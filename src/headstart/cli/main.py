"""The command's entry: which command, which options, and what an error looks like.

Layer 6; imports the standard library only before a command runs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from headstart.cli.commands import COMMANDS, Command
from headstart.cli.pages import command_page, main_page
from headstart.errors import HeadstartError, NonFiniteError, ProcessLostError, RecipeError, suggest

__all__ = ["main"]

DONE, OUR_FAULT, USER_CAN_MEND, NON_FINITE, INTERRUPTED = 0, 1, 2, 3, 130

_OPTION = re.compile(r"--?[^\s\d-]\S*")  # "-5 degrees", "- so what" and "-1" are texts


class _UsageError(RecipeError):
    """A word on the command line that cannot be understood."""


class _Parser(argparse.ArgumentParser):
    """Raises faults in three parts instead of printing argparse's usage.

    argparse sees the options only: it would take the words before and after an option for two lists.
    """

    def __init__(self, command: Command) -> None:
        super().__init__(prog=f"headstart {command.name}", add_help=False, allow_abbrev=False)
        self._command = command
        for option in command.options:
            if not option.metavar:
                self.add_argument(option.name, action="store_true")
            elif option.repeated:
                self.add_argument(option.name, action="append", default=[])
            elif option.alone is not None:
                self.add_argument(option.name, nargs="?", const=option.alone, default=None)
            else:
                self.add_argument(option.name, type=option.kind, default=None)

    def error(self, message: str) -> NoReturn:
        """Turn argparse's sentence into an error that says what to do."""
        page = f"See: headstart {self._command.name} --help"
        match = re.match(r"argument (--\S+): (?:invalid (\w+) value: (.*)|expected .*)", message)
        if match is not None:
            option = next(option for option in self._command.options if option.name == match[1])
            found = f"{option.name} has the value {match[3]}." if match[3] else f"{option.name} has no value."
            kinds = {int: "a whole number", float: "a number", str: option.help}
            raise _UsageError(found, f"{kinds[option.kind]}: {option.name} {option.metavar}.", page)
        raise _UsageError(f"headstart {self._command.name}: {message}.", fix=page)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse options and words in any order, naming the nearest option for one that is unknown.

        Args:
            words: as typed; those after "--" are no options.
        """
        end = words.index("--") if "--" in words else len(words)
        arguments, rest = self.parse_known_args(words[:end])
        page = f"See: headstart {self._command.name} --help"
        for word in rest:
            name = word.partition("=")[0]
            if _OPTION.fullmatch(name):
                found = f'headstart {self._command.name} has no option "{name}".'
                names = [option.name for option in self._command.options]
                raise _UsageError(found, fix=f"{suggest(name, names)}\n{page}")
        free = [*rest, *words[end + 1 :]]
        for argument in self._command.arguments:
            if argument.count == "*":
                setattr(arguments, argument.attribute, free)
                free = []
                continue
            if not free and argument.count is None:
                found = f"headstart {self._command.name}: {argument.name} is missing."
                raise _UsageError(found, f"{argument.name}, {argument.help}.", page)
            setattr(arguments, argument.attribute, free[0] if free else None)
            free = free[1:]
        if free:
            raise _UsageError(f'headstart {self._command.name}: "{free[0]}" is one word too many.', fix=page)
        return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: words after the program's name; None takes `sys.argv`.

    Returns:
        0 done, 1 our fault, 2 the user can mend it, 3 a loss that is not finite, 130 or 143 stopped by a signal.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # A label or path that the terminal's encoding lacks is shown escaped, not as a crash.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _dispatch(words)
    except HeadstartError as error:
        if "--traceback" in words:
            traceback.print_exc()
        elif not _says_process_0(error):
            _show(error)
        return NON_FINITE if isinstance(error, NonFiniteError) else USER_CAN_MEND
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (headstart runs | head); what it wanted, it has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if "--traceback" in words:
            traceback.print_exc()
            return OUR_FAULT
        lines = str(error).strip().splitlines() or [""]
        print(f"This is a fault of headstart: {type(error).__name__}: {lines[0]}", file=sys.stderr)
        print("To do: run the command again with --traceback, and report what it prints.", file=sys.stderr)
        return OUR_FAULT


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        named = words[1] if words[:1] == ["help"] and len(words) > 1 else None
        sys.stdout.write(command_page(_command(named)) if named is not None else main_page())
        return DONE
    if words[0] in ("--version", "-V"):
        from headstart import __version__

        print(f"headstart {__version__}")
        return DONE
    name, rest = words[0], words[1:]
    command = _command(name)
    before_texts = rest[: rest.index("--")] if "--" in rest else rest
    if "--help" in before_texts or "-h" in before_texts:
        sys.stdout.write(command_page(command))
        return DONE
    arguments = _Parser(command).parse(rest)
    module = {"evaluate": "look", "runs": "look", "show": "look", "demo": "train"}.get(name, name)
    run = getattr(importlib.import_module(f"headstart.cli.{module}"), f"run_{name}")
    _quiet_libraries()
    code: int = run(arguments)
    return code


def _command(name: str) -> Command:
    if name not in COMMANDS:
        raise _UsageError(f'"{name}" is no command.', fix=f"{suggest(name, list(COMMANDS))}\nSee: headstart --help")
    return COMMANDS[name]


def _quiet_libraries() -> None:
    """Keep bars and hints of the libraries below from mixing with ours; what they find is said by headstart."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _says_process_0(error: HeadstartError) -> bool:
    """Say whether the process that started this one for its training says what there is to say."""
    if not isinstance(error, ProcessLostError):
        return False
    from headstart.training.launch import is_worker

    return is_worker()


def _show(error: HeadstartError) -> None:
    from rich.console import Console

    from headstart.display.errors import show_error

    show_error(error, Console(stderr=True))
