"""What is wrong with the data, before anything is trained on it.

Holds the checks of texts and of copies; those of labels are in label_checks.py. Imports numpy and pyarrow.

    tables + columns -> rows to keep of each split + findings; what forbids training is one error

Row numbers count from 0 in the table. A message never quotes a text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headstart.data.columns import Columns
from headstart.data.findings import MAX_ROWS_KEPT, Finding, FindingLog, Level, count_rows, level_of, rows_where
from headstart.data.label_checks import RowLabels, check_labels, read_split_labels
from headstart.data.labels import LabelForm
from headstart.data.row_splits import cut_validation
from headstart.errors import DataError, LabelError

if TYPE_CHECKING:
    import datasets
    from numpy.typing import NDArray

    from headstart.data.tokens import Tokens

__all__ = ["Finding", "check_rows", "check_truncation", "cut_validation", "examine_rows"]

CHUNK_ROWS = 10_000


def check_rows(
    tables: Mapping[str, datasets.Dataset],
    columns: Columns,
    form: LabelForm | None = None,
    *,
    strict: bool = False,
) -> tuple[dict[str, NDArray[np.int64]], list[Finding]]:
    """Check the rows of all splits and say which can be used.

    Rows without text (or without a label where labels are needed) are skipped up to 1 % of a split
    and are an error above. Texts that are empty, duplicates and rows that occur in two splits are
    kept and counted.

    Args:
        tables: the table of each split; the labels of "train" decide which classes there are.
        columns: the columns of the roles.
        form: of the labels; None takes them for one class a row.
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
    kept, findings = examine_rows(tables, columns, form, strict=strict)
    _raise_errors(findings, strict=strict)
    return kept, findings


def examine_rows(
    tables: Mapping[str, datasets.Dataset],
    columns: Columns,
    form: LabelForm | None = None,
    *,
    strict: bool = False,
) -> tuple[dict[str, NDArray[np.int64]], list[Finding]]:
    """Check the rows as `check_rows` does, and give what forbids training as findings of the level "error"."""
    log = FindingLog(strict)
    kept: dict[str, NDArray[np.int64]] = {}
    labels: dict[str, RowLabels] = {}
    if form is None and columns.label is not None:
        form = LabelForm("class", columns.label_columns)
    for split, table in tables.items():
        keep = _check_texts(log, split, table, columns)
        split_labels = read_split_labels(log, split, table, form) if form is not None else None
        if split_labels is not None:
            labels[split] = split_labels
            keep &= ~split_labels.is_missing
        kept[split] = rows_where(keep)
        if len(kept[split]) == 0 and not any(f.level == "error" and f.split == split for f in log.findings):
            log.add("no_rows", split, [], "no row is left that can be used", "error")
    if "train" in labels and form is not None:
        check_labels(log, form, labels, kept)
    _check_copies(log, tables, columns, labels, kept)
    return kept, log.findings


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
        level = level_of(strict, len(cut), len(rows))
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


def _check_texts(log: FindingLog, split: str, table: datasets.Dataset, columns: Columns) -> NDArray[np.bool_]:
    """Find rows without text, and empty texts; return which rows have all their texts."""
    keep = np.ones(table.num_rows, dtype=bool)
    empty = np.zeros(table.num_rows, dtype=bool)
    names = [name for name in (columns.text, columns.pair) if name is not None]
    for name in names:
        if name not in table.column_names:
            available = ", ".join(table.column_names)
            log.add("no_column", split, [], f'there is no column "{name}", only {available}', "error")
            return keep
        kind = str(table.features[name].dtype) if hasattr(table.features[name], "dtype") else "list"
        if kind not in ("string", "large_string", "null"):
            log.add("no_text", split, [], f'the column "{name}" holds {kind}, not text', "error")
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
    log.skip("missing_text", split, ~keep, "without text")
    blank_rows = rows_where(empty & keep)
    if len(blank_rows):
        level = level_of(log.strict, len(blank_rows), table.num_rows)
        text = f"{count_rows(len(blank_rows))} with empty text {_verb(level, 'kept')}"
        log.add("empty_text", split, blank_rows, text, level)
    return keep


def _verb(level: Level, verb: str) -> str:
    return verb if level != "error" else "more than data.strict allows (1 %)"


def _check_copies(
    log: FindingLog,
    tables: Mapping[str, datasets.Dataset],
    columns: Columns,
    labels: Mapping[str, RowLabels],
    kept: Mapping[str, NDArray[np.int64]],
) -> None:
    """Count rows that repeat an earlier row of train, also in other splits."""
    if any(finding.kind in ("no_column", "no_text") for finding in log.findings):
        return
    hashes = {split: _hash_rows(table, columns)[kept[split]] for split, table in tables.items()}
    train = hashes.get("train")
    if train is None or not len(train):
        return
    _, first, inverse = np.unique(train, return_index=True, return_inverse=True)
    repeats = first[inverse] != np.arange(len(train))
    rows = kept["train"][repeats]
    if len(rows):
        level = level_of(log.strict, len(rows), len(train))
        text = f"{count_rows(len(rows))} with the same text as an earlier row {_verb(level, 'kept')}"
        log.add("duplicates", "train", rows, text, level)
        if "train" in labels:
            codes = labels["train"].codes[kept["train"]]
            rows = kept["train"][codes != codes[first[inverse]]]
            if len(rows):
                text = f"{count_rows(len(rows))} with the same text as an earlier row and another label"
                log.add("conflicting_labels", "train", rows, text, "warning")
    for split, values in hashes.items():
        rows = kept[split][np.isin(values, train)] if split != "train" else kept[split][:0]
        if len(rows):
            level = level_of(log.strict, len(rows), len(values))
            effect = _verb(level, "the scores may be too good")
            log.add("leakage", split, rows, f"{count_rows(len(rows))} with a text of train: {effect}", level)
    _check_leak_between_held_out(log, hashes, kept)


def _check_leak_between_held_out(
    log: FindingLog, hashes: Mapping[str, NDArray[np.uint64]], kept: Mapping[str, NDArray[np.int64]]
) -> None:
    if "validation" in hashes and "test" in hashes:
        rows = kept["test"][np.isin(hashes["test"], hashes["validation"])]
        if len(rows):
            text = f"{count_rows(len(rows))} with a text of validation"
            log.add("leakage_validation", "test", rows, text, "warning")


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
    label_kinds = {"missing_label", "one_class", "unknown_label", "infinite"}
    kind: Any = LabelError if {finding.kind for finding in errors} <= label_kinds else DataError
    lines = "\n".join(f"- {finding.message}" for finding in errors)
    raise kind(
        f"The data cannot be used as it is.\n{lines}",
        "A text in every row, a label in every row of train, and no label that train does not have"
        + ("; what else data.strict wants stands above." if strict else "."),
        "Mend or remove these rows, or name other columns (data.columns.text, data.columns.label)"
        + ("; or set data.strict=false." if strict else "."),
    )
