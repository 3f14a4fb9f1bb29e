"""Scores of numbers: correlations and errors.

scipy and scikit-learn do the arithmetic, in double precision; both are imported inside functions. Keys and options are
those of evaluate, which rounds what it is given to float32 first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from headstart.evaluate.classification import check_widths
from headstart.evaluate.columns import NUMBER, NUMBERS, plain
from headstart.evaluate.definition import MetricDefinition

__all__ = ["pearson", "regression_metrics", "spearman"]

_SCIPY: Final = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats."
_SKLEARN: Final = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics."


def regression_metrics() -> Iterator[MetricDefinition]:
    """Give pearsonr, spearmanr, mse and mae."""
    single = {"predictions": NUMBER, "references": NUMBER}
    several = {"predictions": NUMBERS, "references": NUMBERS}
    text = "Linear correlation, from -1 to 1."
    yield MetricDefinition("pearsonr", text, f"{_SCIPY}pearsonr.html", single, _pearsonr)
    text = "Correlation of the ranks, from -1 to 1."
    yield MetricDefinition("spearmanr", text, f"{_SCIPY}spearmanr.html", single, _spearmanr)
    text, source = "Mean of the squared errors, or its root.", f"{_SKLEARN}mean_squared_error.html"
    yield MetricDefinition("mse", text, source, single, _mse)
    yield MetricDefinition("mse", text, source, several, _mse, "multilist", check_widths)
    text, source = "Mean of the absolute errors.", f"{_SKLEARN}mean_absolute_error.html"
    yield MetricDefinition("mae", text, source, single, _mae)
    yield MetricDefinition("mae", text, source, several, _mae, "multilist", check_widths)


def pearson(references: Any, predictions: Any) -> tuple[float, float]:
    """Compute Pearson's correlation and its p-value."""
    from scipy.stats import pearsonr

    result = pearsonr(references, predictions)
    return float(result[0]), float(result[1])


def spearman(references: Any, predictions: Any) -> tuple[float, float]:
    """Compute Spearman's rank correlation and its p-value."""
    from scipy.stats import spearmanr

    result = spearmanr(references, predictions)
    return float(result[0]), float(result[1])


def _pearsonr(predictions: Any, references: Any, return_pvalue: bool = False) -> dict[str, Any]:
    value, p_value = pearson(references, predictions)
    return {"pearsonr": value} | ({"p-value": p_value} if return_pvalue else {})


def _spearmanr(predictions: Any, references: Any, return_pvalue: bool = False) -> dict[str, Any]:
    value, p_value = spearman(references, predictions)
    return {"spearmanr": value} | ({"spearmanr_pvalue": p_value} if return_pvalue else {})


def _mse(
    predictions: Any,
    references: Any,
    sample_weight: Any = None,
    multioutput: Any = "uniform_average",
    squared: bool = True,
) -> dict[str, Any]:
    from sklearn.metrics import mean_squared_error, root_mean_squared_error

    error = mean_squared_error if squared else root_mean_squared_error
    return {"mse": _number(error, references, predictions, sample_weight, multioutput)}


def _mae(
    predictions: Any, references: Any, sample_weight: Any = None, multioutput: Any = "uniform_average"
) -> dict[str, Any]:
    from sklearn.metrics import mean_absolute_error

    return {"mae": _number(mean_absolute_error, references, predictions, sample_weight, multioutput)}


def _number(error: Any, references: Any, predictions: Any, sample_weight: Any, multioutput: Any) -> Any:
    value = error(references, predictions, sample_weight=plain(sample_weight), multioutput=plain(multioutput))
    return value if getattr(value, "ndim", 0) else float(value)
