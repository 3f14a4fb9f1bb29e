"""Read the JSON files of a run folder, and write its files whole or not at all.

Layer 0; imports the standard library and `errors`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.errors import CheckpointError

__all__ = ["read_json", "sync_files", "write_json", "write_text"]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that training wrote.

    Raises:
        CheckpointError: it is missing or broken.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}.", "a JSON file as training wrote it.", "Copy the run folder again."
        ) from error
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file; numbers that JSON does not know are an error."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file through a temporary one, synced before it takes the name."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_files(*paths: Path) -> None:
    """Put files that somebody else has written on the disk."""
    for path in paths:
        file_descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file_descriptor)
        finally:
            os.close(file_descriptor)
