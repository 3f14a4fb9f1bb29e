"""Scores and their intervals: numpy in, floats out. Imports no scikit-learn before a score is computed."""

from headstart.metrics.classification import CLASSIFICATION_SCORES, compute_scores
from headstart.metrics.intervals import score_intervals
from headstart.metrics.names import default_scores, glue_scores, higher_is_better, resolve_scores

__all__ = [
    "CLASSIFICATION_SCORES",
    "compute_scores",
    "default_scores",
    "glue_scores",
    "higher_is_better",
    "resolve_scores",
    "score_intervals",
]
