"""From a name to the object of another library, and to an error that helps where there is none.

    from headstart import NAME
        headstart's own       found in headstart/__init__.py
        in the table          getattr(library, NAME); an Auto class is derived from (pretrained.py)
        renamed               the same under its new name, with a line of notice
        dropped, mistyped     ImportError with the advice, or with the nearest names

The table is text: no library is imported before one of its names is found in it.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Iterable, Sequence

from headstart.drop_in.dropped_names import advice, new_name
from headstart.drop_in.library_names import AUTO_CLASSES, NAMES, VERSIONS
from headstart.errors import HeadstartError

__all__ = ["find", "library_names", "nearest_names"]

# transformers answers to them with the class without "Fast".
_FAST = ("TokenizerFast", "ImageProcessorFast")
# How alike two names are, from 0 to 1: what is offered at all, and how far behind the likeliest.
_ALIKE = 0.75
_NEAR_THE_BEST = 0.04


@functools.cache
def library_names() -> dict[str, str]:
    """Give the library of each name that is handed through.

    Example:
        >>> library_names()["BertForSequenceClassification"], library_names()["Dataset"]
        ('transformers', 'datasets')
    """
    table = {name: library for library, names in NAMES.items() for name in names.split()}
    return {**table, **dict.fromkeys(AUTO_CLASSES.split(), "transformers")}


def nearest_names(name: str, names: Iterable[str], limit: int = 3) -> list[str]:
    """Give the names that are most like a mistyped one, the likeliest first.

    Example:
        >>> nearest_names("AutoTokeniser", ["Trainer", "AutoTokenizer", "AutoConfig"])
        ['AutoTokenizer']
    """
    by_lower = {candidate.lower(): candidate for candidate in sorted(names)}
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=limit, cutoff=_ALIKE)
    likeness = [difflib.SequenceMatcher(None, match, name.lower()).ratio() for match in found]
    return [
        by_lower[match] for match, alike in zip(found, likeness, strict=True) if alike > likeness[0] - _NEAR_THE_BEST
    ]


def find(name: str, own: Sequence[str], *, for_import: bool) -> object:
    """Give what a name stands for that is not headstart's own.

    Args:
        name: the name that was asked for.
        own: headstart's own names, which a mistyped one may have meant.
        for_import: whether `from headstart import ...` asks. It has a message of its own for an AttributeError and
            would hide ours, so it gets an ImportError.

    Raises:
        AttributeError: there is none, or it is a module of headstart that is not imported yet.
        ImportError: the same, where an import asks.

    Example:
        >>> find("is_torch_available", [], for_import=True)()
        True
    """
    table = library_names()
    library = table.get(name)
    if library is None and name.endswith(_FAST) and name.removesuffix("Fast") in table:
        library = table[name.removesuffix("Fast")]
    if library is not None:
        return _hand_through(name, library, own, for_import)
    if importlib.util.find_spec(f"headstart.{name}") is not None:
        # An AttributeError makes `from headstart import errors` go on and import the module.
        raise AttributeError(f"headstart.{name} is a module: write `import headstart.{name}`.", name=name)
    today = new_name(name, table)
    if today is not None:
        # Three frames up: this one, headstart's __getattr__, then the line of the script.
        warnings.warn(f"{name} is {today} today; headstart gives you that.", FutureWarning, stacklevel=3)
        return _hand_through(today, table[today], own, for_import)
    raise _missing(name, own, for_import)


def _hand_through(name: str, library: str, own: Sequence[str], for_import: bool) -> object:
    try:
        value: object = getattr(importlib.import_module(library), name)
    except AttributeError:
        if name not in library_names():
            raise _missing(name, own, for_import) from None
        package = library.partition(".")[0]
        installed = importlib.metadata.version(package)
        raise _error(
            f"{library} {installed} has no {name}, which headstart knows from {package} {VERSIONS[package]}.",
            "",
            f"Install {package} {VERSIONS[package]}, or use another name.",
            name,
            for_import,
        ) from None
    if name in AUTO_CLASSES.split() and getattr(value, "__module__", "").startswith("transformers.models.auto."):
        from headstart.drop_in.pretrained import derive_auto_class

        # Where a library is missing, transformers gives a stand-in that says so: it stays as it is.
        if isinstance(value, type) and "_backends" not in vars(value):
            return derive_auto_class(name, value)
    return value


def _missing(name: str, own: Sequence[str], for_import: bool) -> Exception:
    table = library_names()
    use = advice(name, table)
    if use is not None:
        return _error(f"headstart does not have {name}. {use}", "", "", name, for_import)
    near = nearest_names(name, {*own, *table})
    question = f" Did you mean {' or '.join(near)}?" if near else ""
    known = ", ".join(f"{library} {version}" for library, version in VERSIONS.items())
    return _error(
        f'headstart has no name "{name}".{question}',
        "" if near else f"a name of headstart ({', '.join(own)}), or one of {known}.",
        "" if near else "Check the spelling; what is newer than these releases, import from its library.",
        name,
        for_import,
    )


def _error(found: str, expected: str, fix: str, name: str, for_import: bool) -> Exception:
    message = str(HeadstartError(found, expected, fix))
    return ImportError(message, name="headstart") if for_import else AttributeError(message, name=name)
