"""Which files of a folder are which split.

Holds the rules for names; reads no content. Imports the standard library only.

    train.csv  dev.csv  test.csv         -> one file a split (valid, val and dev mean validation)
    train-1.parquet  train-2.parquet     -> shards of one split, in the order of their numbers
    train/a.jsonl  test/a.jsonl          -> a folder a split
    reviews.csv                          -> one file without a split in its name is train
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from headstart.data.files import KNOWN_ENDINGS, file_format, strip_endings
from headstart.errors import SourceError, join_faults

__all__ = ["SPLITS", "find_split_files", "split_name"]

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


def find_split_files(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Sort the data files of a folder into splits.

    README and LICENSE files, hidden files and files of other formats are no data.

    Args:
        folder: an existing folder.

    Returns:
        The files of each split in reading order, and notes about data files that are not read.

    Raises:
        SourceError: the folder has no data file, several without a split, a file with two splits in
            its name, or one split in two formats.
    """
    files = [path for path in _entries(folder) if path.is_file() and _is_data(path)]
    found: dict[str, list[Path]] = {}
    others: list[Path] = []
    for path in files:
        split = _split_of_file(path)
        if split is None:
            others.append(path)
        else:
            found.setdefault(split, []).append(path)
    for path in _entries(folder):
        split = split_name(path.name) if path.is_dir() else None
        if split is not None:
            inside = [file for file in _entries(path) if file.is_file() and _is_data(file)]
            found.setdefault(split, []).extend(inside)
    found = {split: sorted(found[split], key=_natural_key) for split in SPLITS if found.get(split)}
    if not found:
        return _without_splits(folder, others)
    _check_formats(folder, found)
    notes = [f"{folder}: not read, because no split is in the name: {_names(others)}"] if others else []
    return found, notes


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except PermissionError as error:
        raise SourceError(
            f"{folder}: no permission to list the folder.",
            "A folder that you may read.",
            "Ask its owner.",
        ) from error


def _is_data(path: Path) -> bool:
    name = path.name.lower()
    return file_format(path) is not None and not name.startswith(NEVER_DATA)


def _split_of_file(path: Path) -> str | None:
    words = re.split(r"[^A-Za-z]+", strip_endings(path))
    splits = {split for word in words if (split := split_name(word)) is not None}
    if len(splits) > 1:
        raise SourceError(
            f"{path}: the name holds two splits ({', '.join(sorted(splits))}).",
            "One of train, validation (valid, val, dev) and test in the name.",
            "Rename the file, or move it out of the folder.",
        )
    return next(iter(splits), None)


def _natural_key(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def _without_splits(folder: Path, files: list[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    if len(files) == 1:
        return {"train": files}, []
    nested = folder / "data"
    if not files and nested.is_dir():
        return find_split_files(nested)
    if files:
        raise SourceError(
            f"{folder}: {len(files):,} data files, and none has a split in its name: {_names(files)}.",
            "Names with train, validation (valid, val, dev) and test, or a single file.",
            "Rename the files, or name one file instead of the folder.",
        )
    seen = _entries(folder)
    raise SourceError(
        f"{folder}: no data file in the folder ({_names(seen) if seen else 'it is empty'}).",
        f"Files that end in {KNOWN_ENDINGS}.",
        "Check the path.",
    )


def _check_formats(folder: Path, found: dict[str, list[Path]]) -> None:
    faults = []
    for split, paths in found.items():
        endings = {(file_format(path), path.suffix.lower() == ".gz", path.parent) for path in paths}
        if len(endings) > 1:
            faults.append(f"{split}: {_names(paths)}")
    if faults:
        raise SourceError(
            f"{folder}: a split is there in two forms, and which one is meant cannot be known.\n{join_faults(faults)}",
            "One format in one place for each split; several files of it are read as one.",
            "Move the other files out of the folder, or name one file instead of the folder.",
        )


def _names(paths: Iterable[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
