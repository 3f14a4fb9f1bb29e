"""Which data files a folder, a pattern or an archive holds.

Holds the walk; what the names mean stands in folders.py. Imports the standard library.

    folder            -> its files, those in folders of splits, and plain text up to three folders deep
    "logs/**/*.csv"   -> the files that match
    data.zip          -> its members, read in place
"""

from __future__ import annotations

import glob
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from headstart.data.data_file import DataFile, file_format, local_file
from headstart.data.folders import is_data_name, no_data, split_name
from headstart.errors import SourceError

__all__ = ["common_folder_removed", "list_archive", "list_folder", "list_pattern"]

TEXT_DEPTH = 3  # split, label, file


def list_folder(folder: Path) -> list[DataFile]:
    """List the data files of a folder and of its split folders; where none is a table, plain text below it.

    Raises:
        SourceError: the folder may not be read, or has no data file.
    """
    entries = _entries(folder)
    split_folders = [path for path in entries if path.is_dir() and split_name(path.name) is not None]
    near = [path for path in entries if path.is_file()]
    near += [path for inner in split_folders for path in _entries(inner) if path.is_file()]
    files = _data_files(near, folder)
    if any(file.format != "text" for file in files):
        return files
    deep = _data_files(_walk(folder, TEXT_DEPTH), folder)
    files = [file for file in deep if file.format == "text"]
    nested = folder / "data"
    # A folder "data" is looked into, as data sets of the hub have it.
    if nested.is_dir() and all(file.inside.parts[0] == "data" for file in files):
        return list_folder(nested)
    if not files:
        raise no_data(str(folder), [path.name for path in entries])
    return common_folder_removed(files)


def list_pattern(pattern: str) -> tuple[list[DataFile], list[str]]:
    """List the data files that match a pattern with *, ? and **.

    Returns:
        The files, placed below the folder before the first wildcard; and notes about matches that are no data.

    Raises:
        SourceError: nothing matches.
    """
    parts = Path(pattern).parts
    fixed = list(parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))])
    root = Path(*fixed) if fixed else Path()
    matches = [Path(path) for path in glob.glob(pattern, recursive=True)]
    matched = [path for path in matches if path.is_file()]
    files = _data_files(matched, root)
    if not files:
        near = sorted(path.name for path in root.iterdir())[:8] if root.is_dir() else []
        raise SourceError(
            f"{pattern}: no data file matches.",
            "A pattern such as logs/*.jsonl or data/**/*.csv.",
            f"Check the pattern; {root} holds {', '.join(near)}." if near else f"Check the pattern; {root} is empty.",
        )
    taken = {file.inside for file in files}
    others = [path.name for path in matched if PurePosixPath(path.relative_to(root).as_posix()) not in taken]
    names = ", ".join(others[:8]) + (" ..." if len(others) > 8 else "")
    return files, [f"{pattern}: not read, because they are no data files: {names}"] if others else []


def list_archive(path: Path, shown: str, inside: PurePosixPath | None = None) -> list[DataFile]:
    """List the data files of a zip archive.

    Args:
        path: of the archive on this machine.
        shown: what messages call it.
        inside: the place of the archive itself, where it is one of several files: it then holds one data file.

    Raises:
        SourceError: it is no zip archive, or has no data file, or several where one is expected.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise SourceError(
            f"{shown}: cannot be unpacked ({str(error).rstrip('.')}).",
            "A whole zip archive, as the ending .zip says.",
            "Check that the file was copied to its end.",
        ) from error
    # Nothing is written to the paths that an archive names; folders that it hides (__MACOSX) hold no data.
    kept = [name for name in names if _is_data(PurePosixPath(name)) and "__MACOSX" not in PurePosixPath(name).parts]
    files = [
        DataFile(PurePosixPath(name.lstrip("/")), f"{shown}: {name}", lambda: path, member=name)
        for name in sorted(kept)
    ]
    if not files:
        raise no_data(shown, names)
    if inside is None:
        return common_folder_removed(files)
    if len(files) > 1:
        raise SourceError(
            f"{shown}: {len(files):,} data files in an archive beside other files.",
            "One data file in each archive of a folder, or one archive that is named itself.",
            "Unpack it, or name it alone.",
        )
    (file,) = files
    place = (
        inside.with_name(f"{inside.stem}-{file.name}")
        if file.name not in inside.stem
        else inside.with_name(inside.stem)
    )
    return [DataFile(place, file.shown, file.locate, file.member)]


def common_folder_removed(files: list[DataFile]) -> list[DataFile]:
    """Take off the folder that all files lie in, where folders below it say more."""
    while True:
        first = files[0].inside.parts[0]
        deep = all(len(file.inside.parts) > 1 and file.inside.parts[0] == first for file in files)
        says_label = all(len(file.inside.parts) == 2 for file in files)
        if not deep or split_name(first) is not None or (says_label and files[0].format == "text"):
            return files
        files = [
            DataFile(PurePosixPath(*file.inside.parts[1:]), file.shown, file.locate, file.member) for file in files
        ]


def _is_data(path: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and is_data_name(path.name) and file_format(path) is not None


def _data_files(paths: Iterable[Path], root: Path) -> list[DataFile]:
    files: list[DataFile] = []
    for path in paths:
        inside = PurePosixPath(path.relative_to(root).as_posix())
        if path.suffix.lower() == ".zip" and is_data_name(path.name):
            files += list_archive(path, str(path), inside)
        elif _is_data(inside):
            files.append(local_file(path, inside))
    return files


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except PermissionError as error:
        raise SourceError(
            f"{folder}: no permission to list the folder.",
            "A folder that you may read.",
            "Ask its owner.",
        ) from error


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        level = len(Path(root).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if level < depth - 1 else []
        yield from (Path(root) / name for name in names)
