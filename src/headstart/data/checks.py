"""What is wrong with the data, before anything is trained on it.

Holds the checks of rows, labels and splits. Imports numpy and
pyarrow.

    tables + columns -> rows to keep of each split + findings; what forbids training is one error

Row numbers count from 0 in the table. A message never quotes a text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headstart.data.columns import Columns, read_labels
from headstart.data.validation_cut import cut_validation
from headstart.errors import DataError, LabelError, format_rows

if TYPE_CHECKING:
    import datasets
    from numpy.typing import NDArray

    from headstart.data.tokens import Tokens

__all__ = ["Finding", "check_rows", "check_truncation", "cut_validation"]

MAX_ROWS_KEPT = 1_000
MAX_BAD_FRACTION = 0.01  # of the rows: up to here rows without text or label are skipped
CHUNK_ROWS = 10_000
Level = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """Something about the data that the user should know.

    Args:
        kind: its name, such as "missing_text", "duplicates" or "leakage".
        split: the split it was found in.
        count: how many rows (or classes) it is about.
        rows: their row numbers counted from 0, at most the first 1,000.
        message: one sentence.
        level: "info", "warning", or "error" where it forbids training.
    """

    kind: str
    split: str
    count: int
    rows: list[int]
    message: str
    level: Level


@dataclass
class _Check:
    """What the checks of one call share."""

    columns: Columns
    strict: bool
    findings: list[Finding] = field(default_factory=list)

    def add(
        self,
        kind: str,
        split: str,
        rows: NDArray[np.int64] | Sequence[int],
        text: str,
        level: Level,
    ) -> None:
        numbers = [int(row) for row in rows[:MAX_ROWS_KEPT]]
        where = f" (rows {_first(numbers, len(rows))}, counted from 0)" if numbers else ""
        message = f"{split}: {text}{where}"
        self.findings.append(Finding(kind, split, len(rows), numbers, message, level))


def _first(rows: Sequence[int], total: int) -> str:
    shown = format_rows(list(rows[:5]))
    return shown if total <= 5 else f"{shown} and {total - 5:,} more"


def _rows_of(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.flatnonzero(mask).astype(np.int64)


def _count(number: int) -> str:
    return "1 row" if number == 1 else f"{number:,} rows"


def check_rows(
    tables: Mapping[str, datasets.Dataset], columns: Columns, *, strict: bool = False
) -> tuple[dict[str, NDArray[np.int64]], list[Finding]]:
    """Check the rows of all splits and say which can be used.

    Rows without text (or without a label where labels are needed) are skipped up to 1 % of a split
    and are an error above. Texts that are empty, duplicates and rows that occur in two splits are
    kept and counted.

    Args:
        tables: the table of each split; the labels of "train" decide which classes there are.
        columns: the columns of the roles.
        strict: make every skipped row and every class with one row an error, and more than 1 % of
            empty texts, duplicates or shared rows.

    Returns:
        For each split the row numbers to keep (int64, ascending), and the findings in the order of
        the splits.

    Raises:
        LabelError: only labels are at fault: one class, a class unknown to train, missing ones.
        DataError: rows cannot be used; all faults stand in one message.

    Example:
        >>> import datasets
        >>> table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]})
        >>> rows, findings = check_rows({"train": table}, Columns("text", None, "label", {}))
        >>> rows["train"].tolist(), [finding.kind for finding in findings]
        ([0, 1, 2], ['rare_class'])
    """
    check = _Check(columns, strict)
    kept: dict[str, NDArray[np.int64]] = {}
    labels: dict[str, pa.Array] = {}
    for split, table in tables.items():
        keep = _check_texts(check, split, table)
        split_labels = _check_labels(check, split, table)
        if split_labels is not None:
            labels[split] = split_labels
            keep &= split_labels.is_valid().to_numpy(zero_copy_only=False)
        kept[split] = _rows_of(keep)
        if len(kept[split]) == 0 and not any(f.level == "error" and f.split == split for f in check.findings):
            check.add("no_rows", split, [], "no row is left that can be used", "error")
    if "train" in labels:
        _check_classes(check, labels, kept)
    _check_copies(check, tables, labels, kept)
    _raise_errors(check.findings, strict=strict)
    return kept, check.findings


def check_truncation(splits: Mapping[str, tuple[NDArray[np.int64], Tokens]], *, strict: bool = False) -> list[Finding]:
    """Find the rows that are longer than the limit, and count what they lose.

    Args:
        splits: for each split the row numbers in its table, shape (N,), and the tokens of those rows.
        strict: make it an error where more than 1 % of a split's rows are cut.

    Raises:
        DataError: `strict`, and too many rows are cut.
    """
    findings = []
    for split, (rows, tokens) in splits.items():
        if not tokens.num_truncated:
            continue
        full_lengths, lengths = np.asarray(tokens.full_lengths), np.asarray(tokens.lengths)
        cut = rows[full_lengths > lengths]
        level = _level(strict, len(cut), len(rows))
        lost = f"{tokens.num_lost_tokens:,} tokens ({tokens.num_lost_tokens / int(full_lengths.sum()):.1%})"
        message = (
            f"{split}: {len(cut):,} of {len(rows):,} rows are longer than the limit of {int(lengths.max()):,} tokens "
            f"and lose {lost}"
        )
        findings.append(Finding("truncated", split, len(cut), cut[:MAX_ROWS_KEPT].tolist(), message, level))
    errors = [finding.message for finding in findings if finding.level == "error"]
    if errors:
        raise DataError(
            "Too many rows are cut for data.strict.\n" + "\n".join(f"- {message}" for message in errors),
            "at most 1 % of the rows of each split.",
            "Raise data.max_length, choose a model for longer texts, shorten the rows, or set data.strict=false.",
        )
    return findings


def _check_texts(check: _Check, split: str, table: datasets.Dataset) -> NDArray[np.bool_]:
    """Find rows without text, and empty texts; return which rows have all their texts."""
    keep = np.ones(table.num_rows, dtype=bool)
    empty = np.zeros(table.num_rows, dtype=bool)
    names = [name for name in (check.columns.text, check.columns.pair) if name is not None]
    for name in names:
        if name not in table.column_names:
            available = ", ".join(table.column_names)
            check.add("no_column", split, [], f'there is no column "{name}", only {available}', "error")
            return keep
        kind = str(table.features[name].dtype) if hasattr(table.features[name], "dtype") else "list"
        if kind not in ("string", "large_string", "null"):
            check.add("no_text", split, [], f'the column "{name}" holds {kind}, not text', "error")
            return keep
    start = 0
    for chunk in table.select_columns(names).with_format("arrow").iter(batch_size=CHUNK_ROWS):
        rows = slice(start, start + chunk.num_rows)
        start += chunk.num_rows
        for name in names:
            column = chunk.column(name).cast(pa.large_string())
            keep[rows] &= column.is_valid().to_numpy()
            blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), False)
            empty[rows] |= blank.to_numpy()
    _skip(check, "missing_text", split, ~keep, "without text")
    blank_rows = _rows_of(empty & keep)
    if len(blank_rows):
        level = _level(check.strict, len(blank_rows), table.num_rows)
        text = f"{_count(len(blank_rows))} with empty text {_verb(level, 'kept')}"
        check.add("empty_text", split, blank_rows, text, level)
    return keep


def _level(strict: bool, count: int, total: int) -> Level:
    """Say how grave something kept and counted is: an error if strict and past 1 %."""
    return "error" if strict and count > MAX_BAD_FRACTION * total else "warning"


def _verb(level: Level, verb: str) -> str:
    return verb if level != "error" else "more than data.strict allows (1 %)"


def _skip(check: _Check, kind: str, split: str, bad: NDArray[np.bool_], what: str) -> None:
    rows = _rows_of(bad)
    if not len(rows):
        return
    fraction = len(rows) / len(bad)
    if check.strict or fraction > MAX_BAD_FRACTION:
        limit = "none is allowed with data.strict" if check.strict else "at most 1 % may be skipped"
        text = f"{_count(len(rows))} {what}, {fraction:.1%} of the split; {limit}"
        check.add(kind, split, rows, text, "error")
    else:
        check.add(kind, split, rows, f"{_count(len(rows))} {what} skipped", "warning")


def _check_labels(check: _Check, split: str, table: datasets.Dataset) -> pa.Array | None:
    """Read the labels of a split; None where it has none and needs none."""
    name = check.columns.label
    if name is None:
        return None
    if name not in table.column_names:
        if split == "train":
            check.add("missing_label", split, [], f'there is no column "{name}" with labels', "error")
        else:
            check.add("unlabelled", split, [], f'no column "{name}": kept without labels', "info")
        return None
    labels = read_labels(table, name)
    if split != "train" and _has_no_label(labels):
        check.add("unlabelled", split, [], "no row has a label: kept without labels", "info")
        return None
    _skip(
        check,
        "missing_label",
        split,
        labels.is_null().to_numpy(zero_copy_only=False),
        "without label",
    )
    return labels


def _has_no_label(labels: pa.Array) -> bool:
    """Published test splits hide their labels: null, or -1 in every row."""
    if labels.null_count == len(labels):
        return True
    return bool(pa.types.is_integer(labels.type) and pc.all(pc.equal(labels, -1)).as_py())


def _check_classes(check: _Check, labels: Mapping[str, pa.Array], kept: Mapping[str, NDArray[np.int64]]) -> None:
    used = {split: array.take(pa.array(kept[split])) for split, array in labels.items()}
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(used["train"]).to_pylist()}
    if len(counts) == 1:
        (only,) = counts
        text = f'every row has the same label "{only}"; two classes or more are needed'
        check.add("one_class", "train", [], text, "error")
    for label, count in counts.items():
        if count == 1 and len(counts) > 1:
            index = pc.index(used["train"], pa.scalar(label, used["train"].type)).as_py()
            level: Level = "error" if check.strict else "warning"
            effect = "data.strict wants two or more" if check.strict else "it is kept in train"
            text = f'the class "{label}" has one row; {effect}'
            check.add("rare_class", "train", kept["train"][index : index + 1], text, level)
    for split, array in used.items():
        if split == "train" or not counts:
            continue
        same_kind = array.type == used["train"].type
        known = set(counts) if same_kind else {_name(value) for value in counts}
        values = pc.unique(array).to_pylist()
        unknown = [value for value in values if (value if same_kind else _name(value)) not in known]
        if unknown:
            value_set = pa.array(unknown, type=array.type)
            mask = pc.is_in(array, value_set=value_set).to_numpy(zero_copy_only=False)
            text = f"{_label_list(unknown)}, but train has only {_label_list(list(counts))}"
            check.add("unknown_label", split, kept[split][mask], text, "error")
    _check_order(check, used["train"])


def _name(label: object) -> str:
    # A file of texts and one of numbers may mean the same classes: "1" and 1.
    return str(label).lower() if isinstance(label, bool) else str(label)


def _label_list(labels: Sequence[object]) -> str:
    shown = ", ".join(repr(label) for label in labels[:10])
    word = "label" if len(labels) == 1 else "labels"
    return f"the {word} {shown}" + (f" and {len(labels) - 10:,} more" if len(labels) > 10 else "")


def _check_order(check: _Check, labels: pa.Array) -> None:
    """Say that the rows of each class lie together, which matters to whoever reads in order."""
    codes = _codes(labels)
    num_classes = len(np.unique(codes))
    changes = int(np.count_nonzero(codes[1:] != codes[:-1]))
    if num_classes > 1 and len(codes) > 2 * num_classes and changes == num_classes - 1:
        check.add("sorted", "train", [], "the rows are sorted by label; training shuffles them", "info")


def _codes(labels: pa.Array) -> NDArray[np.int64]:
    indices = labels.dictionary_encode().indices
    return np.asarray(indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def _check_copies(
    check: _Check,
    tables: Mapping[str, datasets.Dataset],
    labels: Mapping[str, pa.Array],
    kept: Mapping[str, NDArray[np.int64]],
) -> None:
    """Count rows that repeat an earlier row of train, also in other splits."""
    if any(finding.kind in ("no_column", "no_text") for finding in check.findings):
        return
    hashes = {split: _hash_rows(table, check.columns)[kept[split]] for split, table in tables.items()}
    train = hashes.get("train")
    if train is None or not len(train):
        return
    _, first, inverse = np.unique(train, return_index=True, return_inverse=True)
    repeats = first[inverse] != np.arange(len(train))
    rows = kept["train"][repeats]
    if len(rows):
        level = _level(check.strict, len(rows), len(train))
        text = f"{_count(len(rows))} with the same text as an earlier row {_verb(level, 'kept')}"
        check.add("duplicates", "train", rows, text, level)
        if "train" in labels:
            codes = _codes(labels["train"].take(pa.array(kept["train"])))
            rows = kept["train"][codes != codes[first[inverse]]]
            if len(rows):
                text = f"{_count(len(rows))} with the same text as an earlier row and another label"
                check.add("conflicting_labels", "train", rows, text, "warning")
    for split, values in hashes.items():
        rows = kept[split][np.isin(values, train)] if split != "train" else kept[split][:0]
        if len(rows):
            level = _level(check.strict, len(rows), len(values))
            effect = _verb(level, "the scores may be too good")
            check.add("leakage", split, rows, f"{_count(len(rows))} with a text of train: {effect}", level)
    _check_leak_between_held_out(check, hashes, kept)


def _check_leak_between_held_out(
    check: _Check, hashes: Mapping[str, NDArray[np.uint64]], kept: Mapping[str, NDArray[np.int64]]
) -> None:
    if "validation" in hashes and "test" in hashes:
        rows = kept["test"][np.isin(hashes["test"], hashes["validation"])]
        if len(rows):
            text = f"{_count(len(rows))} with a text of validation"
            check.add("leakage_validation", "test", rows, text, "warning")


def _hash_rows(table: datasets.Dataset, columns: Columns) -> NDArray[np.uint64]:
    """Hash the texts of each row, without the white space around them; shape (num_rows,).

    64 bits: among a million different rows two agree by chance with probability 3e-8.
    """
    names = [name for name in (columns.text, columns.pair) if name is not None]
    digests = bytearray()
    for chunk in table.select_columns(names).with_format("arrow").iter(batch_size=CHUNK_ROWS):
        for texts in zip(*(chunk.column(name).to_pylist() for name in names), strict=True):
            row = "\0".join((text or "").strip() for text in texts)
            digests += hashlib.blake2b(row.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.frombuffer(bytes(digests), dtype=np.uint64)


def _raise_errors(findings: Sequence[Finding], *, strict: bool) -> None:
    errors = [finding for finding in findings if finding.level == "error"]
    if not errors:
        return
    label_kinds = {"missing_label", "one_class", "unknown_label"}
    kind: Any = LabelError if {finding.kind for finding in errors} <= label_kinds else DataError
    lines = "\n".join(f"- {finding.message}" for finding in errors)
    raise kind(
        f"The data cannot be used as it is.\n{lines}",
        "A text in every row, a label in every row of train, and no label that train does not have"
        + ("; what else data.strict wants stands above." if strict else "."),
        "Mend or remove these rows, or name other columns (data.columns.text, data.columns.label)"
        + ("; or set data.strict=false." if strict else "."),
    )
