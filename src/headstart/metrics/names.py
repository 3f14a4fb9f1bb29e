"""Names of scores: which are shown by default, which belong to a GLUE task, and which way is better.

Imports the standard library and what lies beside it in metrics/.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

from headstart.errors import RecipeError, suggest
from headstart.metrics.classification import BINARY_SCORES, CLASSIFICATION_SCORES, ORDINAL_SCORES
from headstart.metrics.multi_label import MULTI_LABEL_SCORES
from headstart.metrics.regression import REGRESSION_SCORES

__all__ = ["ScoreKind", "default_scores", "glue_scores", "higher_is_better", "resolve_scores"]

ScoreKind = Literal["class", "ordinal", "classes", "number"]
"""What is scored: a class a row, one of classes that have an order, several labels a row, or numbers."""

_GLUE: Final[dict[str, tuple[str, ...]]] = {
    "cola": ("matthews_correlation",),
    "mnli": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qnli": ("accuracy",),
    "qqp": ("accuracy", "f1"),
    "rte": ("accuracy",),
    "sst2": ("accuracy",),
    "stsb": ("pearson", "spearman"),
    "wnli": ("accuracy",),
}
_DEFAULTS: Final[dict[str, tuple[str, ...]]] = {
    "class": ("accuracy", "f1_macro", "balanced_accuracy", "matthews_correlation", "log_loss"),
    "ordinal": ("accuracy", "quadratic_weighted_kappa", "mae", "f1_macro", "log_loss"),
    "classes": ("f1_micro", "f1_macro", "average_precision", "exact_match", "hamming_loss"),
    "number": ("rmse", "mae", "r2", "pearson", "spearman"),
}
_KNOWN: Final[dict[str, tuple[str, ...]]] = {
    "class": CLASSIFICATION_SCORES,
    "ordinal": (*CLASSIFICATION_SCORES, *ORDINAL_SCORES),
    "classes": MULTI_LABEL_SCORES,
    "number": REGRESSION_SCORES,
}
_IN_WORDS: Final = {
    "class": "classes",
    "ordinal": "classes that have an order (task.ordinal)",
    "classes": "several labels a row",
    "number": "numbers",
}
_LOWER_IS_BETTER: Final = ("log_loss", "hamming_loss", "rmse", "mae", "mse")


def default_scores(num_labels: int, kind: ScoreKind = "class") -> list[str]:
    """Name the scores of a recipe that names none; the first decides which checkpoint is best.

    Args:
        num_labels: classes of the task.
        kind: what is scored.

    Example:
        >>> default_scores(2)
        ['accuracy', 'f1', 'matthews_correlation', 'roc_auc', 'log_loss']
    """
    if num_labels == 2 and kind == "class":
        return ["accuracy", "f1", "matthews_correlation", "roc_auc", "log_loss"]
    return list(_DEFAULTS[kind])


def glue_scores(task: str) -> list[str]:
    """Name the scores that GLUE reports for one of its tasks.

    Raises:
        RecipeError: it is no such task.

    Source: Wang et al. 2018, GLUE: A Multi-Task Benchmark and Analysis Platform.
    """
    if task not in _GLUE:
        raise RecipeError(f'evaluate.scores: "glue/{task}" is no task of GLUE.', suggest(task, list(_GLUE)))
    return list(_GLUE[task])


def higher_is_better(name: str) -> bool:
    """Say which way a score is better.

    Example:
        >>> higher_is_better("accuracy"), higher_is_better("log_loss")
        (True, False)
    """
    return name not in _LOWER_IS_BETTER


def resolve_scores(
    requested: Sequence[str] | None, num_labels: int, origin: str | None, kind: ScoreKind = "class"
) -> list[str]:
    """Say which scores a run computes.

    Args:
        requested: names, or "glue/mrpc" for a set; None: GLUE's own for a GLUE task, else the defaults.
        num_labels: classes of the task.
        origin: the source as it was named, to know a GLUE task by (`hub:glue/mrpc`).
        kind: what is scored.

    Returns:
        Names in the requested order, each once.

    Raises:
        RecipeError: a name is unknown, or not defined for this kind or so many classes; all faults in one message.

    Example:
        >>> resolve_scores(None, 2, "hub:glue/mrpc")
        ['accuracy', 'f1']
    """
    if requested is None:
        match = re.match(r"hub:(?:nyu-mll/)?glue/(\w+)", origin or "")
        usual = _GLUE.get(match[1], ()) if match is not None else ()
        # Another label column than GLUE's own may have other classes, or none.
        fits = usual and set(usual) <= set(_KNOWN[kind]) and (num_labels == 2 or not set(usual) & set(BINARY_SCORES))
        return list(usual) if fits else default_scores(num_labels, kind)
    names: list[str] = []
    faults: list[str] = []
    for name in requested:
        if name.startswith("glue/"):
            try:
                names += glue_scores(name.removeprefix("glue/"))
            except RecipeError as error:
                faults.append(f"{error.found} {error.expected}")
        else:
            names.append(name)
    for name in names:
        others = [other for other, known in _KNOWN.items() if name in known]
        if name in _KNOWN[kind]:
            if name in BINARY_SCORES and num_labels != 2:
                faults.append(
                    f'evaluate.scores: "{name}" is defined for two classes, but there are {num_labels}. '
                    f"Use {name}_macro."
                )
        elif others:
            faults.append(f'evaluate.scores: "{name}" is a score of {_IN_WORDS[others[0]]}, not of {_IN_WORDS[kind]}.')
        else:
            faults.append(f'evaluate.scores: "{name}" is unknown. {suggest(name, _KNOWN[kind])}')
    if faults or not names:
        raise RecipeError("\n".join(faults) or "evaluate.scores is empty.", f"some of: {', '.join(_KNOWN[kind])}.")
    return list(dict.fromkeys(names))
