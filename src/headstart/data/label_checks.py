"""What is wrong with labels: missing ones, unknown ones, one class, classes of one row, numbers that are none.

Imports numpy and pyarrow, and what lies beside it in data/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headstart.data.column_kinds import read_labels
from headstart.data.findings import FindingLog, Level, count_rows, rows_where
from headstart.data.labels import (
    LabelForm,
    LabelSets,
    find_same_labels,
    label_name,
    read_label_sets,
    read_numbers,
    read_probabilities,
)

if TYPE_CHECKING:
    import datasets
    from numpy.typing import NDArray

__all__ = ["RowLabels", "check_labels", "check_order", "read_split_labels"]


@dataclass(frozen=True)
class RowLabels:
    """The labels of a split.

    Args:
        is_missing: which rows have none, shape (N,).
        codes: equal numbers for equal labels, int64 of shape (N,).
        classes: of one class a row, its value; null where it is missing.
        sets: of several labels a row.
    """

    is_missing: NDArray[np.bool_]
    codes: NDArray[np.int64]
    classes: pa.Array | None = None
    sets: LabelSets | None = None


def read_split_labels(log: FindingLog, split: str, table: datasets.Dataset, form: LabelForm) -> RowLabels | None:
    """Read the labels of a split, and note what is missing; None where it has none and needs none.

    Args:
        log: gets the findings.
        split: its name; "train" needs labels.
        table: its rows.
        form: of the labels of train.
    """
    missing = [name for name in form.columns if name not in table.column_names]
    if missing:
        if split == "train":
            log.add("missing_label", split, [], f'there is no column "{missing[0]}" with labels', "error")
        else:
            log.add("unlabelled", split, [], f'no column "{missing[0]}": kept without labels', "info")
        return None
    if split != "train" and _has_no_label(table, form):
        log.add("unlabelled", split, [], "no row has a label: kept without labels", "info")
        return None
    labels = _read(table, form)
    log.skip("missing_label", split, labels.is_missing, "without label")
    if form.kind == "number":
        infinite = np.asarray(np.isinf(read_numbers(table, form)).any(axis=1))
        if infinite.any():
            rows = rows_where(infinite)
            log.add("infinite", split, rows, f"{count_rows(len(rows))} with a number that is not finite", "error")
    elif form.kind == "classes" and labels.sets is not None:
        _note_unlabelled_entries(log, split, labels)
    return labels


def _read(table: datasets.Dataset, form: LabelForm) -> RowLabels:
    if form.kind == "class":
        classes = read_labels(table, form.columns[0])
        return RowLabels(classes.is_null().to_numpy(zero_copy_only=False), _codes(classes), classes=classes)
    form = find_same_labels(table, form.columns, form.task, form.delimiter)
    if form.kind == "class":  # of a split beside one with probabilities
        return _read(table, form)
    if form.kind == "classes":
        sets = read_label_sets(table, form)
        packed = np.packbits(sets.matrix == 1, axis=1)
        _, codes = np.unique(packed, axis=0, return_inverse=True) if packed.size else (None, np.zeros(len(packed)))
        is_missing = np.zeros(len(sets.matrix), dtype=bool)
        if sets.values:
            is_missing = np.asarray((sets.matrix < 0).all(axis=1))
        return RowLabels(is_missing, codes.reshape(-1).astype(np.int64), sets=sets)
    numbers = read_probabilities(table, form) if form.kind == "probabilities" else read_numbers(table, form)
    is_missing = np.asarray(np.isnan(numbers).all(axis=1))
    _, codes = np.unique(np.nan_to_num(numbers), axis=0, return_inverse=True)
    return RowLabels(is_missing, codes.reshape(-1).astype(np.int64))


def _note_unlabelled_entries(log: FindingLog, split: str, labels: RowLabels) -> None:
    assert labels.sets is not None
    matrix = labels.sets.matrix
    none = rows_where(np.asarray((matrix == 0).all(axis=1)))
    if len(none):
        log.add("no_label", split, none, f"{count_rows(len(none))} with none of the labels, learned as such", "info")
    partly = rows_where(np.asarray((matrix < 0).any(axis=1)) & ~labels.is_missing)
    if len(partly):
        text = f"{count_rows(len(partly))} where some labels are not known; those are left out of loss and scores"
        log.add("unknown_entries", split, partly, text, "info")


def _has_no_label(table: datasets.Dataset, form: LabelForm) -> bool:
    """Published test splits hide their labels: null, or -1 in every row."""
    columns = [table.select_columns([name]).with_format("arrow")[:].column(name) for name in form.columns]
    if all(column.null_count == len(column) for column in columns):
        return True
    if any(pa.types.is_nested(column.type) for column in columns):
        return False
    labels = [read_labels(table, name) for name in form.columns]
    return all(
        array.null_count == len(array) or bool(pa.types.is_integer(array.type) and pc.all(pc.equal(array, -1)).as_py())
        for array in labels
    )


def check_labels(
    log: FindingLog, form: LabelForm, labels: Mapping[str, RowLabels], kept: Mapping[str, NDArray[np.int64]]
) -> None:
    """Compare the labels of the splits with those of train.

    Args:
        log: gets the findings.
        form: of the labels of train.
        labels: of each split that has some; train is among them.
        kept: the row numbers that are used, of each split.
    """
    train = labels["train"]
    if train.classes is not None:
        classes = {split: found.classes for split, found in labels.items() if found.classes is not None}
        _check_classes(log, classes, kept)
    elif train.sets is not None:
        sets = {split: found.sets for split, found in labels.items() if found.sets is not None}
        _check_sets(log, form, sets, kept)
    elif form.kind == "probabilities" and len(kept["train"]) and len(np.unique(train.codes[kept["train"]])) == 1:
        log.add("one_class", "train", [], "every row has the same probabilities", "error")


def _check_classes(log: FindingLog, labels: Mapping[str, pa.Array], kept: Mapping[str, NDArray[np.int64]]) -> None:
    used = {split: array.take(pa.array(kept[split])) for split, array in labels.items()}
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(used["train"]).to_pylist()}
    if len(counts) == 1:
        (only,) = counts
        text = f'every row has the same label "{only}"; two classes or more are needed'
        log.add("one_class", "train", [], text, "error")
    for label, count in counts.items():
        if count == 1 and len(counts) > 1:
            index = pc.index(used["train"], pa.scalar(label, used["train"].type)).as_py()
            _note_rare(log, "class", label, kept["train"][index : index + 1])
    for split, array in used.items():
        if split == "train" or not counts:
            continue
        same_kind = array.type == used["train"].type
        known = set(counts) if same_kind else {label_name(value) for value in counts}
        values = pc.unique(array).to_pylist()
        # A file of texts and one of numbers may mean the same classes: "1" and 1.
        unknown = [value for value in values if (value if same_kind else label_name(value)) not in known]
        if unknown:
            value_set = pa.array(unknown, type=array.type)
            mask = pc.is_in(array, value_set=value_set).to_numpy(zero_copy_only=False)
            _note_unknown(log, split, kept[split][mask], unknown, list(counts))
    check_order(log, _codes(used["train"]))


def _check_sets(
    log: FindingLog, form: LabelForm, sets: Mapping[str, LabelSets], kept: Mapping[str, NDArray[np.int64]]
) -> None:
    train = sets["train"]
    matrix = train.matrix[kept["train"]]
    with_label, without = (matrix == 1).sum(axis=0), (matrix == 0).sum(axis=0)
    if len(matrix) and not ((with_label > 0) & (without > 0)).any():
        log.add("one_class", "train", [], "every row has the same labels; they must differ", "error")
    for place in np.flatnonzero((with_label == 1) & (without > 0)).tolist():
        _note_rare(log, "label", train.values[place], kept["train"][matrix[:, place] == 1])
    never = [label_name(train.values[place]) for place in np.flatnonzero(with_label == 0)]
    if never and form.writing in ("columns", "numbers"):
        text = f"no row has {_label_list(never)}, which cannot be learned"
        log.add("never", "train", [], text, "warning")
    known = {label_name(value) for value in train.values}
    for split, other in sets.items():
        unknown = [place for place, value in enumerate(other.values) if label_name(value) not in known]
        if split != "train" and unknown and form.writing not in ("columns", "numbers"):
            mask = (other.matrix[kept[split]][:, unknown] == 1).any(axis=1)
            values = [other.values[place] for place in unknown]
            _note_unknown(log, split, kept[split][mask], values, list(train.values))


def _note_rare(log: FindingLog, what: str, label: object, rows: NDArray[np.int64]) -> None:
    level: Level = "error" if log.strict else "warning"
    effect = "data.strict wants two or more" if log.strict else "it is kept in train"
    log.add("rare_class", "train", rows, f'the {what} "{label}" has one row; {effect}', level)


def _note_unknown(
    log: FindingLog, split: str, rows: NDArray[np.int64], unknown: Sequence[object], known: Sequence[object]
) -> None:
    text = f"{_label_list(unknown)}, but train has only {_label_list(known)}"
    log.add("unknown_label", split, rows, text, "error")


def _label_list(labels: Sequence[object]) -> str:
    shown = ", ".join(repr(label) for label in labels[:10])
    word = "label" if len(labels) == 1 else "labels"
    return f"the {word} {shown}" + (f" and {len(labels) - 10:,} more" if len(labels) > 10 else "")


def check_order(log: FindingLog, codes: NDArray[np.int64]) -> None:
    """Say that the rows of each class lie together, which matters to whoever reads in order."""
    num_classes = len(np.unique(codes))
    changes = int(np.count_nonzero(codes[1:] != codes[:-1]))
    if num_classes > 1 and len(codes) > 2 * num_classes and changes == num_classes - 1:
        log.add("sorted", "train", [], "the rows are sorted by label; training shuffles them", "info")


def _codes(labels: pa.Array) -> NDArray[np.int64]:
    indices = labels.dictionary_encode().indices.fill_null(-1)
    return np.asarray(indices.to_numpy(zero_copy_only=False), dtype=np.int64)
