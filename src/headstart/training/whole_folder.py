"""Folders that are there whole or not at all, and verified when read.

May import layers 0 and 1. A folder is written as `.NAME.tmp` and renamed when all of it is on the disk:

    NAME/
        ...              whatever its writer puts there, in folders below it too
        manifest.json    size and SHA-256 of all the others; written last
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError

from headstart.errors import CheckpointError
from headstart.runlog import sync_folder

__all__ = ["MANIFEST_FILE", "broken_folder", "discard_folder", "verify_whole_folder", "write_whole_folder"]

MANIFEST_FILE: Final = "manifest.json"


def write_whole_folder(
    final: Path,
    fill: Callable[[Path], None],
    *,
    version: str,
    step: int,
    num_bytes: int,
    is_whole: Callable[[Path], bool],
) -> None:
    """Write a folder, whole or not at all; one of the same name is replaced.

    A kill or an error at any moment leaves what was there as it was, and the new folder is there whole or not there.

    Args:
        final: the folder.
        fill: writes its files into the folder that it is given.
        version: names the kind of folder in its manifest.
        step: updates made so far; stands in the manifest.
        num_bytes: what the files will need at most; looked for before anything is written.
        is_whole: says whether a folder that has the name already is worth keeping until then.

    Raises:
        CheckpointError: it could not be written (no room, no permission), and is not there.
    """
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        if not final.parent.is_dir():
            final.parent.mkdir(parents=True)
            sync_folder(final.parent.parent)
        if temporary.exists():
            shutil.rmtree(temporary)  # of a killed process
        _check_room(final, num_bytes)
        try:
            temporary.mkdir()
            fill(temporary)
            _seal(temporary, version, step)
            _put_in_place(temporary, final, is_whole)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(
            f"{final} could not be written: {reason}.",
            f"{_megabytes(num_bytes)} of free space in a folder that you may write to.",
            "Free some space or mend the folder; older checkpoints are as they were.",
        ) from error


def verify_whole_folder(path: Path, *, version: str, needed: Sequence[str]) -> int:
    """Compare each file of a folder with its manifest, sizes first.

    Args:
        path: the folder.
        version: the kind of folder that is expected.
        needed: files that it cannot be without.

    Returns:
        The step that stands in the manifest.

    Raises:
        CheckpointError: a file is missing or is not what was written (the message names it).
    """
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no checkpoint is there.",
            "a folder such as checkpoints/step-000500.",
            "Check the path.",
        )
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_bytes())
        found_version, step, files = manifest["version"], manifest["step"], manifest["files"]
        expected = {name: (int(entry["bytes"]), entry["sha256"]) for name, entry in files.items()}
        lost = [name for name in needed if name not in expected]
    except FileNotFoundError as error:
        raise broken_folder(path, f"{MANIFEST_FILE} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken_folder(path, f"{MANIFEST_FILE} cannot be read ({error!r})") from error
    if found_version != version:
        message = f"{path} is of version {found_version!r}."
        raise CheckpointError(message, f"{version}.", "Use the headstart that wrote it.")
    if lost:
        raise broken_folder(path, f"{MANIFEST_FILE} cannot be read (it does not name {lost[0]})")
    for name, (num_bytes, sha256) in expected.items():
        try:
            found = (path / name).stat().st_size
            if found != num_bytes:
                raise broken_folder(path, f"{name} has {found:,} bytes, its manifest says {num_bytes:,}")
            if _measure(path / name)["sha256"] != sha256:
                raise broken_folder(path, f"the content of {name} has changed (SHA-256)")
        except FileNotFoundError as error:
            raise broken_folder(path, f"{name} is missing") from error
        except OSError as error:
            raise broken_folder(path, f"{name} cannot be read ({error.strerror or error})") from error
    return int(step)


def discard_folder(folder: Path) -> None:
    """Remove a folder; a kill in between leaves a hidden one, not a broken one of its name."""
    if folder.name.startswith("."):
        shutil.rmtree(folder)
        return
    hidden = folder.with_name(f".{folder.name}.removed")
    if hidden.exists():
        shutil.rmtree(hidden)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def broken_folder(path: Path, what: str) -> CheckpointError:
    """Make the error that says what is wrong with a checkpoint."""
    return CheckpointError(
        f"{path} is broken: {what}.",
        "a checkpoint as it was written.",
        "Copy it again, or use an older one.",
    )


def _check_room(final: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(final.parent).free
    if free < num_bytes:
        raise CheckpointError(
            f"{final} was not written: {_megabytes(free)} are free on the disk.",
            f"{_megabytes(num_bytes)} for a checkpoint.",
            "Free some space; older checkpoints are as they were.",
        )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _seal(folder: Path, version: str, step: int) -> None:
    """Put everything on the disk, and write the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): _measure(path, sync=True) for path in paths}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
    with (folder / MANIFEST_FILE).open("w", encoding="utf-8") as file:
        json.dump({"version": version, "step": step, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def _measure(path: Path, *, sync: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _put_in_place(temporary: Path, final: Path, is_whole: Callable[[Path], bool]) -> None:
    """Give the finished folder its name. From then on it counts: nothing after it may fail."""
    replaced = final.with_name(f"{final.name}.replaced")
    if final.exists():
        # A kill may have left both: the one that is whole must stay until the new one is in place.
        if replaced.exists():
            discard_folder(replaced if is_whole(final) else final)
        if final.exists():
            final.rename(replaced)
    try:
        temporary.rename(final)
    except BaseException:
        if replaced.exists() and not final.exists():
            replaced.rename(final)
        raise
    with contextlib.suppress(OSError):
        sync_folder(final.parent)
        if replaced.exists():
            discard_folder(replaced)
