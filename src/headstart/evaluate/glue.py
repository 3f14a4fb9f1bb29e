"""The scores of the GLUE benchmark, a configuration for each of its tasks.

cola               matthews_correlation
mrpc, qqp          accuracy, f1 of class 1
stsb               pearson, spearmanr
all others         accuracy
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from headstart.evaluate.columns import CLASS_NUMBER, NUMBER
from headstart.evaluate.definition import MetricDefinition, Score
from headstart.evaluate.regression import pearson, spearman

__all__ = ["glue_metrics"]

_SOURCE: Final = "Wang et al. 2019, GLUE, https://openreview.net/forum?id=rJ4km2R5t7"
_ACCURACY_TASKS: Final = ("sst2", "mnli", "mnli_mismatched", "mnli_matched", "qnli", "rte", "wnli", "hans")


def glue_metrics() -> Iterator[MetricDefinition]:
    """Give the metric of each task."""
    scores: dict[str, Score] = {"cola": _cola, "stsb": _stsb, "mrpc": _accuracy_and_f1, "qqp": _accuracy_and_f1}
    scores |= dict.fromkeys(_ACCURACY_TASKS, _accuracy)
    for task, score in scores.items():
        kind = NUMBER if task == "stsb" else CLASS_NUMBER
        columns = {"predictions": kind, "references": kind}
        yield MetricDefinition("glue", f"The scores of GLUE for {task}.", _SOURCE, columns, score, task)


def _accuracy(predictions: Any, references: Any) -> dict[str, Any]:
    from sklearn.metrics import accuracy_score

    return {"accuracy": float(accuracy_score(references, predictions))}


def _accuracy_and_f1(predictions: Any, references: Any) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    return _accuracy(predictions, references) | {"f1": float(f1_score(references, predictions))}


def _cola(predictions: Any, references: Any) -> dict[str, Any]:
    from sklearn.metrics import matthews_corrcoef

    return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


def _stsb(predictions: Any, references: Any) -> dict[str, Any]:
    return {"pearson": pearson(references, predictions)[0], "spearmanr": spearman(references, predictions)[0]}
