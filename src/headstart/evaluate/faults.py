"""The errors of this package that scripts for `evaluate` may catch by their builtin class.

Imports layer 0 only.

    load("no such metric")       UnknownMetricError     FileNotFoundError, as in evaluate
    load("glue", "mrcp")         UnknownConfigError     KeyError, as in evaluate's GLUE
    load("seqeval") without it   MissingPackageError    ImportError
"""

from __future__ import annotations

import importlib
from typing import Any

from headstart.errors import HeadstartError, RecipeError

__all__ = ["MissingPackageError", "UnknownConfigError", "UnknownMetricError", "import_optional"]


class UnknownMetricError(RecipeError, FileNotFoundError):
    """Raised when no metric of that name is part of headstart."""


class UnknownConfigError(RecipeError, KeyError):
    """Raised when a metric has no configuration of that name, or needs one and got none."""


class MissingPackageError(HeadstartError, ImportError):
    """Raised when a metric needs a package that is not installed."""


def import_optional(module: str, metric: str) -> Any:
    """Import a module of the extra `metrics`.

    Args:
        module: its full name, such as `"rouge_score.scoring"`.
        metric: the metric that needs it, for the message.

    Raises:
        MissingPackageError: it is not installed.

    Example:
        >>> import_optional("json", "accuracy").dumps([1])
        '[1]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{metric} needs the package {(error.name or module).partition('.')[0]}, which is not installed.",
            "the libraries of the extra `metrics`: rouge-score, sacrebleu, seqeval.",
            "Run: pip install 'headstart[metrics]'",
        ) from error
