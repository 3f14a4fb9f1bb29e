"""Count the labels of a source, as a page about data shows them.

May import layers 0 to 4. Labels are read a column at a time; texts are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headstart.data.column_kinds import read_labels
from headstart.data.labels import LabelForm, label_name, read_label_sets, read_numbers, read_probabilities
from headstart.data.lengths import count_in_bins
from headstart.display.description import Histogram, LabelClass, LabelDescription, NumberSummary

if TYPE_CHECKING:
    import datasets

__all__ = ["describe_labels", "histogram_of"]

MAX_CLASSES_KEPT: Final = 1_000
MAX_CLASSES_COUNTED: Final = 100  # more different whole numbers than this are drawn as numbers, not as classes


def describe_labels(tables: Mapping[str, datasets.Dataset], form: LabelForm) -> LabelDescription | None:
    """Count the labels of each split: classes, labels of which a row may have several, or numbers.

    Args:
        tables: the rows of each split.
        form: what the labels are, and how they are written.

    Returns:
        The counts; None where no split has labels, or where they cannot be counted.

    Example:
        >>> import datasets
        >>> table = datasets.Dataset.from_dict({"label": ["b", "a", "b", None]})
        >>> counted = describe_labels({"train": table}, LabelForm("class", ("label",)))
        >>> [(each.name, each.rows) for each in counted.classes], counted.missing
        ([('a', (1,)), ('b', (2,))], (1,))
    """
    labelled = {name: table for name, table in tables.items() if set(form.columns) <= set(table.column_names)}
    if form.kind == "class":
        return _count_classes(labelled, form)
    if form.kind == "number":
        return _describe_numbers(labelled, form)
    counts: dict[str, list[int]] = {}
    splits, missing = [], []
    per_row = None
    for name, table in labelled.items():
        if form.kind == "classes":
            sets = read_label_sets(table, form)
            values, has_label = sets.values, sets.matrix == 1
            is_known = (sets.matrix >= 0).any(axis=1)
        else:
            shares = read_probabilities(table, form)
            values = form.columns if form.writing == "columns" else tuple(range(shares.shape[1]))
            is_known = ~np.isnan(shares).any(axis=1)
            has_label = np.zeros(shares.shape, dtype=bool)
            has_label[is_known, shares[is_known].argmax(axis=1)] = True
        if name != "train" and not is_known.any():
            continue
        if per_row is None and form.kind == "classes":
            per_row = float(has_label.sum() / max(1, is_known.sum()))
        splits.append(name)
        missing.append(int((~is_known).sum()))
        for value, rows in zip(values, has_label.sum(axis=0).tolist(), strict=True):
            counts.setdefault(label_name(value), [0] * len(labelled))[len(splits) - 1] = rows
    if not splits:
        return None
    remark = "each row counts for its most probable class" if form.kind == "probabilities" else ""
    return _of_counts(form, splits, missing, counts, per_row=per_row, remark=remark)


def _count_classes(tables: Mapping[str, datasets.Dataset], form: LabelForm) -> LabelDescription | None:
    (column,) = form.columns
    values: dict[str, Any] = {}
    missing = []
    for name, table in tables.items():
        labels = read_labels(table, column)
        if pa.types.is_nested(labels.type):
            return None
        if name != "train" and (labels.null_count == len(labels) or _is_hidden(labels)):
            continue
        if pa.types.is_floating(labels.type):  # what is infinite can be neither learned nor drawn
            labels = pc.if_else(pc.is_finite(labels), labels, pa.scalar(None, labels.type))
        missing.append(labels.null_count)
        values[name] = labels.drop_null()
    if not values:
        return None
    first = next(iter(values.values()))
    if _is_number(first) and all(len(array) for array in values.values()):
        summaries = tuple(_summarise(array, name, column) for name, array in values.items())
        return LabelDescription(column, tuple(values), tuple(missing), numbers=summaries)
    counts: dict[str, list[int]] = {}
    for index, array in enumerate(values.values()):
        for entry in pc.value_counts(array).to_pylist():
            counts.setdefault(label_name(entry["values"]), [0] * len(values))[index] = entry["counts"]
    order = _in_order(counts, getattr(tables[next(iter(values))].features[column], "names", None))
    return _of_counts(form, list(values), missing, {name: counts[name] for name in order})


def _of_counts(
    form: LabelForm,
    splits: Sequence[str],
    missing: Sequence[int],
    counts: Mapping[str, Sequence[int]],
    *,
    per_row: float | None = None,
    remark: str = "",
) -> LabelDescription:
    """Keep the classes in their order, or the largest of very many."""
    kept = list(counts)
    if len(kept) > MAX_CLASSES_KEPT:
        kept = sorted(kept, key=lambda name: -sum(counts[name]))
    number = len(splits)
    classes = tuple(LabelClass(name, tuple(counts[name][:number])) for name in kept[:MAX_CLASSES_KEPT])
    others = tuple(sum(counts[name][index] for name in kept[MAX_CLASSES_KEPT:]) for index in range(number))
    column = ", ".join(form.columns)
    return LabelDescription(
        column, tuple(splits), tuple(missing), len(counts), classes, others, per_row=per_row, remark=remark
    )


def _describe_numbers(tables: Mapping[str, datasets.Dataset], form: LabelForm) -> LabelDescription | None:
    splits, missing, summaries = [], [], []
    for name, table in tables.items():
        numbers = read_numbers(table, form)
        is_known = np.isfinite(numbers).any(axis=1)
        if not is_known.any():
            continue
        splits.append(name)
        missing.append(int((~is_known).sum()))
        targets = form.columns if form.writing == "columns" else [str(index) for index in range(numbers.shape[1])]
        targets = form.columns if numbers.shape[1] == 1 else targets
        for target, column in zip(targets, numbers.T, strict=True):
            finite = column[np.isfinite(column)]
            if len(finite):
                # As they are written: a column of whole numbers, which a double may hold, has no "5.0" on the page.
                is_whole = bool((finite == np.floor(finite)).all() and np.abs(finite).max() < 2**53)
                summaries.append(_summarise(pa.array(finite.astype(np.int64) if is_whole else finite), name, target))
    if not splits:
        return None
    return LabelDescription(", ".join(form.columns), tuple(splits), tuple(missing), numbers=tuple(summaries))


def _is_hidden(labels: Any) -> bool:
    """Published test splits hide their labels with -1 in every row."""
    return bool(pa.types.is_integer(labels.type) and pc.all(pc.equal(labels, -1)).as_py())


def _is_number(labels: Any) -> bool:
    if pa.types.is_floating(labels.type) or pa.types.is_decimal(labels.type):
        return True
    return bool(pa.types.is_integer(labels.type) and pc.count_distinct(labels).as_py() > MAX_CLASSES_COUNTED)


def _summarise(labels: Any, split: str, target: str) -> NumberSummary:
    kind = np.int64 if pa.types.is_integer(labels.type) else np.float64
    values = labels.cast(pa.from_numpy_dtype(kind)).to_numpy(zero_copy_only=False)
    low, high = values.min().item(), values.max().item()
    return NumberSummary(split, target, low, values.mean().item(), np.median(values).item(), high, histogram_of(values))


def _in_order(counts: Mapping[str, Any], names: list[str] | None) -> list[str]:
    """Put classes in the order in which a training numbers them."""
    if names is not None:
        position = {name: index for index, name in enumerate(names)}
        return sorted(counts, key=lambda name: position.get(name, len(position)))
    try:
        return sorted(counts, key=int)
    except ValueError:
        return sorted(counts)


def histogram_of(values: np.ndarray) -> Histogram:
    """Put finite numbers into bins."""
    edges, counts = count_in_bins(values)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), values.dtype.kind == "i")
