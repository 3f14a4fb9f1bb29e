"""Scores and their intervals: numpy in, floats out. Imports no scikit-learn before a score is computed."""

from headstart.metrics.classification import CLASSIFICATION_SCORES, ORDINAL_SCORES, compute_scores
from headstart.metrics.intervals import score_intervals
from headstart.metrics.multi_label import (
    MULTI_LABEL_SCORES,
    multi_label_intervals,
    multi_label_scores,
    tune_thresholds,
)
from headstart.metrics.names import ScoreKind, default_scores, glue_scores, higher_is_better, resolve_scores
from headstart.metrics.regression import REGRESSION_SCORES, regression_intervals, regression_scores

__all__ = [
    "CLASSIFICATION_SCORES",
    "MULTI_LABEL_SCORES",
    "ORDINAL_SCORES",
    "REGRESSION_SCORES",
    "ScoreKind",
    "compute_scores",
    "default_scores",
    "glue_scores",
    "higher_is_better",
    "multi_label_intervals",
    "multi_label_scores",
    "regression_intervals",
    "regression_scores",
    "resolve_scores",
    "score_intervals",
    "tune_thresholds",
]
