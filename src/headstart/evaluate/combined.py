"""Several metrics over the same rows, as one object.

Imports layer 0 and `metric`.

    rows  ->  each metric  ->  its scores  ->  one dict; a name that two metrics give gets the metric's name before it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from headstart.errors import RecipeError, suggest
from headstart.evaluate.metric import Metric

__all__ = ["CombinedEvaluations", "merge_scores"]


class CombinedEvaluations:
    """Several metrics that are given the same rows.

    Made by `combine`.

    Args:
        metrics: by the names that stand before their scores where two scores have one name.
        force_prefix: puts the names before all scores.
    """

    def __init__(self, metrics: Sequence[tuple[str, Metric]], force_prefix: bool = False) -> None:
        if not metrics:
            raise RecipeError("There are no metrics to combine.", "at least one.", 'Write: combine(["accuracy", "f1"])')
        self.evaluation_module_names = [name for name, _ in metrics]
        self.evaluation_modules = [metric for _, metric in metrics]
        self.force_prefix = force_prefix

    def __repr__(self) -> str:
        return f"<CombinedEvaluations of {', '.join(self.evaluation_module_names)}>"

    def add(self, prediction: Any = None, reference: Any = None, **columns: Any) -> None:
        """Add one row to each metric.

        Raises:
            DataError: the row does not fit a metric; it is added to none.
            RecipeError: no metric has a column of this name.
        """
        given = {"predictions": prediction, "references": reference} | columns
        self._keep({name: None if value is None else [value] for name, value in given.items()})

    def add_batch(self, predictions: Any = None, references: Any = None, **columns: Any) -> None:
        """Add several rows to each metric.

        Raises:
            DataError: a row does not fit a metric; nothing is added.
            RecipeError: no metric has a column of this name.
        """
        self._keep({"predictions": predictions, "references": references} | columns)

    def compute(self, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, Any] | None:
        """Compute each metric; an option goes to those that know it.

        Args:
            predictions: further rows, as in `add_batch`.
            references: further rows, as in `add_batch`.
            **options: of the metrics, or further columns.

        Returns:
            The scores of all; None on every process but the first.

        Raises:
            DataError: a row does not fit a metric, or a score is not defined.
            RecipeError: no metric has an option of this name.
        """
        columns = {name for metric in self.evaluation_modules for name in metric.features}
        given = {name: value for name, value in options.items() if name in columns}
        options = {name: value for name, value in options.items() if name not in columns}
        known = [metric.option_names for metric in self.evaluation_modules]
        for name in options:
            if not any(names is None or name in names for names in known):
                raise self._unknown(name, [option for names in known for option in names or ()])
        given |= {"predictions": predictions, "references": references}
        if any(value is not None for value in given.values()):
            self._keep(given)
        results = []
        for metric, names in zip(self.evaluation_modules, known, strict=True):
            own = {name: value for name, value in options.items() if names is None or name in names}
            results.append(metric.compute(**own))
        scored = [result for result in results if result is not None]
        if len(scored) < len(results):
            return None
        return merge_scores(self.evaluation_module_names, scored, force_prefix=self.force_prefix)

    def _keep(self, given: Mapping[str, Any]) -> None:
        """Add rows to each metric that has their columns, once all have read them without fault."""
        columns = [name for metric in self.evaluation_modules for name in metric.features]
        for name, value in given.items():
            if value is not None and name not in columns:
                raise self._unknown(name, columns)
        own = [{name: given.get(name) for name in metric.features} for metric in self.evaluation_modules]
        read = [metric.read(columns) for metric, columns in zip(self.evaluation_modules, own, strict=True)]
        for metric, rows in zip(self.evaluation_modules, read, strict=True):
            metric.keep(rows)

    def _unknown(self, name: str, known: Sequence[str]) -> RecipeError:
        return RecipeError(
            f"None of {', '.join(self.evaluation_module_names)} takes {name!r}.",
            "a column or an option of at least one of them.",
            suggest(name, sorted(set(known))),
        )


def merge_scores(
    names: Sequence[str], results: Sequence[Mapping[str, Any]], *, force_prefix: bool = False
) -> dict[str, Any]:
    """Put the scores of several metrics into one dict.

    Args:
        names: of the metrics; one that stands there twice is numbered from 0.
        results: of the metrics.
        force_prefix: puts the names before all scores, not only before those that two metrics give.

    Example:
        >>> merge_scores(["a", "b"], [{"f1": 0.5, "loss": 1.0}, {"f1": 0.6}])
        {'a_f1': 0.5, 'loss': 1.0, 'b_f1': 0.6}
        >>> merge_scores(["a", "a"], [{"f1": 0.5}, {"f1": 0.6}])
        {'a_0_f1': 0.5, 'a_1_f1': 0.6}
    """
    times_given = Counter(key for result in results for key in result)
    times_named = Counter(names)
    seen: Counter[str] = Counter()
    merged = {}
    for name, result in zip(names, results, strict=True):
        prefix = f"{name}_{seen[name]}" if times_named[name] > 1 else name
        seen[name] += 1
        for key, value in result.items():
            merged[f"{prefix}_{key}" if force_prefix or times_given[key] > 1 else key] = value
    return merged
