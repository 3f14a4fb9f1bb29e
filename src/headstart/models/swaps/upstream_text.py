"""Knowing classes of transformers by the words of their source.

May import layers 0 and 1. A function of ours that stands for several of a model's is right for the text that it was
written from, and for no other. Families of models repeat that text word by word, under their own names.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from torch import nn

__all__ = ["family_of", "hash_text"]


def family_of(module: nn.Module, end: str) -> str | None:
    """Give what stands before `end` in the name of a module's class, "Bert" for BertLayer; None for all other classes.

    Classes of transformers' own models alone have one.
    """
    kind = type(module)
    family = kind.__name__.removesuffix(end)
    return family if kind.__module__.startswith("transformers.models.") and family != kind.__name__ else None


def hash_text(scope: ModuleType | None, family: str, functions: Iterable[tuple[str, str]]) -> str:
    """Give the SHA-256 of what functions say, names of the family, comments and breaks of lines apart.

    Args:
        scope: the module that holds the classes.
        family: what their names begin with.
        functions: the ends of their names, and names of their methods.

    Returns:
        Hexadecimal digits; empty where there is no such text.
    """
    try:
        found: list[Any] = [getattr(getattr(scope, family + end), name) for end, name in functions]
        text = "".join(inspect.getsource(function) for function in found)
    except (AttributeError, OSError, TypeError):
        return ""
    words = re.sub(r"#.*|\s", "", text.replace(family, "")).replace(",)", ")")
    return hashlib.sha256(words.encode()).hexdigest()
