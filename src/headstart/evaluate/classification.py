"""Scores of classes: accuracy, F1, precision, recall, Matthews correlation, area under the ROC curve.

scikit-learn does the arithmetic; it is imported inside functions. Keys and options are those of evaluate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from headstart.errors import DataError, RecipeError, format_rows
from headstart.evaluate.columns import CLASS_NUMBER, CLASS_NUMBERS, NUMBER, NUMBERS, plain
from headstart.evaluate.definition import MetricDefinition, Rows, Score

__all__ = ["check_widths", "classification_metrics"]

_SOURCE: Final = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics."


def classification_metrics() -> Iterator[MetricDefinition]:
    """Give accuracy, f1, precision, recall and matthews_correlation, single and multi-label, and roc_auc."""
    by_class: dict[str, tuple[Score, str, str]] = {
        "accuracy": (_accuracy, "Share of rows whose class is right.", "accuracy_score"),
        "f1": (_averaged("f1"), "Harmonic mean of precision and recall.", "f1_score"),
        "precision": (
            _averaged("precision"),
            "Share of right rows among those of a predicted class.",
            "precision_score",
        ),
        "recall": (_averaged("recall"), "Share of the rows of a class that are found.", "recall_score"),
    }
    for name, (score, description, page) in by_class.items():
        columns = {"predictions": CLASS_NUMBER, "references": CLASS_NUMBER}
        source = f"{_SOURCE}{page}.html"
        yield MetricDefinition(name, description, source, columns, score)
        columns = {"predictions": CLASS_NUMBERS, "references": CLASS_NUMBERS}
        yield MetricDefinition(name, description, source, columns, score, "multilabel", check_widths)
    description = "Correlation of predicted and true classes, from -1 to 1."
    source = f"{_SOURCE}matthews_corrcoef.html"
    columns = {"predictions": CLASS_NUMBER, "references": CLASS_NUMBER}
    yield MetricDefinition("matthews_correlation", description, source, columns, _matthews)
    columns = {"predictions": CLASS_NUMBERS, "references": CLASS_NUMBERS}
    yield MetricDefinition(
        "matthews_correlation", description, source, columns, _matthews_by_label, "multilabel", check_widths
    )
    description = "Area under the curve of true against false positives, over all thresholds."
    source = f"{_SOURCE}roc_auc_score.html"
    columns = {"references": CLASS_NUMBER, "prediction_scores": NUMBER}
    yield MetricDefinition("roc_auc", description, source, columns, _roc_auc)
    columns = {"references": CLASS_NUMBER, "prediction_scores": NUMBERS}
    yield MetricDefinition("roc_auc", description, source, columns, _roc_auc, "multiclass", check_widths)
    columns = {"references": CLASS_NUMBERS, "prediction_scores": NUMBERS}
    yield MetricDefinition("roc_auc", description, source, columns, _roc_auc, "multilabel", check_widths)


def check_widths(rows: Rows) -> None:
    """Refuse rows whose lists differ in length, within a column or between columns."""
    widths = {name: [len(row) for row in values] for name, values in rows.items() if isinstance(values[0], list)}
    expected = next(iter(widths.values()))[0]
    for name, lengths in widths.items():
        if misfits := [index for index, length in enumerate(lengths) if length != expected]:
            raise DataError(
                f"{name}: row {format_rows(misfits)} has another number of entries; "
                f"row {misfits[0]} has {lengths[misfits[0]]}.",
                f"{expected}, as in row 0.",
                "Give one entry for each label or class in every row.",
            )


def _accuracy(predictions: Any, references: Any, normalize: bool = True, sample_weight: Any = None) -> dict[str, Any]:
    from sklearn.metrics import accuracy_score

    score = accuracy_score(references, predictions, normalize=normalize, sample_weight=plain(sample_weight))
    return {"accuracy": float(score)}


def _averaged(name: str) -> Score:
    """Make the function of F1, precision or recall, which differ in scikit-learn's function only."""

    def score(
        predictions: Any,
        references: Any,
        labels: Any = None,
        pos_label: int = 1,
        average: str | None = "binary",
        sample_weight: Any = None,
        zero_division: Any = "warn",
    ) -> dict[str, Any]:
        import sklearn.metrics

        value = getattr(sklearn.metrics, f"{name}_score")(
            references,
            predictions,
            labels=plain(labels),
            pos_label=pos_label,
            average=average,
            sample_weight=plain(sample_weight),
            zero_division=zero_division,
        )
        return {name: value if getattr(value, "size", 1) > 1 else float(value)}

    return score


def _matthews(predictions: Any, references: Any, sample_weight: Any = None, average: None = None) -> dict[str, Any]:
    from sklearn.metrics import matthews_corrcoef

    if average is not None:
        raise RecipeError(
            f"average is {average!r}, but the labels are not averaged: there is one a row.",
            'average=None, or the configuration "multilabel".',
            'Leave average out, or use load("matthews_correlation", "multilabel").',
        )
    return {
        "matthews_correlation": float(matthews_corrcoef(references, predictions, sample_weight=plain(sample_weight)))
    }


def _matthews_by_label(
    predictions: Any, references: Any, sample_weight: Any = None, average: str | None = None
) -> dict[str, Any]:
    from sklearn.metrics import matthews_corrcoef

    if average not in (None, "macro"):
        raise RecipeError(f"average is {average!r}.", 'None (a list, one a label) or "macro".', 'Give average="macro".')
    pairs = zip(zip(*references, strict=True), zip(*predictions, strict=True), strict=True)
    values = [float(matthews_corrcoef(true, given, sample_weight=plain(sample_weight))) for true, given in pairs]
    return {"matthews_correlation": sum(values) / len(values) if average == "macro" else values}


def _roc_auc(
    references: Any,
    prediction_scores: Any,
    average: str | None = "macro",
    sample_weight: Any = None,
    max_fpr: float | None = None,
    multi_class: str = "raise",
    labels: Any = None,
) -> dict[str, Any]:
    from sklearn.metrics import roc_auc_score

    value = roc_auc_score(
        references,
        prediction_scores,
        average=average,
        sample_weight=plain(sample_weight),
        max_fpr=max_fpr,
        multi_class=multi_class,
        labels=plain(labels),
    )
    return {"roc_auc": value if getattr(value, "size", 1) > 1 else float(value)}
