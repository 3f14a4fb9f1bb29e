"""Metrics by name, as scripts for `evaluate` load them: `headstart.evaluate.load("accuracy")`. Offline, always.

    load("glue", "mrpc")  ->  Metric: add, add_batch, compute  ->  {"accuracy": 0.86, "f1": 0.9}

Imports numpy and layer 0; scikit-learn, scipy, seqeval, sacrebleu, rouge-score and torch where a score needs them.
"""

from headstart.evaluate.combined import CombinedEvaluations
from headstart.evaluate.faults import MissingPackageError, UnknownConfigError, UnknownMetricError
from headstart.evaluate.loading import combine, list_evaluation_modules, load
from headstart.evaluate.metric import Metric

EvaluationModule = Metric
"""The name that evaluate has for the class of all its modules."""

load_metric = load
"""The old name, from `datasets.load_metric`."""

__all__ = [
    "CombinedEvaluations",
    "EvaluationModule",
    "Metric",
    "MissingPackageError",
    "UnknownConfigError",
    "UnknownMetricError",
    "combine",
    "list_evaluation_modules",
    "load",
    "load_metric",
]
