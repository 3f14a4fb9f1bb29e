"""Folders of plain text whose places say the labels.

Holds the rules, and the reading of many small files as one table. Imports what lies beside it in data/.

    pos/1.txt  neg/2.txt                    -> a row a file, the label is the folder
    train/pos/1.txt  test/neg/2.txt         -> the same with splits (aclImdb)
    pos.txt  neg.txt  (train/pos.txt ...)   -> a row a line, the label is the name of the file
    train.txt  test.txt, part-1.txt ...     -> a row a line, without labels
"""

from __future__ import annotations

import collections
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headstart.data.data_file import DataFile, strip_endings
from headstart.data.files import FileText, ReadFile, guarded, text_of
from headstart.data.folders import SPLITS, names_of, natural_key, split_name, split_of
from headstart.data.plain_text import TextPart, read_parts
from headstart.data.table_cache import cache_key, load_table, store_table
from headstart.errors import SourceError, join_faults
from headstart.read_options import ReadOptions

__all__ = ["TextLayout", "find_layout", "read_labelled_texts"]

# Folders of texts that nobody has labelled, in data sets that people know (aclImdb's train/unsup).
UNLABELLED = ("unsup", "unsupervised", "unlabeled", "unlabelled")
MAX_LABEL_FILES = 100
READER_VERSION = 1


@dataclass(frozen=True)
class TextLayout:
    """What the places of text files say.

    Args:
        labelled: the files of each split with their labels, in reading order.
        row_a_file: a file is a row; else a line is.
        notes: what was decided.
    """

    labelled: dict[str, list[tuple[DataFile, str]]]
    row_a_file: bool
    notes: list[str]


def find_layout(files: Sequence[DataFile], shown: str) -> TextLayout | None:
    """Say how a folder of text files is read.

    Args:
        files: text files only.
        shown: what messages call the folder.

    Returns:
        The labels; None where the files are lines without labels.

    Raises:
        SourceError: it cannot be known whether a file is a text, a label or a part.
    """
    ordered = sorted(files, key=lambda file: natural_key(file.inside))
    places = [(file, *_place(file)) for file in ordered]
    in_folders = [(file, split, folders[0]) for file, split, folders in places if len(folders) == 1]
    if in_folders:
        return _row_a_file(ordered, in_folders, shown)
    if any(folders for _, _, folders in places):
        raise SourceError(
            f"{shown}: text files lie more than one folder below their label: {names_of(ordered)}.",
            "LABEL/FILE.txt, or SPLIT/LABEL/FILE.txt.",
            "Name the folder that holds the labels or the splits.",
        )
    splits = collections.defaultdict(list)
    for file, split, _ in places:
        splits[split].append(file)
    if all(len(group) == 1 for group in splits.values()) or all(
        split_of(file) and not _place(file)[0] for file in ordered
    ):
        return None
    shards = {re.sub(r"\d+", "", strip_endings(file.inside)) for file in ordered}
    if len(shards) == 1:
        return None
    return _row_a_line(splits, shown)


def _place(file: DataFile) -> tuple[str | None, tuple[str, ...]]:
    """Give the split that the first folder means, and the folders below it."""
    folders = file.inside.parts[:-1]
    split = split_name(folders[0]) if folders else None
    return split, folders[1:] if split is not None else folders


def _row_a_file(files: Sequence[DataFile], found: list[tuple[DataFile, str | None, str]], shown: str) -> TextLayout:
    has_splits = any(split is not None for _, split, _ in found)
    labelled: dict[str, list[tuple[DataFile, str]]] = {}
    unlabelled = 0
    taken = set()
    for file, split, label in found:
        if label.lower() in UNLABELLED:
            unlabelled += 1
            taken.add(file)
        elif (split is not None) == has_splits:
            labelled.setdefault(split or "train", []).append((file, label))
            taken.add(file)
    others = [file for file in files if file not in taken]
    labels = sorted({label for group in labelled.values() for _, label in group})
    notes = [f"{shown}: a row a file, the label is its folder: {_listed(labels)}"]
    if unlabelled:
        notes.append(f"{shown}: not read, because the folder's name says that they have no label: {unlabelled:,} files")
    if others:
        notes.append(f"{shown}: not read, because they are in no folder of a label: {names_of(others)}")
    return TextLayout({split: labelled[split] for split in SPLITS if split in labelled}, True, notes)


def _row_a_line(splits: Mapping[str | None, list[DataFile]], shown: str) -> TextLayout:
    files = [file for group in splits.values() for file in group]
    stems = [strip_endings(file.inside) for group in splits.values() for file in group]
    bare = [re.sub(r"[\W\d_]+", "", stem) for group in splits.values() for stem in map(_stem, group)]
    distinct = all(len({re.sub(r"\d+", "", _stem(file)) for file in group}) == len(group) for group in splits.values())
    if (None in splits and len(splits) > 1) or not distinct or not all(bare) or len(set(stems)) > MAX_LABEL_FILES:
        raise _ambiguous(files, shown, "the names differ in numbers alone, or there are many")
    short = [file for file in files if guarded(file, lambda file=file: _num_lines(file)) < 2]  # type: ignore[misc]
    if short:
        raise _ambiguous(files, shown, f"{names_of(short)} has a single line")
    labelled = {
        split: [(file, _stem(file)) for file in splits[key]]
        for split in SPLITS
        for key in splits
        if (key or "train") == split
    }
    return TextLayout(
        labelled, False, [f"{shown}: a row a line, the label is the name of the file: {_listed(sorted(set(stems)))}"]
    )


def _stem(file: DataFile) -> str:
    return strip_endings(file.inside)


def _num_lines(file: DataFile) -> int:
    with file.open() as opened:
        return sum(1 for line in opened if line.strip())


def _ambiguous(files: Sequence[DataFile], shown: str, reason: str) -> SourceError:
    return SourceError(
        f"{shown}: {len(files):,} text files without a folder for each label ({names_of(files)}), and it "
        f"cannot be known whether a file is one text, one label or a part of the lines: {reason}.",
        "LABEL/FILE.txt (a row a file), LABEL.txt with a row a line, or one file with a row a line.",
        "Put each file into a folder named after its label, or name one file.",
    )


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:8]) + (f" and {len(labels) - 8:,} more" if len(labels) > 8 else "")


def read_labelled_texts(layout: TextLayout, shown: str, options: ReadOptions) -> dict[str, ReadFile]:
    """Read the files of each split into one table.

    Raises:
        SourceError: files cannot be read as text; the message lists them.
    """
    return {
        split: _read_split(files, layout.row_a_file, f"{shown}, {split}", options)
        for split, files in layout.labelled.items()
    }


def _read_split(files: Sequence[tuple[DataFile, str]], row_a_file: bool, shown: str, options: ReadOptions) -> ReadFile:
    parts: list[TextPart] = []
    contents: list[object] = []
    texts: list[FileText] = []
    faults: list[SourceError] = []
    for file, label in files:
        try:
            text = guarded(file, lambda file=file: text_of(file, options, may_be_empty=row_a_file))  # type: ignore[misc]
        except SourceError as error:
            faults.append(error)
            continue
        texts.append(text)
        name = file.inside.as_posix()
        parts.append(TextPart(name, label, text.open_file))
        contents.append([name, label, text.digest, text.encoding])
    if len(faults) > 1:
        lines = join_faults([fault.found for fault in faults])
        raise SourceError(f"{shown}: {len(faults):,} files cannot be read.\n{lines}", faults[0].expected, faults[0].fix)
    if faults:
        raise faults[0]
    digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    key = cache_key(digest, {"format": "texts", "row_a_file": row_a_file, "version": READER_VERSION})
    found = load_table(key)
    if found is None:
        stream = read_parts(parts, row_a_file=row_a_file)
        found = store_table(key, stream.schema, stream.batches, stream.notes)
    table, notes = found
    applied = frozenset(name for text in texts for name in text.applied)
    encodings = collections.Counter(text.encoding for text in texts if text.encoding != "utf-8")
    how = "as data.encoding says" if applied else "guessed, or said by the byte order mark"
    said = [f"{shown}: {count:,} of {len(files):,} files read as {name} ({how})" for name, count in encodings.items()]
    return ReadFile(table, [*said, *notes], applied)
