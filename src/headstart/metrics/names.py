"""Names of scores: which are shown by default, which belong to a GLUE task, and which way is better.

Imports the standard library and `errors` only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from headstart.errors import RecipeError, suggest
from headstart.metrics.classification import BINARY_SCORES, CLASSIFICATION_SCORES

__all__ = ["default_scores", "glue_scores", "higher_is_better", "resolve_scores"]

_GLUE: Final[dict[str, tuple[str, ...]]] = {
    "cola": ("matthews_correlation",),
    "mnli": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qnli": ("accuracy",),
    "qqp": ("accuracy", "f1"),
    "rte": ("accuracy",),
    "sst2": ("accuracy",),
    "wnli": ("accuracy",),
}


def default_scores(num_labels: int) -> list[str]:
    """Name the scores of a recipe that names none; the first decides which checkpoint is best.

    Args:
        num_labels: classes of the task.

    Example:
        >>> default_scores(2)
        ['accuracy', 'f1', 'matthews_correlation', 'roc_auc', 'log_loss']
    """
    if num_labels == 2:
        return ["accuracy", "f1", "matthews_correlation", "roc_auc", "log_loss"]
    return ["accuracy", "f1_macro", "balanced_accuracy", "matthews_correlation", "log_loss"]


def glue_scores(task: str) -> list[str]:
    """Name the scores that GLUE reports for one of its classification tasks.

    Raises:
        RecipeError: it is no such task.

    Source: Wang et al. 2018, GLUE: A Multi-Task Benchmark and Analysis Platform.
    """
    if task not in _GLUE:
        raise RecipeError(
            f'evaluate.scores: "glue/{task}" is no classification task of GLUE.', suggest(task, list(_GLUE))
        )
    return list(_GLUE[task])


def higher_is_better(name: str) -> bool:
    """Say which way a score is better.

    Example:
        >>> higher_is_better("accuracy"), higher_is_better("log_loss")
        (True, False)
    """
    return name != "log_loss"


def resolve_scores(requested: Sequence[str] | None, num_labels: int, origin: str | None) -> list[str]:
    """Say which scores a run computes.

    Args:
        requested: names, or "glue/mrpc" for a set; None: GLUE's own for a GLUE task, else the defaults.
        num_labels: classes of the task.
        origin: the source as it was named, to know a GLUE task by (`hub:glue/mrpc`).

    Returns:
        Names in the requested order, each once.

    Raises:
        RecipeError: a name is unknown, or not defined for so many classes; all faults in one message.

    Example:
        >>> resolve_scores(None, 2, "hub:glue/mrpc")
        ['accuracy', 'f1']
    """
    if requested is None:
        match = re.match(r"hub:(?:nyu-mll/)?glue/(\w+)", origin or "")
        usual = _GLUE.get(match[1], ()) if match is not None else ()
        # Another label column than GLUE's own may have other classes.
        fits = usual and (num_labels == 2 or not set(usual) & set(BINARY_SCORES))
        return list(usual) if fits else default_scores(num_labels)
    names: list[str] = []
    faults: list[str] = []
    for name in requested:
        if name.startswith("glue/"):
            try:
                names += glue_scores(name.removeprefix("glue/"))
            except RecipeError as error:
                faults.append(f"{error.found} {error.expected}")
        elif name not in CLASSIFICATION_SCORES:
            faults.append(f'evaluate.scores: "{name}" is unknown. {suggest(name, CLASSIFICATION_SCORES)}')
        else:
            names.append(name)
    faults += [
        f'evaluate.scores: "{name}" is defined for two classes, but there are {num_labels}. Use {name}_macro.'
        for name in names
        if name in BINARY_SCORES and num_labels != 2
    ]
    if faults or not names:
        raise RecipeError(
            "\n".join(faults) or "evaluate.scores is empty.", f"some of: {', '.join(CLASSIFICATION_SCORES)}."
        )
    return list(dict.fromkeys(names))
