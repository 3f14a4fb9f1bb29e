"""Checkpoints: written whole or not at all, verified when read.

May import layers 0 and 1. A checkpoint is a folder inside the run folder:

    checkpoints/step-000500/
        model.safetensors        parameters and buffers by name
        optimizer.safetensors    "PARAMETER/KEY" -> tensor, see `optimizer_state.py`
        state.json               everything else
        manifest.json            size and SHA-256 of the other three; written last

It is written as `.step-000500.tmp` and renamed when all of it is on the disk. Never pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from headstart.errors import CheckpointError
from headstart.runlog import CHECKPOINTS_DIR, sync_folder
from headstart.training.optimizer_state import optimizer_from_tensors, optimizer_to_tensors

__all__ = [
    "LoadedCheckpoint",
    "load_checkpoint",
    "newest_checkpoint",
    "optimizer_from_tensors",
    "optimizer_to_tensors",
    "prune_checkpoints",
    "save_checkpoint",
]

_VERSION = "checkpoint.v1"
_MODEL_FILE = "model.safetensors"
_OPTIMIZER_FILE = "optimizer.safetensors"
_STATE_FILE = "state.json"
_MANIFEST_FILE = "manifest.json"
_FILES = (_MODEL_FILE, _OPTIMIZER_FILE, _STATE_FILE)

# "step-000500"; ".replaced" is one that a newer one of the same step is about to replace.
_FOLDER = re.compile(r"step-(\d{6,})(\.replaced)?")
_HIDDEN_PREFIX = ".step-"
_MARGIN_BYTES = 2**20  # headers, JSON and the folder itself


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What a checkpoint holds.

    Args:
        step: updates made when it was written.
        model: parameters and buffers by name, on the CPU; tied ones under each of their names.
        optimizer: what `optimizer_to_tensors` gave, on the CPU.
        state: what the caller of `save_checkpoint` gave.
        path: its folder.
    """

    step: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]
    path: Path


def save_checkpoint(
    run_dir: Path | str,
    step: int,
    *,
    model: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
) -> Path:
    """Write a checkpoint, whole or not at all.

    A kill or an error at any moment leaves the older checkpoints as they were, and the new one is
    there whole or not there. One of the same step is replaced. The caller holds the folder's lock.

    Args:
        run_dir: the run folder.
        step: updates made so far.
        model: the model's `state_dict()`, on any device.
        optimizer: what `optimizer_to_tensors` gave.
        state: dicts with text keys, lists, text, numbers, true, false and None, nested at will;
            tuples come back as lists, NaN and infinities as they are.

    Returns:
        The checkpoint's folder, `run_dir/checkpoints/step-000500`.

    Raises:
        CheckpointError: it could not be written (no room, no permission), and is not there.
        TypeError: `state` holds something that JSON cannot.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     weights = {"weight": torch.ones(2)}
        ...     path = save_checkpoint(folder, 500, model=weights, optimizer={}, state={"epoch": 1})
        ...     loaded = load_checkpoint(path)
        >>> path.name, loaded.model["weight"].tolist(), loaded.state
        ('step-000500', [1.0, 1.0], {'epoch': 1})
    """
    root = Path(run_dir) / CHECKPOINTS_DIR
    final = root / f"step-{step:06d}"
    temporary = root / f".{final.name}.tmp"
    model_tensors, shared = _separate_shared(model)
    optimizer_tensors, shared_moments = _separate_shared(optimizer)
    document = {
        "version": _VERSION,
        "step": step,
        "shared": {_MODEL_FILE: shared, _OPTIMIZER_FILE: shared_moments},
        "state": _to_json(state),
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    num_bytes = sum(tensor.nbytes for tensors in (model_tensors, optimizer_tensors) for tensor in tensors.values())
    try:
        if not root.is_dir():
            root.mkdir(parents=True)
            sync_folder(root.parent)
        if temporary.exists():
            shutil.rmtree(temporary)  # of a killed process
        _check_room(root, final.name, num_bytes + len(text) + _MARGIN_BYTES)
        try:
            _write_folder(temporary, step, model_tensors, optimizer_tensors, text)
            _put_in_place(temporary, final)
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
    return final


def load_checkpoint(path: Path | str) -> LoadedCheckpoint:
    """Read a checkpoint, and verify every byte of it.

    Args:
        path: the checkpoint's folder.

    Raises:
        CheckpointError: a file is missing or is not what was written (the message names it).
    """
    path = Path(path)
    _verify(path)
    try:
        document = json.loads((path / _STATE_FILE).read_bytes())
        tensors = {}
        for name in (_MODEL_FILE, _OPTIMIZER_FILE):
            tensors[name] = load_file(path / name)
            for alias, original in document["shared"][name].items():
                tensors[name][alias] = tensors[name][original]
        step, state = document["step"], _from_json(document["state"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _broken(path, f"it cannot be read ({error})") from error
    return LoadedCheckpoint(step, tensors[_MODEL_FILE], tensors[_OPTIMIZER_FILE], state, path)


def newest_checkpoint(run_dir: Path) -> tuple[LoadedCheckpoint | None, list[str]]:
    """Load the newest checkpoint that is whole.

    Args:
        run_dir: the run folder.

    Returns:
        The checkpoint, or None where no whole one is there; and a sentence about each broken one
        that was passed over.
    """
    messages: list[str] = []
    for path in _newest_first(run_dir / CHECKPOINTS_DIR):
        try:
            return load_checkpoint(path), messages
        except CheckpointError as error:
            messages.append(f"{error.found} It was passed over.")
    return None, messages


def prune_checkpoints(run_dir: Path, keep: int, best_step: int | None = None) -> list[str]:
    """Remove what is no longer needed: all but the newest whole checkpoints and the best one.

    The newest are verified first, so that a broken one never stands in for a whole one. What a
    killed process left half written goes too. Nothing is raised: what cannot be removed costs space
    only.

    Args:
        run_dir: the run folder; the caller holds its lock.
        keep: number of the newest whole checkpoints that stay, at least 1.
        best_step: step of the best evaluation; its checkpoint stays too.

    Returns:
        A sentence about each folder that could not be removed.
    """
    root = run_dir / CHECKPOINTS_DIR
    kept: set[Path] = set()
    num_whole = 0
    for path in _newest_first(root):
        step, is_replaced = _parse_name(path)
        if is_replaced and path.with_suffix("") in kept:
            continue
        if num_whole < max(1, keep) and _is_whole(path):
            num_whole += 1
            kept.add(path)
        elif step == best_step or not _can_be_read(path):
            kept.add(path)
    if not num_whole:
        return []  # whatever may be left is the user's to mend
    messages = []
    for path in sorted(root.iterdir()):
        is_leftover = path.name.startswith(_HIDDEN_PREFIX)
        if is_leftover or (_FOLDER.fullmatch(path.name) and path not in kept):
            try:
                _discard(path)
            except OSError as error:
                messages.append(f"{path} could not be removed: {error.strerror or error}.")
    return messages


def _separate_shared(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Store a tied tensor once: give the tensors to write, and alias -> name it is tied to."""
    separate: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    ends: dict[tuple[object, int], list[tuple[int, int]]] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if end > start:
            key = (tensor.device, start, tensor.dtype, tensor.shape, tensor.stride())
            if key in first:
                shared[name] = first[key]
                continue
            first[key] = name
            spans = ends.setdefault((tensor.device, tensor.untyped_storage().data_ptr()), [])
            if any(start < other_end and other_start < end for other_start, other_end in spans):
                tensor = tensor.clone()  # another view of the same bytes: safetensors wants its own
            spans.append((start, end))
        separate[name] = tensor
    return separate, shared


def _check_room(root: Path, name: str, num_bytes: int) -> None:
    free = shutil.disk_usage(root).free
    if free < num_bytes:
        raise CheckpointError(
            f"{root / name} was not written: {_megabytes(free)} are free on the disk.",
            f"{_megabytes(num_bytes)} for a checkpoint.",
            "Free some space; older checkpoints are as they were.",
        )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _write_folder(
    folder: Path,
    step: int,
    model: dict[str, torch.Tensor],
    optimizer: dict[str, torch.Tensor],
    state: str,
) -> None:
    folder.mkdir()
    for name, tensors in ((_MODEL_FILE, model), (_OPTIMIZER_FILE, optimizer)):
        save_file(
            {key: tensor.cpu().contiguous() for key, tensor in tensors.items()},
            folder / name,
            {"format": "pt"},
        )
    (folder / _STATE_FILE).write_text(state, encoding="utf-8")
    files = {name: _measure(folder / name, sync=True) for name in _FILES}
    manifest = {"version": _VERSION, "step": step, "files": files}
    with (folder / _MANIFEST_FILE).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def _measure(path: Path, *, sync: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _put_in_place(temporary: Path, final: Path) -> None:
    """Give the finished folder its name. From then on it counts: nothing after it may fail."""
    replaced = final.with_name(f"{final.name}.replaced")
    if final.exists():
        # A kill may have left both: the one that is whole must stay until the new one is in place.
        if replaced.exists():
            _discard(replaced if _is_whole(final) else final)
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
            _discard(replaced)


def _discard(folder: Path) -> None:
    """Remove a checkpoint; a kill in between leaves a hidden folder, not a broken checkpoint."""
    if folder.name.startswith(_HIDDEN_PREFIX):
        shutil.rmtree(folder)
        return
    hidden = folder.with_name(f".{folder.name}.removed")
    if hidden.exists():
        shutil.rmtree(hidden)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _parse_name(path: Path) -> tuple[int, bool]:
    match = _FOLDER.fullmatch(path.name)
    if match is None:
        raise ValueError(path.name)
    return int(match[1]), match[2] is not None


def _newest_first(root: Path) -> list[Path]:
    """List the checkpoints by step; of one step, the one being replaced comes last."""
    if not root.is_dir():
        return []
    paths = [path for path in root.iterdir() if _FOLDER.fullmatch(path.name)]

    def order(path: Path) -> tuple[int, bool]:
        step, is_replaced = _parse_name(path)
        return (-step, is_replaced)

    return sorted(paths, key=order)


def _can_be_read(path: Path) -> bool:
    """Say whether every file that is there can be opened: else nothing is known of the checkpoint, and it stays."""
    for name in (*_FILES, _MANIFEST_FILE):
        try:
            with (path / name).open("rb"):
                pass
        except (FileNotFoundError, IsADirectoryError):
            continue
        except OSError:
            return False
    return True


def _is_whole(path: Path) -> bool:
    try:
        _verify(path)
    except CheckpointError:
        return False
    return True


def _verify(path: Path) -> None:
    """Compare each file with the manifest, sizes first."""
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no checkpoint is there.",
            "a folder such as checkpoints/step-000500.",
            "Check the path.",
        )
    try:
        manifest = json.loads((path / _MANIFEST_FILE).read_bytes())
        version, step, files = manifest["version"], manifest["step"], manifest["files"]
        expected = {name: (int(files[name]["bytes"]), files[name]["sha256"]) for name in _FILES}
    except FileNotFoundError as error:
        raise _broken(path, f"{_MANIFEST_FILE} is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(path, f"{_MANIFEST_FILE} cannot be read ({error!r})") from error
    if version != _VERSION:
        raise CheckpointError(f"{path} is of version {version!r}.", f"{_VERSION}.", "Use the headstart that wrote it.")
    for name, (num_bytes, sha256) in expected.items():
        try:
            found = (path / name).stat().st_size
            if found != num_bytes:
                raise _broken(path, f"{name} has {found:,} bytes, its manifest says {num_bytes:,}")
            if _measure(path / name)["sha256"] != sha256:
                raise _broken(path, f"the content of {name} has changed (SHA-256)")
        except FileNotFoundError as error:
            raise _broken(path, f"{name} is missing") from error
        except OSError as error:
            raise _broken(path, f"{name} cannot be read ({error.strerror or error})") from error
    try:
        state_step = json.loads((path / _STATE_FILE).read_bytes())["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(path, f"{_STATE_FILE} cannot be read ({error!r})") from error
    match = _FOLDER.fullmatch(path.name)
    if step != state_step or (match is not None and int(match[1]) != step):
        raise _broken(path, f"its manifest says step {step}, its state step {state_step}")


def _broken(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is broken: {what}.",
        "a checkpoint as it was written.",
        "Copy it again, or use an older one.",
    )


def _to_json(value: object) -> Any:
    """Make strict JSON; the floats that it does not know become {"$float": "nan"}."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(value)}
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        if list(value) == ["$float"]:
            raise TypeError('The state of a checkpoint holds {"$float": ...}, which in its JSON is NaN or an infinity.')
        return {key: _to_json(item) for key, item in value.items()}
    raise TypeError(f"The state of a checkpoint holds a {type(value).__name__}: {value!r:.100}. JSON has none.")


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if isinstance(value, dict):
        if list(value) == ["$float"]:
            return float(value["$float"])
        return {key: _from_json(item) for key, item in value.items()}
    return value
