"""The metrics that headstart has, by name and configuration.

Imports layer 0 and the modules beside it; none of them imports torch or scikit-learn before a score is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from headstart.errors import RecipeError, suggest
from headstart.evaluate.classification import classification_metrics
from headstart.evaluate.definition import MetricDefinition
from headstart.evaluate.faults import UnknownConfigError, UnknownMetricError
from headstart.evaluate.generation import generation_metrics
from headstart.evaluate.glue import glue_metrics
from headstart.evaluate.language_model import language_model_metrics
from headstart.evaluate.question_answering import question_answering_metrics
from headstart.evaluate.regression import regression_metrics
from headstart.evaluate.tagging import tagging_metrics
from headstart.evaluate.text_match import text_match_metrics

__all__ = ["all_metrics", "find_metric"]


@functools.cache
def all_metrics() -> Mapping[str, Mapping[str, MetricDefinition]]:
    """Give name to configuration to metric, names in alphabetical order."""
    found: dict[str, dict[str, MetricDefinition]] = {}
    for metric in chain(
        classification_metrics(),
        regression_metrics(),
        glue_metrics(),
        tagging_metrics(),
        question_answering_metrics(),
        generation_metrics(),
        language_model_metrics(),
        text_match_metrics(),
    ):
        found.setdefault(metric.name, {})[metric.config] = metric
    return dict(sorted(found.items()))


def find_metric(name: str, config: str | None) -> MetricDefinition:
    """Find a metric by name and configuration.

    Args:
        name: as in evaluate; `evaluate-metric/` may stand before it.
        config: None for the only or default one.

    Raises:
        UnknownMetricError: there is none of this name.
        UnknownConfigError: it has no such configuration, or needs one.
        RecipeError: the name is a path: scripts are not run.

    Example:
        >>> find_metric("glue", "mrpc").config
        'mrpc'
    """
    metrics = all_metrics()
    configs = metrics.get(name.removeprefix("evaluate-metric/"))
    if configs is None:
        if name.endswith(".py") or Path(name).exists() or name.startswith((".", "/", "~")):
            raise RecipeError(
                f"{name}: a script is not run as a metric.",
                f"one of the names {', '.join(metrics)}, or a function.",
                "Import your function from the script, and give it: evaluate.load(my_score), where my_score takes "
                "predictions and references and returns a dict.",
            )
        raise UnknownMetricError(
            f'There is no metric "{name}".',
            "the name of a metric that comes with headstart (nothing is downloaded), or a function.",
            suggest(name.rpartition("/")[2], list(metrics)),
        )
    config = config or "default"
    if config not in configs:
        given = f"no configuration {config!r}" if config != "default" else "no default configuration"
        raise UnknownConfigError(
            f"{name} has {given}.",
            f"load({name!r}, config_name) with one of its configurations.",
            suggest(config, list(configs)),
        )
    return configs[config]
