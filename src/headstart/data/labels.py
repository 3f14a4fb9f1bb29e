"""How the labels of a table are written, and the labels as arrays.

Holds the finding of the task that labels make, and the reading of several labels a row and of numbers; one class a
row is read by `column_kinds.read_labels`. Imports numpy and pyarrow.

    table + columns of labels -> find_labels -> LabelForm -> read_label_sets  (N, K) 0, 1 or unknown
                                                          -> read_numbers     (N, K) numbers
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headstart.data.column_kinds import ColumnKind, describe_column, read_labels, sample_rows
from headstart.errors import ColumnError, LabelError, format_rows, suggest

if TYPE_CHECKING:
    import datasets
    from numpy.typing import NDArray

__all__ = [
    "LabelForm",
    "LabelSets",
    "LabelValue",
    "find_labels",
    "find_same_labels",
    "label_name",
    "order_labels",
    "read_label_sets",
    "read_numbers",
    "read_probabilities",
]

LabelValue = str | int | bool
Kind = Literal["class", "classes", "probabilities", "number"]

CLASSIFICATION, MULTI_LABEL, REGRESSION = "sequence_classification", "multi_label_classification", "regression"
_TASK_OF: dict[str, str] = {
    "class": CLASSIFICATION,
    "probabilities": CLASSIFICATION,
    "classes": MULTI_LABEL,
    "number": REGRESSION,
}
DELIMITERS = ("|", ";", ",")
MAX_CLASSES = 100  # past this, a label that is different in every second row is no class
_ROUNDING = 1e-3  # by which probabilities of a row may miss 1
_MIN_DELIMITED = 0.02  # of the cells, for a delimiter to be guessed


@dataclass(frozen=True)
class LabelForm:
    """What the labels of a table are, and how they are written.

    Args:
        kind: one "class" a row, several "classes", "probabilities" of every class, or "number"s.
        columns: where they stand; several where each class or number has a column of its own.
        writing: "value" (one a cell), "list" (of labels), "delimited" (labels in a text), "numbers" (a list of
            numbers, one for each class) or "columns" (a column for each class or number).
        delimiter: between the labels of a text.
    """

    kind: Kind
    columns: tuple[str, ...]
    writing: Literal["value", "list", "delimited", "numbers", "columns"] = "value"
    delimiter: str | None = None

    @property
    def task(self) -> str:
        """The task that learns such labels."""
        return _TASK_OF[self.kind]


@dataclass(frozen=True)
class LabelSets:
    """The labels of rows that may have several.

    Args:
        values: the labels that occur, in the order of `order_labels`, or in that of the columns.
        matrix: int8 of shape (N, K): 1 where a row has a label, 0 where it has not, -1 where that is not known.
    """

    values: tuple[LabelValue, ...]
    matrix: NDArray[np.int8]


def label_name(value: LabelValue) -> str:
    """Write a label as the model's configuration names it.

    Example:
        >>> label_name(True), label_name(3)
        ('true', '3')
    """
    return str(value).lower() if isinstance(value, bool) else str(value)


def order_labels(values: Iterable[LabelValue]) -> tuple[LabelValue, ...]:
    """Order labels without regard to rows: False before True, numbers by size, texts by alphabet.

    Texts that are all whole numbers go by size, too.

    Example:
        >>> order_labels({"10", "9"}), order_labels(["b", "a"])
        (('9', '10'), ('a', 'b'))
    """
    found = set(values)
    try:
        return tuple(sorted(found, key=int))
    except ValueError:
        return tuple(sorted(found, key=label_name))


def find_labels(
    table: datasets.Dataset, columns: Sequence[str], *, task: str | None = None, delimiter: str | None = None
) -> tuple[LabelForm, str]:
    """Find out what is learned from labels, and how they are written.

    Args:
        table: the rows for training.
        columns: the columns with the labels.
        task: name of the task that the user wants; None goes by what the columns hold.
        delimiter: between the labels of a cell; None guesses.

    Returns:
        The form, and why it is this one.

    Raises:
        ColumnError: there is no such column.
        LabelError: the labels do not fit the task, or no task.

    Example:
        >>> import datasets
        >>> find_labels(datasets.Dataset.from_dict({"label": ["a", "b", "a"]}), ["label"])[1]
        'the column "label" holds 2 classes (text)'
        >>> find_labels(datasets.Dataset.from_dict({"tags": ["a|b", "b", "a|c", "c"]}), ["tags"])[0].delimiter
        '|'
    """
    for name in columns:
        if name not in table.column_names:
            raise ColumnError(
                f'There is no column "{name}".', "The column of the labels.", suggest(name, table.column_names)
            )
    if len(columns) > 1:
        form, reason = _of_numbers(table, LabelForm("number", tuple(columns), "columns"), task)
    else:
        form, reason = _of_one_column(table, columns[0], task, delimiter)
    if task is not None and form.task != task:
        raise LabelError(
            f"task.name is {task}, but {reason}.",
            {
                CLASSIFICATION: "one class a row, or a probability for each class.",
                MULTI_LABEL: "labels in lists, in texts with a delimiter, or in columns of 0 and 1.",
                REGRESSION: "a column of numbers, or several.",
            }.get(task, ""),
            f"Name another column, or set task.name={form.task}.",
        )
    if delimiter is not None and form.writing != "delimited":
        raise LabelError(
            f"task.delimiter has no effect: {reason}.", "a column of texts with several labels each.", "Remove it."
        )
    return form, reason


def find_same_labels(table: datasets.Dataset, columns: Sequence[str], task: str, delimiter: str | None) -> LabelForm:
    """Find out how a table writes labels of a task that was learned from another table.

    Args:
        table: the rows.
        columns: the columns with the labels.
        task: its name.
        delimiter: between the labels of a text, where the task has one; lists need none.

    Raises:
        ColumnError: there is no such column.
        LabelError: the labels do not fit the task.
    """
    kind = getattr(table.features.get(columns[0]), "dtype", "list")
    if delimiter is not None and len(columns) == 1 and kind in ("string", "large_string"):
        return LabelForm("classes", tuple(columns), "delimited", delimiter)
    return find_labels(table, columns, task=task)[0]


def _of_one_column(
    table: datasets.Dataset, name: str, task: str | None, delimiter: str | None
) -> tuple[LabelForm, str]:
    kind = describe_column(table, name)
    if kind.kind == "list":
        return _of_lists(table, name, task)
    if kind.kind == "text" and task in (None, MULTI_LABEL):
        delimiter = delimiter or _guess_delimiter(read_labels(table, name), is_wanted=task is not None)
        if delimiter is not None:
            reason = f'the column "{name}" holds several labels a row, with "{delimiter}" between them'
            return LabelForm("classes", (name,), "delimited", delimiter), reason
    if task == MULTI_LABEL and kind.kind in ("text", "class", "integer"):
        return LabelForm("classes", (name,)), f'the column "{name}" holds one label a row'
    if task == REGRESSION and kind.kind in ("integer", "number", "boolean"):
        return _of_numbers(table, LabelForm("number", (name,)), task)
    return _of_values(table, name, kind)


def _of_values(table: datasets.Dataset, name: str, kind: ColumnKind) -> tuple[LabelForm, str]:
    """Tell one class a row from a number."""
    expected = "A class (text, an integer, true or false), several of them, or a number in each row."
    if kind.kind == "object":
        raise LabelError(f'The column "{name}" holds objects.', expected, "Name a column that holds the labels alone.")
    values = read_labels(table, name).drop_null()
    num_classes = len(pc.unique(values))
    if num_classes == 0:
        raise LabelError(f'The column "{name}" has no label in any row.', expected, "Name another column.")
    if pa.types.is_floating(values.type):
        return _of_numbers(table, LabelForm("number", (name,)), None)
    if kind.kind not in ("text", "class", "boolean", "integer", "number"):
        raise LabelError(f'The column "{name}" holds {kind.kind}.', expected, "Name another column.")
    if num_classes > MAX_CLASSES and num_classes > len(values) / 2:
        is_number = kind.kind in ("integer", "number")
        raise LabelError(
            f'The column "{name}" has {num_classes:,} different values in {len(values):,} rows.',
            "A class that several rows share.",
            "Name the column with the class; this one looks like an id"
            + (". Where it is a number to predict, set task.name=regression." if is_number else "."),
        )
    classes = "1 class" if num_classes == 1 else f"{num_classes:,} classes"
    kind_name = {"class": "named", "number": "whole numbers"}.get(kind.kind, kind.kind)
    return LabelForm("class", (name,)), f'the column "{name}" holds {classes} ({kind_name})'


def _of_lists(table: datasets.Dataset, name: str, task: str | None) -> tuple[LabelForm, str]:
    lists = _as_list_array(_column(sample_rows(table), name))
    type = lists.type.value_type
    if pa.types.is_nested(type):
        raise LabelError(
            f'The column "{name}" holds lists of {type}.',
            "Lists of labels or of numbers.",
            "Name a column that holds the labels alone.",
        )
    is_number = pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_boolean(type)
    if not is_number or _names_of_classes(table, name) is not None:
        return LabelForm("classes", (name,), "list"), f'the column "{name}" holds lists of labels'
    lengths = pc.unique(pc.list_value_length(lists).drop_null()).to_pylist()
    if (len(lengths) == 1 and lengths[0] > 1) or pa.types.is_floating(type) or task == REGRESSION:
        form, reason = _of_numbers(table, LabelForm("number", (name,), "numbers"), task)
        if form.kind != "number" or pa.types.is_floating(type) or task == REGRESSION:
            return form, reason
    return LabelForm("classes", (name,), "list"), f'the column "{name}" holds lists of labels'


def _of_numbers(table: datasets.Dataset, form: LabelForm, task: str | None) -> tuple[LabelForm, str]:
    """Tell what numbers mean: probabilities where a row's sum to 1, labels where all are 0 or 1, else numbers."""
    numbers = read_numbers(sample_rows(table), form)
    several = form.writing in ("columns", "numbers")
    where = f"{len(form.columns)} columns" if form.writing == "columns" else f'the column "{form.columns[0]}"'
    verb = "hold" if form.writing == "columns" else "holds"
    known = numbers[~np.isnan(numbers).any(axis=1)]
    is_binary = several and bool(((numbers == 0) | (numbers == 1) | np.isnan(numbers)).all())
    is_share = several and len(known) > 0 and _is_share(known).all()
    if not np.isfinite(numbers).any():
        raise LabelError(f"{where[0].upper()}{where[1:]} {verb} no label in any row.", "Labels.", "Name other columns.")
    width = numbers.shape[1]
    if task == MULTI_LABEL and not is_binary:
        rows = np.flatnonzero(((numbers != 0) & (numbers != 1) & ~np.isnan(numbers)).any(axis=1))
        shown = format_rows(rows.tolist())
        raise LabelError(
            f"task.name is {MULTI_LABEL}, but {where} {verb} other numbers than 0 and 1 (rows {shown}).",
            "0 or 1 for each label, lists of labels, or texts with a delimiter.",
            "Name other columns, or set task.name=regression.",
        )
    if (is_share and task is None) or (several and task == CLASSIFICATION):
        return (
            LabelForm("probabilities", form.columns, form.writing),
            f"{where} {verb} a probability for each of {width} classes",
        )
    if is_binary and task != REGRESSION:
        return LabelForm("classes", form.columns, form.writing), f"{where} {verb} 0 or 1 for each of {width} labels"
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    targets = f" for each of {width} targets" if several else ""
    return form, f"{where} {verb} numbers{targets}, from {low:g} to {high:g}"


def _is_share(numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say which rows are probabilities: none is negative, and they sum to 1."""
    shares: NDArray[np.bool_] = (numbers >= 0).all(axis=1) & (np.abs(numbers.sum(axis=1) - 1) <= _ROUNDING)
    return shares


def _guess_delimiter(labels: pa.Array, *, is_wanted: bool) -> str | None:
    """Find what stands between the labels of a cell, where cells are sets of few labels.

    Several cells hold it, they have different numbers of parts, and the parts are fewer than the different cells: a
    class such as "Washington, D.C." is not taken apart.
    """
    cells = pc.unique(labels.drop_null())
    for delimiter in DELIMITERS:
        having = pc.sum(pc.match_substring(labels, delimiter)).as_py() or 0
        if having < max(1, _MIN_DELIMITED * len(labels)):
            continue
        parts = _split(cells, delimiter)
        different = len(pc.unique(parts.flatten()))
        sizes = pc.unique(pc.list_value_length(parts))
        if is_wanted or (different < len(cells) and len(sizes) > 1 and different <= MAX_CLASSES * 10):
            return delimiter
    return None


def _split(cells: pa.Array, delimiter: str) -> pa.Array:
    """Take cells apart; white space around a label, and empty labels, are none of it."""
    parts = pc.split_pattern(cells, delimiter)
    parts = parts.combine_chunks() if isinstance(parts, pa.ChunkedArray) else parts
    values = pc.utf8_trim_whitespace(parts.flatten())
    is_label = pc.not_equal(values, "").to_numpy(zero_copy_only=False)
    rows = pc.list_parent_indices(parts).to_numpy(zero_copy_only=False)
    return _lists_of(values.filter(pa.array(is_label)), rows[is_label], len(cells))


def _lists_of(values: pa.Array, rows: NDArray[Any], num_rows: int) -> pa.Array:
    offsets = np.searchsorted(rows, np.arange(num_rows + 1)).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _column(table: datasets.Dataset, name: str) -> pa.Array:
    column = table.select_columns([name]).with_format("arrow")[:].column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _as_list_array(array: pa.Array) -> pa.Array:
    """Give lists of any kind as lists of variable length, with nothing hidden behind a null."""
    return array.cast(pa.large_list(array.type.value_type))


def _names_of_classes(table: datasets.Dataset, name: str) -> list[str] | None:
    """Give the names that a list of `ClassLabel` has for its numbers."""
    inner = getattr(table.features[name], "feature", None)
    return getattr(inner, "names", None)


def read_label_sets(table: datasets.Dataset, form: LabelForm) -> LabelSets:
    """Read the labels of rows that may have several.

    An empty cell or list is a row without any of the labels; null is a row whose labels are not known.

    Args:
        table: the rows.
        form: of the kind "classes".

    Raises:
        LabelError: a column of 0 and 1 holds something else.

    Example:
        >>> import datasets
        >>> table = datasets.Dataset.from_dict({"tags": [["b", "a"], [], None]})
        >>> sets = read_label_sets(table, LabelForm("classes", ("tags",), "list"))
        >>> sets.values, sets.matrix.tolist()
        (('a', 'b'), [[1, 1], [0, 0], [-1, -1]])
    """
    if form.writing in ("columns", "numbers"):
        return _read_indicators(table, form)
    name = form.columns[0]
    names = _names_of_classes(table, name) if form.writing == "list" else getattr(table.features[name], "names", None)
    array = _column(table, name)
    if form.writing == "list":
        lists = _as_list_array(array)
    elif form.writing == "delimited":
        lists = _split(pc.fill_null(array.cast(pa.large_string()), ""), str(form.delimiter))
    else:
        array = read_labels(table, name)
        is_there = array.is_valid().to_numpy(zero_copy_only=False)
        lists, names = _lists_of(array.drop_null(), np.flatnonzero(is_there), len(array)), None
    rows = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    flat = lists.flatten()
    encoded = flat.dictionary_encode()
    found: list[LabelValue] = [_plain(value, names) for value in encoded.dictionary.to_pylist()]
    values = tuple(names) if names is not None else order_labels(value for value in found if value is not None)
    place = {value: index for index, value in enumerate(values)}
    matrix = np.zeros((len(array), len(values)), dtype=np.int8)
    columns = np.asarray([place.get(value, -1) for value in found], dtype=np.int64)
    if len(flat):
        indices = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
        is_label = flat.is_valid().to_numpy(zero_copy_only=False) & (columns[indices] >= 0)
        matrix[rows[is_label], columns[indices[is_label]]] = 1
    matrix[array.is_null().to_numpy(zero_copy_only=False)] = -1
    return LabelSets(values, matrix)


def _plain(value: Any, names: list[str] | None) -> Any:
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _read_indicators(table: datasets.Dataset, form: LabelForm) -> LabelSets:
    numbers = read_numbers(table, form)
    is_other = (numbers != 0) & (numbers != 1) & ~np.isnan(numbers)
    if is_other.any():
        rows = format_rows(np.flatnonzero(is_other.any(axis=1)).tolist())
        raise LabelError(
            f"Rows {rows} (counted from 0) hold other numbers than 0 and 1 in {', '.join(form.columns)}.",
            "1 where a row has a label, 0 where it has not, empty where that is not known.",
            "Mend these rows, or name other columns.",
        )
    matrix = np.where(np.isnan(numbers), -1, numbers).astype(np.int8)
    values = form.columns if form.writing == "columns" else tuple(range(numbers.shape[1]))
    return LabelSets(values, matrix)


def read_numbers(table: datasets.Dataset, form: LabelForm) -> NDArray[np.float64]:
    """Read the numbers of rows; float64 of shape (N, K), NaN where there is none.

    Raises:
        LabelError: a column holds no numbers, or lists of different lengths.

    Example:
        >>> import datasets
        >>> table = datasets.Dataset.from_dict({"score": [1, None]})
        >>> read_numbers(table, LabelForm("number", ("score",))).tolist()
        [[1.0], [nan]]
    """
    if form.writing != "numbers":
        parts = [_numbers_of(table, name) for name in form.columns]
        return np.stack(parts, axis=1)
    name = form.columns[0]
    lists = _as_list_array(_column(table, name))
    lengths = pc.list_value_length(lists)
    widths = pc.unique(lengths.drop_null()).to_pylist()
    if len(widths) > 1:
        usual = pc.mode(lengths.drop_null())[0].as_py()["mode"]
        rows = np.flatnonzero(pc.fill_null(pc.not_equal(lengths, usual), False).to_numpy(zero_copy_only=False))
        raise LabelError(
            f'The column "{name}" holds lists of different lengths: {len(rows):,} rows do not have {usual} numbers '
            f"(rows {format_rows(rows.tolist())}, counted from 0).",
            "As many numbers in every row.",
            "Mend these rows; or make lists of labels instead of numbers.",
        )
    numbers = np.full((len(lists), widths[0] if widths else 1), np.nan)
    is_there = lists.is_valid().to_numpy(zero_copy_only=False)
    flat = lists.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    numbers[is_there] = flat.reshape(int(is_there.sum()), -1)
    return numbers


def _numbers_of(table: datasets.Dataset, name: str) -> NDArray[np.float64]:
    array = _column(table, name)
    type = array.type
    is_number = pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type)
    if not (is_number or pa.types.is_boolean(type) or pa.types.is_null(type)):
        raise LabelError(
            f'The column "{name}" holds {describe_column(table, name)}, no numbers.',
            "Numbers in every column of labels.",
            "Name other columns, or make numbers of these values.",
        )
    # A boolean has no way to a double but through a whole number.
    whole = array.cast(pa.int8()) if pa.types.is_boolean(type) else array
    numbers: NDArray[np.float64] = whole.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def read_probabilities(table: datasets.Dataset, form: LabelForm) -> NDArray[np.float32]:
    """Read the probabilities of every class; float32 of shape (N, K), each row sums to 1, NaN where there are none.

    Raises:
        LabelError: a row holds no probabilities.
    """
    numbers = read_numbers(table, form)
    is_there = ~np.isnan(numbers).all(axis=1)
    wrong = np.flatnonzero(is_there)[~_is_share(numbers[is_there])]
    if len(wrong):
        raise LabelError(
            f"Rows {format_rows(wrong.tolist())} (counted from 0) of {', '.join(form.columns)} are no probabilities: "
            "a number is negative, or their sum is not 1.",
            "A probability for each class, which sum to 1.",
            "Mend these rows; of logits take the softmax.",
        )
    probabilities: NDArray[np.float32] = (numbers / numbers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities
