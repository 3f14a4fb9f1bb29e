"""Scores of named entities and other spans in tagged tokens. seqeval does the arithmetic; imported inside functions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Final

from headstart.errors import DataError, HeadstartWarning, RecipeError, format_rows, suggest
from headstart.evaluate.columns import TEXTS
from headstart.evaluate.definition import MetricDefinition, Rows
from headstart.evaluate.faults import import_optional

__all__ = ["tagging_metrics"]

_SCHEMES: Final = ("IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU")


def tagging_metrics() -> Iterator[MetricDefinition]:
    """Give seqeval."""
    columns = {"predictions": TEXTS, "references": TEXTS}
    text = "Precision, recall and F1 of spans, a type each and overall, and the accuracy of the tags."
    source = "Nakayama 2018, seqeval, https://github.com/chakki-works/seqeval"
    yield MetricDefinition("seqeval", text, source, columns, _seqeval, check=_check_lengths)


def _check_lengths(rows: Rows) -> None:
    pairs = list(zip(rows["predictions"], rows["references"], strict=True))
    if misfits := [index for index, (given, right) in enumerate(pairs) if len(given) != len(right)]:
        given, right = pairs[misfits[0]]
        raise DataError(
            f"row {format_rows(misfits)}: predictions and references differ in length; "
            f"row {misfits[0]} has {len(given)} and {len(right)} tags.",
            "one predicted tag for each tag of the row.",
            "Leave out the same positions (padding, special tokens: label -100) in both.",
        )


def _seqeval(
    predictions: list[list[str]],
    references: list[list[str]],
    suffix: bool = False,
    scheme: str | None = None,
    mode: str | None = None,
    sample_weight: Any = None,
    zero_division: Any = "warn",
) -> dict[str, Any]:
    metrics = import_optional("seqeval.metrics", "seqeval")
    _check_options(scheme, mode, sample_weight)
    with warnings.catch_warnings():
        # Of no spans at all seqeval takes a mean, the macro average, which is not given here.
        warnings.filterwarnings("ignore", "Mean of empty slice|invalid value", RuntimeWarning)
        report: dict[str, dict[str, Any]] = metrics.classification_report(
            references,
            predictions,
            output_dict=True,
            suffix=suffix,
            scheme=None if scheme is None else getattr(import_optional("seqeval.scheme", "seqeval"), scheme),
            mode=mode,
            zero_division=zero_division,
        )
    overall = report.pop("micro avg")
    scores: dict[str, Any] = {
        span_type: {
            "precision": float(values["precision"]),
            "recall": float(values["recall"]),
            "f1": float(values["f1-score"]),
            "number": int(values["support"]),
        }
        for span_type, values in report.items()
        if span_type not in ("macro avg", "weighted avg")
    }
    scores["overall_precision"] = float(overall["precision"])
    scores["overall_recall"] = float(overall["recall"])
    scores["overall_f1"] = float(overall["f1-score"])
    scores["overall_accuracy"] = float(metrics.accuracy_score(references, predictions))
    return scores


def _check_options(scheme: str | None, mode: str | None, sample_weight: Any) -> None:
    if scheme is not None and scheme not in _SCHEMES:
        raise RecipeError(f"scheme is {scheme!r}.", "a tagging scheme.", suggest(str(scheme), _SCHEMES))
    if mode not in (None, "strict"):
        raise RecipeError(
            f"mode is {mode!r}.", 'None (spans as conlleval finds them) or "strict".', 'Give mode="strict", or none.'
        )
    if scheme is not None and mode is None:
        warnings.warn(
            f'seqeval: scheme="{scheme}" has no effect without mode="strict": spans are found as conlleval does.',
            HeadstartWarning,
            stacklevel=2,
        )
    if sample_weight is not None:
        warnings.warn(
            "seqeval: sample_weight has no effect: seqeval weighs rows in none of the scores given here.",
            HeadstartWarning,
            stacklevel=2,
        )
