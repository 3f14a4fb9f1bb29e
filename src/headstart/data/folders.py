"""Which files of a folder are which split.

Holds the rules for names; reads no content. Imports the standard library and what lies beside it in data/.

    train.csv  dev.csv  test.csv         -> one file a split (valid, val and dev mean validation)
    train-1.parquet  train-2.parquet     -> shards of one split, in the order of their numbers
    train/a.jsonl  test/a.jsonl          -> a folder a split
    reviews.csv                          -> one file without a split in its name is train
    2024-01.csv  2024-02.csv             -> several files of one format without splits are shards of train, and that is
    said
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from headstart.data.data_file import KNOWN_ENDINGS, DataFile, packing_of, strip_endings
from headstart.errors import SourceError, join_faults

__all__ = ["SPLITS", "is_data_name", "names_of", "natural_key", "no_data", "sort_tables", "split_name", "split_of"]

NEVER_DATA = (
    "readme",
    "license",
    "licence",
    "dataset_info",
)  # the last: what Hugging Face puts beside the data
SPLITS = ("train", "validation", "test")
ALIASES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def split_name(name: str) -> str | None:
    """Give the split that a name means.

    Example:
        >>> split_name("dev"), split_name("unsupervised")
        ('validation', None)
    """
    return ALIASES.get(name.lower())


def is_data_name(name: str) -> bool:
    """Say whether a file of a known format may hold rows: README and LICENSE files and their kin hold none."""
    return not name.lower().startswith(NEVER_DATA) and not name.startswith(".")


def split_of(file: DataFile) -> str | None:
    """Give the split that the name of a file holds, or else one of the folders above it.

    Raises:
        SourceError: the name holds two.
    """
    words = re.split(r"[^A-Za-z]+", strip_endings(file.inside))
    splits = {split for word in words if (split := split_name(word)) is not None}
    if len(splits) > 1:
        raise SourceError(
            f"{file.shown}: the name holds two splits ({', '.join(sorted(splits))}).",
            "One of train, validation (valid, val, dev) and test in the name.",
            "Rename the file, or move it out of the folder.",
        )
    above = (split_name(part) for part in reversed(file.inside.parts[:-1]))
    return next((split for split in above if split is not None), next(iter(splits), None))


def sort_tables(
    files: Iterable[DataFile], shown: str, *, every_file_is_meant: bool = False
) -> tuple[dict[str, list[DataFile]], list[str]]:
    """Sort the data files of a folder, an archive or a pattern into splits.

    Args:
        files: of known formats.
        shown: what messages call the place.
        every_file_is_meant: a pattern named them: none may be left out.

    Returns:
        The files of each split in reading order, and notes.

    Raises:
        SourceError: a file has two splits in its name, or one split is there in two formats.
    """
    ordered = sorted(files, key=lambda file: natural_key(file.inside))
    found: dict[str, list[DataFile]] = {}
    others: list[DataFile] = []
    for file in ordered:
        split = split_of(file)
        if split is None:
            others.append(file)
        else:
            found.setdefault(split, []).append(file)
    notes = []
    if not found:
        found, others = {"train": others}, []
        if len(ordered) > 1:
            notes = [
                f"{shown}: {len(ordered):,} files, no split in their names, are read as one table: {names_of(ordered)}"
            ]
    elif others and every_file_is_meant:
        raise SourceError(
            f"{shown}: some of the files have a split in their name, and some have none: {names_of(others)}.",
            "A split in each name, or in none.",
            "Narrow the pattern.",
        )
    elif others:
        notes = [f"{shown}: not read, because no split is in the name: {names_of(others)}"]
    found = {split: found[split] for split in SPLITS if split in found}
    _check_formats(shown, found)
    return found, notes


def natural_key(path: PurePosixPath) -> list[tuple[int, str]]:
    """Sort names by the numbers in them: part-2 before part-10.

    Example:
        >>> sorted(["b-10", "b-9"], key=lambda name: natural_key(PurePosixPath(name)))
        ['b-9', 'b-10']
    """
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def _check_formats(shown: str, found: dict[str, list[DataFile]]) -> None:
    faults = []
    for split, files in found.items():
        # Files of one table differ in nothing but their names; a folder for each format is two tables.
        endings = {(file.format, packing_of(file.inside), file.inside.parts[:-1] == ()) for file in files}
        if len(endings) > 1:
            faults.append(f"{split}: {names_of(files)}")
    if faults:
        raise SourceError(
            f"{shown}: a split is there in two forms, and which one is meant cannot be known.\n{join_faults(faults)}",
            "One format in one place for each split; several files of it are read as one.",
            "Move the other files out of the folder, or name one file instead of the folder.",
        )


def no_data(shown: str, seen: Iterable[str]) -> SourceError:
    """Make the error of a place without a data file."""
    names = list(seen)
    shown_names = ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
    return SourceError(
        f"{shown}: no data file there ({shown_names or 'it is empty'}).",
        f"Files that end in {KNOWN_ENDINGS}.",
        "Check the path.",
    )


def names_of(files: Iterable[DataFile]) -> str:
    """List the names of files, eight at most."""
    names = [file.inside.as_posix() for file in files]
    return ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
